"""The trajectories of a data set: which files, which frames of them, and their geometry.

float16 coordinates are read here and become frames and torsions to learn from; nothing of this layer may be handed to a
force field, because rounding of 0.01 Angstrom is many kT in a bond.
"""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputFileError, TrajectoryError
from ..geometry import residue_constants as rc
from ..geometry.frames import atom14_mask, atom14_to_atom37, atom14_to_frames, atom37_to_torsions, present_atoms
from .frame_splits import FrameSplit, read_frame_splits, read_residues, read_sequences, sequence_of
from .md_arrays import check_frames, find_array, list_arrays, open_array, sequence_name, strip_suffix, weights_path
from .md_options import DataOptions
from .weights import check_weights

logger = logging.getLogger(__name__)

_CHUNK = 256  # frames converted at once


@dataclass(frozen=True)
class Trajectory:
    """One file: the sequence, its frames for this mode [start, stop), those that scale and crops are taken from.

    `residues` are the canonical names, caps included, whose letter in the sequence is X.
    """

    name: str
    path: Path
    sequence: str
    start: int
    stop: int
    train_start: int
    train_stop: int
    residues: tuple[str, ...]

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def caps(self) -> NDArray[np.bool_]:
        """Which residues [L] are caps."""
        return np.array([letter == rc.UNKNOWN_LETTER for letter in self.sequence])

    def of_training(self) -> "Trajectory":
        """The same file with its training frames."""
        return dataclasses.replace(self, start=self.train_start, stop=self.train_stop)

    def weights(self) -> NDArray[np.float64] | None:
        """Weights of the frames [start, stop); None where the file has none beside it."""
        path = weights_path(self.path)
        if not path.is_file():
            return None
        try:
            weights = np.asarray(np.load(path, allow_pickle=False), np.float64)
        except (OSError, ValueError, EOFError) as error:
            raise InputFileError(f"{path} cannot be read as weights ({error}); prepare them again") from error
        n_frames = len(open_array(self.path))
        if weights.shape != (n_frames,):
            raise TrajectoryError(f"{path} has the shape {weights.shape}; expected {(n_frames,)}, prepare them again")
        return check_weights(weights[self.start : self.stop], path)


