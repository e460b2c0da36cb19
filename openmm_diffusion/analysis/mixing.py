"""How fast a chain mixes: basin changes, effective sample size, R-hat, autocorrelation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError, TrajectoryError
from ..units import wrap
from ._checks import finite_array, membership

BASIN_R = (0.0, 2.2)
"""Borders of the rarer basin in phi (rad): the left-handed helix and C7ax of an L-amino acid. L is the rest."""


def in_basin_r(phi: ArrayLike) -> NDArray[np.bool_]:
    """Whether phi (rad, any shape, any period) lies inside `BASIN_R`. Raises TrajectoryError for NaN or infinities."""
    array = np.asarray(phi, dtype=np.float64)
    if not np.isfinite(array).all():
        raise TrajectoryError("phi holds NaN or infinite values; expected angles in rad, remove those frames")
    wrapped = wrap(array)
    return np.asarray((wrapped > BASIN_R[0]) & (wrapped < BASIN_R[1]))


def count_changes(before: ArrayLike, after: ArrayLike) -> int:
    """Number of attempts that ended in the other basin, from the membership before and after each (booleans)."""
    first, last = np.asarray(before), np.asarray(after)
    if first.shape != last.shape:
        raise TrajectoryError(
            f"before and after have shapes {first.shape} and {last.shape}; expected one value an attempt"
        )
    if first.size == 0:
        return 0
    dims = (first.ndim,)
    return int(np.sum(membership(first, "before", dims) != membership(last, "after", dims)))


def change_efficiency(n_changes: int, n_attempts: int, pi_r: float) -> float | None:
    """Basin changes an attempt over 2 pi_L pi_R, what independent draws from the target would reach.

    None where it is not defined: no attempts, or one basin empty (`pi_r`, the population of R, is 0, 1 or NaN).
    """
    if n_changes < 0 or n_attempts < n_changes:
        raise SettingError(f"{n_changes} changes in {n_attempts} attempts; expected 0 <= changes <= attempts")
    if not np.isnan(pi_r) and not 0.0 <= pi_r <= 1.0:
        raise SettingError(f"pi_r is {pi_r}; expected the population of basin R, between 0 and 1")
    if n_attempts == 0 or not 0.0 < pi_r < 1.0:
        return None
    return n_changes / n_attempts / (2.0 * pi_r * (1.0 - pi_r))


def effective_sample_size(chains: ArrayLike, method: str = "bulk") -> float:
    """Number of independent draws that `chains` ([draws] or [chains, draws]) are worth.

    `method` as in arviz_stats: rank-normalised and split ("bulk") for reports; "identity", neither, for the error of
    the plain average of a single chain; Vehtari et al., Bayesian Analysis 16, 667 (2021), section 3. A series that
    never changes counts as *one* draw a chain, not as all of them: a stuck chain cannot be told from a perfect one by
    its values. Fewer than four draws: NaN. A periodic angle has to be passed as its cosine, sine or membership of a
    basin.
    """
    from arviz_stats.base import array_stats

    array = np.atleast_2d(finite_array(chains, "chains", (1, 2)))
    if array.shape[1] < 4:
        return float("nan")
    if np.all(np.ptp(array, axis=1) == 0.0):
        return float(len(array))
    return float(array_stats.ess(array, method=method))


def r_hat(chains: ArrayLike) -> float:
    """Rank-normalised split R-hat of [chains, draws]; a single chain [draws] is judged by its two halves.

    Vehtari et al. (2021), section 4; 1 means that the chains agree, above 1.01 they do not. NaN with fewer than four
    draws a chain or where nothing ever changes; infinite where every chain is stuck, but not at one place.
    """
    from arviz_stats.base import array_stats

    array = np.atleast_2d(finite_array(chains, "chains", (1, 2)))
    if len(array) == 1:
        half = array.shape[1] // 2
        array = np.stack([array[0, :half], array[0, -half:]]) if half else array
    if array.shape[1] < 4 or np.ptp(array) == 0.0:
        return float("nan")
    if np.all(np.ptp(array, axis=1) == 0.0):
        return float("inf")
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(array_stats.rhat(array))


def autocorrelation(x: ArrayLike, n_lags: int) -> NDArray[np.float64]:
    """Normalised autocorrelation [n_lags + 1] of x ([draws] or [chains, draws]), 1 at lag 0.

    Deviations are from the mean over *all* chains, so that chains stuck in different basins stay correlated. The sum
    at each lag is divided by its number of terms. A series that never changes has not decorrelated: all ones.
    """
    array = np.atleast_2d(finite_array(x, "x", (1, 2)))
    n_draws = array.shape[1]
    if not 0 <= n_lags < n_draws:
        raise SettingError(f"n_lags is {n_lags}; expected 0 to {n_draws - 1} for chains of {n_draws} draws")
    deviation = array - array.mean()
    # Zero padding to twice the length keeps the two ends of a chain from being multiplied with each other.
    spectrum = np.fft.rfft(deviation, n=2 * n_draws, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * n_draws, axis=1)[:, : n_lags + 1].mean(0)
    covariance /= n_draws - np.arange(n_lags + 1)
    if np.ptp(array) == 0.0 or covariance[0] <= 0.0:
        return np.ones(n_lags + 1)
    return np.asarray(covariance / covariance[0])
