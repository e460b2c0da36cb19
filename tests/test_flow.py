"""The discrete flow on the torus: its density is that of what it does, for good maps, coarse maps and folding ones."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from wrapped_mixture import WrappedMixture, example

from openmm_diffusion import models
from openmm_diffusion.errors import SettingError
from openmm_diffusion.models import TorsionNetwork, TorsionNetworkConfig
from openmm_diffusion.sampling.flow import FlowSample, TorusFlow, geometric_grid, power_grid
from openmm_diffusion.units import TWO_PI, wrap

FOLDING = 30.0


def network(n_torsions: int, scale: float = 2.0, seed: int = 3) -> TorsionNetwork:
    """Random weights; `scale` multiplies the score: 2 gives sd(log q) near 1, 30 a map that folds."""
    net = TorsionNetwork(TorsionNetworkConfig(n_torsions, 24, 2, 2), seed).double().requires_grad_(False)
    net.output.weight.mul_(scale * 0.144 / net.output.weight.std())
    net.output.bias.mul_(scale)
    return net


def flow_of(model: TorsionNetwork | WrappedMixture, n_steps: int) -> TorusFlow:
    return TorusFlow(model, geometric_grid(0.05, math.pi, n_steps))


def base(n: int, n_torsions: int, seed: int = 0) -> Tensor:
    uniform = torch.rand(n, n_torsions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (uniform * 2 - 1) * math.pi


def grid(n: int, n_torsions: int) -> Tensor:
    """Midpoints of n^T equal cells of the torus."""
    axis = -math.pi + (torch.arange(n, dtype=torch.float64) + 0.5) * TWO_PI / n
    return torch.cartesian_prod(*[axis] * n_torsions).reshape(-1, n_torsions)


def in_chunks(flow: TorusFlow, tau: Tensor, size: int = 250) -> tuple[Tensor, Tensor]:
    parts = [flow.log_density(chunk) for chunk in tau.split(size)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def explicit_twin(model: TorsionNetwork | WrappedMixture, n_steps: int, tau: Tensor) -> Tensor:
    """log q by explicit midpoint steps backwards on the same grid, with the log-determinant of those very steps."""
    squared = geometric_grid(0.05, math.pi, n_steps) ** 2
    x, log_q = tau, torch.full(tau.shape[:1], -tau.shape[-1] * math.log(TWO_PI), dtype=tau.dtype)
    identity = torch.eye(tau.shape[-1], dtype=tau.dtype)
    for high, low in zip(squared[:-1].flip(0), squared[1:].flip(0), strict=True):
        condition, half = model.condition(torch.sqrt((high + low) / 2)), (high - low) / 2
        first, slope = model.score_and_jacobian(x, condition)
        second, slope_there = model.score_and_jacobian(x - half / 2 * first, condition)
        x = x - half * second
        log_q = log_q + torch.linalg.slogdet(identity - half * slope_there @ (identity - half / 2 * slope)).logabsdet
    return log_q


def shipped() -> TorsionNetwork | None:
    name = "alanine-dipeptide-torsion"
    return models.load(name).network.double().requires_grad_(False) if name in models.names() else None


@pytest.mark.parametrize("kind", ["random network", "mixture", "shipped"])
def test_sampling_and_scoring_agree(kind: str, record_property: Callable[[str, object], None]) -> None:
    """log q of sampling and of scoring agree to 1e-9 on 10^4 samples; explicit steps backwards miss by far more."""
    model = {"random network": lambda: network(2), "mixture": lambda: example(2), "shipped": shipped}[kind]()
    if model is None:
        pytest.skip("no model is shipped in this checkout")
    flow = flow_of(model, 12)
    sample = flow.sample(base(10_000, 2))
    log_q, scorable = in_chunks(flow, sample.tau, 100)
    # Twelve steps are coarse for the sharp mixture: a few points in 10^4 have no path, and say so.
    valid = sample.valid
    assert valid.double().mean() > 0.999 and scorable[valid].all()
    spread = float(sample.log_q[valid].std())
    error = float((log_q - sample.log_q)[valid].abs().max())
    twin_error = float((explicit_twin(model, 12, sample.tau[:2000]) - sample.log_q[:2000]).abs().median())
    record_property("sd(log q), largest error, median error of the explicit twin", (spread, error, twin_error))
    print(f"{kind}: sd(log q) {spread:.2f}, largest error {error:.1e}, explicit twin's median {twin_error:.1e}")
    assert spread >= 0.5, "the density is too flat for the comparison to mean anything"
    assert error < 1e-9
    assert twin_error > 1e-3


@pytest.mark.parametrize("n_steps", [1, 3, 12])
@pytest.mark.parametrize("n_torsions", [1, 2, 5])
def test_every_map_is_scored_as_it_samples(n_torsions: int, n_steps: int) -> None:
    """Sampling and scoring agree for one, two and five torsions, one step to twelve, wherever the path is verified."""
    flow = flow_of(network(n_torsions), n_steps)
    sample = flow.sample(base(300, n_torsions))
    verified = sample.valid & flow.is_path(sample.path)
    log_q, scorable = flow.log_density(sample.tau)
    assert verified.double().mean() > 0.95
    assert scorable[verified].all()
    torch.testing.assert_close(log_q[verified], sample.log_q[verified], rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("n_torsions", [1, 2, 3])
def test_log_determinant_is_that_of_the_whole_map(n_torsions: int, n_steps: int) -> None:
    """log q - log p(z) is minus the log|det| of the finite-difference Jacobian of z -> F(z)."""
    flow, step = flow_of(network(n_torsions), n_steps), 1e-3
    z = base(40, n_torsions, seed=5)
    columns = []
    for k in range(n_torsions):
        shift = torch.zeros(n_torsions, dtype=torch.float64)
        shift[k] = step
        ends = [flow.sample(z + m * shift).path[-1] for m in (-2, -1, 1, 2)]
        columns.append((ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step))
    sample = flow.sample(z)
    expected = -torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet - n_torsions * math.log(TWO_PI)
    assert sample.valid.all()
    torch.testing.assert_close(sample.log_q, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "n_torsions, n_steps, n, scale",
    [(1, 1, 2000, 2.0), (1, 12, 2000, 2.0), (2, 1, 80, 2.0), (2, 3, 80, 2.0), (2, 12, 64, 1.3)],
)
def test_density_integrates_to_one(n_torsions: int, n_steps: int, n: int, scale: float) -> None:
    """The density integrates to 1 +- 1e-3 over the torus, for few steps as for many."""
    log_q, scorable = in_chunks(flow_of(network(n_torsions, scale), n_steps), grid(n, n_torsions))
    assert scorable.double().mean() > 0.999
    assert abs(float(log_q.exp().mean()) * TWO_PI**n_torsions - 1.0) < 1e-3


def test_whole_turns_of_the_noise_change_nothing() -> None:
    """F(z + 2 pi) = F(z) + 2 pi: wrapped torsions and density are periodic in z, scores are periodic in tau."""
    flow, z = flow_of(network(2), 3), base(50, 2)
    sample, turned = flow.sample(z), flow.sample(z + TWO_PI * torch.tensor([1.0, -3.0], dtype=torch.float64))
    assert float(wrap(sample.tau - turned.tau).abs().max()) < 1e-9
    torch.testing.assert_close(sample.log_q, turned.log_q, rtol=0, atol=1e-9)
    there, _ = flow.log_density(sample.tau + TWO_PI)
    torch.testing.assert_close(there, sample.log_q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_torsions", [1, 2])
def test_density_approaches_the_exact_one_in_order_two(n_torsions: int) -> None:
    """With the exact score, log q tends to the mixture at the lowest noise as 1 / K^2, down to 1e-5."""
    model, low = example(n_torsions), torch.tensor(0.3, dtype=torch.float64)
    errors = []
    for n_steps in (50, 100, 1600):
        # From 6 rad: the mixture at pi is uniform to 0.7 % only, an error that no number of steps removes.
        sample = TorusFlow(model, geometric_grid(0.3, 6.0, n_steps)).sample(base(40, n_torsions))
        errors.append(float((sample.log_q - model.log_density(sample.tau, low)).abs().max()))
    assert 3.7 < errors[0] / errors[1] < 4.3
    assert errors[2] < 1e-5


def bin_chances(log_q: Tensor, n_bins: int, n: int) -> np.ndarray:
    """Masses of n_bins x n_bins equal bins from log q on the midpoint grid of n x n."""
    masses = log_q.exp().reshape(n_bins, n // n_bins, n_bins, n // n_bins).sum((1, 3)).numpy().ravel()
    return masses / masses.sum()


def test_samples_follow_the_density() -> None:
    """40 000 samples pass chi-squared against bin masses of q; the explicit twin's density fails the same test."""
    model, n_bins, n = network(2), 10, 80
    tau = flow_of(model, 3).sample(base(40_000, 2, seed=9)).tau.numpy()
    counts = np.histogram2d(*tau.T, bins=n_bins, range=[[-np.pi, np.pi]] * 2)[0].ravel()
    log_q, _ = in_chunks(flow_of(model, 3), grid(n, 2))
    right = bin_chances(log_q, n_bins, n) * counts.sum()
    wrong = bin_chances(explicit_twin(model, 3, grid(n, 2)), n_bins, n) * counts.sum()
    assert stats.chisquare(counts, right).pvalue > 1e-3
    assert stats.chisquare(counts, wrong).pvalue < 1e-9


