"""Plain Langevin dynamics that leaves the rare basin of phi again and again: how fast, by itself, it could mix."""

import itertools
import time
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from tqdm.auto import tqdm

from ..analysis.switching import CORE_L
from ..errors import InputFileError, SettingError, StateError
from ..molecule import BackboneTorsions
from .output import replacing
from .systems import TEMPERATURE, TIMESTEP, MolecularSystem
from .walkers import parent_is_gone, walker_pool

Array = NDArray[np.float64]
STEPS_BETWEEN_LOOKS = 100
SECONDS_A_ROUND = 60.0  # between two files


class DynamicsRecord:
    """Torsions along plain Langevin dynamics (4 fs) of walkers, a trajectory from each starting structure.

    Attributes
    ----------
    trajectories
        Each [frames, T] rad, `STEPS_BETWEEN_LOOKS` steps apart, the start included.
    seconds
        Wall time in which they were made, all walkers at once.
    """

    def __init__(self, trajectories: Iterable[Array] = (), seconds: float = 0.0) -> None:
        self.trajectories, self.seconds = list(trajectories), seconds

    @property
    def frame_ns(self) -> float:
        """Simulated time between two frames, ns."""
        return STEPS_BETWEEN_LOOKS * float(TIMESTEP.value_in_unit(unit.nanosecond))

    @property
    def ns(self) -> float:
        """Simulated time of all trajectories, ns."""
        return self.frame_ns * sum(len(tau) - 1 for tau in self.trajectories)

    def save(self, path: Path) -> None:
        """Write it in one piece."""
        lengths = np.array([len(tau) for tau in self.trajectories], dtype=np.int64)
        with replacing(path) as aside:
            np.savez(aside, tau=np.concatenate(self.trajectories), lengths=lengths, seconds=self.seconds)

    @classmethod
    def load(cls, path: Path) -> "DynamicsRecord":
        """What `save` wrote; raises InputFileError where it is not that."""
        try:
            with np.load(path, allow_pickle=False) as file:
                parts = np.split(file["tau"], np.cumsum(file["lengths"])[:-1])
                return cls(parts, float(file["seconds"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputFileError(f"{path} is no record of dynamics ({error}); start again with --overwrite") from error


def run_dynamics(
    molecule: MolecularSystem,
    torsions: BackboneTorsions,
    starts: Sequence[tuple[int, Array]],
    platform: str,
    minutes: float,
    walkers: int,
    path: Path,
    *,
    seed: int = 0,
    progress: bool = True,
) -> DynamicsRecord:
    """Plain dynamics from structures of R until their wall time, that of earlier runs included, is `minutes`.

    Parameters
    ----------
    molecule, torsions
        The system, and what is recorded of it.
    starts
        (column, positions [atoms, 3] in nm): structures with the phi of that column in the core of R, used in turn. A
        walker takes the next one when that phi has reached the core of L, where it would stay.
    platform
        OpenMM platform of all walkers.
    minutes
        Wall time.
    walkers
        Processes.
    path
        File that the record is kept in, and goes on from.
    seed
        Seed of velocities and thermostats.
    progress
        Show a progress bar.
    """
    if not starts:
        raise SettingError("no frame of the reference has a phi in the core of R; expected one to start dynamics from")
    record = DynamicsRecord.load(path) if path.exists() else DynamicsRecord()
    budget = 60.0 * minutes
    if record.seconds >= budget:
        return record
    shared = (openmm.XmlSerializer.serialize(molecule.system), torsions.to_text(), platform)
    bar = tqdm(total=round(budget), initial=round(record.seconds), unit="s", desc="plain MD", disable=not progress)
    with bar, walker_pool(walkers) if walkers > 1 else nullcontext() as pool:
        run = map if pool is None else pool.map
        while record.seconds < budget:
            seconds = min(SECONDS_A_ROUND, budget - record.seconds)
            used = len(record.trajectories)
            order = [starts[(used + k) % len(starts)] for k in range(len(starts))]
            jobs = [(*shared, order[w::walkers] or order, seconds, seed + used * walkers + w) for w in range(walkers)]
            for trajectories in run(_walk, *zip(*jobs, strict=True)):
                record.trajectories += trajectories
            record.seconds += seconds
            record.save(path)
            bar.n = round(record.seconds)
            bar.set_postfix(ns=f"{record.ns:.1f}")
    return record


def _walk(
    system: str, torsions: str, platform: str, starts: Sequence[tuple[int, Array]], seconds: float, seed: int
) -> list[Array]:
    """Trajectories of torsions from structures in turn, until the time is over."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, TIMESTEP)
    integrator.setRandomNumberSeed(seed % (2**31 - 1) + 1)
    context = openmm.Context(
        openmm.XmlSerializer.deserialize(system), integrator, openmm.Platform.getPlatformByName(platform)
    )
    backbone = BackboneTorsions.from_text(torsions)
    rng = np.random.default_rng(seed)
    trajectories: list[Array] = []
    begin = time.perf_counter()
    for column, positions in itertools.cycle(starts):
        context.setPositions(positions)
        context.applyConstraints(1e-6)  # stored in single precision
        context.setVelocitiesToTemperature(TEMPERATURE, int(rng.integers(1, 2**31 - 1)))
        frames = [backbone.get(positions)]
        trajectories.append(np.empty(0))
        while not CORE_L[0] < frames[-1][column] < CORE_L[1]:
            if time.perf_counter() - begin > seconds or parent_is_gone():
                trajectories[-1] = np.array(frames)
                return trajectories
            integrator.step(STEPS_BETWEEN_LOOKS)
            frames.append(backbone.get(context.getState(positions=True).getPositions(asNumpy=True)))
            if not np.isfinite(frames[-1]).all():
                raise StateError("plain dynamics at 4 fs gave NaN; expected a stable simulation, see the force field")
        trajectories[-1] = np.array(frames)
    return trajectories
