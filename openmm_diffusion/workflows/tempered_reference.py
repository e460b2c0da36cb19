"""What `simulate` left, as a reference: torsions and weights in the order of walkers, times and temperatures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.mixing import in_basin_r
from ..analysis.switching import CORE_R
from ..errors import InputFileError, TrajectoryError
from ..molecule import BackboneTorsions
from .job_settings import SimulateSettings
from .prepare import read_weights
from .prepare_se3 import read_topology
from .settings import read_yaml
from .systems import TEMPERATURE, MolecularSystem
from .trajectories import read_chunks

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TemperedReference:
    """Frames of all replicas with the weights that make them an ensemble at one temperature.

    Attributes
    ----------
    settings
        Those of `simulate`.
    tau
        [walkers, times, temperatures, T] torsions, rad.
    weights
        [walkers, times, temperatures], sum one.
    positions
        [walkers, times, temperatures, atoms, 3] nm, float32.
    """

    settings: SimulateSettings
    tau: Array
    weights: Array
    positions: NDArray[np.float32]

    @property
    def md_steps(self) -> int:
        """Steps of dynamics of all replicas and walkers, equilibration included."""
        s = self.settings
        return s.walkers * s.n_replicas * s.n_iterations * s.steps_per_iteration

    def ratio(self, observable: Array) -> tuple[Array, Array]:
        """Numerators [walkers, times] and denominators [walkers, times] of the average of an observable of all frames.

        An observable with features [walkers, times, temperatures, features] gives numerators with these.
        """
        numerators = np.einsum("wtk,wtk...->wt...", self.weights, observable)
        return numerators, self.weights.sum(-1)

    def mean(self, observable: Array) -> Any:
        """Weighted average of an observable [walkers, times, temperatures, ...]."""
        return np.einsum("wtk,wtk...->...", self.weights, observable)

    def starts_in_r(self, column: int, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """n frames [n, atoms, 3] (nm) with the torsion of a column in the core of R, drawn by their weights.

        None of them [0, atoms, 3] where no frame is there.
        """
        phi = self.tau[..., column].ravel()
        share = np.where((phi > CORE_R[0]) & (phi < CORE_R[1]), self.weights.ravel(), 0.0)
        positions = self.positions.reshape(-1, *self.positions.shape[-2:])
        if share.sum() == 0.0:
            return positions[:0].astype(np.float64)
        return positions[rng.choice(len(share), size=n, p=share / share.sum())].astype(np.float64)

    def share_of_r(self, column: int) -> float:
        """Population of R of the phi in a column."""
        return float(self.mean(in_basin_r(self.tau[..., column]).astype(np.float64)))


def read_reference(folder: Path, molecule: MolecularSystem, torsions: BackboneTorsions) -> TemperedReference:
    """Read a finished folder of `openmm-diffusion simulate`.

    Raises
    ------
    InputFileError
        The folder is not that of a finished simulation.
    TrajectoryError
        It is one of another molecule or temperature, or its files do not belong together.
    """
    import mdtraj

    if not (folder / "simulation.json").is_file():
        raise InputFileError(
            f"{folder} holds no finished simulation; expected the output folder of 'openmm-diffusion simulate'"
        )
    settings = SimulateSettings.build({**read_yaml(folder / "settings.yaml"), "output": folder})
    kelvin = float(TEMPERATURE._value)
    if settings.temperature != kelvin:
        raise TrajectoryError(f"{folder} has weights at {settings.temperature:g} K; expected {kelvin:g} K")
    topology = read_topology(folder / "topology.pdb")
    if _atoms(topology) != _atoms(mdtraj.Topology.from_openmm(molecule.topology)):
        simulated = json.loads((folder / "simulation.json").read_text(encoding="utf-8")).get("system")
        raise TrajectoryError(f"{folder} is a simulation of {simulated}; expected one of {molecule.name}")
    parts = [chunk.xyz for chunk in read_chunks(folder / "trajectory.dcd", topology)]
    positions = np.concatenate(parts)
    tau = np.concatenate([torsions.get(part.astype(np.float64)) for part in parts])
    weights = read_weights(folder / "weights.npz")
    with np.load(folder / "weights.npz") as file:
        temperature, walker = file["temperature_index"], file["walker"]
    shape = (settings.n_replicas, settings.walkers, -1)
    grid = np.lexsort((walker, temperature))  # stable: the times of each walker at each temperature stay in order
    in_order = bool((grid == np.arange(len(grid))).all())
    if not in_order or len(tau) != len(weights) or len(grid) != len(tau) or len(tau) % (shape[0] * shape[1]):
        raise TrajectoryError(
            f"{folder} has {len(tau)} frames and {len(weights)} weights of {shape[0]} temperatures and {shape[1]} "
            "walkers; expected one weight a frame, equally many of each, as 'simulate' writes them"
        )

    def arranged(values: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(values.reshape(*shape, *values.shape[1:]), 0, 2)

    return TemperedReference(settings, arranged(tau), arranged(weights / weights.sum()), arranged(positions))


def _atoms(topology: Any) -> list[tuple[str, str]]:
    """Residue and element of every atom: names of hydrogens depend on who reads them."""
    return [(atom.residue.name, atom.element.symbol) for atom in topology.atoms]
