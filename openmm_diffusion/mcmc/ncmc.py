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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openmm import unit

from ..errors import SettingError
from ..models import Model
from ..molecule.quantities import value_in
from .kernel import StepRecord
from .move import DiffusionMove, _enter, _is_whole, _with_pressure
from .ncmc_kernel import ncmc_step
from .propagators import INTEGRATORS, DynamicsPropagator


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
        rng = self._stream()
        contexts = self._get_context_cache(context_cache)
        context, _ = contexts.get_context(thermodynamic_state, self._integrator(thermodynamic_state.temperature))
        positions = self._present(sampler_state, context)
        _enter(context, thermodynamic_state, sampler_state)
        beta = 1.0 / thermodynamic_state.kT.value_in_unit(unit.kilojoule_per_mole)
        propagator = DynamicsPropagator(self.n_propagation_steps, thermodynamic_state.temperature)
        proposal: Any = self.proposal
        record: StepRecord = ncmc_step(context, proposal, positions, beta, self.n_rotations, propagator, rng)[0]
        if thermodynamic_state.pressure is not None:
            record = _with_pressure(record, thermodynamic_state, context, beta)
        self.n_proposed += 1
        self.n_invalid += record.n_invalid
        self.last = record
        if record.accepted:
            self.n_accepted += 1
            context.setVelocitiesToTemperature(thermodynamic_state.temperature, self._draw_seed())
            sampler_state.update_from_context(context)

    def _integrator(self, temperature: Any) -> Any:
        """K's integrator; None for a single rotation, which takes any Context of the state."""
        if self.n_rotations == 1:
            return None
        integrator = INTEGRATORS[self.propagator](temperature, self.timestep, self.collision_rate)
        integrator.setRandomNumberSeed(self._draw_seed())
        return integrator

    def _draw_seed(self) -> int:
        return int(self._stream().integers(1, 2**31 - 1))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "n_rotations": self.n_rotations,
            "n_propagation_steps": self.n_propagation_steps,
            "propagator": sys.intern(self.propagator),
            "timestep_ps": self.timestep.value_in_unit(unit.picosecond),
            "collision_rate_per_ps": self.collision_rate.value_in_unit(unit.picosecond**-1),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        names = ("n_rotations", "n_propagation_steps", "propagator", "timestep_ps", "collision_rate_per_ps")
        self._set_protocol(**{name: state[name] for name in names if name in state})
