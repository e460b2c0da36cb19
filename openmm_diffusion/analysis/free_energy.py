"""Free energies of basins and surfaces with errors, and the rate of basin changes that plain MD can reach."""

import logging
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError
from ..units import wrap
from ._checks import finite_array, membership, weights_like
from .mixing import effective_sample_size

logger = logging.getLogger(__name__)

_MAX_BLOCKS = 2000  # more of them cost memory and change nothing


class Estimate(NamedTuple):
    """A value and its standard error; None where the data cannot give one."""

    value: float
    error: float | None


def basin_free_energy(
    in_r: ArrayLike,
    weights: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    n_bootstrap: int = 400,
) -> Estimate:
    """Free energy of basin R over basin L in kT, Delta F = -ln(pi_R / pi_L), from membership of R.

    Parameters
    ----------
    in_r
        Booleans [draws] of one chain, or [chains, draws] of independent ones.
    weights
        Importance weights of the same shape, of any scale.
    rng
        Generator of the bootstrap; needed with `weights` and used by nothing else.
    n_bootstrap
        Bootstrap replicates.

    The error of pi_R goes through d(Delta F) = d(pi_R) / (pi_R pi_L). One chain: binomial with the effective sample
    size of the membership; independent chains: the spread of their means, or as for one where all agree to the digit.
    With weights: bootstrap over chains, or over blocks of one chain three times as long as its statistical
    inefficiency. An empty basin R has the value +inf, an empty basin L -inf, both with the error None.
    """
    member = np.atleast_2d(membership(in_r, "in_r", (1, 2)))
    if weights is not None and rng is None:
        raise SettingError(
            "rng is None but weights were given; expected a numpy Generator for the bootstrap of the error"
        )
    weight = weights_like(None if weights is None else np.atleast_2d(weights), member.shape)
    pi_r, pi_l = float(weight[member].sum()), float(weight[~member].sum())
    if pi_r == 0.0 or pi_l == 0.0:
        logger.warning("basin %s was never visited: its free energy is infinite", "R" if pi_r == 0.0 else "L")
        return Estimate(math.inf if pi_r == 0.0 else -math.inf, None)
    if weights is not None and rng is not None:
        error = _bootstrap_error(member, weight, rng, n_bootstrap)
    else:
        error = _population_error(member)
    return Estimate(math.log(pi_l / pi_r), None if error is None else error / (pi_r * pi_l))


def _population_error(member: NDArray[np.bool_]) -> float | None:
    n_chains, n_draws = member.shape
    if n_chains > 1:
        spread = float(member.mean(1).std(ddof=1))
        if spread > 0.0:
            return spread / math.sqrt(n_chains)
    # Not split into halves as for reports: two halves that differ by chance give an error several times too large.
    size = effective_sample_size(member.astype(np.float64), method="identity")
    if math.isnan(size):
        return None
    # Anticorrelated draws can be worth more than their number; a rare basin makes that estimate unreliable.
    p = float(member.mean())
    return math.sqrt(p * (1.0 - p) / min(size, n_chains * n_draws))


def _bootstrap_error(
    member: NDArray[np.bool_], weight: NDArray[np.float64], rng: np.random.Generator, n_bootstrap: int
) -> float | None:
    if n_bootstrap < 2:
        raise SettingError(f"n_bootstrap is {n_bootstrap}; expected at least 2 replicates")
    of_r = np.where(member, weight, 0.0)
    if len(member) == 1:
        of_r, weight = _block_sums(of_r[0], weight[0])
    else:
        of_r, weight = of_r.sum(1), weight.sum(1)
    if len(weight) < 2:
        return None
    picks = rng.multinomial(len(weight), np.full(len(weight), 1.0 / len(weight)), size=n_bootstrap)
    total = picks @ weight
    # A replicate may consist of draws without weight only; it says nothing about the ratio.
    ratios = (picks @ of_r)[total > 0.0] / total[total > 0.0]
    if len(ratios) < 2:
        return None
    # Replicates spread by (n - 1) / n too little in the variance, which counts for a handful of chains.
    return float(ratios.std(ddof=1)) * math.sqrt(len(weight) / (len(weight) - 1))


def _block_sums(
    of_r: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over consecutive blocks of one chain, long enough to be independent; ten blocks at least, if it has them."""
    n = len(weight)
    size = effective_sample_size(of_r, method="identity")
    inefficiency = 1.0 if math.isnan(size) else max(1.0, n / size)
    length = 1 if inefficiency < 1.5 else min(math.ceil(3.0 * inefficiency), max(1, n // 10))
    length = max(length, math.ceil(n / _MAX_BLOCKS))
    starts = np.arange(0, n, length)
    return np.add.reduceat(of_r, starts), np.add.reduceat(weight, starts)


def free_energy_surface(
    phi: ArrayLike, psi: ArrayLike, bins: int = 60, weights: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Free energy over (phi, psi): bin edges [bins + 1] (rad, -pi to pi) and F [bins, bins] (kT), phi on axis 0.

    The minimum is 0; empty bins are inf. phi and psi are [draws] in rad, weights [draws] of any scale.
    """
    if bins < 1:
        raise SettingError(f"bins is {bins}; expected at least 1")
    x, y = wrap(finite_array(phi, "phi")), wrap(finite_array(psi, "psi"))
    if x.shape != y.shape:
        raise SettingError(f"phi and psi have shapes {x.shape} and {y.shape}; expected the same draws in both")
    edges = np.linspace(-math.pi, math.pi, bins + 1)
    counts, _, _ = np.histogram2d(x, y, bins=[edges, edges], weights=weights_like(weights, x.shape))
    with np.errstate(divide="ignore"):
        surface = -np.log(counts)
    return edges, np.asarray(surface - surface.min())


def md_rate_bound(
    ns_per_s: float, tau_rl_ns: float, tau_rl_error_ns: float, pi_r: float, pi_r_error: float
) -> tuple[float, float]:
    """Basin changes a second of wall time of plain MD, and their standard error.

    A round trip takes tau_LR + tau_RL with tau_LR = tau_RL pi_L / pi_R, which is tau_RL / pi_R, and holds two changes:
    2 v pi_R / tau_RL at a speed of v = `ns_per_s` simulated ns a second. It needs no changes L -> R, so a bound can be
    had where plain MD would never see one. `tau_rl_ns` is the mean time in R before it is left; relative errors add in
    squares.
    """
    for name, value in (("ns_per_s", ns_per_s), ("tau_rl_ns", tau_rl_ns)):
        if not 0.0 < value < math.inf:
            raise SettingError(f"{name} is {value}; expected a finite number above 0")
    for name, value in (("tau_rl_error_ns", tau_rl_error_ns), ("pi_r_error", pi_r_error)):
        if not 0.0 <= value < math.inf:
            raise SettingError(f"{name} is {value}; expected a standard error, 0 or above")
    if not 0.0 <= pi_r <= 1.0:
        raise SettingError(f"pi_r is {pi_r}; expected the population of basin R, between 0 and 1")
    slope = 2.0 * ns_per_s / tau_rl_ns
    rate = slope * pi_r
    return rate, math.hypot(slope * pi_r_error, rate * tau_rl_error_ns / tau_rl_ns)
