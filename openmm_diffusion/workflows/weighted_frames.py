"""Frames with weights: their file, and an order of frames that lets contiguous splits see every part of a trajectory.

The trajectory of `simulate` is sorted by temperature, so a split that is contiguous there would train on cold frames
and validate on hot ones. Its blocks are dealt out instead: frame i of a block goes where frame i of every block goes,
the first to the front of the array, the last to its end. Each split then has its share of every block, and within a
block its frames are neighbours in time, so that few pairs of them are correlated across a border.
"""

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.md_arrays import ArrayWriter
from ..data.weights import check_weights
from ..errors import SettingError, TrajectoryError
from .prepare_se3_settings import PrepareSE3Settings

logger = logging.getLogger(__name__)
BLOCKS, SHORTEST_BLOCK = 100, 10  # of frames with weights, unless given
_CHUNK = 1000  # frames


def check_settings(settings: PrepareSE3Settings) -> None:
    """Raise SettingError where weights, blocks and early frames do not go together."""
    n_files, n_weights = len(settings.trajectory), len(settings.weights or [])
    if n_weights not in (0, n_files):
        raise SettingError(f"{n_weights} files of weights for {n_files} trajectories; expected one for each")
    if settings.early_frames and (settings.weights or (settings.blocks or 1) > 1):
        raise SettingError(
            f"early_frames is {settings.early_frames} with weights or blocks, whose frames are not in the order of "
            "time; leave it out, and drop the equilibration before"
        )


def read_weights(file: Path, trajectory: Path, n_frames: int, stride: int) -> NDArray[np.float64]:
    """Weights of the stored frames: every stride-th of a file with one for each frame of the trajectory.

    Raises TrajectoryError where the numbers do not match, or the weights are none.
    """
    from . import prepare

    weights = prepare.read_weights(file)
    if len(weights[::stride]) != n_frames:
        raise TrajectoryError(
            f"{file} has {len(weights)} weights, but {trajectory} has about {n_frames * stride} frames; expected one "
            "for each frame"
        )
    return check_weights(weights[::stride], file)


def dealt_order(n_frames: int, settings: PrepareSE3Settings) -> NDArray[np.int64] | None:
    """Which frame of the trajectory comes where in the array; None where the order is kept."""
    default = max(1, min(BLOCKS, n_frames // SHORTEST_BLOCK)) if settings.weights else 1
    blocks = min(settings.blocks or default, n_frames)
    if blocks == 1:
        return None
    logger.info("the splits have their shares of each of %d blocks of frames", blocks)
    # Blocks of nearly equal length: a frame's place is how far into its block it is.
    frames = np.arange(n_frames)
    block = frames * blocks // n_frames
    starts = np.searchsorted(block, np.arange(blocks + 1))
    place = (frames - starts[block]) / np.diff(starts)[block]
    return np.argsort(place, kind="stable")


def reorder(path: Path, order: NDArray[np.int64]) -> None:
    """Rewrite an array's frames in another order, a chunk at a time."""
    unordered = path.with_suffix(".unordered.npy")
    os.replace(path, unordered)
    try:
        array = np.load(unordered, mmap_mode="r")
        with ArrayWriter(path, array.shape[1:], array.dtype.name) as writer:
            for first in range(0, len(order), _CHUNK):
                writer.append(array[order[first : first + _CHUNK]])
    finally:
        unordered.unlink()
