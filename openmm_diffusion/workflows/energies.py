"""Reduced potentials of many structures."""

import math
from collections.abc import Iterable

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

Array = NDArray[np.float64]


class ReducedPotential:
    """Potential energies in kT, double precision where the platform has the choice.

    Attributes
    ----------
    context
        The OpenMM context that computes them.
    beta
        1 / kT, mol/kJ.
    """

    def __init__(self, system: openmm.System, platform: openmm.Platform, temperature: float) -> None:
        precise = {"Precision": "double"} if "Precision" in platform.getPropertyNames() else {}
        self.context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, precise)
        kt = unit.MOLAR_GAS_CONSTANT_R * temperature * unit.kelvin
        self.beta = 1.0 / kt.value_in_unit(unit.kilojoule_per_mole)

    def __call__(self, positions: Iterable[Array]) -> Array:
        """u [n] of positions [n, atoms, 3] (nm); NaN where the platform refuses to compute one."""
        return np.array([self._one(x) for x in positions])

    def _one(self, x: Array) -> float:
        try:
            self.context.setPositions(x)
            self.context.computeVirtualSites()
            return self.beta * float(self.context.getState(energy=True).getPotentialEnergy()._value)
        except openmm.OpenMMException as error:
            # The CPU platform raises where the Reference platform returns NaN.
            if "nan" not in str(error).lower():
                raise
            return math.nan
