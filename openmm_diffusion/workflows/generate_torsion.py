"""Structures from a torsion model without a chain: sample, correct by Boltzmann weights, write PDB, run MD."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import resample
from ..errors import SettingError, TrajectoryError
from ..models import Model, store
from ..molecule import check_system, check_unbroken, write_pdb
from ..proposals import TorsionProposal
from ..proposals.devices import choose_device
from . import generate_report
from .boltzmann import Correction, correct, diagnostics, marginal_reference
from .energies import ReducedPotential
from .generate_report import FILES, Drawing, summary_text
from .job_settings import GenerateTorsionSettings
from .output import prepare_folder, write_json, write_trajectory
from .prepare import read_frames, read_weights
from .settings import command_line
from .short_md import ShortMD
from .systems import MolecularSystem, build_system, choose_platform

__all__ = ["FILES", "generate_torsion", "summary_text"]

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]
STORED_FRAMES = 10  # of each trajectory that starts from a structure
SMALLEST_GRID = 12


@dataclass(frozen=True)
class _Job:
    """What the steps share: the molecule, the model on it, and energies, MD and random numbers for it."""

    settings: GenerateTorsionSettings
    molecule: MolecularSystem
    model: Model
    proposal: TorsionProposal
    potential: ReducedPotential
    md: ShortMD
    rng: np.random.Generator
    progress: bool


def generate_torsion(
    settings: GenerateTorsionSettings, *, overwrite: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Run the whole workflow and return its summary, which `summary.json` holds too; for the files see `FILES`.

    Every frame gives one structure: its bonds, angles and side chains are kept, its torsions are drawn anew (or kept,
    in proportion to the weights). The structures follow Boltzmann's distribution as far as the frames do.

    Raises
    ------
    ModelError, ModelFileError
        There is no such model, or it is for another molecule.
    TrajectoryError, InputFileError
        The trajectory does not fit the system, is too short, or is missing.
    OutputError
        The folder holds results already.
    """
    if 0 < settings.limit_grid < SMALLEST_GRID:
        raise SettingError(f"limit_grid is {settings.limit_grid}; expected {SMALLEST_GRID} or more, or 0 for no limit")
    if settings.weights is not None and settings.frames is None:
        raise SettingError(f"weights {settings.weights} come without frames; give the trajectory that they belong to")
    model = store.load(settings.model)
    molecule = build_system(settings)
    proposal = TorsionProposal(model, molecule.topology, device=settings.device)
    check_system(molecule.system, proposal.torsions)
    rng = np.random.default_rng(settings.seed)
    frames = None if settings.frames is None else _frames_of_file(settings, molecule, proposal, rng)
    platform = choose_platform(molecule.system, molecule.positions, settings.platform)
    folder = prepare_folder(settings.output, overwrite=overwrite, inputs=settings.inputs())
    settings.write(folder / "settings.yaml")
    potential = ReducedPotential(molecule.system, platform, settings.temperature)
    md = ShortMD(molecule, platform, settings.temperature, settings.timestep)
    job = _Job(settings, molecule, model, proposal, potential, md, rng, progress)
    return _run(job, frames, folder, {"platform": platform.getName(), "device": str(choose_device(settings.device))})


