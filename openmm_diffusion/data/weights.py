"""Weights of frames: what they may be, less of the common basins and more of the rare ones, and draws by weight."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import TrajectoryError


def check_weights(weights: NDArray[np.float64], source: str | Path) -> NDArray[np.float64]:
    """The weights [n]; raises TrajectoryError, naming the source, where they are no weights."""
    if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise TrajectoryError(
            f"{source} has weights of shape {weights.shape} that are negative, not finite, or all zero; expected one "
            "number >= 0 for each frame, prepare them again"
        )
    return weights


def flattened(
    torsions: NDArray[np.float64], weights: NDArray[np.float64], exponent: float, bandwidth: float = 0.7
) -> NDArray[np.float64]:
    """Weights w / h^exponent of frames with torsions [n, T] (rad) and weights [n]: more of the rare basins.

    h is the product over torsions of their densities smoothed by wrapped normals of `bandwidth` (rad), wider than a
    basin, so that each basin keeps its shape. A proposal that visits a rare basin more often than Boltzmann would
    changes basins more often; the acceptance ratio takes it out again.
    """
    share = weights / weights.sum()
    log_h = np.zeros(len(weights))
    for angle in torsions.T:
        harmonics = np.arange(1, 1 + int(np.ceil(6.0 / bandwidth)))
        waves = np.exp(1j * np.outer(angle, harmonics))
        damped = (share @ waves).conj() * np.exp(-0.5 * (harmonics * bandwidth) ** 2)
        log_h += np.log(np.maximum(1.0 + 2.0 * (waves @ damped).real, 1e-6))
    return np.asarray(weights * np.exp(-exponent * log_h))


def draw_by_weight(weights: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """n rows in proportion to weights, in random order: each comes floor or ceil of n w / sum(w) times.

    Systematic resampling, whose counts scatter less than those of independent draws.
    """
    cumulative = np.cumsum(weights)
    rows = np.searchsorted(cumulative, (np.arange(n) + rng.random()) / n * cumulative[-1], side="right")
    return rng.permutation(np.minimum(rows, len(weights) - 1))