@pytest.mark.parametrize("n_torsions, n_steps, scale", [(1, 1, 4.0), (1, 3, FOLDING), (2, 1, FOLDING), (2, 3, FOLDING)])
def test_folding_map_agrees_where_it_is_verified(n_torsions: int, n_steps: int, scale: float) -> None:
    """Where a folding map's paths are verified, all are scorable and log q agrees; elsewhere the flags say so."""
    flow = flow_of(network(n_torsions, scale), n_steps)
    sample = flow.sample(base(3000, n_torsions))
    verified = sample.valid & flow.is_path(sample.path)
    assert 0.02 < verified.double().mean() < 0.95, "the map has to fold for this test to mean anything"
    log_q, scorable = flow.log_density(sample.tau)
    assert scorable[verified].all()
    error = (log_q - sample.log_q)[verified].abs()
    # At a fold det F -> 0: log q amplifies the 1e-9 rad of a verified path there.
    assert float(error.median()) < 1e-12
    assert float(error.max()) < 1e-6
    # Negative control: without verification two branches of the fold are confused.
    other = sample.valid & scorable & ~verified
    assert other.any() and float((log_q - sample.log_q)[other].abs().max()) > 0.1


@pytest.mark.parametrize("n_steps, scale", [(1, 4.0), (3, 4.0), (1, FOLDING), (3, FOLDING)])
def test_folding_map_scores_no_more_than_it_samples(n_steps: int, scale: float) -> None:
    """A scorable torsion comes from noise that is verified and leads back to it: scorable and drawable are one set."""
    flow, tau = flow_of(network(1, scale), n_steps), grid(1000, 1)
    log_q, scorable = flow.log_density(tau)
    z = flow.solve(tau).path[0]
    sample = flow.sample(torch.where(scorable[:, None], z, 0.0))
    assert 0.1 < float(scorable.double().mean()) < 1.0
    assert (sample.valid & flow.is_path(sample.path))[scorable].all()
    assert float(wrap(sample.tau - tau)[scorable].abs().max()) < 1e-8
    error = (sample.log_q - log_q)[scorable].abs()
    assert float(error.median()) < 1e-12 and float(error.max()) < 1e-5


