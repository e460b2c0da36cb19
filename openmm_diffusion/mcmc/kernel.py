"""One exact Metropolis-Hastings step on a plain OpenMM Context.

The step sets positions, keeps velocities, and leaves the Context at the state that the chain is in. It never calls
`applyConstraints`: that projection is not invertible. Proposals satisfy constraints by construction.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from ..errors import StateError
from ..proposals.base import Candidates, Proposal
from .acceptance import accepts, choose, log_weight, present_log_weight


@dataclass(frozen=True)
class StepRecord:
    """What one step did.

    `u` are reduced potentials; `*_candidate` those of the candidate chosen, None where every candidate was invalid.
    `seconds_network` covers drawing, scoring and setting candidates and the reversal check, `seconds_energy` the
    energies.
    """

    accepted: bool
    log_alpha: float
    u_present: float
    u_candidate: float | None
    log_q_present: float
    log_q_candidate: float | None
    n_candidates: int
    n_invalid: int
    reversible: bool
    seconds_network: float
    seconds_energy: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = "accepted" if self.accepted else "rejected"
        return (
            f"{verdict}, log alpha {self.log_alpha:.2f}, {self.n_invalid} of {self.n_candidates} candidates invalid, "
            f"{1e3 * (self.seconds_network + self.seconds_energy):.1f} ms"
        )


def metropolis_step(
    context: openmm.Context,
    proposal: Proposal,
    positions: NDArray[np.float64],
    beta: float,
    n_candidates: int,
    rng: np.random.Generator,
) -> tuple[StepRecord, NDArray[np.float64]]:
    """Draw candidates, score them, accept one or none.

    Parameters
    ----------
    context
        Any Context of the target system; its box is used as it is, its velocities are not touched.
    proposal
        Where candidates come from.
    positions
        The present state [atoms, 3], nm.
    beta
        1 / kT in mol/kJ. At constant volume p V cancels, so the potential energy is all that counts.
    n_candidates, rng
        Candidates a step, and the source of every random number.

    Returns
    -------
    The record, and the positions that the chain is in now (which the Context holds).

    Raises
    ------
    StateError
        The present state has NaN positions or an energy that is not finite.
    """
    started = time.perf_counter()
    if not np.isfinite(positions).all():
        raise StateError(
            "the present positions are NaN or infinite; start from a valid structure, or minimise it first"
        )
    u_present = beta * _energy(context, positions)
    if not math.isfinite(u_present):
        raise StateError(
            f"the present potential energy is {u_present} kT; resolve the clash, for instance by minimising"
        )
    energy_s, mark = _lap(started)
    candidates = proposal.propose(positions, n_candidates, rng)
    network_s, mark = _lap(mark)
    weights, energies, n_invalid = _score(context, candidates, beta)
    present = [present_log_weight(u_present, float(value)) for value in candidates.log_q_present]
    choice = choose(weights, present, rng.random())
    lap, mark = _lap(mark)
    energy_s += lap
    accepted = choice.index is not None and accepts(choice.log_alpha, rng.random())
    reversible = True
    if accepted and candidates.reversible is not None:
        reversible = candidates.reversible(choice.index)  # type: ignore[arg-type]
        accepted = reversible
        lap, mark = _lap(mark)
        network_s += lap
    new_positions = candidates.positions[choice.index] if accepted else positions
    _place(context, new_positions)
    lap, _ = _lap(mark)
    chosen = choice.index
    record = StepRecord(
        accepted=accepted,
        log_alpha=choice.log_alpha if reversible else -math.inf,
        u_present=u_present,
        u_candidate=None if chosen is None else energies[chosen],
        log_q_present=float(candidates.log_q_present[chosen or 0]),
        log_q_candidate=None if chosen is None else float(candidates.log_q[chosen]),
        n_candidates=n_candidates,
        n_invalid=n_invalid,
        reversible=reversible,
        seconds_network=network_s,
        seconds_energy=energy_s + lap,
    )
    return record, new_positions


def _score(context: openmm.Context, candidates: Candidates, beta: float) -> tuple[list[float], list[float], int]:
    """log weights and reduced potentials of all candidates, and how many of them are invalid."""
    weights, energies, n_invalid = [], [], 0
    for x, log_q, invalid in zip(candidates.positions, candidates.log_q, candidates.invalid, strict=True):
        u = math.nan if invalid or not np.isfinite(x).all() else beta * _energy(context, x)
        weight = log_weight(u, float(log_q))
        n_invalid += weight == -math.inf
        weights.append(weight)
        energies.append(u)
    return weights, energies, n_invalid


def _energy(context: openmm.Context, positions: NDArray[np.float64]) -> float:
    """Potential energy (kJ/mol); NaN where the platform refuses to compute it."""
    try:
        _place(context, positions)
        return float(context.getState(energy=True).getPotentialEnergy()._value)
    except openmm.OpenMMException as error:
        # The CPU platform raises where the Reference platform returns NaN.
        if "nan" not in str(error).lower():
            raise
        return math.nan


def _place(context: openmm.Context, positions: NDArray[np.float64]) -> None:
    context.setPositions(positions)
    context.computeVirtualSites()


def _lap(since: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now - since, now
