"""A nonequilibrium diffusion move: the torsions are turned in n small rotations, and everything relaxes in between.

For explicit solvent, where turning a peptide at once drives it into the water.

The protocol. x holds torsions tau and everything else, rho; v are velocities. Draw tau' from the model and let
Delta = tau' - tau, wrapped to (-pi, pi]. With R turning all torsions by Delta / n and D drawing v afresh from p(v | x),

    (R D) K (R D) K ... K (R D)          n rotations, n - 1 propagations K

K moves everything, the torsions too, so that the last ones, tau_f, are not tau'. Let x_0 be the present state, y_i
where the i-th rotation leads, x_i where the propagation from there leads, and x_f = y_n the end. W is the sum of the
potential jumps u(y_i) - u(x_{i-1}) of the rotations.

Why it is exact (Nilmeier, Crooks, Minh & Chodera, PNAS 108, E1009 (2011), for the ratio of a path and its reverse). The
way back from x_f undoes the same rotations, each by -Delta / n. That is the same protocol with -Delta for Delta: it
begins and ends with a rotation whichever way it is read, so the move itself can make it. The ratio of probabilities of
the trajectory backwards and forwards has three factors:

1. Choosing Delta. Forwards the model has to draw tau + Delta, which is tau' but for full turns: q(tau + Delta).
   Backwards it starts from tau_f and has to draw tau_f - Delta: q(tau_f - Delta). Both follow from Delta, which the two
   trajectories share: neither q(tau) nor q(tau_f) has a place here, and tau_f - Delta is tau for n = 1 only. -Delta
   lies in the interval as well, since its border has measure zero.
2. Rotations. x -> turn(x, angles) at constant angles keeps volumes (molecule.BackboneTorsions) and the constraint
   metric: a factor of one.
3. Propagations. K is its own reverse once v is turned round,

       pi(x, v) K(x, v -> x', v') = pi(x', -v') K(x', -v' -> x, -v) exp(shadow work),

   with pi(x, v) = exp(-u(x)) p(v | x) and no shadow work for GHMC. Forwards v was drawn from p(v | y_i) before K,
   backwards -v' is drawn from p(. | x_i): what is left of each K is exp(u(x_i) - u(y_i) - shadow work).

Together with exp(-u(x_f) + u(x_0)) the energies telescope to the jumps of the rotations:

    log alpha = -W - W_shadow + log q(tau_f - Delta) - log q(tau + Delta)

The velocities that come in are not used, and those that go out are drawn from p(v | x_f), which cancels; on rejection
positions, velocities and box are what they were. Nothing has to turn v round, since D forgets it. K cannot come last:
its reverse would be a protocol that begins with K. For n = 1 this is the plain move.

W_shadow is the change of the total energy over the deterministic substeps of K = V R O R V. The splitting has to be a
palindrome with v and x at the same time, so that it is its own reverse; what the bath O exchanges, the redraws D and
the barostat (which is never asked) are no work. Shadow work grows with the number of atoms and of steps.

Where the model's density is one of paths (DESIGN 2.5), or the move sets some of the model's torsions only, log q(tau')
is that of the auxiliary variables that came with tau', and tau_f - Delta is scored after the protocol with auxiliary
variables of its own, drawn then: forwards and backwards exchange the roles of the two sets.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..errors import SettingError, StateError
from ..models import Model
from ..molecule.quantities import value_in
from ..proposals import Candidates
from ..units import wrap
from .acceptance import accepts, choose, log_weight, present_log_weight
from .kernel import StepRecord, _energy, _lap, _place, metropolis_step
from .move import DiffusionMove, _is_whole, _with_pressure
from .propagators import INTEGRATORS, DynamicsPropagator, Propagator
from .streams import new_stream

Positions = NDArray[np.float64]


class Turnable(Protocol):
    """Coordinates on a torus: `get` reads them [T] (rad), `turn` changes them by [T] and keeps volumes."""

    def get(self, positions: Any) -> NDArray[np.float64]: ...

    def turn(self, positions: Any, angles: Any) -> Any: ...


class TurningProposal(Protocol):
    """What a nonequilibrium move asks of a proposal: the torsions that it sets, and `propose` of `Proposal`.

    Candidates have to be the present positions with other torsions, drawn from a density that does not depend on the
    present ones. `log_q` and `log_q_present` are densities of torsions alone, up to one constant for all calls.
    `log_q_present` of positions with torsions tau_f - Delta is the log density that the way back needs, auxiliary
    variables drawn afresh included: the candidate of that second call is not used.
    """

    @property
    def torsions(self) -> Turnable: ...

    def propose(self, positions: Positions, n: int, rng: np.random.Generator) -> Candidates: ...


@dataclass(frozen=True)
class NCMCRecord(StepRecord):
    """What one nonequilibrium move did.

    `u_candidate` is the reduced potential at the end of the protocol, `log_q_candidate` is log q(tau + Delta) and
    `log_q_present` log q(tau_f - Delta) (NaN where the protocol was not finished). `work` is W, the potential jumps of
    the rotations, and `shadow_work` that of the propagations, both in kT and without the log q terms:
    log_alpha = min(0, -work - shadow_work + log_q_present - log_q_candidate). `propagator_acceptance` is the share of
    Metropolis tests passed inside K, None where it has none. `torsions_end` is tau_f (rad), also of a rejected end;
    None where there was none, and where a single rotation was rejected. `seconds_propagation` is the time of K,
    `seconds_energy` that of the energies besides.
    """

    n_rotations: int
    work: float
    shadow_work: float
    propagator_acceptance: float | None
    torsions_end: tuple[float, ...] | None
    seconds_propagation: float


@dataclass(frozen=True)
class Drive:
    """The end of a protocol: positions, reduced potential, and the terms of its work in kT; `finite` False for NaN."""

    positions: Positions
    u: float
    work: float
    exchanged: float
    shadow_work: float
    propagator_acceptance: float | None
    seconds_propagation: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.u) and math.isfinite(self.work) and math.isfinite(self.shadow_work)


def drive(
    context: openmm.Context,
    torsions: Turnable,
    positions: Positions,
    u_present: float,
    delta: NDArray[np.float64],
    n_rotations: int,
    propagator: Propagator,
    beta: float,
    rng: np.random.Generator,
) -> Drive:
    """Run the protocol: n rotations by delta / n, n - 1 propagations in between.

    `exchanged` is what the potential gains during propagations, so that work = u - u_present - exchanged. A protocol
    that meets a NaN or an infinite energy stops there: its way back would meet it too, so both have weight zero.
    """
    x, u, step = positions, u_present, delta / n_rotations
    work = exchanged = shadow = seconds = 0.0
    shares: list[float] = []
    for _ in range(n_rotations - 1):
        started = time.perf_counter()
        try:
            done = propagator(context, torsions.turn(x, step), beta, rng)
        except openmm.OpenMMException as error:
            # The CPU platform raises where the Reference platform goes on with NaN.
            if "nan" not in str(error).lower():
                raise
            return Drive(x, math.nan, math.nan, math.nan, math.nan, None, seconds)
        work += done.u_start - u
        exchanged += done.u_end - done.u_start
        shadow += done.shadow_work
        x, u = done.positions, done.u_end
        if done.acceptance is not None:
            shares.append(done.acceptance)
        seconds += time.perf_counter() - started
        if not (math.isfinite(work) and math.isfinite(u) and np.isfinite(x).all()):
            return Drive(x, math.nan, math.nan, math.nan, math.nan, None, seconds)
    x = torsions.turn(x, step)
    u_end = beta * _energy(context, x)
    share = float(np.mean(shares)) if shares else None
    return Drive(x, u_end, work + (u_end - u), exchanged, shadow, share, seconds)


def ncmc_step(
    context: openmm.Context,
    proposal: TurningProposal,
    positions: Positions,
    beta: float,
    n_rotations: int,
    propagator: Propagator,
    rng: np.random.Generator,
) -> tuple[NCMCRecord, Positions]:
    """One nonequilibrium move: the counterpart of `kernel.metropolis_step`, with the same contract.

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


