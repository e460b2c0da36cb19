"""Batches of chains of any length: padding, and samples that carry the batch which they were made in."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import TrajectoryError
from ..geometry.residue_constants import UNKNOWN

Sample = dict[str, Any]

# What stands in a residue that is not there; zeros for keys that are not named. The identity frame is a frame.
_PADDING = {
    "rigids_0": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "rigids_t": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "torsion_angles_sin_cos": (0.0, 1.0),
    "aatype": (UNKNOWN,),
}
# The keys whose first axis is the residues.
PER_RESIDUE = frozenset(
    {
        "rigids_0",
        "rigids_t",
        "rot_score",
        "trans_score",
        "res_mask",
        "fixed_mask",
        "res_weight",
        "torsion_angles_sin_cos",
        "torsion_angles_mask",
        "seq_idx",
        "sc_ca_t",
        "atom14_pos",
        "atom37_pos",
        "aatype",
        "chain_idx",
        "residue_index",
        "residx_atom14_to_atom37",
        "atom37_mask",
    }
)


class Samples(Sequence[Sample]):
    """The samples of a batch that was made in one go; `batch` is that batch, which `collate` need not stack again."""

    def __init__(self, batch: dict[str, Any], lengths: list[int]) -> None:
        self.batch, self._lengths = batch, lengths
        self._made: list[Sample] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if not self._made:
            self._made = self._split()
        return self._made[index]

    def _split(self) -> list[Sample]:
        columns = {key: list(value) for key, value in self.batch.items()}
        uneven = min(self._lengths) < max(self._lengths)
        for key in PER_RESIDUE if uneven else ():
            columns[key] = [value[:n] for value, n in zip(columns[key], self._lengths, strict=True)]
        return [{key: column[i] for key, column in columns.items()} for i in range(len(self))]


def collate(samples: Sequence[Sample] | Mapping[str, Any]) -> dict[str, Any]:
    """A batch of samples, for a DataLoader's `collate_fn`; shorter chains are padded with `res_mask` 0.

    Raises TrajectoryError where samples differ in their keys or in their `coord_scale`.
    """
    if isinstance(samples, Samples):
        return samples.batch
    if isinstance(samples, Mapping):
        return dict(samples)
    keys = samples[0].keys()
    if any(sample.keys() != keys for sample in samples):
        raise TrajectoryError("samples of one batch have different keys; expected samples of one data set")
    scales = {float(sample["coord_scale"]) for sample in samples if "coord_scale" in sample}
    if len(scales) > 1:
        raise TrajectoryError(
            f"samples of one batch have the coord_scale {sorted(scales)}; expected one, hand the training set's to "
            "the others"
        )
    length = max(len(sample["res_mask"]) for sample in samples)
    return {key: _stack(key, [sample[key] for sample in samples], length) for key in keys}


def pad(key: str, value: Tensor, length: int) -> Tensor:
    """A per-residue tensor [L, ...], lengthened to [length, ...] by what stands for an absent residue."""
    if len(value) == length:
        return value
    filler = torch.tensor(_PADDING.get(key, (0.0,)), dtype=value.dtype, device=value.device)
    rest = filler if filler.numel() > 1 else filler[0]
    padded = value.new_empty((length, *value.shape[1:]))
    padded[: len(value)] = value
    padded[len(value) :] = rest
    return padded


def _stack(key: str, values: list[Any], length: int) -> Any:
    if key in PER_RESIDUE:
        return torch.stack([pad(key, value, length) for value in values])
    return torch.stack(values) if isinstance(values[0], Tensor) else values
