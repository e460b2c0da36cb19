"""MD that generated backbones are compared with, from a folder of 'prepare se3'."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.frame_splits import FrameSplit, read_frame_splits, read_sequences
from ..data.md_arrays import check_frames, find_array, list_arrays, open_array, sequence_name, strip_suffix
from ..errors import InputFileError, TrajectoryError
from ..geometry.residue_constants import UNKNOWN_LETTER
from .generate_se3_settings import GenerateSE3Settings

Array = NDArray[np.float64]
MAX_FRAMES = 5000  # of MD that the comparison looks at, evenly spaced


@dataclass(frozen=True)
class Reference:
    """Backbones [n, L, 4, 3] (Angstrom) of MD and of its held-out frames; `lengths` are the trajectories' in `md`."""

    md: Array
    held_out: Array
    lengths: list[int]


def read_reference(settings: GenerateSE3Settings, sequence: str) -> Reference:
    """The MD of a protein, and its held-out frames.

    Raises
    ------
    InputFileError
        The folder or the trajectory is missing.
    TrajectoryError
        The trajectory named is of another protein (by its length, and by the sequence in atlas.csv where there is one),
        or none of the folder is of this one.
    """
    folder = settings.data_dir
    assert folder is not None
    if settings.name is not None:
        names = [strip_suffix(settings.name, settings.suffix)]
    else:
        names = list_arrays(folder, settings.suffix)
    atlas = folder / "atlas.csv"
    sequences = read_sequences(atlas) if atlas.is_file() else {}
    found: dict[str, Path] = {}
    for name in names:
        path = find_array(folder, name, settings.suffix)
        if path is None:
            raise InputFileError(f"there is no {name}{settings.suffix}.npy in {folder}; check --name and --suffix")
        other = _another(path, sequences.get(sequence_name(name)), sequence)
        if other is None:
            found[name] = path
        elif settings.name is not None:
            raise TrajectoryError(f"{path} has {other}; give MD of the same protein")
    if not found:
        raise TrajectoryError(
            f"no trajectory in {folder} has {len(sequence)} residues and, by atlas.csv, the model's sequence "
            f"{sequence}; give --data-dir of the protein"
        )
    # Caps carry no letter of an amino acid.
    return _read(settings, found, np.array([letter == UNKNOWN_LETTER for letter in sequence]))


def _another(path: Path, known: str | None, sequence: str) -> str | None:
    """How a trajectory differs from the protein of a sequence; None where nothing tells them apart."""
    length = open_array(path).shape[1]
    if length != len(sequence):
        return f"{length} residues, the model {len(sequence)}"
    if known is not None and known != sequence:
        return f"the sequence {known} in atlas.csv, the model {sequence}"
    return None


def _read(settings: GenerateSE3Settings, found: Mapping[str, Path], caps: NDArray[np.bool_]) -> Reference:
    splits = _splits(settings)
    whole, held_out = [], []
    for name, path in found.items():
        array = open_array(path)
        split = splits.get(name, FrameSplit(name))
        whole.append(_backbones(array, (0, len(array)), path, len(found), caps))
        for mode in _modes(settings) if name in splits else ("all",):
            bounds = split.bounds(mode, len(array), settings.frame_interval)
            held_out.append(_backbones(array, bounds, path, len(found), caps))
    return Reference(np.concatenate(whole), np.concatenate(held_out), [len(x) for x in whole])


def _modes(settings: GenerateSE3Settings) -> tuple[str, ...]:
    return ("val", "test") if settings.held_out == "unseen" else (settings.held_out,)


def _splits(settings: GenerateSE3Settings) -> dict[str, FrameSplit]:
    assert settings.data_dir is not None
    path = settings.train_split or settings.data_dir / "frame_splits.csv"
    if settings.held_out == "all" or (settings.train_split is None and not path.is_file()):
        return {}
    rows, apart = read_frame_splits(path, list(_modes(settings)))
    return {strip_suffix(row.name, settings.suffix): row for row in rows} if apart else {}


def _backbones(
    array: NDArray[np.floating], bounds: tuple[int, int], path: Path, n_files: int, caps: NDArray[np.bool_]
) -> Array:
    first, stop = bounds
    n = min(stop - first, max(2, MAX_FRAMES // n_files))
    frames = np.linspace(first, stop - 1, n).round().astype(np.int64)
    taken = np.asarray(array[frames])
    check_frames(taken, path, frames, caps)
    backbone = taken[:, :, :4].astype(np.float64)
    # A cap has no O; at the origin it would clash with whatever is there.
    backbone[:, caps, 3] = backbone[:, caps, 2]
    return backbone
