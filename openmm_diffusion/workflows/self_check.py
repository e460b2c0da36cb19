"""A short exactness check of a proposal on any system: does the move leave exp(-u) unchanged?

Everything but the torsions of the move is frozen, so that independent exact draws of exp(-u) can be had without the
proposal: on a grid where the move sets phi and psi of one residue, by annealed importance sampling (Neal, Stat. Comput.
11, 125 (2001)) from uniform torsions elsewhere. Moves from such starts must not change any average: it is compared with
quadrature, or with that of the starts. Starts are independent, so no autocorrelation has to be estimated.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from scipy import stats

from ..errors import SettingError, StateError, first_line
from ..mcmc.kernel import metropolis_step
from ..molecule import BackboneTorsions, check_system
from ..proposals import Proposal
from .energies import ReducedPotential
from .exact_starts import exact_starts, observables
from .systems import TEMPERATURE, MolecularSystem

Array = NDArray[np.float64]
# p below which a check is repeated with fresh chains; a move is called not exact where both are below it. Chains this
# few give small p values up to ten times too often, so that false alarms are one in ten thousand.
SIGNIFICANT = 1e-3
_MIN_CHAINS, _MAX_CHAINS = 100, 4096


@dataclass(frozen=True)
class CheckResult:
    """What moves from exact starts show: `p` that no average changed, None where nothing can be said.

    `first_p` is that of a first check, where it was so small that the check was repeated. `n_effective` is the Kish
    size of the starts, `n_moved` how many of the chains accepted a move; `reason` says why there is no p.
    """

    p: float | None
    starts: str
    n_chains: int
    n_effective: float
    n_moves: int
    n_accepted: int
    n_moved: int
    n_invalid: int
    seconds: float
    reason: str = ""
    first_p: float | None = None

    @property
    def is_exact(self) -> bool | None:
        """True, False, or None where the check decided nothing."""
        return None if self.p is None else self.p > SIGNIFICANT

    def __str__(self) -> str:
        counts = (
            f"{self.n_moves} moves in {self.n_chains} chains from {self.starts}, {self.n_accepted} accepted, "
            f"{self.n_invalid} candidates invalid, {self.seconds:.0f} s"
        )
        if self.p is None:
            return f"not decided: {self.reason} ({counts})"
        verdict = "exact within noise" if self.is_exact else "NOT exact"
        repeated = "" if self.first_p is None else f", repeated after p = {self.first_p:.2g}"
        return f"{verdict}: p = {self.p:.2g}{repeated} ({counts})"


def check_exactness(
    proposal: Proposal,
    molecule: MolecularSystem,
    platform: str,
    *,
    seconds: float = 10.0,
    n_candidates: int = 1,
    rng: np.random.Generator,
) -> CheckResult:
    """Make moves from independent exact draws of exp(-u) at 300 K and test that averages stay.

    Parameters
    ----------
    proposal
        A proposal that turns torsions: it has `torsions`, a `BackboneTorsions`.
    molecule
        The system; its positions, minimised, hold everything that stays frozen.
    platform
        OpenMM platform of the energies.
    seconds
        Time to spend, about, and once more where the result is to be confirmed. More time makes more moves.
    n_candidates
        Candidates a move; one is the most sensitive to a wrong density.
    rng
        Source of every random number but those of torch.

    Raises
    ------
    SettingError
        The proposal does not turn torsions.
    """
    torsions = getattr(proposal, "torsions", None)
    if not isinstance(torsions, BackboneTorsions):
        raise SettingError(f"a {type(proposal).__name__} turns no torsions; expected a proposal of backbone torsions")
    check_system(molecule.system, torsions)
    first = _check(proposal, torsions, molecule, platform, seconds, n_candidates, rng)
    if first.is_exact is not False:
        return first
    return replace(_check(proposal, torsions, molecule, platform, seconds, n_candidates, rng), first_p=first.p)


def _check(
    proposal: Proposal,
    torsions: BackboneTorsions,
    molecule: MolecularSystem,
    platform: str,
    seconds: float,
    n_candidates: int,
    rng: np.random.Generator,
) -> CheckResult:
    began = time.perf_counter()
    energies = ReducedPotential(
        molecule.system, openmm.Platform.getPlatformByName(platform), TEMPERATURE.value_in_unit(unit.kelvin)
    )
    molecule = replace(molecule, positions=_relaxed(energies, molecule.positions))
    # The fastest of three: the first may compile kernels.
    second_each = min(_seconds(lambda: energies([molecule.positions])) for _ in range(3))
    starts = exact_starts(molecule, torsions, energies, platform, 0.5 * seconds, second_each)
    chains = _Chains(proposal, torsions, energies, molecule.positions, n_candidates, rng)
    second_start = starts.n_energies * second_each
    tau, _ = starts.draw(4, rng)
    second_pool = _seconds(lambda: chains.run(tau[:1], 1, 1))
    second_move = _seconds(lambda: chains.run(tau, 3, 1)) / 12
    if hasattr(proposal, "pool_size"):
        second_move += second_pool / proposal.pool_size * n_candidates
    least = _MIN_CHAINS * (second_start + 2 * second_move)
    if least > 3 * seconds:
        reason = f"{_MIN_CHAINS} chains of two moves take {least:.0f} s here; give more --seconds"
        return CheckResult(None, starts.name, 0, 0.0, 0, 0, 0, 0, time.perf_counter() - began, reason)
    left = seconds - (time.perf_counter() - began)
    n_chains, n_moves = _plan(left, second_start, second_move, starts.expected is not None)
    tau, weights = starts.draw(n_chains, rng)
    shares = weights / weights.sum()
    n_effective = float(1.0 / (shares**2).sum())
    n_shown = max(1, min(len(torsions), int(n_effective // 20)))
    chains.n_accepted = chains.n_invalid = 0
    averages, moved = chains.run(tau, n_moves, n_shown)
    unmoved = starts.expected
    if unmoved is None:
        unmoved = observables(tau[:, :n_shown], energies(torsions.set(molecule.positions, tau)))
    reason = _undecided(n_effective, int(moved.sum()), float(shares @ moved))
    return CheckResult(
        p=None if reason else mean_zero_p(averages - unmoved, weights),
        starts=starts.name,
        n_chains=n_chains,
        n_effective=n_effective,
        n_moves=n_moves * n_chains,
        n_accepted=chains.n_accepted,
        n_moved=int(moved.sum()),
        n_invalid=chains.n_invalid,
        seconds=time.perf_counter() - began,
        reason=reason,
    )


def _plan(seconds: float, second_start: float, second_move: float, even: bool) -> tuple[int, int]:
    """How many chains of how many moves, from the time for all, for one start and one move, and for even weights."""
    # Few chains of many moves tell more than many of few; uneven weights take more chains to be worth as many.
    share, most = (0.3, 2 * _MIN_CHAINS) if even else (0.5, 10 * _MIN_CHAINS)
    n_chains = int(np.clip(share * seconds / (second_start + second_move), _MIN_CHAINS, most))
    left = seconds - n_chains * second_start
    n_moves = int(np.clip(left / (n_chains * second_move), 2, 40))
    return int(np.clip(left / (n_moves * second_move), n_chains, _MAX_CHAINS)), n_moves


def mean_zero_p(differences: Array, weights: Array) -> float:
    """p value of Hotelling's test that the weighted mean of independent differences [n, k] is zero."""
    shares = weights / weights.sum()
    mean = shares @ differences
    deviations = (differences - mean) * shares[:, None]
    covariance = deviations.T @ deviations
    scale = np.sqrt(np.diag(covariance))
    kept = scale > 1e-12 * max(float(scale.max()), 1e-300)
    if not kept.any():
        return 1.0
    correlation = covariance[np.ix_(kept, kept)] / np.outer(scale[kept], scale[kept])
    z = mean[kept] / scale[kept]
    rank = int(np.linalg.matrix_rank(correlation, tol=1e-8, hermitian=True))
    statistic = float(z @ np.linalg.pinv(correlation, rcond=1e-8, hermitian=True) @ z)
    n = 1.0 / float((shares**2).sum())
    return float(stats.f.sf(statistic * (n - rank) / (rank * (n - 1)), rank, n - rank))


