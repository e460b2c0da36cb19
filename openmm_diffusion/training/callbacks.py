"""What Lightning lacks for a training that is stopped and goes on: checkpoints, clock, averages, metrics."""

import csv
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn

from ..errors import TrainingError


def check_loss(loss: Tensor, step: int) -> None:
    """Raise TrainingError where the loss of a step is NaN or infinite."""
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is NaN or infinite at step {step}; use a smaller lr, or check the data")


def moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The update of an exponential moving average whose decay grows as (1 + n) / (10 + n) to `decay`.

    With the full decay from the start, the untrained weights would count e^-1 after 1 / (1 - decay) steps.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        n = int(n_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return update


class ValidationProbe(Callback):
    """Logs what a function finds about the network at every validation: {"log_q": ...} becomes `val_log_q`.

    The function is handed in, because what is worth knowing of a network may lie above this layer. It has to come
    before the callback that averages weights in the trainer's list, which takes the averages away again at the same
    moment.
    """

    def __init__(self, probe: Callable[[nn.Module], Mapping[str, float]]) -> None:
        self._probe = probe

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Ask, with the averaged weights in place and without gradients."""
        with torch.no_grad():
            values = self._probe(pl_module.network)
        pl_module.log_dict({f"val_{name}": float(value) for name, value in values.items()})


class LastCheckpoint(Checkpoint):
    """Writes one checkpoint after every epoch, and within long ones, over the one before.

    Lightning's own with `save_top_k=0` writes at the end of the training only, when the averaged weights have taken the
    place of the last ones: a resumed training would not be the uninterrupted one.
    """

    _STEPS = 2000

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Save within a long epoch."""
        if trainer.global_step % self._STEPS == 0:
            trainer.save_checkpoint(self._path)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save after an epoch."""
        trainer.save_checkpoint(self._path)


class TimeBudget(Callback):
    """Stops a training after so many seconds, and tells the module which share of them is over.

    The time of earlier parts is in the checkpoint. All processes go by the clock of the first.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._before, self._start = seconds, 0.0, time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Stop where the time is over."""
        elapsed = trainer.strategy.broadcast(self._elapsed()) if trainer.world_size > 1 else self._elapsed()
        pl_module.time_share = elapsed / self._seconds
        trainer.should_stop = trainer.should_stop or elapsed >= self._seconds

    def state_dict(self) -> dict[str, Any]:
        """The seconds that are over."""
        return {"elapsed": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the seconds of an earlier part."""
        self._before = float(state_dict["elapsed"])

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._start


def set_aside(metrics: Path) -> Path | None:
    """Keep the metrics of an earlier part, which CSVLogger would delete."""
    kept = metrics.with_name("metrics_earlier.csv")
    if metrics.exists():
        os.replace(metrics, kept)
    return kept if kept.exists() else None


def prepend(earlier: Path, metrics: Path) -> None:
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
