"""The torsion network: one function in three guises, periodic, reproducible, and not zero before training."""

import math

import pytest
import torch

from openmm_diffusion.errors import SettingError
from openmm_diffusion.models import TorsionNetwork, TorsionNetworkConfig

SHAPES = [(1, 16, 1, 1), (2, 32, 3, 4), (5, 24, 2, 3)]


def network(
    n_torsions: int = 2, hidden: int = 32, layers: int = 3, harmonics: int = 4, seed: int = 0
) -> TorsionNetwork:
    config = TorsionNetworkConfig(n_torsions, hidden, layers, harmonics)
    return TorsionNetwork(config, seed).double().requires_grad_(False)


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1) * 7.0


def levels(n: int) -> torch.Tensor:
    return torch.logspace(math.log10(0.05), math.log10(math.pi), n, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_score_and_jacobian_equals_automatic_differentiation(shape: tuple[int, int, int, int]) -> None:
    """Score and derivatives by forward accumulation equal forward() and torch's autograd to 1e-12 of their size."""
    net, x = network(*shape), points(7, shape[0])
    for sigma in levels(6):
        score, jacobian = net.score_and_jacobian(x, net.condition(sigma))
        expected = torch.stack([torch.func.jacrev(lambda y, s=sigma: net(y, s))(row) for row in x])
        size = float(expected.abs().max())
        torch.testing.assert_close(score, net(x, sigma.expand(7)), rtol=1e-12, atol=1e-12 * size)
        torch.testing.assert_close(jacobian, expected, rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_agree(shape: tuple[int, int, int, int]) -> None:
    """[K, n, T] with K conditions gives, level by level, what [n, T] gives; conditions can be indexed and repeated."""
    net, sigmas = network(*shape), levels(4)
    x = points(4, 6, shape[0])
    condition = net.condition(sigmas)
    score, jacobian = net.score_and_jacobian(x, condition)
    assert score.shape == x.shape and jacobian.shape == (*x.shape, shape[0])
    for k in range(4):
        for single in (net.condition(sigmas[k]), condition[k]):
            one_score, one_jacobian = net.score_and_jacobian(x[k], single)
            torch.testing.assert_close(one_score, score[k], rtol=1e-12, atol=1e-11)
            torch.testing.assert_close(one_jacobian, jacobian[k], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(net(x, sigmas[:, None].expand(4, 6)), score, rtol=1e-12, atol=1e-11)
    twice = condition[torch.arange(4).repeat(2)]
    repeated, _ = net.score_and_jacobian(torch.cat([x, x]), twice)
    torch.testing.assert_close(repeated, torch.cat([score, score]), rtol=1e-12, atol=1e-11)


def test_each_point_is_independent_of_its_batch() -> None:
    """The score of a point does not change with the points beside it, NaN among them."""
    net, sigma = network(), torch.tensor(0.4, dtype=torch.float64)
    x = points(9, 2)
    score, jacobian = net.score_and_jacobian(x, net.condition(sigma))
    poisoned = x.clone()
    poisoned[4] = math.nan
    other, other_jacobian = net.score_and_jacobian(poisoned, net.condition(sigma))
    keep = torch.arange(9) != 4
    torch.testing.assert_close(other[keep], score[keep], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other_jacobian[keep], jacobian[keep], rtol=1e-12, atol=1e-11)
    assert torch.isnan(other[4]).all()


def test_score_is_periodic_in_every_torsion() -> None:
    """Whole turns of any torsion change nothing; half a turn does."""
    net, x, sigma = network(5, 24, 2, 3), points(8, 5), torch.tensor(0.3, dtype=torch.float64).expand(8)
    reference = net(x, sigma)
    for k in range(5):
        for turns in (-2, 1, 3):
            shifted = x.clone()
            shifted[:, k] += 2 * math.pi * turns
            torch.testing.assert_close(net(shifted, sigma), reference, rtol=1e-10, atol=1e-10)
        shifted[:, k] += math.pi
        assert float((net(shifted, sigma) - reference).abs().max()) > 1e-2


def test_seed_decides_the_weights() -> None:
    """Equal seeds give equal weights whatever the global generator does; other seeds give others."""
    config = TorsionNetworkConfig(2)
    torch.manual_seed(1)
    first = TorsionNetwork(config, 4).state_dict()
    torch.manual_seed(2)
    second, other = TorsionNetwork(config, 4).state_dict(), TorsionNetwork(config, 5).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("seed", range(5))
def test_untrained_output_is_not_zero(seed: int) -> None:
    """An untrained network has a score of its own at every noise level, and it depends on the torsions."""
    net, x = network(seed=seed), points(200, 2)
    for sigma in levels(5):
        score = net(x, sigma.expand(200))
        assert torch.isfinite(score).all()
        assert float(score.std(0).min()) > 1e-3 * float(net._modulation(sigma)[1])


def test_score_is_continuous_across_the_grid_of_noise_levels() -> None:
    """The tabulated output scale has no jump: the score between table entries moves smoothly, at both ends too."""
    net, x = network(), points(1, 2)
    sigma = torch.logspace(math.log10(0.05), math.log10(math.pi), 5000, dtype=torch.float64)
    score = net(x.expand(5000, 2), sigma)
    steps = (score[1:] - score[:-1]).abs().amax(-1) / score.abs().amax(-1)[1:].clamp(min=float(score.abs().median()))
    assert float(steps.max()) < 0.05


def test_double_evaluates_the_same_function_as_single() -> None:
    """The float64 copy of a float32 network agrees with it to single precision."""
    single = TorsionNetwork(TorsionNetworkConfig(3), 2).requires_grad_(False)
    double = TorsionNetwork(TorsionNetworkConfig(3), 2).double().requires_grad_(False)
    x, sigma = points(20, 3), torch.full((20,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(single(x.float(), sigma.float()).double(), double(x, sigma), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", [{"n_torsions": 0}, {"hidden_size": 0}, {"n_layers": -1}, {"n_harmonics": 0}])
def test_impossible_sizes_are_refused(change: dict[str, int]) -> None:
    """Sizes below one raise SettingError naming the field."""
    with pytest.raises(SettingError, match=next(iter(change))):
        TorsionNetworkConfig(**{"n_torsions": 2, **change})


def test_impossible_noise_is_refused() -> None:
    """A network whose noise range is impossible is refused like a diffuser's."""
    with pytest.raises(SettingError, match="min_sigma"):
        TorsionNetwork(TorsionNetworkConfig(2, min_sigma=0.0))
