"""The variance-preserving SDE on the zero-centroid subspace: moments, scores, transitions, masks, units."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from openmm_diffusion.diffusion.r3_diffuser import R3Diffuser, center
from openmm_diffusion.diffusion.se3_config import R3Config
from openmm_diffusion.errors import SettingError

MASK = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])


def double(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(*shape: int, seed: int = 0, spread: float = 6.0) -> Tensor:
    return spread * torch.randn((*shape, 3), generator=seeded(seed), dtype=torch.float64)


def unit_diffuser() -> R3Diffuser:
    return R3Diffuser(R3Config(coordinate_scaling=1.0))


def test_coefficients() -> None:
    """alpha and variance solve the SDE's moment equations, and have the known values at t = 0.01 and 1."""
    diffuser = R3Diffuser(R3Config())
    t = torch.linspace(0.01, 1, 9, dtype=torch.float64, requires_grad=True)
    (d_alpha,) = torch.autograd.grad(diffuser.alpha(t).sum(), t)
    (d_variance,) = torch.autograd.grad(diffuser.variance(t).sum(), t)
    beta = diffuser.beta(t)
    torch.testing.assert_close(d_alpha, -0.5 * beta * diffuser.alpha(t))
    torch.testing.assert_close(d_variance, beta * (1 - diffuser.variance(t)))
    assert float(diffuser.alpha(1.0)) == pytest.approx(0.00657, abs=1e-5)
    assert float(diffuser.variance(0.01).sqrt()) == pytest.approx(0.0446, abs=1e-4)
    x = positions(9, 2).requires_grad_()
    torch.testing.assert_close(diffuser.drift(x, t), -0.5 * beta[:, None, None] * x)


def test_moments_of_the_marginal() -> None:
    """x_t has the mean alpha x_0 and the variance (1 - alpha^2)(n - 1)/n / scale^2, within 5 standard errors."""
    diffuser, t, n = R3Diffuser(R3Config()), 0.3, 20000
    x_0 = center(positions(5))
    x_t = diffuser.forward_marginal(x_0.expand(n, 5, 3), t, generator=seeded(1))[0]
    alpha, std = float(diffuser.alpha(t)), float(diffuser.variance(t).sqrt()) / 0.1
    deviation = x_t - alpha * x_0
    assert float(deviation.mean(0).abs().max()) < 5 * std / math.sqrt(n)
    variance = 0.8 * std**2
    assert float((deviation.square().mean(0) - variance).abs().max()) < 5 * variance * math.sqrt(2 / n)
    assert float(center(x_t).sub(x_t).abs().max()) < 1e-12


@pytest.mark.parametrize("t", [0.01, 0.1, 0.5, 1.0])
def test_loss_of_a_zero_prediction(t: float) -> None:
    """E |score / scaling|^2 is 3 (n - 1)/n a residue at every t (3 without centring), within 5 standard errors."""
    diffuser, n = R3Diffuser(R3Config()), 7
    x_0 = positions(n).expand(4000, n, 3)
    for centred, expected in [(True, 3 * (n - 1) / n), (False, 3.0)]:
        score = diffuser.forward_marginal(x_0, t, generator=seeded(2), center=centred)[1]
        loss = (score / diffuser.score_scaling(t)).square().sum(-1).mean(-1)
        error = float(loss.std()) / math.sqrt(len(loss))
        assert abs(float(loss.mean()) - expected) < 5 * error
        # Scores in batch units (per A, not per diffused unit) would not do.
        assert abs(float(loss.mean()) * 0.01 - expected) > 100 * error


