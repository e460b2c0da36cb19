"""The training loop: Lightning with an exponential moving average, clipping, checkpoints and CSV metrics."""

import csv
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from ..errors import TrainingError


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
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        EMAWeightAveraging(decay=options.ema_decay),
        ModelCheckpoint(dirpath=checkpoints, save_last=True, save_top_k=0),
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
    last = checkpoints / "last.ckpt"
    earlier = _set_aside(folder / "metrics.csv") if options.resume else None
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
        _prepend(earlier, folder / "metrics.csv")
    if trainer.interrupted:
        raise TrainingError(f"training was interrupted at step {trainer.global_step}; go on with --resume")


def _set_aside(metrics: Path) -> Path | None:
    """Keep the metrics of an earlier part, which CSVLogger would delete."""
    kept = metrics.with_name("metrics_earlier.csv")
    if metrics.exists():
        os.replace(metrics, kept)
    return kept if kept.exists() else None


def _prepend(earlier: Path, metrics: Path) -> None:
    """Put the rows of an earlier part before those of the later one, whatever the order of their columns."""
    rows: list[dict[str, str]] = []
    for path in (earlier, metrics):
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(metrics, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    earlier.unlink()
