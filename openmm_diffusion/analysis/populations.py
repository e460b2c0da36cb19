"""Populations of basins with errors from blocks of time, and whether two estimates of them agree.

All estimates are ratios sum(numerators) / sum(denominators) over walkers and times. A plain chain has ones below; an
ensemble that is weighted, parallel tempering with MBAR weights for instance, has the sums of its weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as f_distribution

from ..errors import SettingError, TrajectoryError
from ._checks import finite_array
from .free_energy import Estimate
from .mixing import effective_sample_size, in_basin_r

Array = NDArray[np.float64]
_MIN_BLOCKS, _MAX_BLOCKS = 10, 400


@dataclass(frozen=True)
class Populations:
    """Shares of states, their covariance, and the number of blocks of time that the covariance is from.

    Attributes
    ----------
    names
        Names of the states.
    values, errors
        [states]
    covariance
        [states, states]
    n_blocks
        Blocks of the bootstrap, each several correlation times long unless there are only ten.
    """

    names: tuple[str, ...]
    values: Array
    covariance: Array
    n_blocks: int

    @property
    def errors(self) -> Array:
        return np.sqrt(np.diag(self.covariance))


@dataclass(frozen=True)
class Agreement:
    """How far sampled populations are from a reference: z of each state, chi^2 of all together.

    `p_value` is None where there are too few blocks for the number of states.
    """

    z: Array
    chi2: float
    dof: int
    p_value: float | None


def state_names(n_torsions: int) -> tuple[str, ...]:
    """All joint states of n phi, "LLL" to "RRR": R is basin R, L the rest, the first residue first."""
    return tuple("".join(letters) for letters in product("LR", repeat=n_torsions))


def joint_states(phi: ArrayLike) -> NDArray[np.int64]:
    """Indices [...] into `state_names` of phi [..., n] (rad)."""
    member = in_basin_r(phi)
    return np.asarray(member @ (1 << np.arange(member.shape[-1])[::-1]), dtype=np.int64)


def indicators(states: NDArray[np.int64], n_states: int) -> Array:
    """Zeros and ones [..., n_states] of states [...]."""
    return np.eye(n_states)[states]


def block_length(numerators: ArrayLike, denominators: ArrayLike) -> int:
    """Times a block: three times the largest statistical inefficiency of the features, yet ten blocks or more.

    Shapes as in `block_populations`.
    """
    influence, _ = _influence(*_checked(numerators, denominators))
    n_walkers, n_times, _ = influence.shape
    inefficiency = 1.0
    for series in np.moveaxis(influence, -1, 0):
        size = effective_sample_size(series, method="identity") if np.ptp(series) > 0.0 else math.nan
        if not math.isnan(size):
            inefficiency = max(inefficiency, series.size / size)
    longest = max(1, n_walkers * n_times // _MIN_BLOCKS)
    shortest = math.ceil(n_walkers * n_times / _MAX_BLOCKS)
    return min(max(math.ceil(3.0 * inefficiency), shortest), longest, n_times)


def block_populations(
    names: Sequence[str],
    numerators: ArrayLike,
    denominators: ArrayLike,
    length: int,
    rng: np.random.Generator,
    n_bootstrap: int = 1000,
) -> Populations:
    """Populations and their covariance by bootstrap over blocks of walkers and times.

    Parameters
    ----------
    names
        Of the features, [features].
    numerators
        [walkers, times, features]: membership of each state, times the weights where there are any.
    denominators
        [walkers, times]: ones, or the weights.
    length
        Times a block; see `block_length`. A rest at the end of a walker joins its last block.
    rng
        Generator of the bootstrap.
    n_bootstrap
        Bootstrap replicates.

    The weights are taken as given: what the free energies in MBAR weights are uncertain by is not in the errors.
    """
    num, den = _checked(numerators, denominators)
    if len(names) != num.shape[-1] or length < 1 or n_bootstrap < 2:
        raise SettingError(
            f"{len(names)} names, blocks of {length}, {n_bootstrap} replicates; expected {num.shape[-1]} names, "
            "blocks of at least 1 and at least 2 replicates"
        )
    starts = np.arange(max(1, num.shape[1] // length)) * length
    num = np.add.reduceat(num, starts, axis=1).reshape(-1, num.shape[-1])
    den = np.add.reduceat(den, starts, axis=1).ravel()
    n_blocks = len(den)
    picks = rng.multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks), size=n_bootstrap)
    total = picks @ den
    replicates = (picks @ num)[total > 0.0] / total[total > 0.0, None]
    # Replicates spread by (n - 1) / n too little in the variance.
    covariance = np.cov(replicates, rowvar=False).reshape(len(names), -1) * n_blocks / max(1, n_blocks - 1)
    return Populations(tuple(names), num.sum(0) / den.sum(), covariance, n_blocks)


def effective_draws(numerators: ArrayLike, denominators: ArrayLike, variance: float) -> Estimate | None:
    """Independent draws from the target that an average is worth: variance / (its standard error)^2.

    Parameters
    ----------
    numerators
        [walkers, times]: the observable, times the weights where there are any.
    denominators
        [walkers, times]: ones, or the weights.
    variance
        Of the observable in the target.

    The standard error is that of the sum of numerators - mean * denominators, autocorrelation included. The error of
    the result is that of an integrated autocorrelation time tau summed over 5 tau (Madras & Sokal, J. Stat. Phys. 50,
    109 (1988): a relative variance of 2 (2 W + 1) / n with a window W). None where the observable never changes.
    """
    num, den = _checked(np.asarray(numerators)[..., None], denominators)
    influence, _ = _influence(num, den)
    series = influence[..., 0]
    size = effective_sample_size(series, method="identity") if np.ptp(series) > 0.0 else math.nan
    if math.isnan(size) or not variance > 0.0:
        return None
    squared_error = series.size**2 * series.var() / size / den.sum() ** 2
    value = variance / squared_error
    return Estimate(value, value * math.sqrt(10.0 / size + 2.0 / series.size))


def compare_populations(sampled: Populations, reference: Populations) -> Agreement:
    """z values, and a chi^2 with the sum of both covariances, of sampled populations against a reference.

    For chi^2 the states that the reference does not know to 40 % become one, and the most populated state is left out,
    since shares sum to one. Its p value is Hotelling's, which knows that covariances come from a number of blocks. A
    state that was never sampled has the error of the reference's share with one draw a block.
    """
    if sampled.names != reference.names:
        raise TrajectoryError(f"the states differ: {sampled.names} and {reference.names}; expected the same")
    difference = sampled.values - reference.values
    unseen = (np.diag(sampled.covariance) == 0.0) * reference.values * (1.0 - reference.values) / sampled.n_blocks
    covariance = sampled.covariance + reference.covariance + np.diag(unseen)
    errors = np.sqrt(np.diag(covariance))
    z = np.divide(difference, errors, out=np.zeros_like(difference), where=errors > 0.0)
    known = reference.values > 2.5 * reference.errors
    known &= np.arange(len(known)) != int(np.argmax(reference.values))
    rows = np.eye(len(known))[known]
    rest = ~known & (np.arange(len(known)) != int(np.argmax(reference.values)))
    pooled = rest.astype(float)
    if pooled @ reference.values > 2.5 * math.sqrt(max(0.0, pooled @ reference.covariance @ pooled)):
        rows = np.vstack([rows, pooled])
    if len(rows) == 0:
        return Agreement(z, 0.0, 0, None)
    delta = rows @ difference
    chi2 = float(delta @ np.linalg.pinv(rows @ covariance @ rows.T) @ delta)
    dof, freedom = len(rows), min(sampled.n_blocks, reference.n_blocks) - 1
    p_value = None
    if freedom > dof:
        scale = (freedom - dof + 1) / (dof * freedom)
        p_value = float(f_distribution.sf(chi2 * scale, dof, freedom - dof + 1))
    return Agreement(z, chi2, dof, p_value)


def _checked(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Array, Array]:
    num, den = finite_array(numerators, "numerators", (3,)), finite_array(denominators, "denominators", (2,))
    if num.shape[:2] != den.shape:
        raise TrajectoryError(
            f"numerators have shape {num.shape}, denominators {den.shape}; expected [walkers, times, features] and "
            "[walkers, times]"
        )
    if den.min() < 0.0 or den.sum() == 0.0:
        raise TrajectoryError("the weights are negative or all zero; expected values >= 0 with at least one above")
    return num, den


def _influence(num: Array, den: Array) -> tuple[Array, Array]:
    """What each time adds to the error of the ratios, [walkers, times, features], and the ratios [features]."""
    means = num.sum((0, 1)) / den.sum()
    return num - means * den[..., None], means
