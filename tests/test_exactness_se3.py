"""Exactness of SE(3) moves: chains from exact draws stay distributed as the target, with any network.

`python examples/exactness_se3.py` runs the whole grid; here a small part of it, and the machinery that runs it.
"""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmmtools import cache, states

from openmm_diffusion import DiffusionMove, models
from openmm_diffusion.mcmc import acceptance
from openmm_diffusion.workflows import se3_exactness
from openmm_diffusion.workflows.exactness import ExactnessResult, FrozenTarget, chi_squared_p, compare, von_mises
from openmm_diffusion.workflows.exactness_grid import Entry, grid, quick_grid
from openmm_diffusion.workflows.many_chains import Drawn, choose_many, log_weights, present_log_weights, run_many
from openmm_diffusion.workflows.sampled_target import SampledTarget
from openmm_diffusion.workflows.se3_exactness import Row, run_grid, table
from openmm_diffusion.workflows.systems import TEMPERATURE, alanine_dipeptide


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def show(row: Row) -> None:
    print(f"\n{row.entry}: {row.exact}; without log q of the present state {row.control.sigma:.1f} sigma")


@pytest.mark.parametrize("n", [1, 2, 8])
def test_acceptance_of_many_chains_is_that_of_one(n: int) -> None:
    """Choice and log alpha of a batch are those of `mcmc.acceptance` for each chain, missing weights included."""
    rng = np.random.default_rng(n)
    u, log_q = rng.normal(0, 30, (400, n)), rng.normal(0, 30, (400, n))
    for array, values in ((u, (np.nan, np.inf)), (log_q, (-np.inf, np.nan))):
        array[rng.random(array.shape) < 0.2] = values[0]
        array[rng.random(array.shape) < 0.2] = values[1]
    u[:20] = np.nan
    u_present, log_q_present = rng.normal(0, 30, 400), rng.normal(0, 30, 400)
    log_q_present[rng.random(400) < 0.2] = -np.inf
    uniform = rng.random(400)
    weights, present = log_weights(u, log_q), present_log_weights(u_present, log_q_present)
    index, log_alpha = choose_many(weights, present, uniform)
    for k in range(400):
        expected = [acceptance.log_weight(*pair) for pair in zip(u[k], log_q[k], strict=True)]
        assert weights[k].tolist() == expected
        assert present[k] == acceptance.present_log_weight(u_present[k], log_q_present[k])
        choice = acceptance.choose(expected, present[k], uniform[k])
        assert index[k] == (-1 if choice.index is None else choice.index)
        assert log_alpha[k] == pytest.approx(choice.log_alpha, abs=1e-9)
        if n == 1:
            alpha = acceptance.log_acceptance(u_present[k], u[k, 0], log_q_present[k], log_q[k, 0])
            assert log_alpha[k] == pytest.approx(alpha, abs=1e-9)
    assert (index == -1).sum() >= 20


def test_sums_that_rounding_leaves_short_choose_a_candidate_of_some_weight() -> None:
    """The largest uniform number picks the last candidate that has a weight, never one without."""
    weights = np.array([[0.0, -1.0, -np.inf], [-np.inf, 0.0, -np.inf]])
    index, _ = choose_many(weights, np.zeros(2), np.full(2, np.nextafter(1.0, 0.0)))
    assert index.tolist() == [1, 1]


class Independence:
    """Normal-like draws on the circle with their density, some of them not reversible."""

    def __init__(self, reversible: bool = True) -> None:
        self.reversible = reversible

    def __call__(self, tau: np.ndarray, n: int, rng: np.random.Generator, scored: bool) -> Drawn:
        drawn = rng.vonmises(0.5, 0.7, (len(tau), n, 2))
        present = 0.7 * np.cos(tau - 0.5).sum(-1) if scored else np.zeros(len(tau))
        return Drawn(drawn, 0.7 * np.cos(drawn - 0.5).sum(-1), present, lambda *_: self.reversible)


