"""Exactness by quadrature: with everything but (phi, psi) frozen the target is known on a grid, and so is the answer.

Chains that start from exact draws of exp(-u) must still be distributed as exp(-u) after any number of moves. They are
independent, so the null distribution of every statistic is known and no autocorrelation has to be estimated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from scipy import stats

from ..mcmc.kernel import metropolis_step
from ..molecule import BackboneTorsions
from ..proposals import Proposal
from ..units import wrap
from .energies import ReducedPotential
from .systems import TEMPERATURE, MolecularSystem

Array = NDArray[np.float64]


class Target(Protocol):
    """A distribution of torsions that is known without the moves under test.

    Attributes
    ----------
    names
        Of the torsions [T].
    pair
        The two of them whose cells `coarse` counts.
    n_reference
        Draws that the expected values come from; infinite where they are exact.
    """

    names: tuple[str, ...]
    pair: tuple[int, int]
    n_reference: float

    def coarse(self, bins: int = 12) -> Array:
        """Probabilities [bins, bins] of cells of the pair."""
        ...

    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of cos and sin of each torsion."""
        ...


class GridTarget:
    """exp(-u) of two torsions, known by quadrature on a grid of bins x bins cells.

    Parameters
    ----------
    reduced_potential
        u [n] at torsions [n, 2].
    bins
        Cells of the grid in each torsion.
    names
        Of the torsions.
    """

    pair = (0, 1)
    n_reference = math.inf

    def __init__(
        self, reduced_potential: Callable[[Array], Array], bins: int = 96, names: tuple[str, ...] = ("phi", "psi")
    ) -> None:
        self.names = names
        self.reduced_potential = reduced_potential
        self.bins = bins
        self.width = 2 * math.pi / bins
        centres = -math.pi + (np.arange(bins) + 0.5) * self.width
        self.points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
        u = self.reduced_potential(self.points)
        self.probabilities = np.exp(-(u - u.min()))
        self.probabilities /= self.probabilities.sum()

    def draw(self, n: int, rng: np.random.Generator, n_steps: int = 25) -> Array:
        """n independent draws [n, 2] of exp(-u).

        Cells are drawn by their quadrature weight and points within them uniformly; independence Metropolis steps from
        that density, which is nearly the target, remove what the cells' width leaves.
        """
        # A little of the uniform density, so that no part of the torus is out of reach.
        density = 0.999 * self.probabilities + 0.001 / len(self.probabilities)
        tau, log_w = None, None
        for _ in range(n_steps):
            cells = rng.choice(len(density), n, p=density)
            candidate = self.points[cells] + (rng.random((n, 2)) - 0.5) * self.width
            log_w_new = -self.reduced_potential(candidate) - np.log(density[cells])
            if tau is None or log_w is None:
                tau, log_w = candidate, log_w_new
                continue
            accept = np.log(rng.random(n)) < log_w_new - log_w
            tau[accept], log_w[accept] = candidate[accept], log_w_new[accept]
        assert tau is not None
        return tau

    def coarse(self, bins: int = 12) -> Array:
        """Probabilities [bins, bins] of coarser cells."""
        factor = self.bins // bins
        fine = self.probabilities.reshape(self.bins, self.bins)
        return fine.reshape(bins, factor, bins, factor).sum((1, 3))

    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of cos and sin of each torsion."""
        return moments(self.points, self.names, self.probabilities)


class FrozenTarget(GridTarget):
    """exp(-u) of (phi, psi) at one rho, by quadrature on a grid of bins x bins cells.

    Parameters
    ----------
    molecule
        System, topology, and the positions that hold rho.
    bins
        Cells of the grid in each torsion.
    """

    def __init__(self, molecule: MolecularSystem, bins: int = 96, platform: str = "Reference") -> None:
        self.torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
        self.positions = molecule.positions
        self.energies = frozen_energies(molecule, platform)
        super().__init__(lambda tau: self.energies(self.place(tau)), bins)

    def place(self, tau: Array) -> Array:
        """Positions [n, atoms, 3] with (phi, psi) set to tau [n, 2] and rho kept."""
        return np.asarray(self.torsions.set(self.positions, tau))


def von_mises(pairs: Sequence[tuple[float, float]], names: tuple[str, ...], bins: int = 96) -> GridTarget:
    """The product of von Mises densities of two torsions, a (centre, concentration) each: known without a molecule."""
    centres, strengths = np.array(pairs).T
    return GridTarget(lambda tau: -(strengths * np.cos(tau - centres)).sum(-1), bins, names)


@dataclass(frozen=True)
class ExactnessResult:
    """What a set of chains shows: moments' z values, chi-squared p value, and whether the run says anything."""

    z: dict[str, float]
    p_chi_squared: float
    n_chains: int
    n_moves: int
    n_accepted: int
    n_invalid: int
    sd_log_q: float

    @property
    def worst_z(self) -> float:
        """The largest |z|."""
        return max(abs(value) for value in self.z.values())

    @property
    def sigma(self) -> float:
        """By how many standard deviations the worst of the statistics is off."""
        return max(self.worst_z, float(stats.norm.isf(max(self.p_chi_squared, 1e-300) / 2)))

    @property
    def is_informative(self) -> bool:
        """At least 500 accepted moves, 300 independent chains, a log q that varies: a uniform one proves nothing."""
        return self.n_accepted >= 500 and self.n_chains >= 300 and self.sd_log_q >= 0.5

    def is_exact(self, z: float = 4.0, p: float = 1e-4) -> bool:
        """Whether all statistics agree with quadrature."""
        return self.worst_z < z and self.p_chi_squared > p

    def __str__(self) -> str:
        zs = " ".join(f"{name} {value:+.1f}" for name, value in self.z.items())
        return (
            f"{self.n_moves} moves in {self.n_chains} chains, {self.n_accepted} accepted, {self.n_invalid} invalid, "
            f"sd(log q) {self.sd_log_q:.2f}; chi-squared p {self.p_chi_squared:.2g}; z: {zs}"
        )


