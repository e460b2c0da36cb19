"""MD frames as training samples of the SE(3) model: centred, scaled, cropped, noised, a whole batch at a time."""

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import SettingError
from .auxiliary import AuxiliaryFrames
from .collate import PER_RESIDUE, Sample, Samples, pad
from .crops import CropSet, InclusionReport, make_crops
from .frame_splits import check_mode
from .md_arrays import sequence_name
from .md_features import StoredFrames, torch_generator
from .md_options import DataOptions
from .md_samples import clean_samples, draw_times
from .md_trajectories import find_trajectories, read_features
from .noise_times import NoiseTimes
from .weights import draw_by_weight

logger = logging.getLogger(__name__)

TRAINING_MODES = ("train", "train_early")
_EAGER_CROPS = 8  # proteins whose crops are made at once, so that errors come early


class MDGenDataset(Dataset[Sample]):
    """Frames of MD trajectories `{name}_R{k}{suffix}.npy`, one sample each, noised by a diffuser.

    Parameters
    ----------
    args
        A mapping or an object with the options of `DataOptions`; others are ignored.
    diffuser
        Gives noise and scores. The data set keeps a copy of its own, with the data's `coord_scale` and, where
        coordinate_scaling is still "auto", 1 / std of the training frames (Angstrom), whatever coord_scale is.
    mode
        "train", "train_early", "val", "test" or "all": which frames of the table of splits. Times are uniform and
        residues are cropped in the training modes only; elsewhere each index has its time, from a fixed grid, and its
        noise, always the same. Where frames have weights, or are to be flattened, an epoch's `order` and the items of
        "val" and "test" are draws in proportion to them.

    Notes
    -----
    Training noise comes from a generator seeded by (seed, worker, epoch, number of the call, indices of the batch):
    reproducible for one seed and order of batches, different in every epoch, worker and rank. Lengths in samples are
    Angstrom * coord_scale about the centroid of the visible CA. Fetch batches with `collate`.
    """

    def __init__(self, args: Any, diffuser: SE3Diffuser, mode: str = "train") -> None:
        self.options = DataOptions.of(args)
        self.mode = check_mode(mode)
        self.diffuser = copy.deepcopy(diffuser)
        self.epoch = 0
        self._calls = 0
        self._crops: dict[str, CropSet] = {}
        self._fixed_noise: dict[int, dict[str, Tensor]] = {}
        self._coord_scale, self._std = 0.0, 0.0
        self.trajectories = find_trajectories(self.options, mode)
        self._ends = np.cumsum([len(t) for t in self.trajectories])
        self._clock = NoiseTimes(self.diffuser, self.options.max_t)
        kind = StoredFrames if self.options.auxiliary_width is None else AuxiliaryFrames
        self._frames = kind(self.trajectories, self.options)
        # Frames by their weights: drawn for every epoch in training, once for all elsewhere.
        self.weights = self._frames.weights()
        self._chosen: NDArray[np.int64] | None = None
        if self.weights is not None and mode in ("val", "test"):
            rng = np.random.default_rng([self.options.seed, len(self)])
            self._chosen = draw_by_weight(self.weights, len(self), rng)
        if self.options.coord_scale is not None:
            self.coord_scale = self.options.coord_scale
        if mode in TRAINING_MODES:
            self._fill_in_units()
            self.diffuser.check_scale(self.std * self.coord_scale)
            proteins = list(dict.fromkeys(sequence_name(t.name) for t in self.trajectories))
            if self.options.crop_ratio < 1 and len(proteins) <= _EAGER_CROPS:
                for protein in proteins:
                    logger.info("crops of %s: %s", protein, self.crops(protein).report)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def std(self) -> float:
        """Standard deviation (Angstrom) of the training frames' CA about their centroids.

        Give the other sets the training set's coord_scale and coordinate_scaling where they may read other files.
        """
        if not self._std:
            self._std = self._frames.std()
        return self._std

    @property
    def coord_scale(self) -> float:
        """Length units of the samples per Angstrom: 1 / std unless set."""
        if not self._coord_scale:
            self.coord_scale = 1.0 / self.std
        return self._coord_scale

    @coord_scale.setter
    def coord_scale(self, value: float) -> None:
        value = float(value)
        if not (math.isfinite(value) and value > 0):
            raise SettingError(f"coord_scale is {value}; expected a positive number of units per Angstrom")
        self._coord_scale = value
        self._fixed_noise.clear()
        self.diffuser.coord_scale = value

    @property
    def coordinate_scaling(self) -> float:
        """Diffused units per Angstrom: those of the diffuser, and 1 / std where it says "auto"."""
        if self.diffuser.coordinate_scaling == "auto":
            self.diffuser.with_auto_scaling(self.std)
        return float(self.diffuser.coordinate_scaling)

    @coordinate_scaling.setter
    def coordinate_scaling(self, value: float) -> None:
        self._fixed_noise.clear()
        self.diffuser.coordinate_scaling = float(value)

    def order(self, seed: int) -> NDArray[np.int64]:
        """The items of an epoch [len(self)]: a permutation, or a draw in proportion to weights where there are any."""
        if self.weights is None:
            return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).numpy()
        return draw_by_weight(self.weights, len(self), np.random.default_rng(seed))

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another noise, also where a training is resumed; not needed otherwise."""
        self.epoch, self._calls = epoch, 0

    def crops(self, protein: str) -> CropSet:
        """The crops of a protein, made on the first training frame of its first trajectory."""
        if protein not in self._crops:
            first = next(t for t in self.trajectories if sequence_name(t.name) == protein)
            ca = read_features(first, np.array([first.train_start])).atom14[0, :, 1].numpy()
            options = self.options
            self._crops[protein] = make_crops(ca, options.crop_ratio, options.inclusion, options.crop_tolerance)
        return self._crops[protein]

    def inclusion_reports(self) -> dict[str, InclusionReport]:
        """How equally the residues of each protein are in its crops; empty without crops."""
        if self.options.crop_ratio == 1 or self.mode not in TRAINING_MODES:
            return {}
        return {p: self.crops(p).report for p in dict.fromkeys(sequence_name(t.name) for t in self.trajectories)}

    def __getitem__(self, index: int) -> Sample:
        """One sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """The samples of a batch, read and noised together; `Samples.batch` is the (padded) batch itself."""
        rows = np.asarray(indices, np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if ((rows < 0) | (rows >= len(self))).any():
            raise IndexError(f"index {indices} is out of range for {len(self)} samples")
        drawn = rows if self._chosen is None else self._chosen[rows]
        which = np.searchsorted(self._ends, drawn, side="right")
        frames = drawn - np.append(0, self._ends)[which]
        lengths = [len(self.trajectories[k].sequence) for k in which]
        rng = self._rng(rows)
        features = self._frames.fields(which, frames, rows, max(lengths), rng)
        batch = clean_samples(features, self.coord_scale, self._masks(which, lengths, rng), self._frames.first_index)
        batch["t"] = draw_times(self.options, self._clock, rows, len(self), rng)
        batch |= self._noised(batch, rows, lengths, rng)
        batch["name"] = [self.trajectories[k].name for k in which]
        batch["frame_indices"] = torch.as_tensor(frames + np.array([t.start for t in self.trajectories])[which])
        return Samples(batch, lengths)

    def _masks(
        self, which: NDArray[np.int64], lengths: list[int], rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor] | None:
        """Crops and weights [B, L] of a batch; None where all residues are visible."""
        if self.options.crop_ratio == 1 or self.mode not in TRAINING_MODES or rng is None:
            return None
        uniform = rng.random(len(which))
        mask, weight = np.zeros((2, len(which), max(lengths)), np.float32)
        groups = defaultdict(list)
        for row, k in enumerate(which):
            groups[sequence_name(self.trajectories[k].name)].append(row)
        for protein, rows in groups.items():
            crops = self.crops(protein)
            drawn, length = crops.draw(uniform[rows]), lengths[rows[0]]
            mask[rows, :length] = drawn
            weight[rows, :length] = drawn * crops.residue_weights
        return torch.from_numpy(mask), torch.from_numpy(weight)

    def _noised(
        self, batch: dict[str, Any], rows: NDArray[np.int64], lengths: list[int], rng: np.random.Generator | None
    ) -> dict[str, Tensor]:
        """Noised frames and scores: of the batch at once in training, each index with its own noise elsewhere."""
        self._fill_in_units()
        # Nothing is fixed here, so noise and scores are centred; see SE3Diffuser.forward_marginal.
        rigids, t, mask = batch["rigids_0"], batch["t"], batch["res_mask"]
        if rng is not None:
            return self.diffuser.forward_marginal(rigids, t, diffuse_mask=mask, generator=torch_generator(rng))
        parts = []
        for row, (index, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
            one = self._fixed_noise.get(index)
            if one is None:
                generator = torch_generator(np.random.default_rng([self.options.seed, index]))
                one = self.diffuser.forward_marginal(
                    rigids[row, :length], t[row], diffuse_mask=mask[row, :length], generator=generator
                )
                if self._frames.in_memory:
                    self._fixed_noise[index] = one
            parts.append({k: pad(k, v, rigids.shape[1]) if k in PER_RESIDUE else v for k, v in one.items()})
        return {key: torch.stack([part[key] for part in parts]) for key in parts[0]}

    def _fill_in_units(self) -> None:
        """Measure what nobody has set."""
        self.diffuser.coord_scale = self.coord_scale
        self.diffuser.coordinate_scaling = self.coordinate_scaling

    def _rng(self, rows: NDArray[np.int64]) -> np.random.Generator | None:
        """The batch's generator in training, None where noise goes by the index."""
        if self.mode not in TRAINING_MODES:
            return None
        worker = get_worker_info()
        stream = worker.seed if worker is not None else 0
        self._calls += 1
        # The indices differ between ranks, whose streams would be equal otherwise.
        return np.random.default_rng([self.options.seed, stream, self.epoch, self._calls, *rows.tolist()])
