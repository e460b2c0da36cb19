"""Importance weights in log space: how many draws they are worth, how heavy their tail is, picking in proportion."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError, TrajectoryError
from ._checks import log_weights


def kish_ess(log_w: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Kish effective sample size (sum w)^2 / sum w^2 along `axis` of log weights.

    Any scale of the weights; -inf is weight zero, and a row of nothing else has size 0. Raises TrajectoryError for NaN
    or +inf. Kish, "Survey Sampling" (1965), section 11.7.
    """
    array = log_weights(log_w)
    largest = array.max(axis=axis, keepdims=True)
    w = np.exp(array - np.where(np.isfinite(largest), largest, 0.0))
    total, squares = w.sum(axis=axis), (w**2).sum(axis=axis)
    return np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0.0)


def pareto_k(log_w: ArrayLike) -> float:
    """Shape k-hat of a generalised Pareto distribution fitted to the largest of the weights [draws].

    Above 0.7 averages with these weights cannot be trusted at any practical number of draws. Vehtari et al., "Pareto
    smoothed importance sampling", JMLR 25 (2024), section 3. Weights of zero (-inf) are left out. NaN where there is
    no tail to fit: fewer than five values in it (it is a fifth of the draws, so fewer than 25 of them), or all alike.
    """
    from arviz_stats.base import array_stats

    array = log_weights(log_w).ravel()
    array = np.sort(array[np.isfinite(array)])
    tail = math.floor(3.0 * math.sqrt(len(array))) if len(array) > 225 else len(array) // 5
    # The fit works on weights relative to the largest, where what is below exp(-745) is zero.
    if tail < 5 or array[-1] == array[-tail]:
        return float("nan")
    with np.errstate(all="ignore"):
        _, k = array_stats.psislw(-array)  # it takes log likelihoods, whose negatives are the log weights
    return float(k)


def resample(log_w: ArrayLike, n: int, rng: np.random.Generator, method: str = "multinomial") -> NDArray[np.int64]:
    """Indices [n] of draws picked in proportion to their weights, from log weights [draws].

    "multinomial" picks each independently; "systematic" walks through the weights with one random offset, so that a
    draw of weight w is picked floor(n w) or ceil(n w) times. Raises TrajectoryError where every weight is zero.
    """
    array = log_weights(log_w)
    if array.ndim != 1:
        raise TrajectoryError(f"log weights have shape {array.shape}; expected one axis, resample each row by itself")
    if n < 0:
        raise SettingError(f"n is {n}; expected 0 picks or more")
    if array.max() == -np.inf:
        raise TrajectoryError("every weight is zero; expected at least one draw of finite energy to pick from")
    w = np.exp(array - array.max())
    if method == "multinomial":
        return rng.choice(len(w), size=n, p=w / w.sum())
    if method != "systematic":
        raise SettingError(f"method is {method!r}; expected 'multinomial' or 'systematic'")
    cumulative = np.cumsum(w)
    points = (np.arange(n) + rng.random()) / max(n, 1) * cumulative[-1]
    # Rounding may carry the last point to the very end, behind which lie only draws of weight zero, or none.
    last = int(np.flatnonzero(w)[-1])
    return np.minimum(np.searchsorted(cumulative, points, side="right"), last)