def solved_from(flow: TorusFlow, pool: FlowSample, row: int, rank: int) -> FlowSample:
    """Sample `row` of a pool scored from the path of the rank-th nearest other sample, as a proposal does."""
    x = pool.tau[row : row + 1]
    near = int(torch.cos(pool.tau - x).sum(-1).argsort(descending=True)[rank])
    guess = pool.path[:, near : near + 1]
    return flow.solve(guess[-1] + wrap(x - guess[-1]), guess)


def guesses_agree(model: TorsionNetwork, n_steps: int, n_rows: int) -> tuple[int, int, float]:
    """Verified samples, those lost from some guess, and the largest difference in log q."""
    flow = flow_of(model, n_steps)
    sample = flow.sample(base(300, model.config.n_torsions))
    pool = sample[torch.nonzero(sample.valid).flatten()]  # type: ignore[index]
    rows = torch.nonzero(flow.is_path(pool.path)).flatten()[:n_rows].tolist()
    lost, worst = 0, 0.0
    for row in rows:
        for rank in (1, 2, len(pool.tau) - 1):
            solution = solved_from(flow, pool, row, rank)
            if bool(solution.valid & flow.is_path(solution.path)):
                worst = max(worst, abs(float(solution.log_q - pool.log_q[row])))
            else:
                lost += 1
    return len(rows), lost, worst


@pytest.mark.parametrize("n_torsions, n_steps", [(1, 3), (2, 12), (5, 3)])
def test_scores_do_not_depend_on_the_guess(n_torsions: int, n_steps: int) -> None:
    """solve() gives the same verified log q from a neighbour's path and from the farthest one."""
    _, lost, worst = guesses_agree(network(n_torsions), n_steps, 40)
    assert lost == 0 and worst < 1e-9