def _run(job: _Job, frames: Array | None, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    settings, torsions, seconds = job.settings, job.proposal.torsions, _Stopwatch()
    if frames is None:
        seed = int(job.rng.integers(1, 2**31 - 1))
        frames = job.md.equilibrated_frames(settings.n_frames, seed, progress=job.progress)
    seconds.lap("frames")
    correction = correct(frames, job.proposal, job.potential, settings.n_candidates, job.rng, progress=job.progress)
    structures = torsions.set(frames, correction.tau_picked)
    seconds.lap("correction")
    reference = _reference(job, frames)
    seconds.lap("limit")
    n_stored = min(STORED_FRAMES, settings.md_steps)
    trajectories = np.zeros((len(frames), 0, *frames.shape[1:]))
    if n_stored:
        trajectories = job.md.trajectories(structures, settings.md_steps, n_stored, job.rng, progress=job.progress)
    seconds.lap("md")
    drawing = _drawing(job, frames, correction, trajectories)
    _write_structures(folder, job.molecule, torsions.set(frames, correction.tau[:, 0]), structures, trajectories)
    notes = generate_report.draw(drawing, job.model, folder)
    seconds.lap("writing")
    summary = {
        "command": command_line("generate torsion", settings),
        "model": {"name": settings.model, "sha256": job.model.sha256(), "torsions": list(torsions.labels)},
        "system": job.molecule.name,
        "temperature_K": settings.temperature,
        **summary,
        "frames": len(frames),
        "frames_from": "a short MD" if settings.frames is None else str(settings.frames),
        "candidates_a_frame": settings.n_candidates,
        **diagnostics(correction),
        **reference,
        **generate_report.populations_and_energies(drawing),
        "md_steps": settings.md_steps,
        "md_failed": int(np.isnan(trajectories).any(axis=(1, 2, 3)).sum()),
        "seconds": seconds.laps,
        "notes": [_bias(settings), *notes],
    }
    summary["kish_of_limit"] = _ratio(summary["kish"]["mean"], summary["kish_limit"])
    summary["kish_on_grid_of_limit"] = _ratio(summary["kish_on_grid"], summary["kish_limit"])
    write_json(folder / "summary.json", summary)
    return summary


def _frames_of_file(
    settings: GenerateTorsionSettings, molecule: MolecularSystem, proposal: TorsionProposal, rng: np.random.Generator
) -> Array:
    """[n_frames, atoms, 3] (nm) of the trajectory: evenly spaced, or systematically in proportion to the weights."""
    assert settings.frames is not None
    files = [settings.frames]
    total = sum(len(chunk) for chunk in read_frames(files, molecule.topology))
    if settings.weights is not None:
        weights = read_weights(settings.weights)
        if weights.shape != (total,) or not np.isfinite(weights).all() or weights.min() < 0.0 or weights.sum() <= 0.0:
            raise TrajectoryError(
                f"{settings.weights} holds weights of shape {weights.shape}; expected {total} finite ones >= 0, "
                f"one for each frame of {settings.frames}"
            )
        with np.errstate(divide="ignore"):
            rows = resample(np.log(weights), settings.n_frames, rng, "systematic")
    elif total < settings.n_frames:
        raise TrajectoryError(f"{settings.frames} has {total} frames; expected {settings.n_frames}, lower --n-frames")
    else:
        rows = np.linspace(0, total - 1, settings.n_frames).round().astype(np.int64)
    taken, first = [], 0
    for chunk in read_frames(files, molecule.topology):
        taken.append(chunk[rows[(rows >= first) & (rows < first + len(chunk))] - first])
        first += len(chunk)
    frames = np.concatenate(taken)
    check_unbroken(proposal.torsions, frames)
    return frames


def _reference(job: _Job, frames: Array) -> dict[str, float | None]:
    if job.settings.limit_grid and len(job.proposal.torsions) == 2 and len(frames) > 1:
        found = marginal_reference(frames, job.proposal, job.potential, job.settings.limit_grid, progress=job.progress)
        return dict(found)
    return {"kish_limit": None, "kish_on_grid": None}


def _drawing(job: _Job, frames: Array, correction: Correction, trajectories: Array) -> Drawing:
    md_frames = trajectories.reshape(-1, *frames.shape[1:])
    md_frames = md_frames[np.isfinite(md_frames).all(axis=(1, 2))]
    return Drawing(
        kinds=job.proposal.torsions.kinds,
        labels=job.proposal.torsions.labels,
        correction=correction,
        tau_md=job.proposal.torsions.get(md_frames),
        u_md=job.potential(md_frames),
        rng=job.rng,
    )


def _write_structures(
    folder: Path, molecule: MolecularSystem, uncorrected: Array, structures: Array, trajectories: Array
) -> None:
    write_pdb(folder / "generated.pdb", molecule.topology, structures)
    write_trajectory(folder / "generated.dcd", molecule.topology, structures)
    finite = np.isfinite(uncorrected).all(axis=(1, 2))
    write_trajectory(folder / "uncorrected.dcd", molecule.topology, uncorrected[finite])
    whole = trajectories[np.isfinite(trajectories).all(axis=(1, 2, 3))]
    if whole.size:
        write_pdb(folder / "md.pdb", molecule.topology, whole[:, -1])
        write_trajectory(folder / "md.dcd", molecule.topology, whole.reshape(-1, *structures.shape[1:]))


def _bias(settings: GenerateTorsionSettings) -> str:
    if settings.frames is None:
        return (
            "the frames come from one short MD: bonds, angles and side chains keep the bias of the basins that it "
            "visited; give frames of an equilibrated trajectory for unbiased structures"
        )
    if settings.weights is not None:
        return "the frames were taken in proportion to the weights given; the structures are as unbiased as those are"
    return f"the frames are taken to be Boltzmann's at {settings.temperature:g} K; whatever bias they have is kept"


def _ratio(value: float | None, limit: float | None) -> float | None:
    return None if value is None or not limit else value / limit


class _Stopwatch:
    """Wall seconds of the steps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._mark = round(now - self._mark, 2), now
