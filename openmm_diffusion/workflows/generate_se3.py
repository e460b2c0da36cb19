"""Backbones from an SE(3) model: sample, write PDB and DCD, judge them against MD."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis import backbone_comparison, backbone_quality
from ..data.frame_splits import FrameSplit, read_frame_splits
from ..data.md_arrays import check_frames, find_array, list_arrays, open_array, strip_suffix
from ..errors import InputFileError, ModelError, SettingError, TrajectoryError
from ..geometry import residue_constants as rc
from ..models import Model, store
from ..models.score_network import ScoreNetwork
from ..proposals.torsion import choose_device
from ..sampling.se3_backbones import Backbones, sample_backbones
from . import se3_report
from .backbone_files import atoms_of, backbone_topology, write_all_atom, write_backbones
from .generate_se3_settings import GenerateSE3Settings
from .output import prepare_folder, write_json
from .se3_report import FILES, quality_text
from .settings import command_line

__all__ = ["FILES", "GenerateSE3Settings", "generate_se3", "quality_text"]

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]
MAX_FRAMES = 5000  # of MD that the comparison looks at, evenly spaced


def generate_se3(settings: GenerateSE3Settings, *, overwrite: bool = False, progress: bool = True) -> dict[str, Any]:
    """Draw backbones, write them and their quality, and return what `quality.json` holds; for the files see `FILES`.

    They are pictures of what the model learned, not Boltzmann samples; every PDB file says so.

    Raises
    ------
    ModelError, ModelFileError
        There is no such model, it is of another kind, or it is for another sequence.
    InputFileError, TrajectoryError
        The reference data are missing, or of another protein.
    OutputError
        The folder holds results already.
    """
    model = store.load(settings.model)
    sequence = chosen_sequence(model, settings.sequence)
    reference = None if settings.data_dir is None else read_reference(settings, len(sequence))
    device = choose_device(settings.device)
    folder = prepare_folder(settings.output, overwrite=overwrite)
    settings.write(folder / "settings.yaml")
    started = time.perf_counter()
    samples = _sample(settings, model, sequence, device, progress=progress)
    seconds = time.perf_counter() - started
    topology = backbone_topology(sequence)
    atoms = atoms_of(samples.atom37.numpy(), topology)
    write_backbones(folder, topology, atoms, settings.formats)
    notes = [_NOTE]
    completed = None
    if settings.side_chains:
        completed, failures = write_all_atom(folder, topology, atoms, settings.seed, progress=progress)
        notes += failures
    generated = samples.atom37[:, :, backbone_quality.BACKBONE_OF_ATOM37].numpy()
    quality = {
        "command": command_line("generate se3", settings),
        "model": {"name": settings.model, "sha256": model.sha256()},
        "sequence": sequence,
        "sampler": settings.sampler,
        "steps": settings.n_steps,
        "noise_scale": settings.noise_scale if settings.sampler == "reverse_sde" else None,
        "self_conditioning": self_conditioned(model),
        "device": str(device),
        "seconds": round(seconds, 3),
        "samples_per_second": len(samples) / seconds,
        "with_side_chains": completed,
        **judged(generated, reference),
        "notes": notes,
    }
    se3_report.draw(generated, None if reference is None else reference[0], quality, folder)
    write_json(folder / "quality.json", quality)
    return quality


def judged(generated: Array, reference: tuple[Array, Array] | None) -> dict[str, Any]:
    """The metrics of backbones [n, L, 4, 3] (Angstrom), and their comparison with (MD, held-out MD) where given."""
    found: dict[str, Any] = {"generated": backbone_quality.ensemble_summary(generated), "md": None, "comparison": None}
    if reference is not None:
        md, held_out = reference
        found["md"] = backbone_quality.ensemble_summary(md)
        found["comparison"] = backbone_comparison.compare(generated, md, held_out)
    return found


def self_conditioned(model: Model) -> bool:
    """Whether the model was trained with self-conditioning, by its card."""
    return bool(model.card.get("sampling", {}).get("self_conditioning", False))


def chosen_sequence(model: Model, given: str | None) -> str:
    """The sequence to build, one letter a residue.

    Raises ModelError for models of another kind and for sequences that the model cannot tell from its own.
    """
    if not isinstance(model.network, ScoreNetwork):
        raise ModelError(f"the model is of kind {model.kind!r}; expected 'se3', train one with 'train se3'")
    own = ["".join(_letter(name) for name in names) for names in model.molecule.sequences]
    if given is None:
        if len(own) != 1:
            raise SettingError(f"the model was trained on {len(own)} sequences; give one of them with --sequence")
        given = own[0]
    unknown = sorted(set(given) - set(rc.LETTERS))
    if unknown or len(given) < 3:
        raise SettingError(f"the sequence is {given!r}; expected at least 3 of the letters {rc.LETTERS}")
    if given not in own and not model.network.config.embed.embed_residue_type:
        raise ModelError(
            f"the model does not read the sequence and was trained on {', '.join(own)}, not on {given}; give one of "
            "those, or a model trained with embed_residue_type"
        )
    if given not in own:
        logger.warning("the model was not trained on %s", given)
    return given


def read_reference(settings: GenerateSE3Settings, n_residues: int) -> tuple[Array, Array]:
    """Backbones [n, L, 4, 3] (Angstrom) of the MD, and of its held-out frames, of a folder of 'prepare se3'."""
    folder = settings.data_dir
    assert folder is not None
    if settings.name is not None:
        names = [strip_suffix(settings.name, settings.suffix)]
    else:
        names = list_arrays(folder, settings.suffix)
    splits = _splits(settings)
    whole, held_out = [], []
    for name in names:
        path = find_array(folder, name, settings.suffix)
        if path is None:
            raise InputFileError(f"there is no {name}{settings.suffix}.npy in {folder}; check --name and --suffix")
        array = open_array(path)
        if array.shape[1] != n_residues:
            if settings.name is not None:
                raise TrajectoryError(
                    f"{path} has {array.shape[1]} residues, the model {n_residues}; give MD of the same protein"
                )
            continue
        split = splits.get(name, FrameSplit(name))
        mode = settings.held_out if name in splits else "all"
        bounds = split.bounds(mode, len(array), settings.frame_interval)
        whole.append(_backbones(array, (0, len(array)), path, len(names)))
        held_out.append(_backbones(array, bounds, path, len(names)))
    if not whole:
        raise TrajectoryError(f"no trajectory in {folder} has {n_residues} residues; give --data-dir of the protein")
    return np.concatenate(whole), np.concatenate(held_out)


def _sample(
    settings: GenerateSE3Settings, model: Model, sequence: str, device: torch.device, *, progress: bool
) -> Backbones:
    assert isinstance(model.network, ScoreNetwork)
    return sample_backbones(
        model.network.to(device).eval(),
        torch.as_tensor(rc.aatype(sequence)),
        settings.n_samples,
        torch.Generator().manual_seed(settings.seed),
        sampler=settings.sampler,
        n_steps=settings.n_steps,
        noise_scale=settings.noise_scale,
        rho=settings.rho,
        min_t=settings.min_t,
        denoise=settings.denoise,
        batch_size=settings.batch_size,
        self_conditioning=self_conditioned(model),
        progress=progress,
    )


def _splits(settings: GenerateSE3Settings) -> dict[str, FrameSplit]:
    assert settings.data_dir is not None
    path = settings.train_split or settings.data_dir / "frame_splits.csv"
    if settings.held_out == "all" or (settings.train_split is None and not path.is_file()):
        return {}
    rows, apart = read_frame_splits(path, [settings.held_out])
    return {strip_suffix(row.name, settings.suffix): row for row in rows} if apart else {}


def _backbones(array: NDArray[np.floating], bounds: tuple[int, int], path: Path, n_files: int) -> Array:
    first, stop = bounds
    n = min(stop - first, max(2, MAX_FRAMES // n_files))
    frames = np.linspace(first, stop - 1, n).round().astype(np.int64)
    taken = np.asarray(array[frames])
    check_frames(taken, path, frames)
    return taken[:, :, :4].astype(np.float64)


def _letter(name: str) -> str:
    return rc.LETTERS[rc.RESTYPES_3.index(name)] if name in rc.RESTYPES_3 else rc.UNKNOWN_LETTER


_NOTE = "backbones of a generative model are pictures of what it learned, not Boltzmann samples"
