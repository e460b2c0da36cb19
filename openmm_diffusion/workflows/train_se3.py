"""Train an SE(3) model on prepared trajectories, write it with its card."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputFileError, SettingError, TrajectoryError
from .output import prepare_folder
from .se3_acceptance import acceptance_probe
from .se3_card import model_card
from .se3_presets import merged, preset
from .settings import read_yaml, refuse_other_settings
from .train_se3_settings import TrainSE3Settings

if TYPE_CHECKING:
    from ..data.mdgen_dataset import MDGenDataset
    from ..models import Model
    from ..training.se3_module import SE3Module

__all__ = ["TrainSE3Settings", "configurations", "data_sets", "train_se3"]

logger = logging.getLogger(__name__)
N_VAL_T = 20
VALIDATION_FRAMES = 20 * (N_VAL_T + 1)
# What may change when a training is resumed: how long and on what it runs, not what is learned.
_FREE = (
    *("save_dir", "epochs", "max_minutes", "validate_every", "num_workers", "threads", "cache_mb"),
    *("accelerator", "devices", "num_nodes", "strategy", "precision"),
)


def train_se3(
    settings: TrainSE3Settings, *, overwrite: bool = False, resume: bool = False, progress: bool = True
) -> "Model | None":
    """Train and write `model.safetensors`, `model.json`, `metrics.csv`, `loss_curve.png`; return the model.

    Of a training in several processes the first one writes; the others return None.

    Raises
    ------
    OutputError
        Where the folder holds results and neither `overwrite` nor `resume` is set, or those of other settings.
    TrajectoryError, InputFileError, SettingError
        Where data, tables or settings are wrong; nothing is written then.
    TrainingError
        Where the loss becomes NaN, or the training is interrupted.
    """
    import torch

    from ..training.se3_data import SE3DataModule
    from ..training.se3_fit import check_options, fit_se3, is_first_process

    if settings.threads:
        torch.set_num_threads(settings.threads)
    module = _module(settings)
    train, validation = data_sets(settings)
    module.set_coord_scale(train.coord_scale)
    data = SE3DataModule(train, validation, settings.batch_size, settings.num_workers, settings.seed, VALIDATION_FRAMES)
    data.steps_per_epoch()
    options = _fit_options(settings, progress=progress, resume=resume)
    check_options(options)
    folder = settings.save_dir
    if is_first_process():
        if resume:
            refuse_other_settings(settings, but=_FREE)
        folder = prepare_folder(folder, overwrite=overwrite, resume=resume, inputs=settings.inputs())
        settings.write(folder / "settings.yaml")
    metrics = fit_se3(module, data, folder, options, acceptance_probe(settings, validation))
    if not is_first_process():
        return None
    return _write(settings, module, train, metrics)


def configurations(settings: TrainSE3Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of network and noise process: the preset, and the files over it.

    Raises SettingError with the file's path where a file's keys or values are wrong.
    """
    from ..diffusion.se3_config import SE3Config
    from ..models.se3_config import ScoreNetworkConfig

    checks: tuple[Callable[[Any], Any], ...] = (ScoreNetworkConfig.of, SE3Config.of)
    given = (settings.model_conf, settings.se3_conf)
    found = []
    for base, path, check in zip(preset(settings.preset), given, checks, strict=True):
        conf = base if path is None else merged(base, read_yaml(path))
        try:
            check(conf)
        except SettingError as error:
            raise SettingError(f"{path}: {error}" if path else str(error)) from error
        found.append(conf)
    return found[0], found[1]


