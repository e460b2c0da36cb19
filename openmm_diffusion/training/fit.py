"""The training loop: Lightning with an exponential moving average, clipping, checkpoints and CSV metrics."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from ..errors import TrainingError
from .callbacks import LastCheckpoint, prepend, set_aside


@dataclass(frozen=True)
class FitOptions:
    """Options of a training run that have nothing to do with what is trained."""

    n_steps: int
    steps_per_epoch: int = 500
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    accelerator: str = "auto"
    progress: bool = True
    resume: bool = False


def fit(
    module: lightning.LightningModule,
    train: "IterableDataset[object]",
    validation: "IterableDataset[object]",
    folder: Path,
    options: FitOptions,
) -> None:
    """Train `module`, which holds the averaged weights afterwards.

    Writes `metrics.csv` and `checkpoints/last.ckpt` into `folder`; with `resume` it goes on from the latter.
    Raises TrainingError where the loss becomes NaN.
    """
    last = folder / "checkpoints" / "last.ckpt"
    callbacks: list[Callback] = [
        EMAWeightAveraging(decay=options.ema_decay),
        LastCheckpoint(last),
    ]
    if options.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=20))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        max_steps=options.n_steps,
        accelerator=options.accelerator,
        devices=1,
        gradient_clip_val=options.gradient_clip,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="", version="", flush_logs_every_n_steps=options.steps_per_epoch),
        log_every_n_steps=max(1, options.steps_per_epoch // 5),
        enable_progress_bar=options.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    earlier = set_aside(folder / "metrics.csv") if options.resume else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*`__len__` defined.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer.fit(
            module,
            DataLoader(train, batch_size=None),
            DataLoader(validation, batch_size=None),
            ckpt_path=str(last) if options.resume and last.exists() else None,
        )
    if earlier is not None:
        prepend(earlier, folder / "metrics.csv")
    if trainer.interrupted:
        raise TrainingError(f"training was interrupted at step {trainer.global_step}; go on with --resume")