@pytest.mark.parametrize("centred", [True, False])
def test_score_is_gradient_of_log_density(centred: bool) -> None:
    """calc_trans_score / scaling of units is the gradient of the log density of the kernel from t = 0, masks or not."""
    diffuser, generator = R3Diffuser(R3Config(), coord_scale=0.5), seeded(3)
    x_0, t = positions(4, 6), torch.linspace(0.05, 1, 4, dtype=torch.float64)
    for mask in (None, MASK):
        x_t, drawn = diffuser.forward_marginal(x_0, t, mask, generator, centred)
        x_t = x_t.requires_grad_()
        log_density = diffuser.log_transition(x_t, x_0, torch.zeros_like(t), t, mask, centred)
        (slope,) = torch.autograd.grad(log_density.sum(), x_t)
        score = diffuser.calc_trans_score(x_t, x_0, t, mask, centred)
        torch.testing.assert_close(score * diffuser.scale, slope, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(score, drawn, rtol=1e-9, atol=1e-9)


def relative_grid(reach: float, n: int = 61) -> tuple[Tensor, float]:
    """Points of the subspace of two residues, [n^3, 2, 3], and the volume of a cell in it."""
    axis = torch.linspace(-reach, reach, n, dtype=torch.float64)
    u = torch.cartesian_prod(axis, axis, axis)
    return torch.stack([u, -u], -2) / math.sqrt(2), (2 * reach / (n - 1)) ** 3


def test_transition_is_normalised() -> None:
    """exp(log_transition) and exp(log_ref) integrate to 1 within 1e-10 over the two-residue subspace (trapezoid).

    With 3 n in place of 3 (n - 1) dimensions they do not.
    """
    diffuser, x_s = unit_diffuser(), double([[0.4, -0.2, 0.1], [-0.4, 0.2, -0.1]])
    points, cell = relative_grid(9.0)
    for log_density in (diffuser.log_transition(points, x_s, 0.2, 0.7), diffuser.log_ref(points)):
        assert abs(float(log_density.exp().sum()) * cell - 1) < 1e-10
        variance = -math.expm1(float(diffuser.integral_of_beta(0.2) - diffuser.integral_of_beta(0.7)))
        wrong = log_density - 1.5 * math.log(2 * math.pi * variance)
        assert abs(float(wrong.exp().sum()) * cell - 1) > 0.5
    # A masked residue adds no dimension.
    masked = torch.cat([points, torch.full_like(points[:, :1], 3.0)], -2)
    start = torch.cat([x_s, double([[5.0, 5.0, 5.0]])])
    with_mask = diffuser.log_transition(masked, start, 0.2, 0.7, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(with_mask, diffuser.log_transition(points, x_s, 0.2, 0.7))


def test_transitions_compose() -> None:
    """Chapman-Kolmogorov by quadrature over the state in between, 1e-9 in the log density; a wrong time there fails."""
    diffuser = unit_diffuser()
    x_s, x_t = center(positions(2, seed=4, spread=0.5)), center(positions(2, seed=5, spread=0.5))
    points, cell = relative_grid(8.0)
    first = diffuser.log_transition(points, x_s, 0.1, 0.4)
    direct = float(diffuser.log_transition(x_t, x_s, 0.1, 0.8))
    through = torch.logsumexp(first + diffuser.log_transition(x_t, points, 0.4, 0.8), 0) + math.log(cell)
    assert abs(float(through) - direct) < 1e-9
    wrong = torch.logsumexp(first + diffuser.log_transition(x_t, points, 0.45, 0.8), 0) + math.log(cell)
    assert abs(float(wrong) - direct) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densities_project_first(dtype: torch.dtype) -> None:
    """Centred, a centroid of either argument, 20 A or rounding, changes no density; without centring it does."""
    diffuser = R3Diffuser(R3Config(), coord_scale=0.2)
    x_s, x_t = (center(positions(6, seed=seed), MASK).to(dtype) for seed in (1, 2))
    for shift in (0.01, 20.0):
        away = torch.tensor([shift, -shift, 0.5 * shift], dtype=dtype)
        for mask in (None, MASK):
            values = [
                (diffuser.log_ref(x_t, mask), diffuser.log_ref(x_t + away, mask)),
                (
                    diffuser.log_transition(x_t, x_s, 0.2, 0.5, mask),
                    diffuser.log_transition(x_t + away, x_s - 2 * away, 0.2, 0.5, mask),
                ),
            ]
            for plain, shifted in values:
                torch.testing.assert_close(shifted, plain, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-9)
    assert float(diffuser.log_ref(x_t + 20.0, center=False) - diffuser.log_ref(x_t, center=False)) < -1.0


def test_transition_draws_from_its_density() -> None:
    """-2 log density + constant of drawn steps is chi-squared with 3 (n - 1) degrees: mean and variance, 5 errors."""
    diffuser, n, draws = R3Diffuser(R3Config(), coord_scale=0.2), 4, 20000
    x_s = center(positions(6), MASK).expand(draws, 6, 3)
    x_t = diffuser.transition(x_s, 0.2, 0.5, MASK, seeded(6))
    log_density = diffuser.log_transition(x_t, x_s, 0.2, 0.5, MASK)
    factor, variance = diffuser._step(0.2, 0.5)
    best = diffuser.log_transition(factor * x_s[0], x_s[0], 0.2, 0.5, MASK)
    degrees = 3 * (n - 1)
    assert float(best) == pytest.approx(-0.5 * degrees * math.log(2 * math.pi * float(variance)))
    chi2 = 2 * (best - log_density)
    assert abs(float(chi2.mean()) - degrees) < 5 * math.sqrt(2 * degrees / draws)
    assert abs(float(chi2.mean()) - (degrees + 3)) > 5 * math.sqrt(2 * degrees / draws)
    assert torch.equal(x_t[:, MASK == 0], x_s[:, MASK == 0])


def test_units_of_the_batch_do_not_matter() -> None:
    """With coord_scale 1 and 0.14 the same noise gives the same scores, and translations in their own units."""
    x_0, t = positions(3, 5), double([0.1, 0.5, 0.9])
    plain, scaled = R3Diffuser(R3Config()), R3Diffuser(R3Config(), coord_scale=0.14)
    x_t, score = plain.forward_marginal(x_0, t, generator=seeded(7))
    y_t, same = scaled.forward_marginal(0.14 * x_0, t, generator=seeded(7))
    torch.testing.assert_close(same, score)
    torch.testing.assert_close(y_t, 0.14 * x_t)
    torch.testing.assert_close(scaled.calc_trans_score(y_t, 0.14 * x_0, t), score)
    torch.testing.assert_close(
        scaled.reverse(y_t, score, t, 0.01, noise_scale=0.0) / 0.14, plain.reverse(x_t, score, t, 0.01, noise_scale=0.0)
    )


def test_scale_is_checked_and_found() -> None:
    """A diffused std outside 0.3-3 is an error that names it; "auto" is 1 / std once told, and unusable before."""
    x = positions(50, 6, spread=6.0)
    std = float(center(x).square().mean().sqrt())
    assert R3Diffuser(R3Config()).check_scale(std) == pytest.approx(0.6 * math.sqrt(5 / 6), rel=0.1)
    # Scaled twice: the seed's own mistake (coord_scale and coordinate_scaling both 0.1).
    with pytest.raises(SettingError, match=r"standard deviation 0\.05.*coord_scale \(1\.0"):
        R3Diffuser(R3Config()).check_scale(0.1 * std)
    assert R3Diffuser(R3Config(), coord_scale=0.1).check_scale(0.1 * std) > 0.3
    auto = R3Diffuser(R3Config(coordinate_scaling="auto"))
    with pytest.raises(SettingError, match="with_auto_scaling"):
        auto.forward_marginal(x, 0.5)
    assert auto.with_auto_scaling(std).check_scale(std) == pytest.approx(1.0)
    assert R3Diffuser(R3Config()).with_auto_scaling(std).coordinate_scaling == 0.1
    with pytest.raises(SettingError, match="standard deviation"):
        auto.with_auto_scaling(math.nan)


def test_transition_back_in_time_is_refused() -> None:
    """A noising step down in time has no density: a SettingError names both times."""
    with pytest.raises(SettingError, match=r"0\.5.*0\.5"):
        R3Diffuser(R3Config()).transition(positions(3), 0.5, 0.5)


def test_reverse_step() -> None:
    """A step is x - [(f - g^2 s) dt + noise_scale g sqrt(dt) z] in diffused units, z without centroid."""
    diffuser, x = R3Diffuser(R3Config()), center(positions(2, 4))
    score = center(positions(2, 4, seed=8, spread=1.0))
    t, dt = double([0.3, 0.8]), double([0.02, 0.05])
    beta, step = diffuser.beta(t)[:, None, None], dt[:, None, None]
    z = center(torch.randn(2, 4, 3, generator=seeded(9), dtype=torch.float64))
    y = 0.1 * x
    expected = y - ((-0.5 * beta * y - beta * score) * step + 0.1 * (beta * step).sqrt() * z)
    moved = diffuser.reverse(x, score, t, dt, noise_scale=0.1, generator=seeded(9))
    torch.testing.assert_close(moved, 10 * expected)


def test_B8_centring_over_visible_residues() -> None:
    """Bug 8: noise, score, noisy state and reverse step have no centroid over the *visible* residues, wherever masked
    ones are; masked ones stay as they are. Centring over all residues, as in the bug, leaves one."""
    diffuser, generator = R3Diffuser(R3Config()), seeded(10)
    x_0, t = positions(3, 6) + 20.0, double([0.1, 0.5, 0.9])
    visible = MASK > 0.5

    def centroid(x: Tensor) -> float:
        return float(x[..., visible, :].mean(-2).abs().max())

    x_t, score = diffuser.forward_marginal(x_0, t, MASK, generator)
    later = diffuser.transition(x_t, 0.9, 0.95, MASK, generator)
    moved = diffuser.reverse(x_t, score + 0.3, t, 0.01, MASK, generator=generator)
    base = diffuser.sample_ref((3, 6), MASK, generator, torch.float64)
    for x in (x_t, score, later, moved, base):
        assert centroid(x) < 1e-12
    for x in (x_t, later, moved):
        assert torch.equal(x[:, ~visible], x_0[:, ~visible])
    assert bool((score[:, ~visible] == 0).all())
    assert centroid(center(x_t)) > 1.0
    # The masked residues have no influence at all.
    elsewhere = torch.where(visible[:, None], x_0, x_0 - 50.0)
    again, same = diffuser.forward_marginal(elsewhere, t, MASK, seeded(11))
    other, alike = diffuser.forward_marginal(x_0, t, MASK, seeded(11))
    assert torch.equal(again[:, visible], other[:, visible])
    assert torch.equal(same, alike)
    torch.testing.assert_close(diffuser.calc_trans_score(again, elsewhere, t, MASK), same, rtol=1e-9, atol=1e-9)


def test_B9_actual_time_differences() -> None:
    """Bug 9: with the grid's own differences the reverse SDE of a normal ends at its variance (5 errors + 1 %); with
    1 / n in place of them it does not."""
    diffuser, v, n = unit_diffuser(), 0.25, 150
    times = torch.as_tensor(np.geomspace(1.0, 0.01, n + 1))

    def final_variance(actual: bool) -> float:
        generator = seeded(12)
        x = diffuser.sample_ref((4000, 2), None, generator, torch.float64)
        for t, after in itertools.pairwise(times):
            total = diffuser.alpha(t) ** 2 * v + diffuser.variance(t)
            dt = t - after if actual else double(1.0 / n)
            x = diffuser.reverse(x, -x / total, t, dt, generator=generator)
        return float((x[:, 0] - x[:, 1]).square().mean()) / 2

    expected = float(diffuser.alpha(times[-1]) ** 2 * v + diffuser.variance(times[-1]))
    tolerance = expected * (5 * math.sqrt(2 / 12000) + 0.01)
    assert abs(final_variance(actual=True) - expected) < tolerance
    assert abs(final_variance(actual=False) - expected) > 2 * tolerance
