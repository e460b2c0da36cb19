"""One nonequilibrium step on a plain OpenMM Context: the counterpart of `kernel`, derived in `ncmc`."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm

from ..errors import StateError
from ..proposals import Candidates
from ..units import wrap
from .acceptance import accepts, choose, log_weight, present_log_weight
from .kernel import StepRecord, _energy, _lap, _place, metropolis_step
from .ncmc_protocol import Drive, Positions, TurningProposal, drive
from .propagators import Propagator


@dataclass(frozen=True)
class NCMCRecord(StepRecord):
    """What one nonequilibrium move did.

    `u_candidate` is the reduced potential at the end of the protocol, `log_q_candidate` is log q(tau + Delta) and
    `log_q_present` log q(tau_f - Delta) (NaN where the protocol was not finished). `work` is W, the potential jumps of
    the rotations, and `shadow_work` that of the propagations, both in kT and without the log q terms:
    log_alpha = min(0, -work - shadow_work + log_q_present - log_q_candidate). `propagator_acceptance` is the share of
    Metropolis tests passed inside K, None where it has none. `torsions_end` is tau_f (rad), also of a rejected end;
    None where there was none. `seconds_propagation` is the time of K, `seconds_energy` that of the energies besides.
    """

    n_rotations: int
    work: float
    shadow_work: float
    propagator_acceptance: float | None
    torsions_end: tuple[float, ...] | None
    seconds_propagation: float


def ncmc_step(
    context: openmm.Context,
    proposal: TurningProposal,
    positions: Positions,
    beta: float,
    n_rotations: int,
    propagator: Propagator,
    rng: np.random.Generator,
) -> tuple[NCMCRecord, Positions]:
    """One nonequilibrium move, with the contract of `metropolis_step`, which it is bit for bit with one rotation.

    Parameters
    ----------
    context
        A Context of the target system at the chain's box, whose integrator the propagator can use.
    proposal
        Where torsions come from.
    positions
        The present state [atoms, 3], nm.
    beta
        1 / kT in mol/kJ.
    n_rotations, propagator, rng
        n, K, and the source of every random number but those that OpenMM draws inside K.

    Returns
    -------
    The record, and the positions that the chain is in now. The Context holds them, and the velocities it came with.

    Raises
    ------
    StateError
        The present state has NaN positions or an energy that is not finite.
    """
    if n_rotations == 1:
        return _plain_step(context, proposal, positions, beta, rng)
    return driven_step(context, proposal, positions, beta, n_rotations, propagator, rng)


def driven_step(
    context: openmm.Context,
    proposal: TurningProposal,
    positions: Positions,
    beta: float,
    n_rotations: int,
    propagator: Propagator,
    rng: np.random.Generator,
) -> tuple[NCMCRecord, Positions]:
    """`ncmc_step` by the general formula, which holds for one rotation too but then scores the present state twice."""
    started = time.perf_counter()
    if not np.isfinite(positions).all():
        raise StateError(
            "the present positions are NaN or infinite; start from a valid structure, or minimise it first"
        )
    velocities = context.getState(velocities=True).getVelocities(asNumpy=True)
    u_present = beta * _energy(context, positions)
    if not math.isfinite(u_present):
        raise StateError(
            f"the present potential energy is {u_present} kT; resolve the clash, for instance by minimising"
        )
    energy_s, mark = _lap(started)
    candidates = proposal.propose(positions, 1, rng)
    end, log_q_back = None, math.nan
    network_s, mark = _lap(mark)
    if not candidates.invalid[0] and np.isfinite(candidates.positions[0]).all():
        torsions = proposal.torsions
        # (-pi, pi], where wrap gives [-pi, pi)
        delta = -wrap(torsions.get(positions) - torsions.get(candidates.positions[0]))
        end = drive(context, torsions, positions, u_present, delta, n_rotations, propagator, beta, rng)
        lap, mark = _lap(mark)
        energy_s += lap - end.seconds_propagation
        if end.finite:
            log_q_back = float(proposal.propose(torsions.turn(end.positions, -delta), 1, rng).log_q_present[0])
            lap, mark = _lap(mark)
            network_s += lap
    record, accepted = _decide(u_present, candidates, end, log_q_back, n_rotations, rng)
    lap, mark = _lap(mark)
    network_s += lap  # of the reversal check
    if end is not None and end.finite:
        record["torsions_end"] = tuple(proposal.torsions.get(end.positions).tolist())
    new_positions = end.positions if accepted and end is not None else positions
    _place(context, new_positions)
    context.setVelocities(velocities)
    lap, _ = _lap(mark)
    return NCMCRecord(**record, seconds_network=network_s, seconds_energy=energy_s + lap), new_positions


def _decide(
    u_present: float,
    candidates: Candidates,
    end: Drive | None,
    log_q_back: float,
    n_rotations: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], bool]:
    """The Metropolis test, by the formula and with the random numbers of `metropolis_step`."""
    log_q = float(candidates.log_q[0])
    finite = end is not None and end.finite
    # What is not exchanged during propagations counts as potential: for n = 1 that is all of it.
    effective = end.u - end.exchanged + end.shadow_work if end is not None and finite else math.nan
    weight = log_weight(effective, log_q)
    present = present_log_weight(u_present, log_q_back)
    choice = choose([weight], present, rng.random())
    accepted = choice.index is not None and accepts(choice.log_alpha, rng.random())
    reversible = True
    if accepted and candidates.reversible is not None:
        accepted = reversible = candidates.reversible(0)
    record = {
        "accepted": accepted,
        "log_alpha": choice.log_alpha if reversible else -math.inf,
        "u_present": u_present,
        "u_candidate": end.u if end is not None and finite else None,
        "log_q_present": log_q_back,
        "log_q_candidate": log_q if finite else None,
        "n_candidates": 1,
        "n_invalid": int(weight == -math.inf),
        "reversible": reversible,
        "n_rotations": n_rotations,
        "work": end.work if end is not None else math.nan,
        "shadow_work": end.shadow_work if end is not None else math.nan,
        "propagator_acceptance": end.propagator_acceptance if end is not None else None,
        "torsions_end": None,
        "seconds_propagation": end.seconds_propagation if end is not None else 0.0,
    }
    return record, accepted


@dataclass
class _Remembering:
    """A proposal that keeps the last candidates: `metropolis_step` does not return rejected ones."""

    inner: TurningProposal
    drawn: Candidates | None = None

    def propose(self, positions: Positions, n: int, rng: np.random.Generator) -> Candidates:
        self.drawn = self.inner.propose(positions, n, rng)
        return self.drawn


def _plain_step(
    context: openmm.Context, proposal: TurningProposal, positions: Positions, beta: float, rng: np.random.Generator
) -> tuple[NCMCRecord, Positions]:
    """`metropolis_step` with one candidate, and its record in the terms of a nonequilibrium move."""
    seen = _Remembering(proposal)
    plain, new_positions = metropolis_step(context, seen, positions, beta, 1, rng)
    torsions_end = None
    if plain.u_candidate is not None and seen.drawn is not None:
        torsions_end = tuple(proposal.torsions.get(seen.drawn.positions[0]).tolist())
    record = NCMCRecord(
        **plain.to_dict(),
        n_rotations=1,
        work=math.nan if plain.u_candidate is None else plain.u_candidate - plain.u_present,
        shadow_work=0.0,
        propagator_acceptance=None,
        torsions_end=torsions_end,
        seconds_propagation=0.0,
    )
    return record, new_positions