@dataclass(frozen=True)
class Features:
    """Geometry of n frames: atom14 [n, L, 14, 3] and rigids [n, L, 7] in Angstrom, torsions [n, L, 7, 2], their
    mask."""

    atom14: Tensor
    rigids: Tensor
    torsions: Tensor
    torsions_mask: Tensor

    def __getitem__(self, rows: Tensor) -> "Features":
        return Features(self.atom14[rows], self.rigids[rows], self.torsions[rows], self.torsions_mask[rows])

    @classmethod
    def cat(cls, parts: list["Features"]) -> "Features":
        """The frames of several parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        names = ("atom14", "rigids", "torsions", "torsions_mask")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def find_trajectories(options: DataOptions, mode: str) -> list[Trajectory]:
    """The trajectories that the tables name and the data folder has, with the frames of a mode.

    Raises
    ------
    InputFileError
        Tables or all files are missing.
    TrajectoryError
        A file does not match its sequence or its row of the frame splits, or a split is empty.
    """
    reference = "train_early" if mode == "train_early" else "train"
    sequences, residues = read_sequences(options.atlas_csv), read_residues(options.atlas_csv)
    if options.train_split is None:
        logger.warning("no table of frame splits is given: %s takes all frames of all trajectories", mode)
        names = list_arrays(options.data_dir, options.suffix)
        splits = [FrameSplit(n) for n in names if sequence_name(n) in sequences]
        known = False
    else:
        splits, known = read_frame_splits(options.train_split, {mode, reference})
    if options.overfit_peptide is not None:
        splits = [s for s in splits if sequence_name(strip_suffix(s.name, options.suffix)) == options.overfit_peptide]
    found = {split.name: find_array(options.data_dir, split.name, options.suffix) for split in splits}
    absent = [name for name, path in found.items() if path is None]
    if len(absent) == len(found):
        raise InputFileError(_nothing_found(options, absent))
    if absent:
        logger.warning("%s has no file of %d trajectories (%s ...)", options.data_dir, len(absent), absent[0])
    result = []
    for split in splits:
        path = found[split.name]
        if path is not None:
            name = strip_suffix(split.name, options.suffix)
            sequence = sequence_of(name, sequences, options.atlas_csv)
            chain = residues.get(sequence_name(name))
            result.append(_trajectory(name, path, sequence, chain, split if known else None, options, mode, reference))
    return result


def read_features(trajectory: Trajectory, frames: NDArray[np.int64]) -> Features:
    """Geometry of some frames of a trajectory; raises TrajectoryError for NaN or absent backbone atoms."""
    array = open_array(trajectory.path)
    parts = []
    aatype = torch.as_tensor(rc.aatype(trajectory.sequence))
    for first in range(0, len(frames), _CHUNK):
        rows = frames[first : first + _CHUNK]
        atoms = np.asarray(array[rows], np.float32)
        check_frames(atoms, trajectory.path, rows, trajectory.caps)
        atom14 = torch.from_numpy(atoms) * atom14_mask(aatype)[..., None]
        rigids = atom14_to_frames(atom14).to_tensor_7()
        torsions, mask = atom37_to_torsions(atom14_to_atom37(atom14, aatype), aatype)
        parts.append(Features(atom14, rigids, torsions, mask.to(torch.float32)))
    return Features.cat(parts)


def alpha_carbon_std(trajectories: list[Trajectory], max_frames: int) -> float:
    """Standard deviation (Angstrom) of CA coordinates about their frame's centroid, over the training frames.

    Streamed; where there are more than `max_frames`, evenly spaced ones of each trajectory.
    """
    total = sum(t.train_stop - t.train_start for t in trajectories)
    stride = -(-total // max_frames)
    squares, count = 0.0, 0
    for trajectory in trajectories:
        for ca in _alpha_carbons(trajectory, stride):
            centred = ca - ca.mean(1, keepdims=True)
            squares += float((centred**2).sum())
            count += centred.size
    if not squares > 0:
        raise TrajectoryError(
            f"the CA atoms of {trajectories[0].path} have no spread; expected at least two residues, give a coord_scale"
        )
    return float(np.sqrt(squares / count))


def _alpha_carbons(trajectory: Trajectory, stride: int) -> Iterator[NDArray[np.float64]]:
    array = open_array(trajectory.path)
    frames = np.arange(trajectory.train_start, trajectory.train_stop, stride)
    for first in range(0, len(frames), _CHUNK):
        rows = frames[first : first + _CHUNK]
        atoms = np.asarray(array[rows[0] : rows[-1] + 1 : stride])
        check_frames(atoms, trajectory.path, rows, trajectory.caps)
        yield atoms[:, :, 1].astype(np.float64)


def present14(atom14: Tensor) -> Tensor:
    """Which atoms [..., L, 14] there are, as float."""
    return present_atoms(atom14).to(atom14.dtype)


def _trajectory(
    name: str,
    path: Path,
    sequence: str,
    residues: tuple[str, ...] | None,
    split: FrameSplit | None,
    options: DataOptions,
    mode: str,
    reference: str,
) -> Trajectory:
    strange = sorted(set(sequence) - set(rc.RESTYPES)) if residues is None else []
    if strange or not sequence:
        raise TrajectoryError(
            f"{options.atlas_csv}: the sequence of {sequence_name(name)} has the letters {strange or 'of nothing'}; "
            f"expected the 20 of {rc.RESTYPES}, leave this protein out or correct its row"
        )
    if residues is None:
        residues = tuple(rc.RESTYPES_3[rc.RESTYPES.index(letter)] for letter in sequence)
    n_frames, length = open_array(path).shape[:2]
    if length != len(sequence):
        raise TrajectoryError(
            f"{path} has {length} residues, its sequence in {options.atlas_csv} has {len(sequence)}; correct the "
            "table or prepare the trajectory again"
        )
    start, stop = (0, n_frames) if split is None else split.bounds(mode, n_frames, options.frame_interval)
    train = (
        (start, stop) if split is None or mode == "all" else split.bounds(reference, n_frames, options.frame_interval)
    )
    if options.overfit:
        stop = min(stop, start + options.overfit)
    return Trajectory(name, path, sequence, start, stop, *train, residues)


def _nothing_found(options: DataOptions, names: list[str]) -> str:
    example = f"{names[0]}{options.suffix}.npy" if names else f"{{name}}_R{{k}}{options.suffix}.npy"
    files = sorted(path.name for path in options.data_dir.glob("**/*.npy"))[:3] if options.data_dir.is_dir() else []
    there = f"; it holds {', '.join(files)}" if files else "; it holds no .npy file"
    return (
        f"{options.data_dir} has none of the trajectories, such as {example}{there}; check data_dir, suffix and tables"
    )
