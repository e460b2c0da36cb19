"""Exactness of SE(3) moves beyond one residue: a window inside a chain, two chains, one kind of torsion.

The target is a product of von Mises densities of all moved torsions, known without a molecule; the network is random.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import iv

from openmm_diffusion import models
from openmm_diffusion.molecule import peptide
from openmm_diffusion.proposals import BackboneProposal, LocalProposal
from openmm_diffusion.workflows import se3_exactness
from openmm_diffusion.workflows.exactness import ExactnessResult, compare
from openmm_diffusion.workflows.many_chains import IndependentMoves, LocalMoves, Moves, run_many

FREQUENT = {"density": "local", "t_star": 0.03, "n_diffusion_steps": 3}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Product:
    """Independent von Mises densities of torsions: centres and concentrations [T]."""

    names: tuple[str, ...]
    centres: np.ndarray
    strengths: np.ndarray
    pair: tuple[int, int]
    n_reference = math.inf

    @classmethod
    def of(cls, names: tuple[str, ...], pair: tuple[int, int]) -> "Product":
        """Centres all over the circle, concentrations between 0.6 and 1.5."""
        k = np.arange(len(names))
        return cls(names, np.asarray(2.0 * k % 5.0 - 2.0), 0.6 + 0.9 * (k % 3) / 2, pair)

    def reduced_potential(self, tau: np.ndarray) -> np.ndarray:
        return np.asarray(-(self.strengths * np.cos(tau - self.centres)).sum(-1))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.vonmises(self.centres, self.strengths, (n, len(self.names)))

    def coarse(self, bins: int = 12) -> np.ndarray:
        fine = -math.pi + (np.arange(100 * bins) + 0.5) * 2 * math.pi / (100 * bins)
        parts = []
        for i in self.pair:
            p = np.exp(self.strengths[i] * np.cos(fine - self.centres[i])).reshape(bins, 100).sum(1)
            parts.append(p / p.sum())
        return np.outer(*parts)

    def moments(self) -> dict[str, tuple[float, float]]:
        """E cos = A cos m, Var cos = (1 + B cos 2m) / 2 - (A cos m)^2 and so on, A = I1/I0, B = I2/I0."""
        found = {}
        for name, m, k in zip(self.names, self.centres, self.strengths, strict=True):
            a, b = iv(1, k) / iv(0, k), iv(2, k) / iv(0, k)
            cos, sin = a * math.cos(m), a * math.sin(m)
            found[f"cos {name}"] = (cos, math.sqrt((1 + b * math.cos(2 * m)) / 2 - cos**2))
            found[f"sin {name}"] = (sin, math.sqrt((1 - b * math.cos(2 * m)) / 2 - sin**2))
        return found


def moves_of(sequences: tuple[str, ...], options: dict[str, Any]) -> tuple[Moves, tuple[str, ...]]:
    """The moves of a random network on a molecule, and the labels of the torsions."""
    molecule = peptide(*sequences)
    model = models.create("se3", molecule.topology, se3_exactness._RANDOM_SEED, **se3_exactness._RANDOM)
    given = {"width": 0.5, "device": "cpu", **options}
    if given.pop("density") == "local":
        local = LocalProposal(model, molecule.topology, **given)
        return LocalMoves(local), local.torsions.labels
    moves = BackboneProposal(model, molecule.topology, max_t=se3_exactness._RANDOM_MAX_T, background=False, **given)
    return IndependentMoves(moves, molecule.positions), moves.torsions.labels


def run(
    sequences: tuple[str, ...], options: dict[str, Any], n_candidates: int, n_chains: int, n_moves: int
) -> tuple[ExactnessResult, ExactnessResult]:
    """Chains from exact draws, and their control: the density of the present state replaced by a constant."""
    moves, names = moves_of(sequences, options)
    inside = (1, 2) if len(names) > 2 else (0, 1)
    target = Product.of(names, inside)
    results, constant = [], None
    for _ in range(2):
        rng = np.random.default_rng(12)
        start = target.draw(n_chains, rng)
        ends = run_many(target.reduced_potential, moves, start, n_moves, n_candidates, rng, constant)
        constant = float(np.median(ends.log_q))
        sd = float(ends.log_q.std())
        results.append(compare(target, ends.tau, ends.n_moves, ends.n_accepted, ends.n_invalid, sd))
    return results[0], results[1]


INNER = [[False, True, False]]
CASES = {
    "inner window": (("ALA-ALA-ALA",), {**FREQUENT, "masks": INNER}, 1, 1500, 8),
    "inner window, 4 candidates": (("ALA-ALA-ALA",), {**FREQUENT, "masks": INNER}, 4, 1000, 6),
    "two chains": (("ALA-ALA", "ALA-ALA"), {**FREQUENT, "t_star": 0.025}, 4, 1500, 8),
    "two chains, windows": (("ALA-ALA", "ALA-ALA"), {**FREQUENT, "window": 1}, 1, 1500, 6),
    "phi alone": (("ALA-ALA-ALA",), {**FREQUENT, "torsions": ("phi",), "t_star": 0.025}, 2, 1500, 8),
}
FAST = "two chains, windows"


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == FAST else pytest.mark.slow) for c in CASES])
@pytest.mark.timeout(1800)
def test_moves_of_longer_and_of_several_chains_are_exact(case: str) -> None:
    """Random networks leave the product density unchanged; the control is off by more than 6 sigma."""
    exact, control = run(*CASES[case])
    print(f"\n{case}: {exact}; control {control.sigma:.1f} sigma")
    assert exact.is_informative and exact.is_exact()
    assert control.sigma > 6


def test_the_product_is_what_it_says() -> None:
    """Moments and cells agree with draws, and not with those of another product."""
    target = Product.of(("a", "b", "c"), (0, 2))
    tau = target.draw(20_000, np.random.default_rng(1))
    assert compare(target, tau, 0, 0, 0, 0.0).is_exact()
    assert compare(target, tau + 0.1, 0, 0, 0, 0.0).sigma > 6
