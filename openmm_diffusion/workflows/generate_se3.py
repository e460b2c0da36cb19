"""Backbones from an SE(3) model: sample, write PDB and DCD, judge them against MD."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis import backbone_comparison, backbone_quality
from ..errors import ModelError, SettingError
from ..geometry import residue_constants as rc
from ..models import Model, store
from ..models.score_network import ScoreNetwork
from ..proposals.devices import choose_device
from ..sampling.se3_backbones import Backbones, sample_backbones
from . import se3_report
from .backbone_files import atoms_of, backbone_topology, write_all_atom, write_backbones
from .generate_se3_settings import GenerateSE3Settings
from .output import prepare_folder, refuse_to_lose, write_json
from .se3_reference import Reference, read_reference
from .se3_report import FILES, quality_text
from .settings import command_line

__all__ = ["FILES", "GenerateSE3Settings", "generate_se3", "quality_text", "read_reference"]

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]


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
        The folder holds results already. With `overwrite` they are removed once there are new backbones to write.
    """
    model = store.load(settings.model)
    sequence = chosen_sequence(model, settings.sequence)
    reference = None if settings.data_dir is None else read_reference(settings, sequence)
    device = choose_device(settings.device)
    refuse_results(settings, overwrite=overwrite)
    started = time.perf_counter()
    samples = _sample(settings, model, sequence, device, progress=progress)
    seconds = time.perf_counter() - started
    # Only now, so that what fails leaves older results alone.
    folder = prepare_folder(settings.output, overwrite=overwrite)
    settings.write(folder / "settings.yaml")
    completed, failures = _write(settings, folder, samples, sequence, progress=progress)
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
        "notes": [_NOTE, *failures],
    }
    se3_report.draw(generated, None if reference is None else reference.md, quality, folder)
    write_json(folder / "quality.json", quality)
    return quality


def refuse_results(settings: GenerateSE3Settings, *, overwrite: bool) -> None:
    """Raise OutputError where the output cannot be written for what it holds; make and empty nothing."""
    if overwrite:
        refuse_to_lose(settings.output, settings.inputs())
    if settings.output.is_file() or (settings.output.exists() and not overwrite):
        prepare_folder(settings.output)


def judged(generated: Array, reference: Reference | None) -> dict[str, Any]:
    """The metrics of backbones [n, L, 4, 3] (Angstrom), and their comparison with MD where given."""
    found: dict[str, Any] = {"generated": backbone_quality.ensemble_summary(generated), "md": None, "comparison": None}
    if reference is not None:
        found["md"] = backbone_quality.ensemble_summary(reference.md)
        found["comparison"] = backbone_comparison.compare(
            generated, reference.md, reference.held_out, lengths=reference.lengths
        )
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
        first_index=0 if "acceptance" in model.card else 1,
        progress=progress,
    )


def _write(
    settings: GenerateSE3Settings, folder: Path, samples: Backbones, sequence: str, *, progress: bool
) -> tuple[int | None, list[str]]:
    """Write the backbones; how many have side chains (None: not asked for), and a sentence for each that has not."""
    topology = backbone_topology(sequence)
    atoms = atoms_of(samples.atom37.numpy(), topology)
    write_backbones(folder, topology, atoms, settings.formats)
    if not settings.side_chains:
        return None, []
    return write_all_atom(folder, topology, atoms, settings.seed, progress=progress)


def _letter(name: str) -> str:
    return rc.LETTERS[rc.RESTYPES_3.index(name)] if name in rc.RESTYPES_3 else rc.UNKNOWN_LETTER


_NOTE = "backbones of a generative model are pictures of what it learned, not Boltzmann samples"
