"""What goes on between the rotations of a nonequilibrium move: dynamics whose departure from Boltzmann is measured.

Two integrators for an `openmm.Context`. Both keep positions and velocities at the same time, are their own reverse
with velocities turned round, and leave the box and the momentum alone: barostats and centre-of-mass motion removers of
the System never act, because no step asks for `updateContextState`.

- `MetropolizedIntegrator`, O {V R V} O: velocity Verlet steps, each accepted or rejected with its velocities turned
  round, between half steps of an Ornstein-Uhlenbeck bath (GHMC; Lelievre, Rousset & Stoltz, "Free energy
  computations", 2010, algorithm 2.11). It leaves the Boltzmann distribution invariant at any time step.
- `ShadowWorkIntegrator`, V R O R V: Langevin dynamics. Its shadow work is the change of the total energy over V and R,
  without what O exchanges with the bath (Sivak, Chodera & Crooks, Phys. Rev. X 3, 011007 (2013), eq. 16).

R is a RATTLE step, which is reversible and keeps volumes on the constraint surface (Leimkuhler & Matthews, Proc. R.
Soc. A 472, 20160138 (2016)).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from openmmtools.integrators import ThermostatedIntegrator

_CONSTRAINT_TOLERANCE = 1e-8
_KINETIC_ENERGY = "0.5 * m * v * v"


@dataclass(frozen=True)
class Propagation:
    """What one propagation did.

    Attributes
    ----------
    positions
        [atoms, 3] at its end, nm.
    u_start, u_end
        Reduced potentials where it began, that is after the rotation, and where it ended.
    shadow_work
        Its shadow work in kT; 0 for a propagation that leaves the Boltzmann distribution invariant.
    acceptance
        Share of its own Metropolis tests that were passed; None where there are none.
    """

    positions: NDArray[np.float64]
    u_start: float
    u_end: float
    shadow_work: float = 0.0
    acceptance: float | None = None


class Propagator(Protocol):
    """Draws v from p(v | x), goes on from there, and forgets v.

    With x' its end, exp(-u(x)) K(x -> x') = exp(-u(x')) K(x' -> x) has to hold; or the same for each trajectory and
    its reverse, with exp(shadow work) as a factor on the right.
    """

    def __call__(
        self, context: openmm.Context, positions: NDArray[np.float64], beta: float, rng: np.random.Generator
    ) -> Propagation: ...


class DynamicsPropagator:
    """`n_steps` of the Context's integrator, one of this module, from fresh velocities at `temperature`."""

    def __init__(self, n_steps: int, temperature: Any) -> None:
        self.n_steps, self.temperature = n_steps, temperature

    def __call__(
        self, context: openmm.Context, positions: NDArray[np.float64], beta: float, rng: np.random.Generator
    ) -> Propagation:
        context.setPositions(positions)
        context.computeVirtualSites()
        context.setVelocitiesToTemperature(self.temperature, int(rng.integers(1, 2**31 - 1)))
        integrator = context.getIntegrator()
        for name, value in (("fresh", 1.0), ("half", 0.0), ("shadow_work", 0.0), ("n_passed", 0.0)):
            integrator.setGlobalVariableByName(name, value)
        integrator.step(2 * self.n_steps)
        read = integrator.getGlobalVariableByName
        return Propagation(
            positions=context.getState(positions=True).getPositions(asNumpy=True)._value,
            u_start=beta * read("potential_start"),
            u_end=beta * read("potential"),
            shadow_work=beta * read("shadow_work"),
            acceptance=read("n_passed") / self.n_steps if read("metropolized") else None,
        )


class _MeasuredIntegrator(ThermostatedIntegrator):
    """Substeps and bookkeeping that both integrators share.

    A time step takes two calls of `step`: the first ends with R, the second begins with the V that follows it. OpenMM
    places virtual sites between calls only, and forces at stale sites are no function of the positions: the dynamics
    would have no reverse.

    Global variables: `fresh` (set to 1 before the first step of a propagation), `potential_start` and `potential`
    (kJ/mol, at the first step's beginning and the last one's end), `shadow_work` (kJ/mol), `n_passed`, `metropolized`.
    """

    def __init__(self, temperature: Any, timestep: Any, collision_rate: Any, metropolized: bool) -> None:
        super().__init__(temperature, timestep)
        self.setConstraintTolerance(_CONSTRAINT_TOLERANCE)
        self.addGlobalVariable("friction", collision_rate.value_in_unit(unit.picosecond**-1))
        self.addGlobalVariable("metropolized", float(metropolized))
        for name in ("fresh", "half", "potential_start", "potential", "potential_end", "shadow_work", "n_passed"):
            self.addGlobalVariable(name, 0.0)
        for name in ("kinetic_start", "kinetic_end", "change", "damping", "now"):
            self.addGlobalVariable(name, 0.0)
        self.addPerDofVariable("unconstrained", 0.0)
        self.addComputeGlobal("now", "half")
        self.beginIfBlock("now = 0")
        self._add_first_half()
        self.addComputeGlobal("half", "1")
        self.endBlock()
        self.beginIfBlock("now = 1")
        self._add_second_half()
        self.addComputeGlobal("half", "0")
        self.endBlock()

    def _add_first_half(self) -> None:
        raise NotImplementedError

    def _add_second_half(self) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        # Forces and energy are those of the last step's end: only after a rotation are they computed anew.
        self.addComputeGlobal("potential", "energy")
        self.addComputeGlobal("potential_start", "select(fresh, potential, potential_start)")
        self.addComputeGlobal("fresh", "0")
        self.addComputeSum("kinetic_start", _KINETIC_ENERGY)

    def _kick(self) -> None:
        self.addComputePerDof("v", "v + 0.5 * dt * f / m")
        self.addConstrainVelocities()

    def _drift(self, fraction: str) -> None:
        self.addComputePerDof("x", f"x + {fraction} * dt * v")
        self.addComputePerDof("unconstrained", "x")
        self.addConstrainPositions()
        self.addComputePerDof("v", f"v + (x - unconstrained) / ({fraction} * dt)")
        self.addConstrainVelocities()

    def _bath(self, fraction: str) -> None:
        self.addComputeGlobal("damping", f"exp(-friction * {fraction} * dt)")
        self.addComputePerDof("v", "damping * v + sqrt((1 - damping * damping) * kT / m) * gaussian")
        self.addConstrainVelocities()


class ShadowWorkIntegrator(_MeasuredIntegrator):
    """Langevin dynamics V R O R V with its shadow work."""

    def __init__(self, temperature: Any, timestep: Any, collision_rate: Any) -> None:
        super().__init__(temperature, timestep, collision_rate, metropolized=False)

    def _add_first_half(self) -> None:
        self.addGlobalVariable("bath_start", 0.0)
        self.addGlobalVariable("bath_end", 0.0)
        self._begin()
        self._kick()
        self._drift("0.5")
        self.addComputeSum("bath_start", _KINETIC_ENERGY)
        self._bath("1")
        self.addComputeSum("bath_end", _KINETIC_ENERGY)
        self._drift("0.5")

    def _add_second_half(self) -> None:
        self._kick()
        self.addComputeSum("kinetic_end", _KINETIC_ENERGY)
        self.addComputeGlobal("potential_end", "energy")
        self.addComputeGlobal("change", "potential_end - potential + kinetic_end - kinetic_start")
        self.addComputeGlobal("shadow_work", "shadow_work + change - (bath_end - bath_start)")
        self.addComputeGlobal("potential", "potential_end")


class MetropolizedIntegrator(_MeasuredIntegrator):
    """GHMC, O {V R V} O."""

    def __init__(self, temperature: Any, timestep: Any, collision_rate: Any) -> None:
        super().__init__(temperature, timestep, collision_rate, metropolized=True)

    def _add_first_half(self) -> None:
        self.addPerDofVariable("old_x", 0.0)
        self.addPerDofVariable("old_v", 0.0)
        self._bath("0.5")
        self.addComputePerDof("old_x", "x")
        self.addComputePerDof("old_v", "v")
        self._begin()
        self._kick()
        self._drift("1")

    def _add_second_half(self) -> None:
        self.addGlobalVariable("passed", 0.0)
        self._kick()
        self.addComputeSum("kinetic_end", _KINETIC_ENERGY)
        self.addComputeGlobal("potential_end", "energy")
        self.addComputeGlobal("change", "potential_end - potential + kinetic_end - kinetic_start")
        # step(NaN) is 0, so that a NaN is not passed.
        self.addComputeGlobal("passed", "step(exp(-change / kT) - uniform)")
        self.addComputeGlobal("n_passed", "n_passed + passed")
        self.beginIfBlock("passed = 1")
        self.addComputeGlobal("potential", "potential_end")
        self.endBlock()
        self.beginIfBlock("passed = 0")
        self.addComputePerDof("x", "old_x")
        self.addComputePerDof("v", "-old_v")
        self.endBlock()
        self._bath("0.5")


INTEGRATORS: dict[str, Callable[[Any, Any, Any], _MeasuredIntegrator]] = {
    "GHMC": MetropolizedIntegrator,
    "langevin": ShadowWorkIntegrator,
}