@pytest.mark.parametrize("n_torsions, n_steps, scale", [(1, 1, 4.0), (1, 3, FOLDING), (2, 1, FOLDING)])
def test_folding_map_is_scorable_from_every_guess(n_torsions: int, n_steps: int, scale: float) -> None:
    """A torsion with a verified path is scorable whatever path the solver starts from, also where the map folds."""
    _, lost, worst = guesses_agree(network(n_torsions, scale), n_steps, 60)
    assert lost == 0 and worst < 1e-6


def test_verified_guesses_never_give_another_density() -> None:
    """On folding maps a verified solution has the density of sampling, from whichever guess it was found."""
    for n_torsions, n_steps in ((1, 3), (2, 1)):
        n, lost, worst = guesses_agree(network(n_torsions, FOLDING), n_steps, 40)
        assert lost < 3 * n and worst < 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n_steps", [1, 12])
def test_non_finite_torsions_are_unscorable(value: float, n_steps: int) -> None:
    """NaN and infinities are flagged, raise nothing, and leave the rows beside them as they are."""
    flow = flow_of(network(2), n_steps)
    z = base(20, 2)
    clean, poisoned = flow.sample(z), z.clone()
    poisoned[3, 1] = value
    sample = flow.sample(poisoned)
    others = torch.arange(20) != 3
    assert not sample.valid[3] and sample.valid[others].all()
    torch.testing.assert_close(sample.log_q[others], clean.log_q[others], rtol=0, atol=1e-9)
    tau = clean.tau.clone()
    tau[3, 0] = value
    log_q, scorable = flow.log_density(tau)
    assert not scorable[3] and scorable[others].all()
    torch.testing.assert_close(log_q[others], clean.log_q[others], rtol=0, atol=1e-9)
    alone, scorable_alone = flow.log_density(tau[3:4])
    assert alone.shape == (1,) and not scorable_alone.any()


