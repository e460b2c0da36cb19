"""Exactness by quadrature: everything frozen but (phi, psi) of alanine dipeptide in vacuum, where the target is known.

`pytest -s tests/test_exactness.py` prints every number. Each claim has a control that must fail.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from openmm_diffusion import models
from openmm_diffusion.analysis import effective_sample_size
from openmm_diffusion.mcmc import metropolis_step
from openmm_diffusion.proposals import Candidates, Proposal, TorsionProposal
from openmm_diffusion.workflows.exactness import ExactnessResult, FrozenTarget, compare, run_chains
from openmm_diffusion.workflows.systems import alanine_dipeptide


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks: threads cost more than they give, above all where other tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def target() -> FrozenTarget:
    return FrozenTarget(alanine_dipeptide("vacuum"))


@cache
def starts(n: int) -> np.ndarray:
    return target().draw(n, np.random.default_rng(11))


def proposal(name: str, n_diffusion_steps: int | None = None) -> TorsionProposal:
    topology = alanine_dipeptide("vacuum").topology
    model = models.create("torsion", topology, seed=3) if name == "random" else models.load(name)
    return TorsionProposal(model, topology, n_diffusion_steps=n_diffusion_steps)


class WithoutDensity:
    """Control: the proposal with log q left out."""

    def __init__(self, inner: TorsionProposal) -> None:
        self.inner = inner

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        drawn = self.inner.propose(positions, n, rng)
        nothing = np.zeros(n)
        return Candidates(drawn.positions, nothing, nothing, drawn.invalid, drawn.reversible)


class ExplicitBackward:
    """Control: the present state scored by explicit Euler steps up the same grid, with their own exact determinant.

    It integrates the same equation backwards, with a density of its own that integrates to one; only it is not the
    density of the map that draws the candidates.
    """

    def __init__(self, inner: TorsionProposal) -> None:
        self.inner = inner

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        drawn = self.inner.propose(positions, n, rng)
        flow, tau = self.inner._flow, torch.as_tensor(self.inner.torsions.get(positions)[None])
        log_q = -2 * math.log(2 * math.pi)
        for k in reversed(range(flow.n_steps)):
            score, jacobian = flow._model.score_and_jacobian(tau, flow._condition[k])
            step = 2 * flow._quarter[k]
            log_q += float(torch.linalg.slogdet(torch.eye(2, dtype=tau.dtype) - step * jacobian).logabsdet)
            tau = tau - step * score
        return Candidates(drawn.positions, drawn.log_q, np.full(n, log_q), drawn.invalid, None)


def check(
    name: str,
    n_candidates: int,
    wrap: Callable[[TorsionProposal], Proposal] = lambda inner: inner,
    *,
    n_chains: int = 1024,
    n_moves: int = 8,
    n_diffusion_steps: int | None = None,
    seed: int = 1,
) -> ExactnessResult:
    inner = proposal(name, n_diffusion_steps)
    rng = np.random.default_rng(seed)
    result = run_chains(target(), wrap(inner), starts(n_chains), n_moves, n_candidates, rng)
    sd = float(np.std(inner.draw(2000, np.random.default_rng(2))[1]))
    print(f"\n{name}, {n_candidates} candidates, {wrap.__name__}: {result}; sd(log q) of 2000 draws {sd:.2f}")
    assert sd >= 0.5
    return result


TRAINED = "alanine-dipeptide-torsion-vacuum"


def test_starting_draws_are_exact() -> None:
    """The draws that chains start from agree with quadrature; uniform draws do not."""
    result = compare(target(), target().draw(4096, np.random.default_rng(0)), 0, 0, 0, 0.0)
    print(f"\n{result}")
    assert result.is_exact()
    uniform = np.random.default_rng(0).uniform(-np.pi, np.pi, (4096, 2))
    assert not compare(target(), uniform, 0, 0, 0, 0.0).is_exact()


@pytest.mark.parametrize(("n_candidates", "n_moves"), [(1, 8), (8, 4)])
def test_trained_model_leaves_the_target_unchanged(n_candidates: int, n_moves: int) -> None:
    """512 chains from exact draws are still distributed as exp(-u); without log q they are not."""
    result = check(TRAINED, n_candidates, n_chains=512, n_moves=n_moves)
    assert result.is_informative
    assert result.is_exact()
    assert not check(TRAINED, n_candidates, WithoutDensity, n_chains=512, n_moves=n_moves).is_exact()


def test_explicit_backward_score_is_caught() -> None:
    """Few steps are as exact as many; scoring the present state by an explicit backward scheme is caught."""
    result = check(TRAINED, 1, n_chains=1024, n_moves=16, n_diffusion_steps=3)
    assert result.is_informative
    assert result.is_exact()
    assert not check(TRAINED, 1, ExplicitBackward, n_chains=1024, n_moves=16, n_diffusion_steps=3).is_exact()


def test_random_network_leaves_the_target_unchanged() -> None:
    """An untrained network costs acceptance, never correctness."""
    result = check("random", 8, n_chains=512, n_moves=8)
    assert result.is_informative
    assert result.is_exact()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [TRAINED, "random"])
@pytest.mark.parametrize("n_candidates", [1, 8])
def test_many_moves(name: str, n_candidates: int) -> None:
    """1024 to 16384 chains, 4 to 40 moves each: exact for both networks; both controls are caught."""
    n_moves = {(TRAINED, 1): 8, (TRAINED, 8): 4, ("random", 1): 40, ("random", 8): 12}[name, n_candidates]
    result = check(name, n_candidates, n_chains=1024, n_moves=n_moves)
    assert result.is_informative
    assert result.is_exact()
    assert not check(name, n_candidates, WithoutDensity, n_chains=1024, n_moves=n_moves).is_exact()
    # Few steps are as exact as many, and the explicit scheme's density is the further off the fewer they are. With
    # eight candidates the weight of the present state matters less, so its error takes many chains to be seen.
    n_chains, n_steps = {(TRAINED, 1): (4096, 3), (TRAINED, 8): (16384, 4)}.get((name, n_candidates), (1024, 3))
    exact = check(name, n_candidates, n_chains=n_chains, n_moves=n_moves, n_diffusion_steps=n_steps)
    assert exact.is_informative
    assert exact.is_exact()
    control = check(name, n_candidates, ExplicitBackward, n_chains=n_chains, n_moves=n_moves, n_diffusion_steps=n_steps)
    assert not control.is_exact()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [TRAINED, "random"])
@pytest.mark.parametrize("n_candidates", [1, 8])
def test_one_long_chain(name: str, n_candidates: int) -> None:
    """One chain from one point: total variation below the 99 % quantile of multinomial samples of the same ESS."""
    inner, goal = proposal(name), target()
    # Fixed beforehand by what the ESS asks: a random network accepts one move in thirty.
    n_moves = {(TRAINED, 1): 10_000, (TRAINED, 8): 8_000, ("random", 1): 90_000, ("random", 8): 12_000}[
        name, n_candidates
    ]
    sd = float(np.std(inner.draw(2000, np.random.default_rng(2))[1]))
    chain, accepted = walk(inner, goal, n_candidates, n_moves)
    ess, distance, quantile = judge(chain, goal)
    print(
        f"\n{name}, {n_candidates}: {accepted} accepted, sd {sd:.2f}, ESS {ess:.0f}, TV {distance:.3f}, {quantile:.3f}"
    )
    assert accepted >= 500
    assert ess >= 300
    assert sd >= 0.5
    assert distance < quantile
    chain, _ = walk(WithoutDensity(inner), goal, n_candidates, n_moves)
    ess, distance, quantile = judge(chain, goal)
    print(f"without log q: ESS {ess:.0f}, TV {distance:.3f} ({quantile:.3f})")
    assert distance > quantile


def walk(moves: Proposal, goal: FrozenTarget, n_candidates: int, n_moves: int) -> tuple[np.ndarray, int]:
    """(phi, psi) of one chain of n_moves, and how many it accepted."""
    rng = np.random.default_rng(9)
    x = goal.place(starts(1024)[:1])[0]
    chain, accepted = np.empty((n_moves, 2)), 0
    for row in chain:
        record, x = metropolis_step(goal.energies.context, moves, x, goal.energies.beta, n_candidates, rng)
        accepted += record.accepted
        row[:] = goal.torsions.get(x)
    return chain, accepted


def judge(chain: np.ndarray, goal: FrozenTarget) -> tuple[float, float, float]:
    """The smallest ESS of cos and sin of both torsions, and the total variation with its quantile at that ESS."""
    ess = min(effective_sample_size(f(column)) for column in chain.T for f in (np.cos, np.sin))
    return ess, *total_variation(chain, goal, int(ess))


def total_variation(chain: np.ndarray, goal: FrozenTarget, ess: int) -> tuple[float, float]:
    """Total variation from quadrature on 12 x 12 cells, and its 99 % quantile for `ess` independent samples."""
    expected = goal.coarse()
    edges = np.linspace(-np.pi, np.pi, len(expected) + 1)
    observed = np.histogram2d(*chain.T, bins=[edges, edges])[0] / len(chain)
    counts = np.random.default_rng(4).multinomial(ess, expected.ravel() / expected.sum(), size=2000) / ess
    null = 0.5 * np.abs(counts - expected.ravel()).sum(1)
    return 0.5 * float(np.abs(observed - expected).sum()), float(np.quantile(null, 0.99))