def run_chains(
    target: FrozenTarget,
    proposal: Proposal,
    start: Array,
    n_moves: int,
    n_candidates: int,
    rng: np.random.Generator,
    progress: Callable[[Any], Any] = iter,
) -> ExactnessResult:
    """Make n_moves moves from each of the exact draws start [chains, 2] and compare the ends with quadrature."""
    accepted = invalid = 0
    log_q: list[float] = []
    ends = np.empty_like(start)
    for i, x in enumerate(progress(target.place(start))):
        for _ in range(n_moves):
            record, x = metropolis_step(target.energies.context, proposal, x, target.energies.beta, n_candidates, rng)
            accepted += record.accepted
            invalid += record.n_invalid
            if record.log_q_candidate is not None:
                log_q.append(record.log_q_candidate)
        ends[i] = target.torsions.get(x)
    return compare(target, ends, n_moves * len(start), accepted, invalid, float(np.std(log_q)))


def compare(
    target: Target, tau: Array, n_moves: int, n_accepted: int, n_invalid: int, sd_log_q: float
) -> ExactnessResult:
    """Compare independent samples tau [n, T] with the target's quadrature, or with its reference."""
    n = len(tau)
    per_draw = math.sqrt(1 / n + 1 / target.n_reference)
    found = moments(tau, target.names, np.full(n, 1 / n))
    z = {name: (found[name][0] - mean) / (deviation * per_draw) for name, (mean, deviation) in target.moments().items()}
    p = chi_squared_p(tau[:, list(target.pair)], target.coarse(), target.n_reference)
    return ExactnessResult(z, p, n, n_moves, n_accepted, n_invalid, sd_log_q)


def chi_squared_p(tau: Array, expected: Array, n_reference: float = math.inf) -> float:
    """p value of chi-squared on the cells of `expected` [bins, bins]; cells that expect fewer than 5 are merged.

    n_reference is the number of draws that `expected` comes from, where it is not exact.
    """
    share = len(tau) / (len(tau) + n_reference)
    o, e = histogram(tau, len(expected)).ravel(), expected.ravel() * len(tau)
    # Of both sets together; without a reference this is the expectation alone.
    pooled = share * o + (1 - share) * e
    rare = pooled < 5
    o, e, pooled = (np.append(x[~rare], x[rare].sum()) for x in (o, e, pooled))
    kept = pooled > 0
    o, e, pooled = o[kept], e[kept], pooled[kept]
    if len(e) < 2:  # too few samples to fill two cells
        return 1.0
    # Var(o - e) = n (1 + n / n_reference) p.
    return float(stats.chi2.sf(((o - e) ** 2 / (pooled * (1 + len(tau) / n_reference))).sum(), len(e) - 1))


def moments(tau: Array, names: Sequence[str], weights: Array) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of cos and sin of each of the torsions [n, T] with weights [n]."""
    result = {}
    for name, values in zip(names, tau.T, strict=True):
        for function in (np.cos, np.sin):
            mean = float(weights @ function(values))
            result[f"{function.__name__} {name}"] = (mean, math.sqrt(float(weights @ function(values) ** 2) - mean**2))
    return result


def histogram(tau: Array, bins: int) -> Array:
    """Counts [bins, bins] of pairs of torsions [n, 2]."""
    edges = np.linspace(-math.pi, math.pi, bins + 1)
    first, second = wrap(tau).T
    return np.histogram2d(first, second, bins=[edges, edges])[0]


def frozen_energies(molecule: MolecularSystem, platform: str) -> ReducedPotential:
    """u of the molecule's positions at the temperature of the examples."""
    kelvin = TEMPERATURE.value_in_unit(unit.kelvin)
    return ReducedPotential(molecule.system, openmm.Platform.getPlatformByName(platform), kelvin)
