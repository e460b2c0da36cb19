"""A target of more torsions than a grid can hold: phi, psi and omega at frozen rho, by a long Metropolis run."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..molecule import BackboneTorsions
from ..units import wrap
from .exactness import FrozenTarget, frozen_energies, histogram, moments
from .systems import MolecularSystem

Array = NDArray[np.float64]


class SampledTarget:
    """exp(-u) of all torsions of some kinds at one rho, known by independent draws of a long Metropolis run.

    The run knows no model: each of its walkers starts from an exact draw of (phi, psi) with the other torsions as they
    are, and makes n_sweeps sweeps of random turns of one torsion at a time, of all sizes.

    Parameters
    ----------
    molecule
        System, topology, and the positions that hold rho.
    kinds
        Torsions that move; phi and psi among them, of one residue.
    n_reference
        Draws that expected values come from.
    n_sweeps
        Of the run behind each draw.
    """

    def __init__(
        self,
        molecule: MolecularSystem,
        kinds: Sequence[str],
        n_reference: int,
        rng: np.random.Generator,
        n_sweeps: int = 40,
        platform: str = "Reference",
    ) -> None:
        self.torsions = BackboneTorsions(molecule.topology, kinds)
        self.positions, self.n_sweeps = molecule.positions, n_sweeps
        self.energies = frozen_energies(molecule, platform)
        self.names = self.torsions.labels
        self._start = FrozenTarget(molecule, 48, platform)
        phi, psi = (self.names.index(label) for label in self._start.torsions.labels)
        self.pair = (phi, psi)
        self.reference = self.draw(n_reference, rng)
        self.n_reference = float(n_reference)

    def reduced_potential(self, tau: Array) -> Array:
        """u [n] at torsions [n, T]."""
        return self.energies(self.torsions.set(self.positions, tau))

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n independent draws [n, T] of exp(-u)."""
        tau = np.tile(self.torsions.get(self.positions), (n, 1))
        tau[:, list(self.pair)] = self._start.draw(n, rng, 3)
        u = self.reduced_potential(tau)
        for _ in range(self.n_sweeps):
            for k in range(tau.shape[1]):
                trial = tau.copy()
                step = math.pi * np.exp(-4.0 * rng.random(n))  # of all sizes: omega is stiff, phi and psi are not
                trial[:, k] = wrap(tau[:, k] + step * rng.standard_normal(n))
                u_trial = self.reduced_potential(trial)
                accept = np.log(rng.random(n)) < u - u_trial
                tau[accept], u[accept] = trial[accept], u_trial[accept]
        return tau

    def coarse(self, bins: int = 12) -> Array:
        """Shares [bins, bins] of the reference in cells of (phi, psi)."""
        return histogram(self.reference[:, list(self.pair)], bins) / len(self.reference)

    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of cos and sin of each torsion."""
        return moments(self.reference, self.names, np.full(len(self.reference), 1 / len(self.reference)))
