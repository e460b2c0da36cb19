"""Training data from parallel tempering: rare basins are populated by the hot replicas, MBAR gives the weights."""

import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from tqdm.auto import tqdm

from ..errors import SettingError, StateError
from ..molecule import write_pdb
from .job_settings import SimulateSettings
from .output import prepare_folder, replacing, write_json, write_trajectory
from .settings import command_line, refuse_other_settings
from .systems import MolecularSystem, build_system, choose_platform
from .walkers import at_work, parent_is_gone, walker_pool

logger = logging.getLogger(__name__)
CHUNK = 50  # iterations between two updates of the progress bar


@dataclass(frozen=True)
class TemperedData:
    """Frames [n, atoms, 3] (nm) of all replicas with weights [n] that make them an ensemble at one temperature."""

    positions: NDArray[np.float32]
    weights: NDArray[np.float64]
    temperature_index: NDArray[np.int64]
    walker: NDArray[np.int64]


def simulate(
    settings: SimulateSettings, *, overwrite: bool = False, resume: bool = False, progress: bool = True
) -> Path:
    """Run the parallel tempering and write `topology.pdb`, `trajectory.dcd`, `weights.npz` and `simulation.json`.

    Returns the folder. Frames of every temperature are kept; their MBAR weights are those at `temperature`.
    """
    if settings.max_temperature <= settings.temperature:
        raise SettingError(
            f"max_temperature is {settings.max_temperature:g}; expected more than {settings.temperature:g} K"
        )
    molecule = build_system(settings)
    platform = choose_platform(molecule.system, molecule.positions, settings.platform).getName()
    if resume:
        refuse_other_settings(settings, but=("n_iterations", "platform"))
    folder = prepare_folder(settings.output, overwrite=overwrite, resume=resume, inputs=settings.inputs())
    settings.write(folder / "settings.yaml")
    write_pdb(folder / "topology.pdb", molecule.topology, molecule.positions[None])
    jobs = [
        (settings, molecule.system, molecule.positions, platform, folder, walker) for walker in range(settings.walkers)
    ]
    if settings.walkers == 1:
        _run_walker(*jobs[0], progress)
    else:
        with walker_pool(settings.walkers) as pool:
            futures = [pool.submit(_run_walker, *job, progress and job[-1] == 0) for job in jobs]
            for future in futures:
                future.result()
    data = collect(settings, folder)
    _write(data, settings, molecule, folder, platform)
    return folder


def temperatures(settings: SimulateSettings) -> NDArray[np.float64]:
    """The ladder in K: evenly spaced in log T, so that neighbours exchange equally often."""
    return np.geomspace(settings.temperature, settings.max_temperature, settings.n_replicas)


def _storage(folder: Path, walker: int) -> Path:
    return folder / f"tempering_{walker}.nc"


def tempering_speed(
    settings: SimulateSettings, molecule: MolecularSystem, platform: str, seconds: float, walkers: int
) -> float:
    """MD steps a wall second of `walkers` ladders at once, all their replicas together, exchanges and files included.

    Measured for `seconds` after equally many ladders have been set up and minimised; nothing of it is kept.
    """
    with tempfile.TemporaryDirectory() as folder, walker_pool(walkers) as pool:
        job = (settings, molecule.system, molecule.positions, platform, Path(folder))
        futures = [pool.submit(_time_walker, *job, walker, seconds) for walker in range(walkers)]
        return sum(future.result() for future in futures)


def _time_walker(
    settings: SimulateSettings,
    system: openmm.System,
    positions: NDArray[np.float64],
    platform: str,
    folder: Path,
    walker: int,
    seconds: float,
) -> float:
    from openmmtools.multistate import ParallelTemperingSampler

    ParallelTemperingSampler._global_citation_silence = True  # the simulation itself does print them
    with at_work():
        sampler, reporter = _ladder(settings, system, positions, platform, _storage(folder, walker))
        sampler.run(n_iterations=1)
        start, first = time.perf_counter(), sampler.iteration
        while time.perf_counter() - start < seconds and not parent_is_gone():
            sampler.run(n_iterations=1)
        spent = time.perf_counter() - start
        reporter.close()
    return (sampler.iteration - first) * settings.n_replicas * settings.steps_per_iteration / spent


