"""The move on a plain OpenMM Context or Simulation: `DiffusionKernel(context, proposal).step()` between MD steps."""

import logging
import math
import numbers
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..errors import IncompatibleSystemError, SettingError, StateError
from ..molecule import BackboneTorsions, check_system, check_unbroken
from ..molecule.quantities import in_nanometers, value_in
from ..proposals import Proposal
from .kernel import StepRecord, metropolis_step
from .move import DiffusionMove
from .streams import new_stream

logger = logging.getLogger(__name__)


class DiffusionKernel:
    """Exact moves of a proposal on a Context that something else runs dynamics on.

    A step leaves the Boltzmann distribution of the Context's potential energy invariant, at the Context's box and
    parameters. On acceptance the velocities are drawn afresh at the temperature of the step; on rejection, and where a
    step ends with an exception, positions and velocities are what they were.

    Parameters
    ----------
    context
        An OpenMM `Context`, or an `app.Simulation`, whose Context is taken.
    proposal
        A `Proposal`.
    n_candidates
        Candidates a step. More than one takes a proposal that does not depend on the present state.
    temperature
        K or a Quantity. By default that of the integrator, read at every step: so it follows simulated tempering.
    seed
        Seed of this kernel's random stream; kernels with the same seed have streams of their own.

    Attributes
    ----------
    n_proposed, n_accepted
        Steps made and accepted.
    n_invalid
        Candidates without a finite energy or a density.
    last
        The `StepRecord` of the last step, None before the first. Its `u` are potential energies over kT; p V, the same
        on both sides, is left out.

    Raises
    ------
    IncompatibleSystemError
        A constraint or a frozen atom forbids the move, or the integrator leaves out some of the forces.
    SettingError
        Settings outside their range, or no temperature.
    """

    def __init__(
        self,
        context: Any,
        proposal: Proposal,
        n_candidates: int = 8,
        *,
        temperature: Any = None,
        seed: int | None = None,
    ) -> None:
        self.context: openmm.Context = getattr(context, "context", context)
        if not isinstance(self.context, openmm.Context):
            raise SettingError(f"context is {context!r}; expected an openmm.Context or an openmm.app.Simulation")
        if not _is_whole(n_candidates) or n_candidates < 1:
            raise SettingError(f"n_candidates is {n_candidates!r}; expected a whole number of at least 1")
        if seed is not None and (not _is_whole(seed) or seed < 0):
            raise SettingError(f"seed is {seed!r}; expected None or a whole number of at least 0")
        self.proposal, self.n_candidates, self.seed = proposal, int(n_candidates), seed
        self.n_proposed = self.n_accepted = self.n_invalid = 0
        self.last: StepRecord | None = None
        self._rng: np.random.Generator | None = None
        self._given = None if temperature is None else _positive(temperature)
        torsions = getattr(proposal, "torsions", None)
        self._torsions = torsions if isinstance(torsions, BackboneTorsions) else None
        system = self.context.getSystem()
        self._n_particles = system.getNumParticles()
        if self._torsions is not None:
            check_system(system, self._torsions)
        _refuse_partial_forces(system, self.context.getIntegrator())
        logger.info("the kernel samples at %.6g K", self.temperature)

    @classmethod
    def from_pretrained(
        cls,
        context: Any,
        name_or_path: str | Path,
        topology: Any = None,
        n_candidates: int = 8,
        *,
        temperature: Any = None,
        seed: int | None = None,
        **options: Any,
    ) -> "DiffusionKernel":
        """A kernel with a shipped model (`openmm-diffusion models` lists them) or a model file.

        Parameters
        ----------
        topology
            The OpenMM `Topology` of the whole system; that of the Simulation where one is given as `context`.
        options
            `device`, `torsions`, and the further options of `DiffusionMove`.
        """
        topology = getattr(context, "topology", None) if topology is None else topology
        if topology is None:
            raise SettingError("a Context has no topology; give it as the third argument, or give the Simulation")
        move = DiffusionMove.from_pretrained(name_or_path, topology, n_candidates=n_candidates, **options)
        return cls(context, move.proposal, n_candidates, temperature=temperature, seed=seed)

    @property
    def temperature(self) -> float:
        """K: the temperature given, or else that of the Context's thermostat now."""
        return thermostat_temperature(self.context) if self._given is None else self._given

    @property
    def fraction_accepted(self) -> float:
        """Accepted steps over steps made; NaN before the first."""
        return self.n_accepted / self.n_proposed if self.n_proposed else float("nan")

    @property
    def statistics(self) -> dict[str, int]:
        """The counters `n_proposed`, `n_accepted`, `n_invalid`."""
        return {"n_proposed": self.n_proposed, "n_accepted": self.n_accepted, "n_invalid": self.n_invalid}

    def step(self, *, temperature: Any = None) -> StepRecord:
        """Propose, and accept or reject; the Context is then at the state that the chain is in.

        Parameters
        ----------
        temperature
            K or a Quantity, for this step only.

        Raises
        ------
        StateError
            The present state has NaN positions, an infinite energy, or a molecule broken across the box.
        """
        kelvin = self.temperature if temperature is None else _positive(temperature)
        beta = 1.0 / (unit.MOLAR_GAS_CONSTANT_R * kelvin * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
        positions = self._present()
        if self._rng is None:
            self._rng = new_stream(self.seed, self.n_proposed)
        try:
            record, _ = metropolis_step(self.context, self.proposal, positions, beta, self.n_candidates, self._rng)
            if record.accepted:
                self.context.setVelocitiesToTemperature(kelvin, int(self._rng.integers(1, 2**31 - 1)))
        except BaseException:
            # Ctrl-C included: a candidate that was only being tried must not become the state of the chain.
            if np.isfinite(positions).all():
                self.context.setPositions(positions)
                self.context.computeVirtualSites()
            raise
        self.n_proposed += 1
        self.n_accepted += record.accepted
        self.n_invalid += record.n_invalid
        self.last = record
        return record

    def _present(self) -> NDArray[np.float64]:
        positions = in_nanometers(self.context.getState(positions=True).getPositions(asNumpy=True))
        if self._n_particles > 1 and not positions.any():
            raise StateError("the Context has no positions, all are zero; call context.setPositions first")
        if self._torsions is not None:
            check_unbroken(self._torsions, positions)
        return positions


def thermostat_temperature(context: openmm.Context) -> float:
    """K: the temperature of a Context's integrator or Andersen thermostat now.

    Raises SettingError where there is none.
    """
    integrator, parameters = context.getIntegrator(), context.getParameters()
    if isinstance(integrator, openmm.CompoundIntegrator):
        integrator = integrator.getIntegrator(integrator.getCurrentIntegrator())
    if hasattr(integrator, "getTemperature"):
        return _positive(integrator.getTemperature())
    if isinstance(integrator, openmm.CustomIntegrator):
        names = [integrator.getGlobalVariableName(i) for i in range(integrator.getNumGlobalVariables())]
        if "temperature" in names:
            return _positive(integrator.getGlobalVariableByName("temperature"))
    if openmm.AndersenThermostat.Temperature() in parameters:
        return _positive(parameters[openmm.AndersenThermostat.Temperature()])
    raise SettingError(
        f"the temperature is not known from a {type(integrator).__name__}; give temperature=, in K or as a Quantity"
    )


def _positive(temperature: Any) -> float:
    kelvin = value_in(temperature, unit.kelvin, "temperature")
    if not (math.isfinite(kelvin) and kelvin > 0.0):
        raise SettingError(f"temperature is {kelvin} K; expected a number above 0")
    return kelvin


def _refuse_partial_forces(system: openmm.System, integrator: openmm.Integrator) -> None:
    """The move's energy is that of all forces; dynamics on some of them would sample another distribution."""
    mask = integrator.getIntegrationForceGroups()
    left_out = sorted({force.getForceGroup() for force in system.getForces() if not mask >> force.getForceGroup() & 1})
    if left_out:
        raise IncompatibleSystemError(
            f"the integrator leaves out force groups {left_out}, which the move counts; integrate all groups, or take "
            "those forces out of the System"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
