"""A hybrid chain: one diffusion move, some Langevin dynamics, over and over; resumed bit for bit on Reference."""

import json
import logging
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from tqdm.auto import tqdm

from ..errors import InputFileError, OutputError, SettingError
from ..mcmc import DiffusionMove
from ..mcmc.move_state import proposal_state
from ..molecule import BackboneTorsions
from ..molecule.quantities import in_nanometers
from .output import replacing
from .systems import TEMPERATURE, TIMESTEP, MolecularSystem

logger = logging.getLogger(__name__)
BLOCK = 500  # iterations between two checkpoints

# One value an iteration.
_COLUMNS = (
    "accepted",
    "log_alpha",
    "u_present",
    "u_candidate",
    "log_q_present",
    "log_q_candidate",
    "n_invalid",
    "seconds_network",
    "seconds_energy",
    "seconds_move",
    "seconds_md",
)


@dataclass
class Series:
    """What a chain recorded, an entry for each iteration.

    `tau_before`, `tau_after` and `tau_end` are phi and psi before the move, after it, and after the dynamics;
    `positions` those at the end.
    """

    columns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    tau_before: list[NDArray[np.float64]] = field(default_factory=list)
    tau_after: list[NDArray[np.float64]] = field(default_factory=list)
    tau_end: list[NDArray[np.float64]] = field(default_factory=list)
    positions: list[NDArray[np.float32]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tau_end)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays."""
        result: dict[str, NDArray[Any]] = {
            name: np.array(values, dtype=np.float64) for name, values in self.columns.items()
        }
        for name in ("tau_before", "tau_after", "tau_end", "positions"):
            result[name] = np.array(getattr(self, name))
        return result

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "Series":
        """The series that gave `arrays`."""
        columns = {name: arrays[name].tolist() for name in _COLUMNS}
        return cls(columns, *(list(arrays[name]) for name in ("tau_before", "tau_after", "tau_end", "positions")))


class HybridChain:
    """Alternates a `DiffusionMove` and openmmtools' `LangevinDynamicsMove` on one system.

    Parameters
    ----------
    molecule
        System, topology and starting positions.
    move
        The move, with its seed.
    platform
        OpenMM platform of both.
    md_steps
        Langevin steps (4 fs) after every move.
    seed
        Seed of the dynamics. Every block of iterations starts its integrator with a seed derived from it, so that a
        chain resumed from a checkpoint goes on with the same random numbers as one that was never stopped.
    temperature
        Quantity, of move and dynamics.
    """

    def __init__(
        self,
        molecule: MolecularSystem,
        move: DiffusionMove,
        platform: openmm.Platform,
        *,
        md_steps: int = 250,
        seed: int = 0,
        temperature: Any = TEMPERATURE,
    ) -> None:
        from openmmtools import states

        if md_steps < 1:
            raise SettingError(f"md_steps is {md_steps}; expected at least 1, the move alone is not ergodic")
        self.molecule, self.move, self.platform, self.md_steps, self.seed = molecule, move, platform, md_steps, seed
        self.torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
        self.temperature = temperature
        self.state = states.ThermodynamicState(molecule.system, temperature)
        self.sampler_state = states.SamplerState(molecule.positions * unit.nanometer)
        self.series = Series()
        self.seconds = 0.0  # wall time of all iterations, earlier runs included

    def equilibrate(self, n_steps: int = 5000) -> None:
        """Minimise and run dynamics before the first iteration."""
        integrator = openmm.LangevinMiddleIntegrator(self.temperature, 1 / unit.picosecond, TIMESTEP)
        integrator.setRandomNumberSeed(self._seed_at(-1))
        context = openmm.Context(self.molecule.system, integrator, self.platform)
        context.setPositions(self.molecule.positions)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
        context.setVelocitiesToTemperature(self.temperature, self._seed_at(-1))
        integrator.step(n_steps)
        self.sampler_state.update_from_context(context)

    def run(self, n_iterations: int, folder: Path | None = None, *, progress: bool = True) -> Series:
        """Go on until the chain has n_iterations; checkpoints go to `folder` after every block."""
        with tqdm(total=n_iterations, initial=len(self.series), desc="hybrid chain", disable=not progress) as bar:
            while len(self.series) < n_iterations:
                block = len(self.series) // BLOCK
                self._run_block(min(n_iterations, (block + 1) * BLOCK), bar)
                if folder is not None:
                    self.save(folder / "checkpoint.npz")
        return self.series

    def _run_block(self, until: int, bar: Any) -> None:
        from openmmtools import cache, mcmc

        contexts = cache.ContextCache(platform=self.platform)
        seed = self._seed_at(len(self.series))

        class SeededLangevin(mcmc.LangevinDynamicsMove):
            def _get_integrator(self, thermodynamic_state: Any) -> openmm.Integrator:
                integrator = super()._get_integrator(thermodynamic_state)
                integrator.setRandomNumberSeed(seed)
                return integrator

        langevin = SeededLangevin(
            timestep=TIMESTEP, collision_rate=1 / unit.picosecond, n_steps=self.md_steps, constraint_tolerance=1e-6
        )
        start = time.perf_counter()
        while len(self.series) < until:
            self._iterate(langevin, contexts)
            bar.update()
            if len(self.series) % 50 == 0:
                bar.set_postfix(accepted=f"{self.move.fraction_accepted:.3f}", refresh=False)
        self.seconds += time.perf_counter() - start

    def _iterate(self, langevin: Any, contexts: Any) -> None:
        series, start = self.series, time.perf_counter()
        series.tau_before.append(self._tau())
        self.move.apply(self.state, self.sampler_state, contexts)
        middle = time.perf_counter()
        series.tau_after.append(self._tau())
        langevin.apply(self.state, self.sampler_state, contexts)
        end = time.perf_counter()
        series.tau_end.append(self._tau())
        series.positions.append(in_nanometers(self.sampler_state.positions).astype(np.float32))
        assert self.move.last is not None
        record = {**self.move.last.to_dict(), "seconds_move": middle - start, "seconds_md": end - middle}
        for name, column in series.columns.items():
            column.append(float("nan") if record[name] is None else float(record[name]))

    def _tau(self) -> NDArray[np.float64]:
        return self.torsions.get(self.sampler_state.positions)

    def _seed_at(self, iteration: int) -> int:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(iteration + 1,))
        return int(sequence.generate_state(1)[0] % (2**31 - 2)) + 1

    def save(self, path: Path) -> None:
        """Write a checkpoint in one piece: positions, velocities, counters, random generators, pool, series."""
        streams, pool = self.move.export_stream()
        card = {
            "format": _FORMAT,
            "settings": self._settings(),
            "statistics": self.move.statistics,
            "stream": streams,
            "seconds": self.seconds,
        }
        arrays: dict[str, Any] = {
            "x": in_nanometers(self.sampler_state.positions),
            "v": self.sampler_state.velocities.value_in_unit(unit.nanometer / unit.picosecond),
        }
        arrays |= {f"series_{name}": value for name, value in self.series.arrays().items()}
        arrays |= {f"pool_{name}": value for name, value in pool.items()}
        with replacing(path) as aside:
            np.savez(aside, card=np.array(json.dumps(card)), **arrays)

    def load(self, path: Path) -> None:
        """Take the chain up where `save` left it. Raises where the checkpoint is of other settings, or unreadable."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            card = json.loads(str(arrays.pop("card")))
            if card.get("format") != _FORMAT:
                raise ValueError(f"format {card.get('format')!r}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputFileError(
                f"{path} is not a checkpoint of a hybrid chain ({error}); start again with --overwrite"
            ) from error
        settings = self._settings()
        different = [key for key, value in settings.items() if card["settings"].get(key) != value]
        if different:
            raise OutputError(
                f"the checkpoint was made with other settings ({', '.join(different)}); give the same, or --overwrite"
            )
        self.sampler_state.positions = arrays["x"] * unit.nanometer
        self.sampler_state.velocities = arrays["v"] * unit.nanometer / unit.picosecond
        self.series = Series.from_arrays({key[7:]: value for key, value in arrays.items() if key.startswith("series_")})
        self.move.statistics, self.seconds = card["statistics"], card["seconds"]
        self.move.import_stream(card["stream"], {key[5:]: v for key, v in arrays.items() if key.startswith("pool_")})

    def _settings(self) -> dict[str, Any]:
        """What must not change between a checkpoint and the chain that goes on from it."""
        state = self.move.__getstate__()
        proposal = proposal_state(state)
        # A torsion proposal keeps its settings beside its description, the others in a mapping of their own.
        settings = proposal.get("settings", {"n_diffusion_steps": proposal.get("n_diffusion_steps")})
        # The thread changes no number; a chain may go on on another device, exactly but not bit for bit.
        own = {key: value for key, value in settings.items() if key not in ("background", "device")}
        if self.temperature != TEMPERATURE:  # checkpoints of before there was a choice are of this one
            own["temperature_K"] = self.temperature.value_in_unit(unit.kelvin)
        return {
            "md_steps": self.md_steps,
            "seed": self.seed,
            "system": self.molecule.name,
            "sha256": proposal["sha256"],
            "n_candidates": state["n_candidates"],
            **own,
        }


_FORMAT = "openmm_diffusion hybrid chain 1"
