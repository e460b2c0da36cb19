"""The job behind `openmm-diffusion sample`: one chain or several walkers in a folder, gone on with after any stop."""

import logging
import math
import multiprocessing
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit

from ..errors import OpenMMDiffusionError, OutputError, StateError, first_line
from ..mcmc import DiffusionMove
from ..models import store
from ..molecule import write_pdb
from .chain_files import read_table, said
from .console import use_one_thread
from .folder_lock import NAME as LOCK
from .folder_lock import FolderLock
from .output import refuse_to_lose, write_json
from .sample_chain import SampledChain, recorded_torsions
from .sample_checks import fingerprints, refuse_fewer
from .sample_report import summary
from .sample_settings import SampleSettings
from .settings import command_line, read_yaml, refuse_other_settings
from .systems import MolecularSystem, build_system, choose_platform
from .walkers import walker_pool

logger = logging.getLogger(__name__)
MAY_CHANGE = ("n_iterations", "platform")
FILES = {
    "topology.pdb": "the molecule",
    "trajectory.dcd": "frames",
    "trajectory.xtc": "frames",
    "chain.csv": "energies (kJ/mol), torsions (rad), terms of log alpha, seconds of every iteration",
    "walker_00": "trajectory, table and checkpoints of the first walker, and so on",
    "checkpoints": "for --resume",
    "summary.json": "acceptance, effective sample sizes, R-hat, what was run",
    "settings.yaml": "the resolved settings",
}


def sample(
    settings: SampleSettings, *, overwrite: bool = False, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Run the chains, or go on with them, and return what `summary.json` then holds.

    With `resume`, settings that are not given are those that the chains were started with, and all but `n_iterations`
    and `platform` must be the same; a folder without a chain is begun.

    Raises
    ------
    OpenMMDiffusionError
        One sentence for whatever the user can change; before the first file is written where it is known by then.
    """
    if overwrite and resume:
        raise OutputError("--overwrite and --resume exclude each other; give one of them")
    settings = resumed(settings) if resume else settings
    molecule, move = _built(settings)
    settings = settings.model_copy(update={"platform": _platform(settings, molecule)})
    with _terminated_as_interrupted(), FolderLock(settings.output):
        _claim(settings, overwrite=overwrite, resume=resume)
        for folder in chain_folders(settings):
            refuse_fewer(folder, settings.n_iterations)
        with said(settings.output):
            settings.write(settings.output / "settings.yaml")
            if not (settings.output / "topology.pdb").exists():
                write_pdb(settings.output / "topology.pdb", molecule.topology, molecule.positions[None])
        if settings.walkers == 1:
            SampledChain(molecule, move, settings, settings.output).run(progress=progress)
        else:
            _run_walkers(settings, progress)
        return _report(settings, molecule, move)


def resumed(settings: SampleSettings) -> SampleSettings:
    """The settings of the chains in the output folder, with those that are given now.

    Raises OutputError where one is given that must not change.
    """
    stored = settings.output / "settings.yaml"
    if not stored.exists():
        return settings
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    before = SampleSettings.build({**read_yaml(stored), "output": settings.output})
    merged = before.model_copy(update=given)
    refuse_other_settings(merged, but=MAY_CHANGE)
    return merged


def chain_folders(settings: SampleSettings) -> list[Path]:
    """One folder a chain: the output itself, or `walker_00` and so on in it."""
    if settings.walkers == 1:
        return [settings.output]
    return [settings.output / f"walker_{walker:02d}" for walker in range(settings.walkers)]


def _built(settings: SampleSettings) -> tuple[MolecularSystem, DiffusionMove]:
    molecule = build_system(settings)
    model = store.load(settings.model)
    move = DiffusionMove(model, molecule.topology, settings.n_candidates, settings.seed, **settings.move_options())
    recorded_torsions(molecule.topology, move)
    return molecule, move


def _platform(settings: SampleSettings, molecule: MolecularSystem) -> str:
    """The platform's name, once the start is known to be one that a chain can start from."""
    if not np.isfinite(molecule.positions).all():
        raise StateError(f"{settings.system} has NaN or infinite coordinates; give others")
    name = str(choose_platform(molecule.system, molecule.positions, settings.platform).getName())
    integrator = openmm.VerletIntegrator(0.001)
    try:
        context = openmm.Context(molecule.system, integrator, openmm.Platform.getPlatformByName(name))
        context.setPositions(molecule.positions)
        energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    except openmm.OpenMMException as error:
        raise StateError(f"{settings.system} cannot be run on {name} ({first_line(error)}); give others") from error
    if not math.isfinite(energy):
        raise StateError(
            f"{settings.system} has an energy of {energy} kJ/mol; give coordinates without atoms that lie on each other"
        )
    return name


def _claim(settings: SampleSettings, *, overwrite: bool, resume: bool) -> None:
    """Empty or keep what the locked output folder holds, or refuse it."""
    folder = settings.output
    held = [path for path in folder.iterdir() if path.name != LOCK]
    if held and overwrite:
        refuse_to_lose(folder, settings.inputs())
        for path in held:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    elif held and not resume:
        raise OutputError(
            f"the output folder {folder} holds results already; give --overwrite, --resume or another name"
        )
    for path in [*folder.rglob(".*.part*"), *folder.glob(".topology.pdb.*")]:
        path.unlink(missing_ok=True)  # what a killed program left half written


def _run_walkers(settings: SampleSettings, progress: bool) -> None:
    """Run all walkers; where one fails the others go on, and its error is raised at the end."""
    failed: dict[int, BaseException] = {}
    before = set(multiprocessing.active_children())
    pool = walker_pool(settings.walkers)
    try:
        futures: dict[Future[None], int] = {
            pool.submit(_run_walker, settings, walker, progress and walker == 0): walker
            for walker in range(settings.walkers)
        }
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                failed[futures[future]] = error
                logger.warning("walker %d stopped: %s", futures[future], error)
        pool.shutdown()
    except BaseException:
        # A walker may be ended at any instant: it loses what came after its last checkpoint.
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    if failed:
        walker, error = min(failed.items())
        if isinstance(error, BrokenProcessPool):
            raise StateError(
                "a walker was killed, perhaps for want of memory; give fewer --walkers in another folder, or --resume"
            ) from error
        if isinstance(error, OpenMMDiffusionError) and len(failed) < settings.walkers:
            raise type(error)(f"walker {walker} of {settings.walkers}: {error}") from error
        raise error


def _run_walker(settings: SampleSettings, walker: int, progress: bool) -> None:
    use_one_thread()
    molecule, move = _built(settings)
    folder = chain_folders(settings)[walker]
    # The walkers of a job that was killed a moment ago may need one to end.
    with FolderLock(folder, wait=30.0):
        SampledChain(molecule, move, settings, folder, walker).run(progress=progress)


def _report(settings: SampleSettings, molecule: MolecularSystem, move: DiffusionMove) -> dict[str, Any]:
    tables = [read_table(folder / "chain.csv") for folder in chain_folders(settings)]
    torsions = recorded_torsions(molecule.topology, move)
    values = {
        "command": command_line("sample", settings),
        "system": molecule.name,
        "model": settings.model,
        "model_sha256": fingerprints(molecule, move)["model_sha256"],
        "walkers": settings.walkers,
        **summary(tables, torsions.labels),
        "nanoseconds_by_chain": settings.n_iterations * settings.md_steps * settings.timestep * 1e-6,
        "platform": settings.platform,
        "openmm": openmm.version.version,
    }
    with said(settings.output):
        write_json(settings.output / "summary.json", values)
    return values


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which queues send before they kill, ends the job as Ctrl-C does: the lock is let go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