def test_many_chains_leave_a_known_target_unchanged() -> None:
    """A plain independence sampler passes; its control fails; what does not come back is rejected; counts add up."""
    target = von_mises([(1.0, 1.5), (-2.0, 1.0)], ("phi", "psi"))
    start = target.draw(4000, np.random.default_rng(1))
    results = []
    for constant in (None, 0.0):
        ends = run_many(target.reduced_potential, Independence(), start, 5, 3, np.random.default_rng(2), constant)
        assert ends.n_moves == 20000 and len(ends.log_q) == 60000 and ends.n_invalid == 0
        results.append(compare(target, ends.tau, ends.n_moves, ends.n_accepted, 0, float(ends.log_q.std())))
    assert results[0].is_exact() and results[0].is_informative
    assert results[1].sigma > 6
    ends = run_many(target.reduced_potential, Independence(False), start[:50], 4, 1, np.random.default_rng(2))
    assert ends.n_accepted == 0 and np.array_equal(ends.tau, start[:50])


def test_two_samples_are_compared_with_both_their_errors() -> None:
    """chi-squared against a reference of draws is uniform under the null; without the reference's error it is not."""
    rng = np.random.default_rng(3)
    target = von_mises([(1.0, 1.5), (-2.0, 1.0)], ("phi", "psi"), bins=48)
    edges = np.linspace(-math.pi, math.pi, 13)
    p, naive = [], []
    for _ in range(60):
        sample, reference = (target.draw(1500, rng, 3) for _ in range(2))
        expected = np.histogram2d(*reference.T, bins=[edges, edges])[0] / 1500
        p.append(chi_squared_p(sample, expected, 1500))
        naive.append(chi_squared_p(sample, expected))
    assert 0.3 < np.mean(p) < 0.7 and np.min(p) > 1e-4
    assert np.mean(naive) < 0.05
    shifted = target.draw(1500, rng, 3) + 0.3
    assert chi_squared_p(shifted, expected, 1500) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_long_run_in_all_torsions_forgets_its_start() -> None:
    """Twice the sweeps, and the exact (phi, psi) at fixed omegas: the first changes nothing, the second is seen."""
    target = SampledTarget(
        alanine_dipeptide("obc"), ("phi", "psi", "omega"), 4000, np.random.default_rng(1), n_sweeps=25
    )
    again = target.draw(2000, np.random.default_rng(2))
    assert compare(target, again, 0, 0, 0, 0.0).is_exact()
    target.n_sweeps = 50
    assert compare(target, target.draw(2000, np.random.default_rng(3)), 0, 0, 0, 0.0).is_exact()
    target.n_sweeps = 0
    assert not compare(target, target.draw(2000, np.random.default_rng(4)), 0, 0, 0, 0.0).is_exact()


def test_untrained_network_leaves_the_target_unchanged() -> None:
    """Path and local moves of random weights: exact; with the density of the present state a constant, far off."""
    rows = run_grid(quick_grid(), n_processes=1)
    for row in rows:
        show(row)
        assert row.exact.is_informative
        assert row.exact.is_exact()
        assert row.control.sigma > 6
    text = table(rows)
    assert text.count("\n") == 3 and "random, path, 8 candidates" in text and "NO" not in text
    assert json.loads(json.dumps([row.to_dict() for row in rows]))[0]["passed"] is True


def test_shards_do_not_share_random_numbers() -> None:
    """No two tasks draw the same; the same seed repeats a task, in whatever order; only controls share candidates."""
    entry = Entry("random", "path", 1, 8, 2, 2, width=1.0)
    tasks = [((0, 0, 8), 0), ((0, 1, 8), 0), ((1, 0, 8), 0), ((0, 0, 8), 1)]
    parts = [se3_exactness._run(entry, "", task, seed) for task, seed in tasks]
    values = [value for part in parts for value in part.exact.log_q]
    assert len(set(values)) == len(values) == 64
    again = se3_exactness._run(entry, "", *tasks[0])
    assert np.array_equal(again.exact.log_q, parts[0].exact.log_q)
    assert np.array_equal(again.exact.tau, parts[0].exact.tau)
    assert np.array_equal(parts[0].control.log_q, parts[0].exact.log_q)
    local = se3_exactness._run(replace(entry, density="local"), "", *tasks[0])
    assert not set(local.control.log_q) & set(local.exact.log_q)


