"""Exactness by quadrature: with everything but (phi, psi) frozen the target is known on a grid, and so is the answer.

Chains that start from exact draws of exp(-u) must still be distributed as exp(-u) after any number of moves. They are
independent, so the null distribution of every statistic is known and no autocorrelation has to be estimated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from scipy import stats

from ..mcmc.kernel import metropolis_step
from ..molecule import BackboneTorsions
from ..proposals import Proposal
from .energies import ReducedPotential
from .systems import TEMPERATURE, MolecularSystem


class FrozenTarget:
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
        self.bins = bins
        self.energies = ReducedPotential(
            molecule.system, openmm.Platform.getPlatformByName(platform), TEMPERATURE.value_in_unit(unit.kelvin)
        )
        self.width = 2 * math.pi / bins
        centres = -math.pi + (np.arange(bins) + 0.5) * self.width
        self.points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
        u = self.reduced_potential(self.points)
        self.probabilities = np.exp(-(u - u.min()))
        self.probabilities /= self.probabilities.sum()

    def place(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions [n, atoms, 3] with (phi, psi) set to tau [n, 2] and rho kept."""
        return np.asarray(self.torsions.set(self.positions, tau))

    def reduced_potential(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """u [n] at torsions [n, 2]."""
        return self.energies(self.place(tau))

    def draw(self, n: int, rng: np.random.Generator, n_steps: int = 25) -> NDArray[np.float64]:
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

    def coarse(self, bins: int = 12) -> NDArray[np.float64]:
        """Probabilities [bins, bins] of coarser cells."""
        factor = self.bins // bins
        fine = self.probabilities.reshape(self.bins, self.bins)
        return fine.reshape(bins, factor, bins, factor).sum((1, 3))

    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of cos and sin of each torsion."""
        result = {}
        for index, name in enumerate(("phi", "psi")):
            for function in (np.cos, np.sin):
                values = function(self.points[:, index])
                mean = float(self.probabilities @ values)
                deviation = math.sqrt(float(self.probabilities @ values**2) - mean**2)
                result[f"{function.__name__} {name}"] = (mean, deviation)
        return result


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
    start: NDArray[np.float64],
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
    target: FrozenTarget, tau: NDArray[np.float64], n_moves: int, n_accepted: int, n_invalid: int, sd_log_q: float
) -> ExactnessResult:
    """Compare independent samples tau [n, 2] with the target's quadrature."""
    n = len(tau)
    z = {}
    for name, (mean, deviation) in target.moments().items():
        function = np.cos if name.startswith("cos") else np.sin
        values = function(tau[:, 0 if name.endswith("phi") else 1])
        z[name] = float((values.mean() - mean) / (deviation / math.sqrt(n)))
    return ExactnessResult(z, chi_squared_p(tau, target.coarse()), n, n_moves, n_accepted, n_invalid, sd_log_q)


def chi_squared_p(tau: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """p value of chi-squared on the cells of `expected` [bins, bins]; cells that expect fewer than 5 are merged."""
    bins = len(expected)
    edges = np.linspace(-math.pi, math.pi, bins + 1)
    counts, _, _ = np.histogram2d(tau[:, 0], tau[:, 1], bins=[edges, edges])
    e, o = expected.ravel() * len(tau), counts.ravel()
    rare = e < 5
    e = np.append(e[~rare], e[rare].sum())
    o = np.append(o[~rare], o[rare].sum())
    if e[-1] == 0:
        e, o = e[:-1], o[:-1]
    return float(stats.chi2.sf(((o - e) ** 2 / e).sum(), len(e) - 1))
