"""Clean frames of a batch as the files have them: geometry of any of a data set's frames, padded to one length."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SettingError, TrajectoryError
from ..geometry import residue_constants as rc
from .collate import pad
from .md_options import DataOptions
from .md_trajectories import Features, Trajectory, alpha_carbon_std, read_features

Fields = dict[str, Tensor]
_BYTES_A_RESIDUE = 4 * (14 * 3 + 7 + 14 + 7)  # of one frame's features


class StoredFrames:
    """Frames as they are in the files, kept in memory where they are small enough.

    Raises
    ------
    SettingError
        Where the options ask for what only auxiliary frames have.
    """

    first_index = 1  # of the residues in seq_idx

    def __init__(self, trajectories: list[Trajectory], options: DataOptions) -> None:
        if options.flatten:
            raise SettingError(
                f"flatten is {options.flatten}, which goes by the soft torsions of auxiliary frames; give an "
                "auxiliary_width too, or no flatten"
            )
        self._trajectories, self._options = trajectories, options
        size = sum(len(t) * len(t.sequence) for t in trajectories) * _BYTES_A_RESIDUE
        self._cache: list[Features] | None = None
        if size <= 1e6 * options.cache_mb:
            self._cache = [read_features(t, np.arange(t.start, t.stop)) for t in trajectories]

    @property
    def in_memory(self) -> bool:
        """Whether the files need not be read again."""
        return self._cache is not None

    def std(self) -> float:
        """Standard deviation (Angstrom) of the training frames' CA about their centroids."""
        return alpha_carbon_std(self._trajectories, self._options.scale_frames)

    def weights(self) -> NDArray[np.float64] | None:
        """Weights of all frames, one trajectory after another; None where no file has any."""
        return file_weights(self._trajectories)

    def fields(
        self,
        which: NDArray[np.int64],
        frames: NDArray[np.int64],
        items: NDArray[np.int64],
        length: int,
        rng: np.random.Generator | None,
    ) -> Fields:
        """What `md_samples.clean_samples` takes, of frames (counted from each trajectory's start) of trajectories.

        `items` are the numbers of the samples; `rng` is None where these alone say what is drawn. Nothing is here.
        """
        return merged(
            which, length, ((self._trajectories[k], self._read(k, frames[rows])) for k, rows in groups(which))
        )

    def _read(self, k: int, frames: NDArray[np.int64]) -> Fields:
        trajectory = self._trajectories[k]
        if self._cache is None:
            # A memory map is read fastest in order, and each frame once.
            different, back = np.unique(frames, return_inverse=True)
            read = read_features(trajectory, trajectory.start + different)[torch.as_tensor(back)]
        else:
            read = self._cache[k][torch.as_tensor(frames)]
        return {
            "rigids_0": read.rigids,
            "atom14_pos": read.atom14,
            "torsion_angles_sin_cos": read.torsions,
            "torsion_angles_mask": read.torsions_mask,
        }


def file_weights(trajectories: list[Trajectory]) -> NDArray[np.float64] | None:
    """The weights of all frames of some trajectories, one after another; None where no file has any.

    Raises TrajectoryError where only some have weights.
    """
    found = [trajectory.weights() for trajectory in trajectories]
    absent = [t.name for t, weights in zip(trajectories, found, strict=True) if weights is None]
    if len(absent) == len(found):
        return None
    if absent:
        raise TrajectoryError(
            f"{absent[0]} has no weights beside it, other trajectories have; expected them for all or for none, "
            "prepare it again with --weights"
        )
    return np.concatenate([weights for weights in found if weights is not None])


def groups(which: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each trajectory of a batch with the rows that are its frames."""
    for k in np.unique(which):
        yield int(k), np.flatnonzero(which == k)


def merged(which: NDArray[np.int64], length: int, parts: Iterator[tuple[Trajectory, Fields]]) -> Fields:
    """Fields of a batch in its own order, with types and mask; the trajectories' come in the order of `groups`."""
    found: list[Fields] = []
    for trajectory, fields in parts:
        aatype = torch.as_tensor(rc.aatype(trajectory.sequence)).expand(len(fields["rigids_0"]), -1)
        fields = {**fields, "aatype": aatype, "res_mask": torch.ones(aatype.shape)}
        if len(trajectory.sequence) < length:
            fields = {key: pad(key, value.transpose(0, 1), length).transpose(0, 1) for key, value in fields.items()}
        found.append(fields)
    if len(found) == 1:
        return found[0]
    original = torch.as_tensor(np.argsort(np.argsort(which, kind="stable"), kind="stable"))
    return {key: torch.cat([part[key] for part in found])[original] for key in found[0]}


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A generator of torch, seeded by the next number of one of numpy."""
    return torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
