"""Moves of many independent chains at once: the same proposals and the same acceptance, in batches.

What `mcmc.kernel.metropolis_step` does for one chain, for thousands: the present states of all chains are scored in one
batch. Energies are those of torsions at frozen rho.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..proposals import BackboneProposal, LocalProposal

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """One move of B chains: torsions [B, n, T] and log q [B, n] of candidates, log q [B] of the present states.

    -inf marks what has no density. `returns` tells of a chain and the number of its candidate whether the way back is
    there.
    """

    tau: Array
    log_q: Array
    log_q_present: Array
    returns: Callable[[int, int], bool]


class Moves(Protocol):
    """Draws n candidates for each of the present torsions [B, T]; `scored` False leaves out the present states."""

    def __call__(self, tau: Array, n: int, rng: np.random.Generator, scored: bool) -> Drawn: ...


class IndependentMoves:
    """Candidates of a `BackboneProposal`, made by its own `propose` for a structure that all chains share.

    Parameters
    ----------
    proposal
        Of candidates that do not depend on the present state; its pool is emptied, so that chains depend on their
        random numbers only.
    positions
        [atoms, 3] (nm) of any structure of the molecule; only torsions are taken from candidates.
    """

    def __init__(self, proposal: BackboneProposal, positions: Array) -> None:
        self.proposal, self.positions = proposal, positions
        proposal.import_pool({})

    def __call__(self, tau: Array, n: int, rng: np.random.Generator, scored: bool) -> Drawn:
        b = len(tau)
        candidates = self.proposal.propose(self.positions, b * n, rng)
        log_q = np.where(candidates.invalid, -np.inf, candidates.log_q)
        reversible = candidates.reversible
        return Drawn(
            self.proposal.torsions.get(candidates.positions).reshape(b, n, -1),
            log_q.reshape(b, n),
            self.proposal.log_density(tau, rng) if scored else np.zeros(b),
            lambda chain, index: reversible is None or reversible(chain * n + index),
        )


class LocalMoves:
    """Candidates of a `LocalProposal`: all chains of a move share one mask."""

    def __init__(self, proposal: LocalProposal) -> None:
        self.proposal = proposal

    def __call__(self, tau: Array, n: int, rng: np.random.Generator, scored: bool) -> Drawn:
        return Drawn(*self.proposal.move(tau, n, rng), lambda chain, index: True)


class SharedCandidates:
    """Hands the candidates of `moves` out once to each of two runs of equal shape, one after the other.

    Candidates that do not depend on the present state serve chains and their control alike. Local moves are not shared.
    """

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._kept: list[Drawn] = []

    def __call__(self, tau: Array, n: int, rng: np.random.Generator, scored: bool) -> Drawn:
        if not isinstance(self._moves, IndependentMoves):
            return self._moves(tau, n, rng, scored)
        if not scored and self._kept:
            return self._kept.pop(0)
        drawn = self._moves(tau, n, rng, scored)
        self._kept.append(drawn)
        return drawn


@dataclass(frozen=True)
class Ends:
    """Where chains are after their moves: torsions [B, T], and counts; log q of all candidates that have one."""

    tau: Array
    n_moves: int
    n_accepted: int
    n_invalid: int
    log_q: Array


def run_many(
    reduced_potential: Callable[[Array], Array],
    moves: Moves,
    start: Array,
    n_moves: int,
    n_candidates: int,
    rng: np.random.Generator,
    log_q_present: float | None = None,
) -> Ends:
    """Make n_moves moves from each of the torsions start [B, T].

    log_q_present, where given, takes the place of the present states' own: the control that must fail.
    """
    tau, u = start.copy(), reduced_potential(start)
    n, accepted, invalid, seen = n_candidates, 0, 0, []
    for _ in range(n_moves):
        drawn = moves(tau, n, rng, log_q_present is None)
        u_new = np.full(drawn.log_q.shape, np.nan)
        defined = np.isfinite(drawn.log_q)
        u_new[defined] = reduced_potential(drawn.tau[defined])
        present = drawn.log_q_present if log_q_present is None else np.full(len(tau), log_q_present)
        weights = log_weights(u_new, drawn.log_q)
        index, log_alpha = choose_many(weights, present_log_weights(u, present), rng.random(len(tau)))
        with np.errstate(under="ignore"):
            accept = (index >= 0) & (rng.random(len(tau)) < np.exp(log_alpha))
        for chain in np.flatnonzero(accept):
            accept[chain] = drawn.returns(int(chain), int(index[chain]))
        rows = np.flatnonzero(accept)
        tau[rows], u[rows] = drawn.tau[rows, index[rows]], u_new[rows, index[rows]]
        accepted, invalid = accepted + len(rows), invalid + int(np.isinf(weights).sum())
        seen.append(drawn.log_q[defined])
    return Ends(tau, n_moves * len(start), accepted, invalid, np.concatenate(seen))


def log_weights(u: Array, log_q: Array) -> Array:
    """`acceptance.log_weight` of arrays."""
    defined = np.isfinite(u) & np.isfinite(log_q)
    return np.where(defined, -np.where(defined, u, 0.0) - np.where(defined, log_q, 0.0), -np.inf)


def present_log_weights(u: Array, log_q: Array) -> Array:
    """`acceptance.present_log_weight` of arrays; the energies of chains are finite."""
    return np.where(np.isfinite(log_q), -u - np.where(np.isfinite(log_q), log_q, 0.0), np.inf)


def choose_many(log_weights: Array, log_weight_present: Array, uniform: Array) -> tuple[NDArray[np.int64], Array]:
    """`acceptance.choose` for B chains: the candidate chosen [B] (-1 where all have weight zero) and log alpha [B].

    Parameters
    ----------
    log_weights
        [B, n] of candidates.
    log_weight_present
        [B].
    uniform
        [B] random numbers in [0, 1).
    """
    top = log_weights.max(1, keepdims=True)
    none = np.isneginf(top[:, 0])
    share = np.exp(log_weights - np.where(np.isneginf(top), 0.0, top))
    cumulative = share.cumsum(1)
    # The last candidate of any weight, should rounding leave the sum below `uniform`.
    last = log_weights.shape[1] - 1 - (share[:, ::-1] > 0).argmax(1)
    index = np.minimum((uniform[:, None] * cumulative[:, -1:] >= cumulative).sum(1), last)
    total = _log_sum_exp(log_weights)
    others = log_weights.copy()
    np.put_along_axis(others, index[:, None], log_weight_present[:, None], 1)
    with np.errstate(invalid="ignore"):
        log_alpha = np.minimum(0.0, total - _log_sum_exp(others))
    return np.where(none, -1, index), np.where(none, -np.inf, log_alpha)


def _log_sum_exp(values: Array) -> Array:
    top = values.max(1)
    safe = np.where(np.isinf(top), 0.0, top)
    with np.errstate(over="ignore", divide="ignore"):
        total = safe + np.log(np.exp(values - safe[:, None]).sum(1))
    return np.where(np.isinf(top), top, total)