class _Chains:
    """Runs chains of moves and counts what they did."""

    def __init__(
        self,
        proposal: Proposal,
        torsions: BackboneTorsions,
        energies: ReducedPotential,
        positions: Array,
        n_candidates: int,
        rng: np.random.Generator,
    ) -> None:
        self._proposal, self._torsions, self._energies = proposal, torsions, energies
        self._positions, self._n_candidates, self._rng = positions, n_candidates, rng
        self.n_accepted = self.n_invalid = 0

    def run(self, tau: Array, n_moves: int, n_shown: int) -> tuple[Array, NDArray[np.bool_]]:
        """Averages [n, k] of the observables over the states after each of n_moves, and which chains moved [n]."""
        averages, moved = [], np.zeros(len(tau), dtype=bool)
        context, beta = self._energies.context, self._energies.beta
        for i, x in enumerate(np.asarray(self._torsions.set(self._positions, tau))):
            states, u = np.empty((n_moves, *x.shape)), np.empty(n_moves)
            for j in range(n_moves):
                record, x = metropolis_step(context, self._proposal, x, beta, self._n_candidates, self._rng)
                self.n_accepted += record.accepted
                self.n_invalid += record.n_invalid
                moved[i] |= record.accepted
                states[j] = x
                u[j] = record.u_candidate if record.accepted and record.u_candidate is not None else record.u_present
            averages.append(observables(self._torsions.get(states)[:, :n_shown], u).mean(0))
        return np.array(averages), moved


def _undecided(n_effective: float, n_moved: int, share_moved: float) -> str:
    """Why a test would say nothing; empty where it says something."""
    if n_effective < 50:
        return f"the starts are worth {n_effective:.0f} independent ones, expected 50; give more --seconds"
    if n_moved < 50:
        return f"{n_moved} chains accepted a move, expected 50; give more --seconds or a better model"
    if share_moved * n_effective < 25:
        return "most of the chains that count accepted no move; give more --seconds or a better model"
    return ""


def _relaxed(energies: ReducedPotential, positions: Array) -> Array:
    """Positions after a short minimisation."""
    energies.context.setPositions(positions)
    energies.context.computeVirtualSites()
    try:
        openmm.LocalEnergyMinimizer.minimize(energies.context, maxIterations=200)
    except openmm.OpenMMException as error:
        raise StateError(f"the structure cannot be minimised ({first_line(error)}); start from another one") from error
    state: Any = energies.context.getState(positions=True)
    return np.array(state.getPositions(asNumpy=True)._value)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
