"""Plain Langevin dynamics of one molecule, in blocks that a later call goes on from: training data for frame models."""

import logging
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from tqdm.auto import tqdm

from ..errors import StateError
from ..molecule import write_pdb
from .job_settings import PlainMDSettings
from .output import prepare_folder, replacing, write_json, write_text, write_trajectory
from .settings import command_line, refuse_other_settings
from .systems import build_system, choose_platform

logger = logging.getLogger(__name__)
FRAMES_PER_BLOCK = 25


def run_md(settings: PlainMDSettings, *, overwrite: bool = False, resume: bool = False, progress: bool = True) -> Path:
    """Run the dynamics and write `topology.pdb`, `trajectory.dcd` and `md.json`; returns the folder.

    Blocks of frames and the state after each are kept in `blocks/` until the end, so that `resume` loses one block at
    most. Raises StateError where the dynamics fails.
    """
    molecule = build_system(settings)
    platform = choose_platform(molecule.system, molecule.positions, settings.platform)
    if resume:
        # The length may change as long as the run is not finished.
        finished = (settings.output / "trajectory.dcd").exists()
        refuse_other_settings(settings, but=("platform",) if finished else ("platform", "nanoseconds"))
    folder = prepare_folder(settings.output, overwrite=overwrite, resume=resume, inputs=settings.inputs())
    settings.write(folder / "settings.yaml")
    if (folder / "trajectory.dcd").exists():
        return folder
    blocks = folder / "blocks"
    blocks.mkdir(exist_ok=True)
    steps = max(1, round(settings.interval_ps * 1000 / settings.timestep))
    n_frames = max(1, round(settings.nanoseconds * 1000 / settings.interval_ps))
    n_blocks = -(-n_frames // FRAMES_PER_BLOCK)
    done = len(list(blocks.glob("block_*.xml")))
    integrator = openmm.LangevinMiddleIntegrator(
        settings.temperature * unit.kelvin, 1 / unit.picosecond, settings.timestep * unit.femtoseconds
    )
    integrator.setRandomNumberSeed(settings.seed + 1 + done)  # a resumed run must not repeat its noise
    context = openmm.Context(molecule.system, integrator, platform)
    try:
        if done:
            context.setState(openmm.XmlSerializer.deserialize(_state_file(blocks, done - 1).read_text()))
        else:
            _equilibrate(context, integrator, molecule.positions, settings, progress)
        with tqdm(total=n_frames, initial=done * FRAMES_PER_BLOCK, desc="MD frames", disable=not progress) as bar:
            for block in range(done, n_blocks):
                frames = []
                for _ in range(min(FRAMES_PER_BLOCK, n_frames - block * FRAMES_PER_BLOCK)):
                    integrator.step(steps)
                    state = context.getState(positions=True)
                    frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
                    bar.update()
                _write_block(blocks, block, molecule.topology, np.array(frames), context)
    except openmm.OpenMMException as error:
        raise StateError(
            f"the dynamics of {molecule.name} failed ({error}); give a smaller --timestep or better coordinates"
        ) from error
    write_pdb(folder / "topology.pdb", molecule.topology, molecule.positions[None])
    _join(folder, blocks, n_blocks, settings, molecule.name, platform.getName())
    return folder


def _equilibrate(
    context: openmm.Context,
    integrator: openmm.Integrator,
    positions: NDArray[np.float64],
    settings: PlainMDSettings,
    progress: bool,
) -> None:
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=500)
    context.setVelocitiesToTemperature(settings.temperature * unit.kelvin, settings.seed + 1)
    n_steps = round(settings.equilibration_ps * 1000 / settings.timestep)
    with tqdm(total=n_steps, desc="equilibration steps", disable=not progress) as bar:
        while bar.n < n_steps:
            part = min(250, n_steps - bar.n)
            integrator.step(part)
            bar.n += part
            bar.refresh()


def _state_file(blocks: Path, block: int) -> Path:
    return blocks / f"block_{block:05d}.xml"


def _write_block(
    blocks: Path, block: int, topology: app.Topology, frames: NDArray[np.float64], context: openmm.Context
) -> None:
    """Frames first, then the state: a block counts as done when its state is there."""
    if not np.isfinite(frames).all():
        raise openmm.OpenMMException("positions are NaN")
    write_trajectory(blocks / f"block_{block:05d}.dcd", topology, frames)
    state = context.getState(positions=True, velocities=True, enforcePeriodicBox=False)
    write_text(_state_file(blocks, block), openmm.XmlSerializer.serialize(state))


def _join(folder: Path, blocks: Path, n_blocks: int, settings: PlainMDSettings, name: str, platform: str) -> None:
    """One DCD of all blocks, written block by block; then the blocks go."""
    import mdtraj

    files = [blocks / f"block_{block:05d}.dcd" for block in range(n_blocks)]
    with replacing(folder / "trajectory.dcd") as aside, mdtraj.formats.DCDTrajectoryFile(str(aside), "w") as out:
        for file in files:
            with mdtraj.formats.DCDTrajectoryFile(str(file)) as block:
                xyz, lengths, angles = block.read()
                out.write(xyz, cell_lengths=lengths, cell_angles=angles)
    write_json(
        folder / "md.json",
        {
            "command": command_line("md", settings),
            "system": name,
            "nanoseconds": settings.nanoseconds,
            "platform": platform,
            "openmm": openmm.version.version,
        },
    )
    for file in files:
        file.unlink()
        file.with_suffix(".xml").unlink()
    blocks.rmdir()
