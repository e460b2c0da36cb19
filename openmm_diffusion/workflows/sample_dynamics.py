"""The physics of a chain: a move and Langevin dynamics on one Context, with noise that can be had again.

Going on bit for bit: OpenMM's integrators draw from generators of their own, whose state is only in binary checkpoints
bound to a platform and a machine. So every block of iterations between two checkpoints starts with a fresh Context
whose integrator gets a seed of its own, a function of the settings' seed, the walker and the number of the block. A
block is then a function of what the checkpoint at its start holds (positions, velocities, box, the move's generator and
pool), and a chain that is stopped and resumed equals one that was not: in every bit on the Reference platform with a
network on the CPU. Platforms that take long to make a Context keep theirs; there a resumed chain gets new noise.
"""

import math
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from openmmtools import cache, states

from ..errors import StateError
from ..mcmc import ProposalMove
from ..molecule.quantities import in_nanometers
from .sample_settings import SampleSettings
from .systems import MolecularSystem

_QUICK = ("Reference", "CPU")  # platforms on which a Context costs milliseconds


class _OneContext(cache.ContextCache):
    """A context cache of openmmtools that hands out the chain's own Context."""

    def __init__(self, context: openmm.Context) -> None:
        super().__init__()
        self._own = context

    def get_context(self, thermodynamic_state: Any, integrator: Any = None) -> tuple[openmm.Context, Any]:
        return self._own, self._own.getIntegrator()


class ChainDynamics:
    """Where a chain is, and how it moves.

    Parameters
    ----------
    molecule, settings, walker
        See `SampledChain`.
    """

    def __init__(self, molecule: MolecularSystem, settings: SampleSettings, walker: int) -> None:
        self.molecule, self.settings = molecule, settings
        self._platform = openmm.Platform.getPlatformByName(settings.platform or "Reference")
        self._temperature = settings.temperature * unit.kelvin
        self._thermodynamic = states.ThermodynamicState(molecule.system, self._temperature)
        self._first_seed = int(np.random.SeedSequence(settings.seed, spawn_key=(walker, 0)).generate_state(1)[0])
        self.present = states.SamplerState(molecule.positions * unit.nanometer)
        self._contexts: _OneContext | None = None

    @property
    def positions(self) -> NDArray[np.float64]:
        """[atoms, 3], nm."""
        return in_nanometers(self.present.positions)

    @property
    def box(self) -> NDArray[np.float64] | None:
        """Box vectors [3, 3], nm."""
        vectors = self.present.box_vectors
        return None if vectors is None else in_nanometers(vectors)

    def equilibrate(self) -> None:
        """Minimise and run dynamics from the molecule's positions. Raises StateError where that fails."""
        context = self._new_context(-1)
        context.setPositions(self.molecule.positions)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
        context.setVelocitiesToTemperature(self._temperature, self.seed(-1))
        context.getIntegrator().step(self.settings.equilibration_steps)
        self._update(context)

    def load(self, state: openmm.State) -> None:
        """Go to the state of a checkpoint."""
        self.present = states.SamplerState(
            state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True), state.getPeriodicBoxVectors()
        )

    def start_block(self, block: int) -> None:
        """Make what comes next a function of the present state and the number of the block."""
        if self._contexts is None or self._platform.getName() in _QUICK:
            self._new_context(block)

    def iterate(self, move: ProposalMove) -> tuple[float, float]:
        """A move, then dynamics; potential and kinetic energy (kJ/mol) at the end.

        Raises StateError or OpenMMException where they are not finite.
        """
        assert self._contexts is not None
        context = self._contexts._own
        move.apply(self._thermodynamic, self.present, self._contexts)
        self.present.apply_to_context(context)
        context.getIntegrator().step(self.settings.md_steps)
        return self._update(context)

    def state(self) -> openmm.State:
        """The present state, from which `load` goes on."""
        assert self._contexts is not None
        self.present.apply_to_context(self._contexts._own)
        return self._contexts._own.getState(positions=True, velocities=True)

    def energy(self) -> float:
        """Potential energy of the present state, kJ/mol."""
        context = self._contexts._own if self._contexts is not None else self._new_context(0)
        self.present.apply_to_context(context)
        value = float(context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        self._contexts = None  # a block must not begin with a Context that was made for this
        return value

    def seed(self, block: int) -> int:
        """Seed of the integrator, 1 to 2^31 - 2: no two blocks of a chain have the same."""
        return (self._first_seed + block) % (2**31 - 2) + 1

    def _update(self, context: openmm.Context) -> tuple[float, float]:
        self.present.update_from_context(context)
        potential, kinetic = (
            float(value.value_in_unit(unit.kilojoule_per_mole))
            for value in (self.present.potential_energy, self.present.kinetic_energy)
        )
        if not (np.isfinite(self.positions).all() and math.isfinite(potential) and math.isfinite(kinetic)):
            raise StateError(f"the potential energy is {potential} kJ/mol after dynamics")
        return potential, kinetic

    def _new_context(self, block: int) -> openmm.Context:
        settings = self.settings
        integrator = openmm.LangevinMiddleIntegrator(
            self._temperature, settings.collision_rate / unit.picosecond, settings.timestep * unit.femtoseconds
        )
        integrator.setConstraintTolerance(1e-6)
        integrator.setRandomNumberSeed(self.seed(block))
        context = openmm.Context(self.molecule.system, integrator, self._platform)
        self._contexts = _OneContext(context)
        return context
