"""A warm-up that chooses the step size t_star (and the window) of local moves, and stops before production.

A move that goes on adapting does not leave the target unchanged, so the settings of a proposal are frozen: several
frozen moves are tried here in short blocks with MD between them, and the best of them, as it was, is returned.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openmm import unit
from openmmtools import mcmc

from ..errors import SettingError
from ..molecule.quantities import in_nanometers
from ..proposals import LocalProposal
from ..units import wrap
from .move import ProposalMove

logger = logging.getLogger(__name__)
T_STARS = (0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass
class TuningRow:
    """What one setting did: angles in degrees and rad^2, seconds of the moves alone.

    `squared_displacement` is the sum over accepted moves of the squares of all changes of torsions (rad^2), zero for
    rejected ones; `displacements` are those changes (degrees) in the accepted moves, of torsions that changed.
    """

    t_star: float
    window: int | None
    n_moves: int = 0
    n_accepted: int = 0
    squared_displacement: float = 0.0
    seconds: float = 0.0
    displacements: tuple[float, ...] = ()

    @property
    def fraction_accepted(self) -> float:
        """Accepted moves over moves tried; NaN before the first."""
        return self.n_accepted / self.n_moves if self.n_moves else math.nan

    @property
    def rate(self) -> float:
        """Squared displacement of accepted moves per second (rad^2 / s)."""
        return self.squared_displacement / self.seconds if self.seconds else 0.0

    @property
    def median_displacement(self) -> float:
        """Median change (degrees) of the torsions that accepted moves changed; NaN where there was none."""
        return float(np.median(self.displacements)) if self.displacements else math.nan

    def __str__(self) -> str:
        window = "all" if self.window is None else self.window
        return (
            f"t_star {self.t_star:g}, window {window}: {self.n_accepted} of {self.n_moves} accepted, median "
            f"{self.median_displacement:.0f} degrees, {self.rate:.3g} rad^2/s"
        )


@dataclass(frozen=True)
class Tuning:
    """The move for production, frozen and with counters at zero, and what was measured, one row a setting."""

    move: ProposalMove
    table: tuple[TuningRow, ...]


def tune_local(
    move: ProposalMove,
    thermodynamic_state: Any,
    sampler_state: Any,
    *,
    t_stars: Sequence[float] = T_STARS,
    windows: Sequence[int | None] | None = None,
    n_rounds: int = 4,
    n_moves: int = 5,
    between: mcmc.MCMCMove | None = None,
    target_acceptance: float | None = None,
    context_cache: Any = None,
) -> Tuning:
    """Try settings of a local move and return the best as a new, frozen move.

    Blocks of `n_moves` alternate over all settings, `n_rounds` times, each move followed by MD; so the same structures
    are seen by all. Chosen is the setting with the largest squared displacement of accepted moves per second, or with
    `target_acceptance` the one among those that reach it (the most accepted one where none does).

    Parameters
    ----------
    move
        A move with a `LocalProposal`, such as `DiffusionMove(model, topology, t_star=0.1)`; not changed.
    thermodynamic_state, sampler_state
        openmmtools states; the sampler state goes on in place, an equilibration that is no part of production.
    t_stars
        Ladder of step sizes.
    windows
        Window sizes to try, None = all residues; that of the move by default.
    n_rounds, n_moves
        Blocks, and moves a block.
    between
        What runs after each move; 50 steps of Langevin dynamics of 2 fs by default.
    target_acceptance
        In (0, 1).
    context_cache
        As in `MCMCMove.apply`.

    Raises
    ------
    SettingError
        A move without a local proposal, an empty ladder, numbers out of range.
    """
    if not isinstance(move.proposal, LocalProposal):
        raise SettingError(
            f"the move's proposal is a {type(move.proposal).__name__}; expected a LocalProposal, as t_star= makes it"
        )
    if target_acceptance is not None and not 0.0 < target_acceptance < 1.0:
        raise SettingError(f"target_acceptance is {target_acceptance}; expected a number between 0 and 1")
    sizes = (move.proposal.window,) if windows is None else tuple(windows)
    if not t_stars or not sizes or n_rounds < 1 or n_moves < 1:
        raise SettingError("nothing to try; expected t_stars, windows, n_rounds and n_moves of at least one each")
    dynamics = between or mcmc.LangevinDynamicsMove(timestep=2.0 * unit.femtoseconds, n_steps=50)
    tried = [
        (TuningRow(float(t_star), size), _with_settings(move, t_star=float(t_star), window=size))
        for size in sizes
        for t_star in t_stars
    ]
    for _ in range(n_rounds):
        for row, variant in tried:
            for _ in range(n_moves):
                _measure(row, variant, thermodynamic_state, sampler_state, context_cache)
                dynamics.apply(thermodynamic_state, sampler_state, context_cache)
    table = tuple(row for row, _ in tried)
    for row in table:
        logger.info("tuning: %s", row)
    best = _best(table, target_acceptance)
    return Tuning(_with_settings(move, t_star=best.t_star, window=best.window), table)


def _measure(row: TuningRow, move: ProposalMove, thermodynamic_state: Any, sampler_state: Any, cache: Any) -> None:
    torsions = move.proposal.torsions  # type: ignore[attr-defined]
    before = torsions.get(in_nanometers(sampler_state.positions))
    move.apply(thermodynamic_state, sampler_state, cache)
    record = move.last
    assert record is not None
    row.n_moves += 1
    row.seconds += record.seconds_network + record.seconds_energy
    if record.accepted:
        change = wrap(torsions.get(in_nanometers(sampler_state.positions)) - before)
        row.n_accepted += 1
        row.squared_displacement += float((change**2).sum())
        turned = np.abs(change[np.abs(change) > 1e-6])
        row.displacements += tuple(float(x) for x in np.degrees(turned))


def _best(table: Sequence[TuningRow], target_acceptance: float | None) -> TuningRow:
    if target_acceptance is not None:
        reached = [row for row in table if row.fraction_accepted >= target_acceptance]
        if not reached:
            logger.warning(
                "no setting reached an acceptance of %.2f; the most accepted one is taken", target_acceptance
            )
            return max(table, key=lambda row: row.fraction_accepted)
        table = reached
    if not any(row.n_accepted for row in table):
        logger.warning("no move was accepted; the smallest t_star is taken")
        return min(table, key=lambda row: row.t_star)
    return max(table, key=lambda row: row.rate)


def _with_settings(move: ProposalMove, **changes: Any) -> ProposalMove:
    """The same kind of move with another proposal, counters at zero."""
    proposal: Any = move.proposal
    state = move.__getstate__()
    new = type(move).__new__(type(move))
    new.__setstate__({**state, "n_proposed": 0, "n_accepted": 0, "n_invalid": 0})
    new._set_proposal(proposal.with_settings(**changes))
    new._context_cache = getattr(move, "_context_cache", None)
    return new