def data_sets(settings: TrainSE3Settings) -> tuple["MDGenDataset", "MDGenDataset"]:
    """Training and validation frames, the latter with the coord_scale of the former."""
    from ..data.mdgen_dataset import MDGenDataset
    from ..data.noise_times import NoiseTimes
    from ..diffusion.se3_diffuser import SE3Diffuser

    diffuser = SE3Diffuser(configurations(settings)[1])
    clock = NoiseTimes(diffuser, settings.max_t)
    table = _table(settings.train_split, settings.data_dir, "frame_splits.csv", required=False)
    centres = (np.arange(N_VAL_T) + 0.5) / N_VAL_T
    noisy = settings.time_grid == "noise"
    centres = clock(centres) if noisy else clock.min_t + (clock.max_t - clock.min_t) * centres
    arguments = {
        "data_dir": settings.data_dir,
        "atlas_csv": _table(settings.atlas_csv, settings.data_dir, "atlas.csv", required=True),
        "train_split": table,
        "suffix": settings.suffix,
        "frame_interval": settings.frame_interval,
        "crop_ratio": settings.crop_ratio,
        "auxiliary_width": settings.auxiliary_width,
        "flatten": settings.flatten,
        "time_grid": settings.time_grid,
        "max_t": settings.max_t,
        "low_noise_share": settings.low_noise_share,
        "inclusion": settings.inclusion,
        "crop_tolerance": settings.crop_tolerance,
        "cache_mb": settings.cache_mb,
        "overfit": settings.overfit,
        "seed": settings.seed,
        # Spread from the start on, so that a few validation frames see all of the range.
        "val_t": [*([1.0] if settings.max_t == 1 else []), *(float(centres[7 * k % N_VAL_T]) for k in range(N_VAL_T))],
    }
    train = MDGenDataset(arguments, diffuser, "train")
    validation = MDGenDataset(arguments, diffuser, "val")
    _refuse_common_frames(train, validation, table)
    validation.coord_scale = train.coord_scale
    return train, validation


def _refuse_common_frames(train: "MDGenDataset", validation: "MDGenDataset", table: Path | None) -> None:
    """Raise TrajectoryError where frames are in both sets: their loss would not tell memory from knowledge."""
    others = {trajectory.name: trajectory for trajectory in validation.trajectories}
    for one in train.trajectories:
        other = others.get(one.name)
        if other is not None and max(one.start, other.start) < min(one.stop, other.stop):
            reason = f"{table} has no columns train_end and val_end, or overlapping ones" if table else "no table given"
            raise TrajectoryError(
                f"the validation frames [{other.start}, {other.stop}) of {one.name} are among the training frames "
                f"[{one.start}, {one.stop}) ({reason}); give a --train-split with name, train_end and val_end, as "
                "'prepare se3' writes it"
            )


def _table(given: Path | None, data_dir: Path, name: str, *, required: bool) -> Path | None:
    path = given if given is not None else data_dir / name
    if path.is_file() or (given is None and not required):
        return path if path.is_file() else None
    raise InputFileError(f"there is no table {path}; make it with 'prepare se3', or give another")


def _module(settings: TrainSE3Settings) -> "SE3Module":
    from ..training.se3_module import SE3Module

    model_conf, se3_conf = configurations(settings)
    return SE3Module(
        model_conf,
        se3_conf,
        settings.lr,
        rot_loss_weight=settings.rot_loss_weight,
        trans_loss_weight=settings.trans_loss_weight,
        psi_loss_weight=settings.psi_loss_weight,
        self_conditioning=settings.self_conditioning,
        seed=settings.seed,
        warmup_steps=settings.warmup_steps,
        cosine_decay=settings.cosine_decay,
        trans_weighting=settings.trans_weighting,
        loss_clip=settings.loss_clip,
        atom_loss_weight=settings.atom_loss_weight,
        distance_loss_weight=settings.distance_loss_weight,
    )


def _fit_options(settings: TrainSE3Settings, *, progress: bool, resume: bool) -> Any:
    import torch

    from ..training.se3_fit import SE3FitOptions

    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return SE3FitOptions(
        epochs=settings.epochs,
        max_minutes=settings.max_minutes,
        ema_decay=settings.ema_decay,
        gradient_clip=settings.gradient_clip,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=settings.precision or ("bf16-mixed" if on_gpu else "32-true"),
        validate_every=settings.validate_every,
        progress=progress,
        resume=resume,
    )


def _write(
    settings: TrainSE3Settings, module: "SE3Module", train: "MDGenDataset", metrics: dict[str, float]
) -> "Model":
    import dataclasses

    from ..analysis import plots
    from ..models import Model, save
    from ..peptide import MoleculeDescription

    folder = settings.save_dir
    sequences = list(dict.fromkeys(trajectory.residues for trajectory in train.trajectories))
    if len(sequences) > 1 and not module.model_conf.embed.embed_residue_type:
        logger.warning(
            "trained on %d proteins without embed_residue_type: the model cannot tell them apart", len(sequences)
        )
    molecule = MoleculeDescription(tuple(sequences))
    card = model_card(settings, module, train, metrics)
    model = Model("se3", module.network.cpu().eval(), molecule, card)
    weights = save(model, folder / "model")
    plots.save(plots.loss_curve(folder / "metrics.csv"), folder / "loss_curve.png")
    return dataclasses.replace(model, source={"path": str(weights.resolve())})