class NCMCDiffusionMove(DiffusionMove):
    """The nonequilibrium form of `DiffusionMove`, for solvated systems; exact as derived above.

    Rotations and propagations are at fixed volume, also in thermodynamic states with a pressure. Constrained bonds stay
    satisfied. On acceptance velocities are drawn afresh, on rejection the sampler state is not touched. Random numbers
    inside a propagation are OpenMM's own; a Context that the move makes in the context cache gets its seed from the
    move's stream.

    Parameters
    ----------
    model, topology, seed, device, torsions, options
        As those of `DiffusionMove`; there is one candidate a move.
    n_rotations
        Rotations n of a move, with n - 1 propagations in between; 1 is `DiffusionMove` with one candidate.
    n_propagation_steps
        Time steps of each propagation.
    propagator
        "GHMC": each step is accepted or rejected by itself. "langevin": V R O R V, with its shadow work in the test.
    timestep, collision_rate
        Of the propagations; bare numbers in ps and 1 / ps.

    Attributes
    ----------
    last
        The `NCMCRecord` of the last move, None before the first.

    Raises
    ------
    SettingError
        A setting is out of its range.
    ModelError, MoleculeError
        As `DiffusionMove`.
    """

    def __init__(
        self,
        model: Model | str | Path,
        topology: Any,
        n_rotations: int = 100,
        n_propagation_steps: int = 1,
        propagator: str = "GHMC",
        timestep: Any = 2.0 * unit.femtoseconds,
        collision_rate: Any = 1.0 / unit.picosecond,
        seed: int | None = None,
        device: str | None = None,
        torsions: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self._set_protocol(
            n_rotations=n_rotations,
            n_propagation_steps=n_propagation_steps,
            propagator=propagator,
            timestep_ps=value_in(timestep, unit.picosecond, "timestep"),
            collision_rate_per_ps=value_in(collision_rate, unit.picosecond**-1, "collision_rate"),
        )
        if options.pop("n_candidates", 1) != 1:
            raise SettingError("n_candidates is not 1; a nonequilibrium move drives a single candidate")
        if options.pop("t_star", None) is not None:
            raise SettingError(
                "t_star is set; a nonequilibrium move takes draws that do not depend on the present state, leave it out"
            )
        super().__init__(model, topology, 1, seed, device, torsions, **options)

    def _set_protocol(
        self,
        n_rotations: Any = 100,
        n_propagation_steps: Any = 1,
        propagator: Any = "GHMC",
        timestep_ps: float = 0.002,
        collision_rate_per_ps: float = 1.0,
    ) -> None:
        for name, value in (("n_rotations", n_rotations), ("n_propagation_steps", n_propagation_steps)):
            if not _is_whole(value) or value < 1:
                raise SettingError(f"{name} is {value!r}; expected a whole number of at least 1")
        if propagator not in INTEGRATORS:
            raise SettingError(f"propagator is {propagator!r}; expected one of {', '.join(INTEGRATORS)}")
        if not (math.isfinite(timestep_ps) and timestep_ps > 0):
            raise SettingError(f"timestep is {timestep_ps} ps; expected a positive time")
        if not (math.isfinite(collision_rate_per_ps) and collision_rate_per_ps >= 0):
            raise SettingError(f"collision_rate is {collision_rate_per_ps} / ps; expected at least 0")
        self.n_rotations, self.n_propagation_steps = int(n_rotations), int(n_propagation_steps)
        self.propagator = str(propagator)
        self.timestep = float(timestep_ps) * unit.picosecond
        self.collision_rate = float(collision_rate_per_ps) / unit.picosecond

    def apply(self, thermodynamic_state: Any, sampler_state: Any, context_cache: Any = None) -> None:
        """Propose, drive, and accept or reject, in place. Raises as `ProposalMove.apply`."""
        if self._rng is None:
            self._rng = new_stream(self.seed, self.n_proposed)
        contexts = self._get_context_cache(context_cache)
        context, _ = contexts.get_context(thermodynamic_state, self._integrator(thermodynamic_state.temperature))
        positions = self._present(sampler_state, context)
        sampler_state.apply_to_context(context, ignore_velocities=True)
        beta = 1.0 / thermodynamic_state.kT.value_in_unit(unit.kilojoule_per_mole)
        record = self._step(context, positions, beta, thermodynamic_state.temperature)
        if thermodynamic_state.pressure is not None:
            record = _with_pressure(record, thermodynamic_state, context, beta)
        self.n_proposed += 1
        self.n_invalid += record.n_invalid
        self.last = record
        if record.accepted:
            self.n_accepted += 1
            context.setVelocitiesToTemperature(thermodynamic_state.temperature, self._draw_seed())
            sampler_state.update_from_context(context)

    def _step(self, context: openmm.Context, positions: Positions, beta: float, temperature: Any) -> StepRecord:
        assert self._rng is not None
        if self.n_rotations > 1:
            propagator = DynamicsPropagator(self.n_propagation_steps, temperature)
            proposal: Any = self.proposal
            return ncmc_step(context, proposal, positions, beta, self.n_rotations, propagator, self._rng)[0]
        plain, end = metropolis_step(context, self.proposal, positions, beta, 1, self._rng)
        work = math.nan if plain.u_candidate is None else plain.u_candidate - plain.u_present
        return NCMCRecord(
            **plain.to_dict(),
            n_rotations=1,
            work=work,
            shadow_work=0.0,
            propagator_acceptance=None,
            torsions_end=tuple(self._torsions.get(end).tolist()) if plain.accepted else None,
            seconds_propagation=0.0,
        )

    def _integrator(self, temperature: Any) -> Any:
        """K's integrator; None for a single rotation, which takes any Context of the state."""
        if self.n_rotations == 1:
            return None
        integrator = INTEGRATORS[self.propagator](temperature, self.timestep, self.collision_rate)
        integrator.setRandomNumberSeed(self._draw_seed())
        return integrator

    def _draw_seed(self) -> int:
        assert self._rng is not None
        return int(self._rng.integers(1, 2**31 - 1))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "n_rotations": self.n_rotations,
            "n_propagation_steps": self.n_propagation_steps,
            "propagator": self.propagator,
            "timestep_ps": self.timestep.value_in_unit(unit.picosecond),
            "collision_rate_per_ps": self.collision_rate.value_in_unit(unit.picosecond**-1),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        names = ("n_rotations", "n_propagation_steps", "propagator", "timestep_ps", "collision_rate_per_ps")
        self._set_protocol(**{name: state[name] for name in names if name in state})