class Ramp:
    """score = tau / 2 + 1: with H = 8 the matrix of Newton's method is zero, and no step exists."""

    def condition(self, sigma: Tensor) -> Tensor:
        return sigma

    def score_and_jacobian(self, tau: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return tau / 2 + 1, torch.full((*tau.shape, tau.shape[-1]), 0.5, dtype=tau.dtype)


def test_singular_step_is_unscorable() -> None:
    """A step whose equation is exactly singular is flagged for its row, never an exception for the whole batch."""
    flow = TorusFlow(Ramp(), torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert not flow.sample(torch.ones(4, 1, dtype=torch.float64)).valid.any()
    assert not flow.log_density(torch.ones(4, 1, dtype=torch.float64))[1].any()


class Poisoned:
    """A network that is NaN for torsions above one radian, as one trained into overflow may be."""

    def __init__(self) -> None:
        self._inner = network(2)

    def condition(self, sigma: Tensor) -> object:
        return self._inner.condition(sigma)

    def score_and_jacobian(self, tau: Tensor, condition: object) -> tuple[Tensor, Tensor]:
        score, jacobian = self._inner.score_and_jacobian(tau, condition)  # type: ignore[arg-type]
        bad = (wrap(tau)[..., :1] > 1.0).expand_as(score)
        return torch.where(bad, math.nan, score), torch.where(bad[..., None], math.nan, jacobian)


def test_network_with_nan_output_never_gives_a_density() -> None:
    """Where the network's output is NaN nothing is valid, and what is valid has a finite log q."""
    flow = TorusFlow(Poisoned(), geometric_grid(0.05, math.pi, 3))  # type: ignore[arg-type]
    sample = flow.sample(base(200, 2))
    assert 0 < int(sample.valid.sum()) < 200
    assert torch.isfinite(sample.log_q[sample.valid]).all() and torch.isfinite(sample.tau[sample.valid]).all()
    log_q, scorable = flow.log_density(base(50, 2, seed=2))
    assert torch.isfinite(log_q[scorable]).all()


def test_rows_of_a_batch_do_not_depend_on_each_other() -> None:
    """A row sampled or scored alone gives what it gives among others, to 1e-9 in log q."""
    flow, z = flow_of(network(2, 4.0), 3), base(60, 2)
    together = flow.sample(z)
    for row in range(0, 60, 7):
        alone = flow.sample(z[row : row + 1])
        assert bool(alone.valid) == bool(together.valid[row])
        torch.testing.assert_close(alone.log_q[0], together.log_q[row], rtol=0, atol=1e-9)
        assert float(wrap(alone.tau[0] - together.tau[row]).abs().max()) < 1e-11


def test_empty_batches_pass_through() -> None:
    """No points in, no points out."""
    flow = flow_of(network(2), 3)
    assert flow.sample(base(0, 2)).tau.shape == (0, 2)


def test_noise_grid_is_geometric_and_hits_both_ends() -> None:
    """K + 1 levels with one ratio, ends exact to rounding."""
    levels = geometric_grid(0.05, math.pi, 7)
    assert len(levels) == 8
    assert float(levels[0]) == pytest.approx(math.pi, rel=1e-14)
    assert float(levels[-1]) == pytest.approx(0.05, rel=1e-14)
    assert float((levels[1:] / levels[:-1]).std()) < 1e-14


@pytest.mark.parametrize("levels", [[1.0], [], [1.0, 1.0], [0.5, 1.0], [1.0, 0.0], [1.0, -0.5], [1.0, math.nan]])
def test_impossible_noise_levels_are_refused(levels: list[float]) -> None:
    """Grids that are too short, not descending, not positive or NaN raise SettingError."""
    with pytest.raises(SettingError):
        TorusFlow(network(1), torch.tensor(levels, dtype=torch.float64))


@pytest.mark.parametrize("n_steps", [0, -3])
def test_impossible_numbers_of_steps_are_refused(n_steps: int) -> None:
    """Fewer than one step raises SettingError with the value."""
    with pytest.raises(SettingError, match=str(n_steps)):
        geometric_grid(0.05, math.pi, n_steps)


def test_shipped_settings_agree() -> None:
    """The shipped model on its own grid: 4000 samples are verified but for 1 in 1000, and scoring agrees to 1e-9."""
    model = models.load("alanine-dipeptide-torsion")
    net = model.network.double().requires_grad_(False)
    assert isinstance(net, TorsionNetwork)
    flow = TorusFlow(net, power_grid(net.config.min_sigma, net.config.max_sigma, model.n_diffusion_steps))
    sample = flow.sample(base(4000, 2))
    verified = sample.valid & flow.is_path(sample.path)
    assert float(verified.double().mean()) > 0.999
    solution = flow.solve(sample.tau)
    assert bool(solution.valid[verified].all())
    assert float((solution.log_q - sample.log_q)[verified].abs().max()) < 1e-9


def run_folding_chains(check_reversal: bool, scale: float, n_steps: int, n_chains: int, n_moves: int) -> float:
    """Metropolis-Hastings with a folding map on a known density, from exact draws: the worst |z| of six moments."""
    flow, rng = flow_of(network(1, scale), n_steps), np.random.default_rng(1)
    points = -np.pi + (np.arange(4000) + 0.5) * 2 * np.pi / 4000
    p = np.exp(np.cos(points) + 0.7 * np.sin(2 * points))
    p /= p.sum()
    x = points[rng.choice(4000, n_chains, p=p)]
    for _ in range(n_moves):
        drawn = flow.sample(torch.as_tensor(rng.uniform(-np.pi, np.pi, (n_chains, 1))))
        present = flow.solve(torch.as_tensor(x[:, None]))
        y = drawn.tau[:, 0].numpy()
        log_alpha = np.cos(y) + 0.7 * np.sin(2 * y) - np.cos(x) - 0.7 * np.sin(2 * x)
        log_alpha += (present.log_q - drawn.log_q).numpy()
        accept = (np.log(rng.random(n_chains)) < log_alpha) & (drawn.valid & present.valid).numpy()
        if check_reversal:
            accept &= flow.is_path(drawn.path).numpy()
        x = np.where(accept, y, x)
    z = []
    for k in (1, 2, 3):
        for function in (np.cos, np.sin):
            mean = p @ function(k * points)
            deviation = np.sqrt(p @ function(k * points) ** 2 - mean**2)
            z.append(abs(function(k * x).mean() - mean) / (deviation / np.sqrt(n_chains)))
    return float(max(z))


@pytest.mark.slow
def test_chains_with_a_folding_map_are_exact() -> None:
    """A map that folds leaves the target unchanged because of the reversal check; without it the chains are biased."""
    assert run_folding_chains(True, FOLDING, 3, 1500, 20) < 4.0
    assert run_folding_chains(False, FOLDING, 3, 1500, 20) > 4.0
