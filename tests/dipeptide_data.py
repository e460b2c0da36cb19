"""Alanine dipeptide with known phi and psi as a trajectory with weights, as `simulate` would leave it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peptides import ALANINE

from openmm_diffusion.molecule import BackboneTorsions, load, write_pdb
from openmm_diffusion.workflows.output import write_trajectory
from openmm_diffusion.workflows.prepare_se3 import PreparedSE3, PrepareSE3Settings, prepare_se3

SIMULATE = "openmm-diffusion simulate --output md"


def torsions(n_frames: int, seed: int = 0) -> NDArray[np.float64]:
    """phi and psi [n, 2] of two basins; the rare one has a tenth of the frames."""
    rng = np.random.default_rng(seed)
    rare = np.arange(n_frames) % 10 == 0
    centres = np.where(rare[:, None], [1.0, 0.7], [-1.4, 2.4])
    return np.asarray(centres + rng.normal(scale=0.25, size=(n_frames, 2)))


def simulated(folder: Path, tau: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> Path:
    """The files of a simulation with these phi and psi (rad), everything else as in one structure."""
    folder.mkdir(parents=True, exist_ok=True)
    molecule = load(ALANINE)
    moved = BackboneTorsions(molecule.topology, ("phi", "psi"))
    frames = moved.set(np.repeat(molecule.positions[None], len(tau), 0), tau)
    write_pdb(folder / "topology.pdb", molecule.topology, molecule.positions[None])
    write_trajectory(folder / "trajectory.dcd", molecule.topology, frames)
    np.savez(folder / "weights.npz", weights=np.ones(len(tau)) if weights is None else weights)
    (folder / "simulation.json").write_text(json.dumps({"command": SIMULATE, "frames": len(tau)}))
    return folder


def prepared_dipeptide(folder: Path, n_frames: int = 100, **settings: Any) -> PreparedSE3:
    """Prepared with caps and weights in `folder`/data, of a simulation in `folder`/md."""
    tau = settings.pop("tau", torsions(n_frames))
    md = simulated(folder / "md", tau, settings.pop("frame_weights", None))
    values: dict[str, Any] = {
        "trajectory": [md / "trajectory.dcd"],
        "topology": md / "topology.pdb",
        "weights": [md / "weights.npz"],
        "caps": True,
        "dtype": "float32",
        "output": folder / "data",
        "name": "ala",
    }
    return prepare_se3(PrepareSE3Settings.build(values | settings), progress=False)
