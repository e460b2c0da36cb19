"""What an ideal proposal could reach: limits of acceptance from energies on a grid of torsions.

Each of M frames gives one rho (all coordinates but the torsions tau) and its reduced potential u on G grid points of
tau, so the conditional p_i = p(tau | rho_i) and the marginal of tau, which is their mean, are known on the grid. The
present torsions of a frame are a draw from its own conditional. The best proposal that does not see rho is the
marginal: its acceptance is the limit for any network that knows tau alone. It is taken leave-one-out, q_i = mean of
p_j over j != i; with frame i in it, a frame would propose to itself. A zero weight (NaN or +inf in u) is a point that
cannot be reached.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError, TrajectoryError
from ._checks import membership

Array = NDArray[np.float64]


def conditionals(u: ArrayLike) -> Array:
    """p_i = softmax(-u_i) [frames, G] of reduced potentials u [frames, G]; NaN and +inf have probability zero.

    Raises TrajectoryError for another shape, an energy of -inf, or a frame without any finite energy.
    """
    array = np.asarray(u, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise TrajectoryError(f"u has shape {array.shape}; expected [frames, grid points] with at least one of each")
    if (array == -np.inf).any():
        raise TrajectoryError("u holds -inf; expected reduced potentials that are finite, NaN or +inf")
    energies = np.where(np.isnan(array), np.inf, array)
    lowest = energies.min(axis=1, keepdims=True)
    if np.isinf(lowest).any():
        frame = int(np.flatnonzero(np.isinf(lowest[:, 0]))[0])
        raise TrajectoryError(
            f"frame {frame} has no finite energy on the grid; expected at least one, remove that frame"
        )
    p = np.exp(lowest - energies)
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def marginal(u: ArrayLike, leave_out: int | None = None) -> Array:
    """Marginal [G] of the torsions: the mean over frames of their conditionals, without frame `leave_out` if given."""
    p = conditionals(u)
    if leave_out is None:
        return np.asarray(p.mean(axis=0))
    if not -len(p) <= leave_out < len(p) or len(p) < 2:
        raise SettingError(
            f"leave_out is {leave_out} with {len(p)} frames; expected a frame's index and two frames or more"
        )
    return np.asarray(np.delete(p, leave_out, axis=0).mean(axis=0))


def leave_one_out(u: ArrayLike) -> Array:
    """Marginals [frames, G] as each frame sees them: row i is the mean conditional of all the others."""
    return _leave_one_out(conditionals(u))


def _leave_one_out(p: Array) -> Array:
    m = len(p)
    if m < 2:
        raise TrajectoryError(
            "u holds one frame; expected two or more, since each frame's proposal comes from the others"
        )
    # Summed from both ends: the total minus p_i leaves rounding where only frame i has weight, and 1 / q blows it up.
    before, after = np.zeros_like(p), np.zeros_like(p)
    np.cumsum(p[:-1], axis=0, out=before[1:])
    after[:-1] = np.cumsum(p[:0:-1], axis=0)[::-1]
    return (before + after) / (m - 1)


def kish_limit(u: ArrayLike, q: ArrayLike | None = None) -> float:
    """Mean over frames of the Kish effective sample size, a candidate, of a density against the conditionals.

    (sum_G p_i)^2 / sum_G p_i^2 / q over the points that q reaches, the limit of many candidates; 0 for a frame that
    shares none with it. `q` [G] or [frames, G]; the leave-one-out marginal by default.
    """
    p = conditionals(u)
    reference = _leave_one_out(p) if q is None else np.broadcast_to(np.asarray(q, dtype=np.float64), p.shape)
    p = np.where(reference > 0.0, p, 0.0)
    weights = np.divide(p, reference, out=np.zeros_like(p), where=p > 0.0)
    first, second = p.sum(axis=1), (p * weights).sum(axis=1)
    return float(np.mean(np.divide(first**2, second, out=np.zeros_like(first), where=second > 0.0)))


def acceptance_limits(
    u: ArrayLike,
    n_candidates: Sequence[int] = (1, 8, 32),
    rng: np.random.Generator | None = None,
    n_repeats: int = 200,
) -> dict[int, float]:
    """Mean acceptance of multiple-try independence sampling with the leave-one-out marginal as the proposal.

    Parameters
    ----------
    u
        Reduced potentials [frames, G].
    n_candidates
        Numbers of candidates a move; each is a key of the result.
    rng
        Generator of the candidates; not needed for one candidate, which is summed over the grid exactly.
    n_repeats
        Moves a frame.

    Candidate j of weight w_j = p_i / q_i is picked with probability w_j / W, W = sum_j w_j, and accepted with
    min(1, W / (W - w_j + w_present)); Liu, Liang & Wong, JASA 95, 121 (2000). The pick is averaged over, not drawn.
    """
    p = conditionals(u)
    q = _leave_one_out(p)
    anywhere = np.ones(p.shape[1], dtype=np.bool_)
    limits = {}
    for n in n_candidates:
        if n == 1:
            limits[n] = float(np.mean([_single_try(p[i], q[i]) for i in range(len(p))]))
        else:
            generator = _needed(rng, n)
            moves = [_multiple_try(p[i], q[i], p[i], anywhere, n, n_repeats, generator) for i in range(len(p))]
            limits[n] = float(np.mean(moves))
    return limits


def oracle_eta(u: ArrayLike, in_r: ArrayLike) -> float | None:
    """Basin-change efficiency of an oracle that draws the torsions from the exact conditional of each rho.

    Mean over frames of 2 p_i(R) p_i(L), over 2 pi_L pi_R of the marginal; in_r [G] says which points lie in R. Below 1
    as far as rho remembers its basin; independent draws that keep rho do no better. None where a basin is empty.
    """
    p = conditionals(u)
    r = _basin(p, in_r)
    p_r, p_l = p[:, r].sum(axis=1), p[:, ~r].sum(axis=1)
    return _over_ceiling(2.0 * p_r * p_l, p_r, p_l)


def marginal_eta(
    u: ArrayLike, in_r: ArrayLike, n: int = 1, rng: np.random.Generator | None = None, n_repeats: int = 200
) -> float | None:
    """Basin-change efficiency of multiple-try sampling from the leave-one-out marginal with n candidates.

    As `oracle_eta` with the probability that a move ends in the other basin; it tends to `oracle_eta` for large n.
    n = 1 is exact; otherwise `n_repeats` moves a frame with `rng`. None where a basin is empty.
    """
    p = conditionals(u)
    q = _leave_one_out(p)
    r = _basin(p, in_r)
    p_r, p_l = p[:, r].sum(axis=1), p[:, ~r].sum(axis=1)
    if n == 1:
        changes = np.array([_single_try(p[i], q[i], r) for i in range(len(p))])
    else:
        generator = _needed(rng, n)
        changes = np.zeros(len(p))
        for i in np.flatnonzero((p_r > 0.0) & (p_l > 0.0)):
            # Detailed balance: as many moves leave the rarer basin as enter it, and leaving it is the frequent event.
            start = r if p_r[i] < p_l[i] else ~r
            share = min(p_r[i], p_l[i])
            leaving = _multiple_try(p[i], q[i], np.where(start, p[i], 0.0) / share, ~start, n, n_repeats, generator)
            changes[i] = 2.0 * share * leaving
    return _over_ceiling(changes, p_r, p_l)


def _single_try(p: Array, q: Array, in_r: NDArray[np.bool_] | None = None) -> float:
    """sum_ab p_a q_b min(1, w_b / w_a) = sum_ab q_a q_b min(w_a, w_b), exactly; over pairs across basins with `in_r`.

    In the order of rising w the smaller weight is the first of each pair. Points that q never proposes contribute
    nothing: they are not reached, and from them (w infinite) nothing is accepted.
    """
    proposed = q > 0.0
    p, q = p[proposed], q[proposed]
    order = np.argsort(p / q)
    p, q = p[order], q[order]
    if in_r is None:
        return float(np.sum(p * (q + 2.0 * _sum_after(q))))
    r = in_r[proposed][order]
    of_r, of_l = np.where(r, q, 0.0), np.where(r, 0.0, q)
    return float(2.0 * np.sum(p * np.where(r, _sum_after(of_l), _sum_after(of_r))))


def _sum_after(q: Array) -> Array:
    """Sum of the elements behind each one, added from the end, so that small ones are not lost."""
    return np.concatenate([np.cumsum(q[:0:-1])[::-1], [0.0]])


def _multiple_try(
    p: Array,
    q: Array,
    start: Array,
    target: NDArray[np.bool_],
    n: int,
    n_repeats: int,
    rng: np.random.Generator,
) -> float:
    """Probability that a move from present torsions of density `start` is accepted and ends in `target`."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        w = np.where(p > 0.0, p / q, 0.0)
    present = w[_draw(start, (n_repeats, 1), rng)]
    candidates = _draw(q, (n_repeats, n), rng)
    w_j = w[candidates]
    total = w_j.sum(axis=1, keepdims=True)
    # w_j / W min(1, W / (W - w_j + w_present)); the sum over the other candidates may round below zero.
    rest = np.maximum(total - w_j, 0.0) + present
    denominator = np.maximum(total, rest)
    chance = np.divide(w_j, denominator, out=np.zeros_like(w_j), where=w_j > 0.0)
    return float(np.sum(chance * target[candidates]) / n_repeats)


def _draw(p: Array, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices drawn from p by inversion of its cumulative sum; never one of probability zero."""
    cumulative = np.cumsum(p)
    last = int(np.flatnonzero(p)[-1])
    return np.minimum(np.searchsorted(cumulative, rng.random(shape) * cumulative[-1], side="right"), last)


def _basin(p: Array, in_r: ArrayLike) -> NDArray[np.bool_]:
    r = membership(in_r, "in_r")
    if r.shape != p.shape[1:]:
        raise TrajectoryError(f"in_r has shape {r.shape}; expected ({p.shape[1]},), one value a grid point")
    return r


def _over_ceiling(changes: Array, p_r: Array, p_l: Array) -> float | None:
    ceiling = 2.0 * float(p_r.mean()) * float(p_l.mean())
    return float(changes.mean()) / ceiling if ceiling > 0.0 else None


def _needed(rng: np.random.Generator | None, n: int) -> np.random.Generator:
    if n < 1:
        raise SettingError(f"the number of candidates is {n}; expected 1 or more")
    if rng is None:
        raise SettingError(
            f"rng is None with {n} candidates; expected a numpy Generator, only 1 candidate is summed exactly"
        )
    return rng
