"""Short Langevin dynamics: frames to start from, and trajectories from many structures."""

import logging
from dataclasses import dataclass

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from tqdm.auto import tqdm

from ..errors import StateError
from .systems import MolecularSystem

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]
EQUILIBRATION_PS = 20.0
SPACING_PS = 4.0  # between two frames; torsions within a basin decorrelate in about as long


@dataclass(frozen=True)
class ShortMD:
    """Langevin dynamics (LangevinMiddle, 1/ps) of one system; timestep in fs, temperature in K."""

    molecule: MolecularSystem
    platform: openmm.Platform
    temperature: float
    timestep: float

    def equilibrated_frames(self, n_frames: int, seed: int, *, progress: bool = False) -> Array:
        """n frames [n, atoms, 3] (nm) of one trajectory from the system's positions, minimised and equilibrated.

        They are Boltzmann's within the basins that the trajectory visits, and in no other. Raises StateError where
        the dynamics fails.
        """
        context, integrator = self._context(seed)
        context.setPositions(self.molecule.positions)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
        context.setVelocitiesToTemperature(self.temperature * unit.kelvin, seed)
        spacing = self._steps(SPACING_PS)
        frames = []
        try:
            integrator.step(self._steps(EQUILIBRATION_PS))
            for _ in tqdm(range(n_frames), "MD for the frames", disable=not progress):
                integrator.step(spacing)
                frames.append(_positions(context))
        except openmm.OpenMMException as error:
            raise self._failure() from error
        if not np.isfinite(frames).all():
            raise self._failure()
        return np.array(frames)

    def trajectories(
        self, structures: Array, n_steps: int, n_stored: int, rng: np.random.Generator, *, progress: bool = False
    ) -> Array:
        """Dynamics from every structure [n, atoms, 3] (nm), with velocities drawn at the temperature.

        Returns [n, n_stored, atoms, 3] (nm), evenly spaced; the last frame is the end. A trajectory that fails is NaN.
        """
        context, integrator = self._context(int(rng.integers(1, 2**31 - 1)))
        ends = np.linspace(0, n_steps, n_stored + 1).astype(int)
        result = np.full((len(structures), n_stored, *structures.shape[1:]), np.nan)
        for stored, x in zip(result, tqdm(structures, "MD from each", disable=not progress), strict=True):
            context.setPositions(x)
            context.setVelocitiesToTemperature(self.temperature * unit.kelvin, int(rng.integers(1, 2**31 - 1)))
            try:
                for row, steps in enumerate(np.diff(ends)):
                    integrator.step(int(steps))
                    stored[row] = _positions(context)
            except openmm.OpenMMException as error:
                logger.warning("the MD from one structure failed: %s", error)
            if not np.isfinite(stored).all():
                stored[:] = np.nan
        return result

    def _context(self, seed: int) -> tuple[openmm.Context, openmm.Integrator]:
        integrator = openmm.LangevinMiddleIntegrator(
            self.temperature * unit.kelvin, 1.0 / unit.picosecond, self.timestep * unit.femtoseconds
        )
        integrator.setConstraintTolerance(1e-6)
        integrator.setRandomNumberSeed(seed)
        return openmm.Context(self.molecule.system, integrator, self.platform), integrator

    def _steps(self, picoseconds: float) -> int:
        return max(1, round(1000.0 * picoseconds / self.timestep))

    def _failure(self) -> StateError:
        return StateError(
            f"the MD of {self.molecule.name} at {self.temperature:g} K failed with steps of {self.timestep:g} fs; "
            "give a smaller --timestep, or other coordinates"
        )


def _positions(context: openmm.Context) -> Array:
    return np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value, dtype=np.float64)
