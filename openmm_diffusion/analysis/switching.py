"""Rates of switching between basins L and R of phi, and how much plain dynamics can be worth at such rates."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError
from ..units import wrap
from ._checks import finite_array
from .free_energy import Estimate

CORE_L = (-2.8, -0.7)
"""Borders (rad) of the populated range of phi in L, away from both barriers."""
CORE_R = (0.6, 1.6)
"""Borders (rad) of that in R."""
NO_EVENT_95 = -math.log(0.05)
"""Mean number of events above which seeing none has a probability below 5 %."""


class Dwell(NamedTuple):
    """Time (frames) spent in R and in L, and how often either was left for the other."""

    frames_r: int
    frames_l: int
    r_to_l: int
    l_to_r: int


def core_states(phi: ArrayLike) -> NDArray[np.int8]:
    """The core that phi [frames] (rad) was in last: 1 for R, 0 for L, -1 before the first, so recrossings are none."""
    angle = wrap(finite_array(phi, "phi"))
    in_r = (angle > CORE_R[0]) & (angle < CORE_R[1])
    known = in_r | ((angle > CORE_L[0]) & (angle < CORE_L[1]))
    last = np.maximum.accumulate(np.where(known, np.arange(len(angle)), -1))
    return np.where(last >= 0, in_r[last], -1).astype(np.int8)


def dwell(trajectories: Iterable[ArrayLike]) -> Dwell:
    """Times and switches of phi in continuous trajectories, each [frames] (rad)."""
    total = np.zeros(4, dtype=np.int64)
    for phi in trajectories:
        state = core_states(phi)
        before, after = state[:-1], state[1:]
        total += [
            np.sum(before == 1),
            np.sum(before == 0),
            np.sum((before == 1) & (after == 0)),
            np.sum((before == 0) & (after == 1)),
        ]
    return Dwell(*(int(value) for value in total))


def escape_rate(events: int, time: float) -> Estimate:
    """Maximum-likelihood rate of exponential escapes, `events` in `time`.

    Where none was seen the error is None and the value a 95 % upper bound.
    """
    if events < 0 or not time > 0.0:
        raise SettingError(f"{events} events in a time of {time}; expected 0 or more in a time above 0")
    if events == 0:
        return Estimate(NO_EVENT_95 / time, None)
    return Estimate(events / time, math.sqrt(events) / time)


def slow_share(values: ArrayLike, in_r: ArrayLike, weights: ArrayLike) -> float:
    """Share of the variance of an observable that is between the basins, pi_R pi_L (mean_R - mean_L)^2 / variance.

    Arrays of one shape. NaN where a basin is empty or the observable never changes.
    """
    x, member, w = np.ravel(values).astype(float), np.ravel(in_r).astype(bool), np.ravel(weights).astype(float)
    pi_r = w[member].sum() / w.sum()
    variance = np.average((x - np.average(x, weights=w)) ** 2, weights=w)
    if not 0.0 < pi_r < 1.0 or variance == 0.0:
        return math.nan
    gap = np.average(x[member], weights=w[member]) - np.average(x[~member], weights=w[~member])
    return float(pi_r * (1.0 - pi_r) * gap**2 / variance)


def dynamics_draws(rate_rl: Estimate, pi_r: float, share: float = 1.0) -> Estimate:
    """Most effective draws a unit of time that plain dynamics gives of an observable, from its rate of leaving R.

    Two basins relax at k = k_RL + k_LR = k_RL / (1 - pi_R), by detailed balance. The part of the observable that is
    between the basins (`share`, see `slow_share`) decorrelates no faster, so that its integrated time is at least
    share / k, and the effective draws in a time T at most T k / (2 share). It takes no event L -> R, which such
    dynamics may never show. The error is None where the rate itself is a bound.
    """
    if not 0.0 <= pi_r < 1.0 or not 0.0 < share <= 1.0 + 1e-9:
        raise SettingError(f"pi_r is {pi_r} and share {share}; expected shares from 0 to 1, not 1 and not 0")
    factor = 1.0 / (2.0 * share * (1.0 - pi_r))
    return Estimate(rate_rl.value * factor, None if rate_rl.error is None else rate_rl.error * factor)
