"""Loaders of the SE(3) data sets: every process its own share of the frames, every epoch its own order."""

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ..data.collate import collate
from ..data.mdgen_dataset import MDGenDataset
from ..errors import SettingError


class EpochSampler(Sampler[int]):
    """The order of a data set's items that follows from seed and epoch, and of it the share of one process.

    A permutation, or a draw in proportion where the frames have weights.
    All processes take equally many items; what does not divide is left out of this epoch. The epoch is handed on to the
    data set, and to `workers`, the generator that seeds a loader's workers. A training resumed from a checkpoint of the
    end of an epoch so sees the frames and draws the noise that the uninterrupted one would have. From a checkpoint
    within an epoch (`LastCheckpoint` makes them in long ones) it does not: the loader's position is not stored, the
    epoch's order and noise start from the beginning, its first frames come twice and its last ones wait for a later
    epoch.
    """

    def __init__(self, data: MDGenDataset, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._data, self._seed, self._rank, self._world_size = data, seed, rank, world_size
        self.workers = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self._epoch = epoch
        self._data.set_epoch(epoch)
        self.workers.manual_seed(self._mixed(self._rank + 1))

    def __len__(self) -> int:
        return len(self._data) // self._world_size

    def __iter__(self) -> Iterator[int]:
        order = self._data.order(self._mixed(0))
        yield from order[self._rank : len(self) * self._world_size : self._world_size].tolist()

    def _mixed(self, stream: int) -> int:
        return int(np.random.SeedSequence([self._seed, self._epoch, stream]).generate_state(1, np.uint64)[0] >> 1)


class SE3DataModule(lightning.LightningDataModule):
    """Batches of a training and a validation set.

    `validation_frames` is the most validation samples that are taken, spread over the set and over its noise levels.
    The validation set is given the diffused units of the training set.
    """

    def __init__(
        self,
        train: MDGenDataset,
        validation: MDGenDataset,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        validation_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        validation.coordinate_scaling = train.coordinate_scaling
        self._batch_size, self._num_workers, self._seed = batch_size, num_workers, seed
        self._validation_frames = validation_frames

    def steps_per_epoch(self, world_size: int = 1) -> int:
        """Training batches of one process in an epoch; incomplete ones are left out.

        Raises SettingError where a batch is larger than a process's share of the training frames.
        """
        steps = len(self.train) // world_size // self._batch_size
        if not steps:
            raise SettingError(
                f"batch_size is {self._batch_size}, but a process has {len(self.train) // world_size} of the "
                f"{len(self.train)} training frames; give a smaller one, or more data"
            )
        return steps

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of this process."""
        rank, world_size = self._place()
        sampler = EpochSampler(self.train, self._seed, rank, world_size)
        return self._loader(self.train, sampler, drop_last=True, generator=sampler.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation sample once over all processes, in order; all in each where there are fewer than processes.

        No process may be without a batch: it would leave the others waiting. The means are the same either way.
        """
        rank, world_size = self._place()
        rows = self._validation_rows()
        mine = rows[rank::world_size] if len(rows) >= world_size else rows
        return self._loader(self.validation, mine, drop_last=False)

    def _validation_rows(self) -> list[int]:
        n = len(self.validation)
        if self._validation_frames is None or n <= self._validation_frames:
            return list(range(n))
        # The noise level goes by the index, so neighbours are taken: a run of all levels at a time.
        given = self.validation.options.val_t
        levels = min(len(given) if given is not None else self.validation.options.n_val_t, n)
        starts = np.linspace(0, n // levels - 1, max(1, self._validation_frames // levels)).astype(int)
        return [int(start) * levels + level for start in starts for level in range(levels)]

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _loader(self, data: MDGenDataset, sampler: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            data,
            self._batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
