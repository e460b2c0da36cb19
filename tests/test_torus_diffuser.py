"""The wrapped normal on the torus: normalised, its score the slope of its log density, its samples its own."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from openmm_diffusion.diffusion import TorusDiffuser
from openmm_diffusion.errors import SettingError
from openmm_diffusion.units import TWO_PI

SIGMAS = [0.02, 0.05, 0.3, 1.0, 2.0, math.pi]


def twin_log_density(x: torch.Tensor, sigma: float, n_images: int = 60) -> torch.Tensor:
    """Slow twin: every image out to +-60 turns, no cleverness about which of them count."""
    shifted = x[..., None] + TWO_PI * torch.arange(-n_images, n_images + 1, dtype=torch.float64)
    return torch.logsumexp(-0.5 * (shifted / sigma) ** 2, -1) - math.log(sigma * math.sqrt(TWO_PI))


def wrapped_cdf(x: np.ndarray, sigma: float) -> np.ndarray:
    """Cumulative distribution on [-pi, pi)."""
    images = TWO_PI * np.arange(-20, 21)
    return (stats.norm.cdf((x[:, None] + images) / sigma) - stats.norm.cdf((-math.pi + images) / sigma)).sum(-1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_integrates_to_one(sigma: float) -> None:
    """The density integrates to 1 within 1e-12 (a trapezoid sum converges exponentially on the circle)."""
    x = torch.linspace(-math.pi, math.pi, 8193, dtype=torch.float64)[:-1]
    density = TorusDiffuser(0.01).log_density(x, torch.tensor(sigma, dtype=torch.float64)).exp()
    assert abs(float(density.mean()) * TWO_PI - 1.0) < 1e-12


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_slope_of_log_density(sigma: float) -> None:
    """The score equals automatic differentiation of the log density, at the cut and beyond one turn too."""
    edge = torch.tensor([-math.pi, -math.pi + 1e-6, math.pi - 1e-6, 0.0, 3.5, -7.0, 20.0], dtype=torch.float64)
    x = torch.cat([torch.linspace(-3.1, 3.1, 101, dtype=torch.float64), edge]).requires_grad_()
    diffuser, width = TorusDiffuser(0.01), torch.tensor(sigma, dtype=torch.float64)
    (slope,) = torch.autograd.grad(diffuser.log_density(x, width).sum(), x)
    torch.testing.assert_close(diffuser.score(x.detach(), width), slope, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_images_left_out_do_not_count(sigma: float) -> None:
    """Density and score equal those of a slow twin with 121 images to 1e-12, also where densities underflow."""
    x = torch.linspace(-9.0, 9.0, 301, dtype=torch.float64, requires_grad=True)
    diffuser, width = TorusDiffuser(0.01), torch.tensor(sigma, dtype=torch.float64)
    expected = twin_log_density(x, sigma)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(diffuser.log_density(x, width), expected, rtol=1e-12, atol=1e-12)
    # Near the antipode the score is a difference of images 2 pi / sigma^2 apart, known to 1e-16 / sigma^2 relative.
    torch.testing.assert_close(diffuser.score(x.detach(), width), slope.detach(), rtol=1e-9, atol=1e-9)


def test_score_is_odd_and_periodic() -> None:
    """score(-x) = -score(x), and whole turns change nothing."""
    diffuser = TorusDiffuser()
    x = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 6 - 3
    for sigma in SIGMAS:
        width = torch.tensor(sigma, dtype=torch.float64)
        score = diffuser.score(x, width)
        torch.testing.assert_close(diffuser.score(-x, width), -score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(diffuser.score(x + 3 * TWO_PI, width), score, rtol=1e-6, atol=1e-8)


def test_mixed_noise_levels_give_what_each_gives_alone() -> None:
    """A batch of noise levels gives, row by row, what each level gives alone, although they share their images."""
    diffuser = TorusDiffuser()
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    x = torch.linspace(-3.0, 3.0, len(sigma) * 4, dtype=torch.float64).reshape(len(sigma), 4)
    for name in ("log_density", "score"):
        together = getattr(diffuser, name)(x, sigma[:, None])
        alone = torch.stack([getattr(diffuser, name)(row, s) for row, s in zip(x, sigma, strict=True)])
        torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.7, 1.0])
def test_noised_torsions_follow_the_density(t: float) -> None:
    """Samples of the forward marginal pass Kolmogorov-Smirnov against the wrapped normal; 10 % more noise fails."""
    diffuser, n = TorusDiffuser(), 40_000
    tau_0 = torch.full((n, 1), 2.9, dtype=torch.float64)
    noised, _ = diffuser.forward_marginal(
        tau_0, torch.full((n,), t, dtype=torch.float64), torch.Generator().manual_seed(7)
    )
    assert (noised >= -math.pi).all() and (noised < math.pi).all()
    displacement = np.mod((noised - tau_0).numpy().ravel() + math.pi, TWO_PI) - math.pi
    sigma = float(diffuser.sigma(torch.tensor(t)))
    assert stats.kstest(displacement, lambda x: wrapped_cdf(x, sigma)).pvalue > 1e-3
    if t < 1.0:  # at t = 1 both are uniform
        assert stats.kstest(displacement, lambda x: wrapped_cdf(x, 1.1 * sigma)).pvalue < 1e-3


def test_forward_marginal_returns_the_kernel_score_and_uses_its_generator_only() -> None:
    """The score returned is that of the kernel at the noise drawn; its seed alone decides the noise."""
    diffuser = TorusDiffuser()
    tau_0 = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 6 - 3
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    torch.manual_seed(0)
    noised, score = diffuser.forward_marginal(tau_0, t, torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    again, _ = diffuser.forward_marginal(tau_0, t, torch.Generator().manual_seed(5))
    assert torch.equal(noised, again)
    shift = (noised - tau_0).requires_grad_()
    (slope,) = torch.autograd.grad(diffuser.log_density(shift, diffuser.sigma(t)[:, None]).sum(), shift)
    torch.testing.assert_close(score, slope, rtol=1e-9, atol=1e-9)


def test_score_scaling_is_the_root_mean_square_of_the_score() -> None:
    """score_scaling equals adaptive quadrature of p score^2, for scalars and arrays; 1 / sigma for low noise."""
    diffuser = TorusDiffuser(0.02)
    t = torch.tensor([0.0, 0.3, 0.6, 0.8, 0.95, 1.0], dtype=torch.float64)
    scaling = diffuser.score_scaling(t)
    for value, time in zip(scaling.tolist(), t, strict=True):
        sigma = diffuser.sigma(time)

        def integrand(x: float, sigma: torch.Tensor = sigma) -> float:
            point = torch.tensor(x, dtype=torch.float64)
            return float(diffuser.log_density(point, sigma).exp() * diffuser.score(point, sigma) ** 2)

        expected, _ = integrate.quad(integrand, -math.pi, math.pi, points=[0.0], epsabs=0, epsrel=1e-11, limit=200)
        assert value == pytest.approx(math.sqrt(expected), rel=1e-9)
        assert float(diffuser.score_scaling(time)) == pytest.approx(value, rel=1e-13)
    assert float(scaling[0]) * 0.02 == pytest.approx(1.0, rel=1e-9)


def test_noise_levels_run_geometrically_between_their_ends() -> None:
    """sigma(0) and sigma(1) are the ends, sigma(1/2) their geometric mean, and log_base is the uniform density."""
    diffuser = TorusDiffuser(0.05, 3.2)
    sigma = diffuser.sigma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    assert sigma == pytest.approx([0.05, 0.4, 3.2], rel=1e-12)
    assert diffuser.log_base(3) == pytest.approx(-3 * math.log(TWO_PI))


@pytest.mark.parametrize(
    "low, high", [(0.0, 3.0), (-0.1, 3.0), (3.0, 3.0), (4.0, 3.0), (math.nan, 3.0), (0.1, math.nan), (0.1, 1.9)]
)
def test_impossible_noise_is_refused(low: float, high: float) -> None:
    """Noise ranges that are empty, negative, NaN, or leave the torus uncovered raise SettingError with the value."""
    with pytest.raises(SettingError, match=str(high)):
        TorusDiffuser(low, high)