def _run_walker(
    settings: SimulateSettings,
    system: openmm.System,
    positions: NDArray[np.float64],
    platform: str,
    folder: Path,
    walker: int,
    progress: bool,
) -> None:
    """Run or continue one ladder; its storage is openmmtools' own NetCDF file."""
    with at_work():
        sampler, reporter = _ladder(settings, system, positions, platform, _storage(folder, walker))
        # openmmtools draws its exchanges from numpy's global generator; a resumed ladder gets numbers of its own.
        sequence = np.random.SeedSequence(settings.seed, spawn_key=(walker, sampler.iteration))
        np.random.seed(sequence.generate_state(1)[0])  # noqa: NPY002
        try:
            with tqdm(
                total=settings.n_iterations, initial=sampler.iteration, desc="parallel tempering", disable=not progress
            ) as bar:
                while sampler.iteration < settings.n_iterations:
                    if parent_is_gone():
                        raise StateError("the program that started this walker is gone; run it again with --resume")
                    before = sampler.iteration
                    sampler.run(n_iterations=min(CHUNK, settings.n_iterations - before))
                    bar.update(sampler.iteration - before)
        finally:
            reporter.close()


def _ladder(
    settings: SimulateSettings, system: openmm.System, positions: NDArray[np.float64], platform: str, storage: Path
) -> tuple[Any, Any]:
    """The sampler of one ladder and its reporter: that of the storage, or a new one, minimised."""
    for name in ("openmmtools", "pymbar"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from openmmtools import cache, mcmc, states
    from openmmtools.multistate import MultiStateReporter, ParallelTemperingSampler

    contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName(platform))
    every_atom = list(range(system.getNumParticles()))
    reporter = MultiStateReporter(str(storage), checkpoint_interval=CHUNK, analysis_particle_indices=every_atom)
    if storage.exists():
        sampler = ParallelTemperingSampler.from_storage(reporter)
    else:
        move = mcmc.LangevinDynamicsMove(
            timestep=settings.timestep * unit.femtoseconds,
            collision_rate=1.0 / unit.picosecond,
            n_steps=settings.steps_per_iteration,
            constraint_tolerance=1e-6,
            n_restart_attempts=4,
        )
        sampler = ParallelTemperingSampler(
            mcmc_moves=move, number_of_iterations=math.inf, online_analysis_interval=None
        )
        ladder = temperatures(settings)
        start = states.SamplerState(positions * unit.nanometer)
        state = states.ThermodynamicState(system, settings.temperature * unit.kelvin)
        sampler.create(state, [start], reporter, temperatures=list(ladder * unit.kelvin), n_temperatures=len(ladder))
        sampler.sampler_context_cache = sampler.energy_context_cache = contexts
        sampler.minimize(max_iterations=200)
    sampler.sampler_context_cache = sampler.energy_context_cache = contexts
    return sampler, reporter


def collect(settings: SimulateSettings, folder: Path) -> TemperedData:
    """Read every walker's frames and give them MBAR weights at the coldest temperature."""
    from netCDF4 import Dataset
    from pymbar import MBAR

    frames, potentials, indices, walkers = [], [], [], []
    skip = max(1, int(settings.discard * settings.n_iterations))  # iteration 0 is the starting structure
    for walker in range(settings.walkers):
        with Dataset(str(_storage(folder, walker))) as file:
            rows = slice(skip, settings.n_iterations + 1)
            index = np.asarray(file.variables["states"][rows], dtype=np.int64)
            x = np.asarray(file.variables["positions"][rows], dtype=np.float32)
            coldest = np.asarray(file.variables["energies"][rows, :, 0], dtype=np.float64)
        frames.append(x.reshape(-1, *x.shape[2:]))
        potentials.append(coldest.ravel())
        indices.append(index.ravel())
        walkers.append(np.full(index.size, walker))
    u, k = np.concatenate(potentials), np.concatenate(indices)
    order = np.argsort(k, kind="stable")  # MBAR wants the samples of each state together
    u, k = u[order], k[order]
    ladder = temperatures(settings)
    counts = np.bincount(k, minlength=len(ladder))
    mbar = MBAR(u[None] * (ladder[0] / ladder)[:, None], counts, solver_protocol="robust")
    weights = np.asarray(mbar.weights())[:, 0]
    return TemperedData(np.concatenate(frames)[order], weights / weights.sum(), k, np.concatenate(walkers)[order])


def _write(
    data: TemperedData, settings: SimulateSettings, molecule: MolecularSystem, folder: Path, platform: str
) -> None:
    write_trajectory(folder / "trajectory.dcd", molecule.topology, data.positions)
    with replacing(folder / "weights.npz") as aside:
        np.savez(aside, weights=data.weights, temperature_index=data.temperature_index, walker=data.walker)
    write_json(
        folder / "simulation.json",
        {
            "command": command_line("simulate", settings),
            "system": molecule.name,
            "temperatures_K": [round(float(value), 3) for value in temperatures(settings)],
            "frames": len(data.weights),
            "kish_ess": float(1.0 / np.sum(data.weights**2)),
            "simulated_ns_per_replica": settings.walkers
            * settings.n_iterations
            * settings.steps_per_iteration
            * settings.timestep
            * 1e-6,
            "platform": platform,
            "openmm": openmm.version.version,
        },
    )
