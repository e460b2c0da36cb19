"""How often a proposal is accepted on given frames, and where the spread of its weights comes from.

Acceptance is an expectation, not a count: at each frame many candidates are drawn, cut into disjoint groups of n, and
the probability that a move with that group accepts is averaged over groups and over fresh scorings of the present
state. Frames are draws of the target in the order of their file, so errors come from blocks of neighbours.

With the weights w = exp(-u) / q, normalised at each rho, the spread of log w over equilibrium frames has three parts:

    log [p(tau | rho) / m(tau)] + log [m(tau) / E q(tau)] + log [E q(tau) / q(tau)]

the first is what rho knows beyond the true marginal m, the second is what the model has learned wrongly (E: mean over
auxiliary variables), the third their noise.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError
from ..units import wrap
from .marginal import conditionals, leave_one_out
from .mixing import in_basin_r

Array = NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Trials:
    """Candidates at frames, with log weights -u - log q.

    Attributes
    ----------
    tau, tau_present
        Torsions [frames, m, T] of the candidates and [frames, T] of the frames, rad.
    log_w
        [frames, m]; -inf where a candidate has no finite energy or no density.
    log_w_present
        [frames, scorings]; +inf where the present state has no density.
    u_present
        Reduced potentials [frames].
    """

    tau: Array
    tau_present: Array
    log_w: Array
    log_w_present: Array
    u_present: Array


def chances(log_w: Array, log_w_present: Array) -> Array:
    """Probability [..., n] that a move picks candidate j and accepts it, from log weights [..., n] and [...].

    w_j / W min(1, W / (W - w_j + w_present)), W = sum_j w_j (Liu, Liang & Wong, JASA 95, 121 (2000)); zero where the
    present state has no density (+inf).
    """
    present = np.asarray(log_w_present)[..., None]
    usable = np.isfinite(present)
    scale = np.maximum(log_w.max(-1, keepdims=True), np.where(usable, present, -np.inf))
    scale = np.where(np.isfinite(scale), scale, 0.0)
    w = np.exp(log_w - scale)
    total = w.sum(-1, keepdims=True)
    rest = np.maximum(total - w, 0.0) + np.exp(np.where(usable, present, scale) - scale)
    result = np.divide(w, np.maximum(total, rest), out=np.zeros_like(w), where=w > 0.0)
    return np.where(usable, result, 0.0)


def grouped_chances(trials: Trials, n: int) -> tuple[Array, NDArray[np.int64]]:
    """`chances` [F, groups, scorings, n] of all disjoint groups of n candidates, and their columns [groups, n]."""
    m = trials.log_w.shape[1]
    if not 1 <= n <= m:
        raise SettingError(f"the number of candidates is {n}; expected 1 to {m}, as many as are drawn at a frame")
    columns = np.arange(m - m % n).reshape(-1, n)
    return chances(trials.log_w[:, columns][:, :, None], trials.log_w_present[:, None]), columns


def acceptance(trials: Trials, n: int) -> Array:
    """Expected acceptance [F] of moves with n candidates."""
    return np.asarray(grouped_chances(trials, n)[0].sum(-1).mean((1, 2)))


def standard_error(values: Array, n_blocks: int = 20) -> float | None:
    """Of the mean of values [F] in the order of their file, from contiguous blocks; single ones where F < 2 n_blocks.

    None for fewer than two values.
    """
    if len(values) < 2:
        return None
    blocks = np.array_split(values, n_blocks if len(values) >= 2 * n_blocks else len(values))
    means = np.array([block.mean() for block in blocks])
    return float(means.std(ddof=1) / math.sqrt(len(means)))


def flux_into_r(trials: Trials, n: int, phi: int = 0) -> float:
    """Expected basin changes a move; those into R are counted, twice, since equilibrium has as many out of it.

    phi is the column of the torsion that tells the basins apart.
    """
    chance, columns = grouped_chances(trials, n)
    into = in_basin_r(trials.tau[..., phi])[:, columns][:, :, None]
    outside = ~in_basin_r(trials.tau_present[:, phi])
    return float(2.0 * (outside * (chance * into).sum(-1).mean((1, 2))).mean())


def displacements(trials: Trials, n: int) -> dict[str, float | None]:
    """Median |change| in degrees of the torsions in accepted moves: of all, and of those that changed at all."""
    chance, columns = grouped_chances(trials, n)
    change = np.degrees(np.abs(wrap(trials.tau - trials.tau_present[:, None])))[:, columns]  # [F, groups, n, T]
    weight = np.broadcast_to(chance.mean(2)[..., None], change.shape)
    changed = change > 1e-6
    return {
        "median_displacement_deg": _weighted_median(change, weight),
        "median_displacement_of_changed_deg": _weighted_median(change[changed], weight[changed]),
    }


def spread(values: Array) -> dict[str, Any]:
    """Standard deviation, half the range that holds 68 %, and `QUANTILES` of the finite values."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return {"sd": None, "half_68": None, "quantiles": None}
    low, high = np.quantile(finite, [0.1587, 0.8413])
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(finite, QUANTILES).tolist(), strict=True))
    return {"sd": float(finite.std()), "half_68": float(high - low) / 2, "quantiles": quantiles}


