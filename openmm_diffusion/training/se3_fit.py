"""The training loop of the SE(3) model: epochs, time budget, moving average, clipping, checkpoints, processes."""

import logging
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from ..errors import ModelFileError, OpenMMDiffusionError, SettingError, TrainingError, first_line
from .callbacks import LastCheckpoint, TimeBudget, ValidationProbe, moving_average, prepend, set_aside
from .se3_data import SE3DataModule
from .se3_module import SE3Module

_NOISE = (  # advice of Lightning and torch that is followed already or does not apply
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*",
    ".*isinstance.treespec.*",
    ".*recommended to use `self.log.*sync_dist.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    ".*smaller than the logging interval.*",
)


@dataclass(frozen=True)
class SE3FitOptions:
    """Options of a training run that have nothing to do with what is trained; most are Lightning's own.

    Attributes
    ----------
    epochs
        Passes over the data after which training ends.
    max_minutes
        Wall time after which it ends too, that of earlier parts included; a learning rate that decays follows it.
    validate_every
        Epochs between validations; None for about every 500 steps.
    """

    epochs: int = 100
    max_minutes: float | None = None
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    accelerator: str = "auto"
    devices: str | int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    validate_every: int | None = None
    progress: bool = True
    resume: bool = False


def is_first_process() -> bool:
    """Whether this process is the one that writes, of a training in several."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def fit_se3(
    module: SE3Module,
    data: SE3DataModule,
    folder: Path,
    options: SE3FitOptions,
    probe: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Train `module`, which holds the averaged weights afterwards; returns its last metrics and the number of steps.

    Writes `metrics.csv` and `checkpoints/last.ckpt` into `folder`; with `resume` it goes on from the latter. `probe` is
    asked about the averaged network at every validation, and what it says is logged, see `ValidationProbe`.

    Raises
    ------
    TrainingError
        Where the loss becomes NaN, or the training is interrupted.
    ModelFileError
        For the checkpoint of another configuration, or one that cannot be read.
    """
    last = folder / "checkpoints" / "last.ckpt"
    resumes = options.resume and last.exists()
    steps = data.steps_per_epoch(_n_processes(options))
    trainer = _trainer(folder, options, steps, [] if probe is None else [ValidationProbe(probe)])
    earlier = _earlier_metrics(folder) if options.resume and is_first_process() else None
    try:
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=message)
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if resumes else None)
            if trainer.interrupted:
                raise TrainingError(f"training was interrupted at step {trainer.global_step}; go on with --resume")
            trained = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("train")}
            trainer.validate(module, datamodule=data, verbose=False)
    except OpenMMDiffusionError:
        raise
    except (EOFError, KeyError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        if resumes and trainer.global_step == 0:
            raise ModelFileError(
                f"cannot go on from {last} ({first_line(error)}); train anew with --overwrite"
            ) from error
        raise
    finally:
        if earlier is not None:
            prepend(earlier, folder / "metrics.csv")
    validated = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {"step": trainer.global_step, **trained, **validated}


def check_options(options: SE3FitOptions) -> None:
    """Raise SettingError where Lightning cannot train like that, before anything is written."""
    _trainer(Path(), options, 1)


def _earlier_metrics(folder: Path) -> Path | None:
    """The metrics of the parts before, set aside; those of a part that was killed while it had some aside, first."""
    aside, metrics = folder / "metrics_earlier.csv", folder / "metrics.csv"
    if aside.exists():
        prepend(aside, metrics)
    return set_aside(metrics)


def _trainer(
    folder: Path, options: SE3FitOptions, steps_per_epoch: int, first: Sequence[Callback] = ()
) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Buffers are no weights: the scale of the coordinates is not averaged.
    callbacks: list[Callback] = [
        *first,
        WeightAveraging(use_buffers=False, multi_avg_fn=moving_average(options.ema_decay)),
        LastCheckpoint(folder / "checkpoints" / "last.ckpt"),
    ]
    if options.max_minutes is not None:
        callbacks.append(TimeBudget(60.0 * options.max_minutes))
    if options.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=20))
    try:
        return lightning.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=_devices(options.devices),
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,  # type: ignore[arg-type]
            gradient_clip_val=options.gradient_clip,
            callbacks=callbacks,
            logger=CSVLogger(folder, name="", version="", flush_logs_every_n_steps=500),
            log_every_n_steps=max(1, min(50, steps_per_epoch)),
            check_val_every_n_epoch=options.validate_every or max(1, round(500 / steps_per_epoch)),
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise SettingError(
            f"Lightning cannot train with accelerator {options.accelerator}, devices {options.devices}, strategy "
            f"{options.strategy}, precision {options.precision} ({first_line(error)}); give others"
        ) from error


def _devices(devices: str | int) -> str | int:
    text = str(devices)
    return int(text) if text.lstrip("-").isdigit() else text


def _n_processes(options: SE3FitOptions) -> int:
    """Processes of a training: what Lightning makes of devices such as "0,1", "auto" and -1, on every node."""
    trainer = _trainer(Path(), options, 1)
    return trainer.num_devices * trainer.num_nodes