def test_the_grid_is_whole() -> None:
    """Three networks, one and eight candidates, three densities, omega moved; the numbers of moves that were asked."""
    entries = grid()
    assert len({str(entry) for entry in entries}) == len(entries)
    for network in ("trained", "perturbed", "random"):
        for density in ("path", "local", "flow"):
            for n in (1, 8):
                assert any((e.network, e.density, e.n_candidates) == (network, density, n) for e in entries)
    assert {e.density for e in entries if "omega" in e.torsions} == {"path", "local", "flow"}
    assert all(e.n_chains * e.n_moves >= (2000 if e.density == "flow" else 20_000) for e in entries)


def test_perturbed_weights_are_all_other() -> None:
    """Every weight that is not zero changes, by the share that was asked; the model given stays as it is."""
    model = models.create("se3", alanine_dipeptide("vacuum").topology, 0, **se3_exactness._RANDOM)
    before = {name: value.detach().clone() for name, value in model.network.named_parameters()}
    other = se3_exactness.perturbed(model, 0.15, np.random.default_rng(0))
    changes = []
    for name, value in other.network.named_parameters():
        assert torch.equal(before[name], dict(model.network.named_parameters())[name])
        nonzero = before[name] != 0
        changes.append((value.detach()[nonzero] / before[name][nonzero] - 1).flatten())
    change = torch.cat(changes)
    assert float((change == 0).float().mean()) < 1e-3
    assert float(change.std()) == pytest.approx(0.15, rel=0.1)
    assert other.sha256() != model.sha256()


SHIPPED = "alanine-dipeptide"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "entry",
    [
        Entry("trained", "path", 8, 640, 4, 10),
        Entry("trained", "local", 1, 1280, 4, 6),
        Entry("perturbed", "path", 8, 640, 8, 10),
        Entry("trained", "flow", 8, 320, 5, 12),
        Entry("trained", "path", 8, 640, 6, 10, ("phi", "psi", "omega")),
    ],
    ids=str,
)
def test_shipped_model_leaves_the_target_unchanged(entry: Entry) -> None:
    """The shipped model, and one with every weight perturbed: exact, and the control is not."""
    row = run_grid([entry], SHIPPED, n_processes=1)[0]
    show(row)
    assert row.exact.is_informative
    assert row.exact.is_exact()
    assert not row.control.is_exact()


def chains_of_the_move(spoiled: bool, n_chains: int = 1000, n_moves: int = 8) -> ExactnessResult:
    """Chains of `DiffusionMove.apply` at frozen rho, with its pool, drawn in the background."""
    molecule = se3_exactness._molecule("trained")
    target = FrozenTarget(molecule)
    options: dict[str, Any] = {"torsions": ("phi", "psi"), "n_diffusion_steps": 10, "pool_size": 64}
    move = DiffusionMove(SHIPPED, molecule.topology, n_candidates=2, seed=3, **options)
    if spoiled:
        constant = float(np.median(move.proposal.draw(200, np.random.default_rng(0))[1]))
        move.proposal.log_density = lambda tau, rng: np.full(len(tau), constant)
    state = states.ThermodynamicState(molecule.system, TEMPERATURE)
    contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))
    ends, log_q = [], []
    for x in target.place(target.draw(n_chains, np.random.default_rng(5))):
        sampler_state = states.SamplerState(x * unit.nanometer)
        for _ in range(n_moves):
            move.apply(state, sampler_state, contexts)
            log_q.append(move.last.log_q_candidate)
        ends.append(target.torsions.get(sampler_state.positions.value_in_unit(unit.nanometer)))
    assert move.n_proposed == n_chains * n_moves
    sd = float(np.std([value for value in log_q if value is not None]))
    return compare(target, np.array(ends), move.n_proposed, move.n_accepted, move.n_invalid, sd)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_move_itself_leaves_the_target_unchanged() -> None:
    """Through `DiffusionMove`, openmmtools' Contexts and a pool filled by another thread: exact; the control is not."""
    result = chains_of_the_move(spoiled=False)
    print(f"\n{result}")
    assert result.is_informative and result.is_exact()
    control = chains_of_the_move(spoiled=True)
    print(f"without log q of the present state {control.sigma:.1f} sigma")
    assert control.sigma > 6