def log_mean_exp(values: Array, axis: int = -1) -> Array:
    """log of the mean of exp along an axis; -inf where all are."""
    top = values.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - top).mean(axis)) + top.squeeze(axis))


@dataclass(frozen=True)
class GridDensities:
    """What a (phi, psi) grid of energies at each frame knows of the frame's own torsions.

    Attributes
    ----------
    log_z
        log of the integral of exp(-u) over (phi, psi) [F].
    log_conditional, log_marginal
        log p(tau | rho) and log m(tau) [F] at the frame's torsions; m is the mean of the other frames' conditionals.
    """

    log_z: Array
    log_conditional: Array
    log_marginal: Array

    @classmethod
    def of(cls, u: Array, tau: Array, u_present: Array) -> "GridDensities":
        """From reduced potentials u [F, bins^2] (phi first), torsions (phi, psi) [F, 2] and u_present [F]."""
        bins = math.isqrt(u.shape[1])
        log_area = 2 * math.log(2 * math.pi / bins)
        finite = np.where(np.isnan(u), np.inf, u)
        log_z = log_mean_exp(-finite) + math.log(u.shape[1]) + log_area
        with np.errstate(divide="ignore"):
            table = np.log(leave_one_out(u)) - log_area
        # Zero is too low for any of them to matter, and has no logarithm to interpolate.
        marginal = _interpolated(np.maximum(table, -700.0).reshape(-1, bins, bins), tau)
        return cls(log_z, -u_present - log_z, marginal)


def population(u: Array, in_r: NDArray[np.bool_]) -> float:
    """Population of a basin from reduced potentials u [F, G] on a grid, whose points in_r [G] are the basin's."""
    return float(conditionals(u)[:, in_r].sum(1).mean())


def origins(densities: GridDensities | None, log_q: Array) -> dict[str, Any]:
    """Parts of the spread of log w from repeated scorings log_q [F, n] at the frames; nats.

    `noise` is the root mean square over frames of the standard deviation of repeated scorings; `rho` and `systematic`
    are standard deviations over frames (see the module), the latter with what noise the n scorings leave in its mean;
    `divergence` is KL(m | E q), `path_divergence` the same with the noise, E log m - E log q.
    """
    usable = np.isfinite(log_q).all(1)
    log_q = log_q[usable]
    noise = float(np.sqrt(log_q.var(1, ddof=1).mean())) if log_q.shape[1] > 1 and len(log_q) else None
    result: dict[str, Any] = {"noise": noise, "unscorable": int((~usable).sum())}
    if densities is None or len(log_q) == 0:
        return result
    log_m = densities.log_marginal[usable]
    excess = log_m - log_mean_exp(log_q)
    return result | {
        "rho": float((densities.log_conditional[usable] - log_m).std()),
        "systematic": float(excess.std()),
        "divergence": float(excess.mean()),
        "path_divergence": float((log_m[:, None] - log_q).mean()),
        "total": float((densities.log_conditional[usable, None] - log_q).std()),
    }


def _weighted_median(values: Array, weights: Array) -> float | None:
    order = np.argsort(values, axis=None)
    cumulative = np.cumsum(weights.ravel()[order])
    if len(cumulative) == 0 or cumulative[-1] <= 0.0:
        return None
    return float(values.ravel()[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


def _interpolated(table: Array, tau: Array) -> Array:
    """Bilinear values [F] of tables [F, bins, bins] on cell centres of the torus, one table a point tau [F, 2]."""
    bins = table.shape[1]
    place = (np.asarray(wrap(tau)) + math.pi) / (2 * math.pi / bins) - 0.5
    low = np.floor(place).astype(int)
    share = place - low
    rows = np.arange(len(tau))
    total = np.zeros(len(tau))
    for i in (0, 1):
        for j in (0, 1):
            weight = np.abs(1 - i - share[:, 0]) * np.abs(1 - j - share[:, 1])
            total += weight * table[rows, (low[:, 0] + i) % bins, (low[:, 1] + j) % bins]
    return total
