"""IGSO(3): its density, score, samples, transitions and base; the bugs of published code that concern rotations."""

import itertools
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from openmm_diffusion.diffusion import igso3
from openmm_diffusion.diffusion.se3_config import SO3Config
from openmm_diffusion.diffusion.so3_diffuser import SO3Diffuser
from openmm_diffusion.errors import SettingError
from openmm_diffusion.geometry import rotations

SIGMAS = [0.02, 0.05, 0.1, 0.3, 0.5, 0.79, 0.8, 0.81, 1.0, 1.5, 2.0, 3.0]
ANGLES = [1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.499, 0.5, 1.0, 2.0, 3.0, 3.1, 3.14]
ANGLES += [math.pi - 1e-4, math.pi - 1e-6, math.pi - 1e-10, math.pi]


def double(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dual_twin(omega: float, sigma: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Slow twin: log f and its slope from 17 images in 60-digit arithmetic."""
    with mpmath.workdps(60):
        w, s, pi = mpmath.mpf(omega), mpmath.mpf(sigma), mpmath.pi
        images = [(w - 2 * pi * k, (-1) ** k) for k in range(-8, 9)]
        values = [(x, sign * mpmath.exp(-(x**2) / (2 * s**2))) for x, sign in images]
        total = sum(x * e for x, e in values)
        slope = sum((1 - x**2 / s**2) * e for x, e in values)
        log_f = mpmath.log(2 * pi) / 2 - 3 * mpmath.log(s) + s**2 / 8 - mpmath.log(mpmath.sin(w / 2))
        return log_f + mpmath.log(total), slope / total - mpmath.cot(w / 2) / 2


def character_twin(omega: float, sigma: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Slow twin: log f and its slope from the sum over characters, 200 terms in 60-digit arithmetic."""
    with mpmath.workdps(60):
        w, s = mpmath.mpf(omega), mpmath.mpf(sigma)

        def f(x: mpmath.mpf) -> mpmath.mpf:
            terms = [
                (2 * k + 1) * mpmath.exp(-k * (k + 1) * s**2 / 2) * mpmath.sin((2 * k + 1) * x / 2) for k in range(200)
            ]
            return sum(terms) / mpmath.sin(x / 2)

        return mpmath.log(f(w)), mpmath.diff(f, w) / f(w)


def gauss_legendre(n: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return double(0.5 * (high - low) * (nodes + 1) + low), double(0.5 * (high - low) * weights)


def angle_cdf(x: np.ndarray, sigma: float, haar: bool = True) -> np.ndarray:
    """Distribution of the angle, with or without the (1 - cos) of the Haar measure, by fine quadrature."""
    top = min(math.pi, 12 * sigma)
    grid = torch.linspace(0, top, 20001, dtype=torch.float64)
    density = igso3.log_density(grid, double(sigma)).exp()
    density = density * (1 - torch.cos(grid)) if haar else density
    cdf = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]).numpy())])
    return np.interp(x, grid.numpy(), cdf / cdf[-1])


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_and_density_against_60_digits(sigma: float) -> None:
    """Errors in float64: score <= 1e-10 (1e-8 is asked for), log density <= 1e-12 relative, from omega = 1e-8 to pi."""
    width = double(sigma)
    for omega in ANGLES:
        log_f, slope = dual_twin(omega, sigma)
        assert abs(mpmath.mpf(float(igso3.d_log_density(double(omega), width))) - slope) < 1e-10
        error = abs(mpmath.mpf(float(igso3.log_density(double(omega), width))) - log_f)
        assert error < 1e-12 * max(1, abs(log_f))


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 3.0])
def test_the_two_forms_of_the_density_agree(sigma: float) -> None:
    """The 60-digit sum over images equals the 60-digit sum over characters: the twin above is IGSO(3)."""
    for omega in [0.01, 0.7, 2.0, 3.1]:
        for a, b in zip(dual_twin(omega, sigma), character_twin(omega, sigma), strict=True):
            assert abs(a - b) < 1e-20 * max(1, abs(a))


@pytest.mark.parametrize("sigma", [1e-3, *SIGMAS])
def test_density_integrates_to_one(sigma: float) -> None:
    """f (1 - cos omega) / pi integrates to 1 within 1e-10 on [0, pi]; without the factor it does not."""
    x, weights = gauss_legendre(400, 0, min(math.pi, 12 * sigma))
    f = igso3.log_density(x, double(sigma)).exp()
    assert abs(float((weights * f * (1 - torch.cos(x))).sum()) / math.pi - 1) < 1e-10
    assert abs(float((weights * f).sum()) / math.pi - 1) > 0.1 or sigma >= 2.0


def test_score_is_autograd_of_log_density() -> None:
    """The score is the derivative of the log density along R Exp(eps e_i), to 1e-9, for rotations anywhere."""
    diffuser, generator = SO3Diffuser(SO3Config(min_sigma=0.02, max_sigma=2.5)), seeded(0)
    rots_0 = rotations.haar((7, 5), generator)
    t = torch.linspace(0.01, 1, 7, dtype=torch.float64)
    rots_t = diffuser.forward_marginal(rots_0, t, generator)[0]
    eps = torch.zeros(7, 5, 3, dtype=torch.float64, requires_grad=True)
    log_f = diffuser.log_density(rots_t @ rotations.exp(eps), rots_0, t)
    (slope,) = torch.autograd.grad(log_f.sum(), eps)
    torch.testing.assert_close(diffuser.calc_rot_score(rots_t, rots_0, t), slope, rtol=1e-9, atol=1e-9)


def test_score_of_forward_marginal_is_calc_rot_score() -> None:
    """forward_marginal's score is calc_rot_score of what it drew (1e-9), and a global rotation changes neither."""
    diffuser, generator = SO3Diffuser(SO3Config()), seeded(1)
    rots_0, t = rotations.haar((6, 4), generator), torch.linspace(0.01, 1, 6, dtype=torch.float64)
    rots_t, score = diffuser.forward_marginal(rots_0, t, generator)
    torch.testing.assert_close(diffuser.calc_rot_score(rots_t, rots_0, t), score, rtol=1e-9, atol=1e-9)
    turn = rotations.haar((1, 1), generator)
    torch.testing.assert_close(diffuser.calc_rot_score(turn @ rots_t, turn @ rots_0, t), score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.8, 1.5])
def test_gradients_are_finite_at_the_identity_and_at_pi(sigma: float) -> None:
    """Backward, forward-mode and vmapped Jacobians of the score agree, and are finite at angles 0, 1e-9 and pi."""
    axis = torch.nn.functional.normalize(double([1.0, -2.0, 0.5]), dim=0)
    vectors = double([0.0, 1e-9, 1e-4, 0.3, 2.0, math.pi])[:, None] * axis
    width = double(sigma)
    forward = torch.func.vmap(torch.func.jacfwd(igso3.score), in_dims=(0, None))(vectors, width)
    backward = torch.stack([torch.autograd.functional.jacobian(lambda v: igso3.score(v, width), v) for v in vectors])
    assert torch.isfinite(forward).all()
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-7)
    # At the identity every direction has the same curvature.
    curvature = torch.diagonal(forward[0])
    torch.testing.assert_close(curvature, curvature[:1].expand(3))


def test_gradient_through_rotations_at_identical_frames() -> None:
    """calc_rot_score has finite gradients where the prediction equals the noisy frame, and half a turn from it."""
    diffuser = SO3Diffuser(SO3Config())
    half_turn = rotations.exp(double([[0.0, 0.0, 0.0], [0.0, 0.0, math.pi]]))
    rots_0 = half_turn.clone().requires_grad_()
    diffuser.calc_rot_score(torch.eye(3, dtype=torch.float64).expand(2, 3, 3), rots_0, 0.01).sum().backward()
    assert rots_0.grad is not None
    assert torch.isfinite(rots_0.grad).all()


def test_schedule() -> None:
    """sigma runs from min_sigma to max_sigma, its values and dtype those of t, and g^2 = d sigma^2 / dt."""
    diffuser = SO3Diffuser(SO3Config())
    assert float(diffuser.sigma(0.0)) == pytest.approx(0.1, abs=1e-14)
    assert float(diffuser.sigma(1.0)) == pytest.approx(1.5, abs=1e-14)
    assert float(diffuser.sigma(0.01)) == pytest.approx(0.130, abs=5e-4)
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((diffuser.sigma(t) ** 2).sum(), t)
    torch.testing.assert_close(diffuser.g2(t), slope)
    assert diffuser.sigma(t.float()).dtype == diffuser.g2(t.float()).dtype == torch.float32


def test_score_scaling() -> None:
    """The root mean square of the score has the known values, which 1 / sigma has at small sigma only."""
    sigma = double([0.1, 0.13, 0.5, 1.5])
    scaling = igso3.score_scaling(sigma)
    torch.testing.assert_close(scaling, double([9.99, 7.68, 1.94, 0.245]), rtol=2e-3, atol=0)
    x, weights = gauss_legendre(2000, 0, math.pi)
    mass = weights * (igso3.log_density(x, sigma[:, None]).exp() * (1 - torch.cos(x))) / math.pi
    twin = ((mass * igso3.d_log_density(x, sigma[:, None]) ** 2).sum(-1) / 3).sqrt()
    torch.testing.assert_close(scaling, twin, rtol=1e-12, atol=0)
    assert float(scaling[3] * sigma[3]) < 0.5


@pytest.mark.parametrize("t", [0.01, 0.2, 0.6, 1.0])
def test_loss_of_a_zero_prediction_is_3(t: float) -> None:
    """E |score / scaling|^2 is 3 per residue at every t, within 5 standard errors; with 1/sigma it is not at t = 1."""
    diffuser = SO3Diffuser(SO3Config())
    identity = torch.eye(3, dtype=torch.float64).expand(20000, 3, 3)
    score = diffuser.forward_marginal(identity, t, seeded(2))[1]

    def deviation(scaling: Tensor) -> float:
        loss = (score / scaling).square().sum(-1)
        return float((loss.mean() - 3).abs() / (loss.std() / math.sqrt(len(loss))))

    assert deviation(diffuser.score_scaling(t)) < 5
    assert t < 0.5 or deviation(1 / diffuser.sigma(t)) > 50


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.2, 1.59, 1.61, 2.5])
def test_sampled_angles(sigma: float) -> None:
    """Angles pass Kolmogorov-Smirnov against f (1 - cos omega), fail it against f alone; axes are isotropic."""
    vectors = igso3.sample(torch.full((20000,), sigma, dtype=torch.float64), seeded(3))
    angles = vectors.norm(dim=-1)
    assert angles.max() <= math.pi
    assert stats.kstest(angles.numpy(), lambda x: angle_cdf(x, sigma)).pvalue > 1e-3
    assert stats.kstest(angles.numpy(), lambda x: angle_cdf(x, sigma, haar=False)).pvalue < 1e-10
    axes = vectors / angles[:, None]
    assert (axes.mean(0).abs() * math.sqrt(3 * 20000) < 5).all()
    assert ((3 * axes.square() - 1).mean(0).abs() * math.sqrt(20000 / 0.8) < 5).all()


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.79, 0.81, 1.2, 1.59, 1.61, 2.5])
def test_sampler_is_exact(sigma: float) -> None:
    """f over the proposal's density is the acceptance probability up to a constant, to 1e-9, and never above 1.

    Kolmogorov-Smirnov could not see an error of 1e-3; this does.
    """
    width = torch.full((20000,), sigma, dtype=torch.float64)
    log_top = igso3.log_density(torch.zeros_like(width), width)
    vectors, log_accept = igso3._propose(width, log_top, seeded(4))
    inside = torch.isfinite(log_accept)
    assert bool((inside == (vectors.norm(dim=-1) <= math.pi)).all())
    vectors = vectors[inside]
    if sigma < 1.6:
        normal = torch.distributions.Normal(double(0.0), double(sigma)).log_prob(vectors).sum(-1)
        proposal = normal - rotations.log_left_jacobian_determinant(vectors)
    else:
        proposal = torch.zeros(len(vectors), dtype=torch.float64)
    constant = log_accept[inside] - igso3.log_density_of(vectors, double(sigma)) + proposal
    assert float(constant.max() - constant.min()) < 1e-9
    assert float(log_accept.max()) < 1e-11
    assert float(log_accept.exp().mean()) > 0.5
    # The bound holds beyond where 20000 proposals reach.
    grid = torch.linspace(1e-6, math.pi, 5001, dtype=torch.float64)
    if sigma < 1.6:
        at_grid = torch.stack([grid, 0 * grid, 0 * grid], -1)
        normal = torch.distributions.Normal(double(0.0), double(sigma)).log_prob(at_grid).sum(-1)
        proposal = normal - rotations.log_left_jacobian_determinant(at_grid)
    else:
        proposal = torch.zeros_like(grid)
    assert float((igso3.log_density(grid, double(sigma)) - proposal + constant.mean()).max()) < 1e-9


def test_samples_of_mixed_widths_keep_their_order() -> None:
    """One call with a width for every residue gives each its own distribution (mean squared angle, 6 errors)."""
    sigma = double([0.05, 0.5, 2.5]).expand(4000, 3)
    square = igso3.sample(sigma, seeded(5)).square().sum(-1)
    for column, width in enumerate([0.05, 0.5, 2.5]):
        x, weights = gauss_legendre(400, 0, min(math.pi, 12 * width))
        mass = weights * igso3.log_density(x, double(width)).exp() * (1 - torch.cos(x)) / math.pi
        error = square[:, column].std() / math.sqrt(4000)
        assert abs(float(square[:, column].mean() - (mass * x**2).sum())) < 6 * float(error)


def composed(omega: float, first: float, second: float) -> float:
    """log of the convolution of two densities at angle omega: quadrature over the rotation in between."""
    angle, w_angle = gauss_legendre(300, 0, min(math.pi, 12 * first))
    cosine, w_cosine = gauss_legendre(300, -1, 1)
    # Quaternion of R_1^-1 R, axes at an angle of the given cosine.
    half = angle[:, None] / 2
    scalar = half.cos() * math.cos(omega / 2) + half.sin() * math.sin(omega / 2) * cosine
    remaining = 2 * torch.acos(scalar.abs().clamp(max=1))
    f1 = igso3.log_density(angle, double(first)).exp() * (1 - torch.cos(angle)) / math.pi
    f2 = igso3.log_density(remaining, double(second)).exp()
    return math.log(float((w_angle * f1) @ f2 @ (w_cosine / 2)))


@pytest.mark.parametrize(("t_0", "t_1", "t_2"), [(0.05, 0.3, 0.5), (0.2, 0.5, 1.0), (0.4, 0.5, 0.7)])
def test_transitions_compose(t_0: float, t_1: float, t_2: float) -> None:
    """Chapman-Kolmogorov: two steps are one, to 1e-9 in the log density; adding sigmas instead of variances is not."""
    diffuser = SO3Diffuser(SO3Config())
    identity = torch.eye(3, dtype=torch.float64)[None]
    steps = [float(diffuser._step_sigma(a, b, identity)) for a, b in [(t_0, t_1), (t_1, t_2)]]
    for omega in [0.2, 1.0, 2.5]:
        turned = rotations.exp(double([[0.0, omega, 0.0]]))
        direct = float(diffuser.log_transition(turned, identity, t_0, t_2)[0])
        through = composed(omega, *steps)
        assert abs(direct - through) < 1e-9
        assert abs(float(igso3.log_density(double(omega), double(sum(steps)))) - through) > 1e-2


def test_transition_of_a_marginal_is_the_later_marginal() -> None:
    """Noised to t = 0.3 and on to 0.7, angles have the marginal of 0.7 (KS), and not that of 0.68."""
    diffuser, generator = SO3Diffuser(SO3Config()), seeded(6)
    identity = torch.eye(3, dtype=torch.float64).expand(20000, 3, 3)
    rots = diffuser.transition(diffuser.forward_marginal(identity, 0.3, generator)[0], 0.3, 0.7, generator)
    angles = rotations.log(rots).norm(dim=-1).numpy()
    assert stats.kstest(angles, lambda x: angle_cdf(x, float(diffuser.sigma(0.7)))).pvalue > 1e-3
    assert stats.kstest(angles, lambda x: angle_cdf(x, float(diffuser.sigma(0.66)))).pvalue < 1e-6


def test_transition_back_in_time_is_refused() -> None:
    """A noising step down in time has no density: a SettingError names both times."""
    rots = torch.eye(3)[None]
    with pytest.raises(SettingError, match=r"0\.5.*0\.4"):
        SO3Diffuser(SO3Config()).transition(rots, 0.5, 0.4)


def test_reverse_step() -> None:
    """A step is R Exp(g^2 s dt + noise_scale g sqrt(dt) z); without noise it takes no random number."""
    diffuser, generator = SO3Diffuser(SO3Config()), seeded(7)
    rots, score = rotations.haar((2, 3), generator), torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    t, dt = double([0.3, 0.8]), double([0.02, 0.05])
    g2 = diffuser.g2(t)[:, None, None]
    still = diffuser.reverse(rots, score, t, dt, noise_scale=0.0)
    torch.testing.assert_close(still, rots @ rotations.exp(g2 * score * dt[:, None, None]))
    noise = torch.randn(2, 3, 3, generator=seeded(8), dtype=torch.float64)
    moved = diffuser.reverse(rots, score, t, dt, 0.1, seeded(8))
    expected = g2 * score * dt[:, None, None] + 0.1 * (g2 * dt[:, None, None]).sqrt() * noise
    torch.testing.assert_close(moved, rots @ rotations.exp(expected))


def mixture_log_density(rots: Tensor, centres: Tensor, weights: Tensor, sigma: Tensor) -> Tensor:
    relative = rotations.log(centres.transpose(-1, -2) @ rots[..., None, :, :])
    return torch.logsumexp(igso3.log_density_of(relative, sigma) + weights.log(), -1)


def mixture_score(rots: Tensor, centres: Tensor, weights: Tensor, sigma: Tensor) -> Tensor:
    relative = rotations.log(centres.transpose(-1, -2) @ rots[..., None, :, :])
    share = torch.softmax(igso3.log_density_of(relative, sigma) + weights.log(), -1)
    return (share[..., None] * igso3.score(relative, sigma)).sum(-2)


def test_probability_flow_likelihood_of_a_mixture() -> None:
    """The probability-flow ODE (RK4 in Exp coordinates) gives a two-component mixture's log density to 1e-5.

    With the divergence left out it is off by more than 0.1.
    """
    diffuser, generator = SO3Diffuser(SO3Config(base="haar", max_sigma=2.5)), seeded(9)
    centres, weights = rotations.haar((2,), generator), double([0.3, 0.7])

    def velocity(shift: Tensor, rot: Tensor, t: Tensor) -> Tensor:
        score = mixture_score(rot @ rotations.exp(shift), centres, weights, diffuser.sigma(t))
        return -0.5 * diffuser.g2(t) * score

    at_rest = torch.zeros(8, 3, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacfwd(velocity), in_dims=(0, 0, None))

    def rate(shift: Tensor, rots: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        here = rots @ rotations.exp(shift)
        divergence = jacobians(at_rest, here, t).diagonal(dim1=-2, dim2=-1).sum(-1)
        body = torch.linalg.solve(rotations.left_jacobian(-shift), velocity(at_rest, here, t)[..., None])[..., 0]
        return body, divergence

    t_low = double(0.05)
    near = centres[torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])]
    start = rots = near @ rotations.exp(igso3.sample(diffuser.sigma(t_low).expand(8), generator))
    gained = torch.zeros(8, dtype=torch.float64)
    # Steps of equal ratio in sigma.
    low, high = diffuser.sigma(t_low).log(), diffuser.sigma(double(1.0)).log()
    sigmas = torch.linspace(float(low), float(high), 41, dtype=torch.float64).exp()
    times = (sigmas.exp() - math.exp(0.1)) / (math.exp(2.5) - math.exp(0.1))
    for t, after in itertools.pairwise(times):
        h = after - t
        k1, d1 = rate(at_rest, rots, t)
        k2, d2 = rate(0.5 * h * k1, rots, t + 0.5 * h)
        k3, d3 = rate(0.5 * h * k2, rots, t + 0.5 * h)
        k4, d4 = rate(h * k3, rots, after)
        rots = rots @ rotations.exp(h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        gained = gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    end = mixture_log_density(rots, centres, weights, diffuser.sigma(double(1.0)))
    expected = mixture_log_density(start, centres, weights, diffuser.sigma(t_low))
    assert float((end + gained - expected).abs().max()) < 1e-5
    assert float((end - expected).abs().max()) > 0.1


def test_B1_score_denominator_needs_no_constant() -> None:
    """Bug 1: f'/(f + 1e-4) in place of f'/f, -26 for -60 at sigma = 0.1, omega = 6 sigma; float32 answers are right."""
    diffuser, sigma = SO3Diffuser(SO3Config(min_sigma=0.1)), double(0.1)
    identity = torch.eye(3)[None]
    for turns, with_bug in [(6, -26.2), (8, -5e-5)]:
        omega = double(0.1 * turns)
        slope = float(dual_twin(float(omega), 0.1)[1])
        f = igso3.log_density(omega, sigma).exp()
        buggy = float(f * slope / (f + 1e-4))
        assert buggy == pytest.approx(with_bug, rel=0.1)
        for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-4)]:
            turned = rotations.exp(double([[0.0, 0.0, float(omega)]])).to(dtype)
            found = float(diffuser.calc_rot_score(turned, identity.to(dtype), 0.0)[0, 2])
            assert found == pytest.approx(slope, rel=tolerance)
            assert abs(buggy / found - 1) > 0.5


def test_B2_score_follows_the_density_with_gradient_in_prediction() -> None:
    """Bug 2: the score's gradient in the predicted rotation is that of finite differences, and its dtype the input's.

    With the angle's gradient stopped, as in the bug, the Jacobian is another one.
    """
    diffuser, generator = SO3Diffuser(SO3Config()), seeded(10)
    rots_0, rots_t = rotations.haar((4,), generator), rotations.haar((4,), generator)
    t = 0.3

    def predicted(shift: Tensor) -> Tensor:
        return diffuser.calc_rot_score(rots_t, rots_0 @ rotations.exp(shift), t)

    def with_bug(shift: Tensor) -> Tensor:
        relative = rotations.log((rots_0 @ rotations.exp(shift)).transpose(-1, -2) @ rots_t)
        angle = relative.norm(dim=-1).detach()
        factor = igso3.d_log_density(angle, diffuser.sigma(double(t))) / angle
        return factor[..., None] * relative

    zero = torch.zeros(4, 3, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(predicted, zero)
    columns = []
    for step in 1e-5 * torch.eye(12, dtype=torch.float64).reshape(12, 4, 3):
        columns.append((predicted(step) - predicted(-step)) / 2e-5)
    differences = torch.stack(columns, -1).reshape(4, 3, 4, 3)
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(with_bug(zero), predicted(zero))
    assert float((torch.autograd.functional.jacobian(with_bug, zero) - differences).abs().max()) > 0.1
    single = diffuser.calc_rot_score(rots_t.float(), rots_0.float(), torch.tensor(t))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), predicted(zero), rtol=1e-4, atol=1e-4)


def test_B3_no_quantised_sigma_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 3: the score follows sigma continuously (a table of 1000 widths does not), and no file is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    diffuser = SO3Diffuser(SO3Config())
    identity, turned = torch.eye(3, dtype=torch.float64)[None], rotations.exp(double([[0.0, 0.3, 0.0]]))
    table = torch.linspace(0.1, 1.5, 1000, dtype=torch.float64)

    def quantised(t: float) -> Tensor:
        nearest = table[torch.bucketize(diffuser.sigma(t), table)]
        return igso3.score(double([0.0, 0.3, 0.0]), nearest)

    before, after = 0.2 - 1e-7, 0.2 + 1e-7
    first, second = (diffuser.calc_rot_score(turned, identity, t)[0] for t in (before, after))
    sigma = diffuser.sigma(double(0.2)).requires_grad_()
    (slope,) = torch.autograd.grad(igso3.score(double([0.0, 0.3, 0.0]), sigma)[1], sigma)
    expected = float(slope * (diffuser.sigma(after) - diffuser.sigma(before)))
    assert float(second[1] - first[1]) == pytest.approx(expected, rel=1e-4)
    assert float(quantised(after)[1] - quantised(before)[1]) == 0.0
    assert abs(float(quantised(0.2)[1] / first[1]) - 1) > 1e-5
    diffuser.forward_marginal(identity, 0.5, seeded(11))
    assert list(tmp_path.iterdir()) == []


def test_B7_base_is_haar() -> None:
    """Bug 7: IGSO(3) at 1.5 is not uniform (KL 0.046 nat a residue); the haar base is, and noise to 2.5 ends there.

    log_ref is then 0 everywhere, and a haar base on a noise that stops short is refused.
    """
    x, weights = gauss_legendre(300, 0, math.pi)

    def divergence(sigma: float) -> float:
        log_f = igso3.log_density(x, double(sigma))
        return float((weights * log_f.exp() * log_f * (1 - torch.cos(x))).sum()) / math.pi

    assert divergence(1.5) == pytest.approx(0.046, abs=1e-3)
    assert divergence(2.5) < 2e-5
    with pytest.raises(SettingError, match=r"so3\.max_sigma is 1\.5"):
        SO3Config(base="haar")

    def p_value(diffuser: SO3Diffuser) -> float:
        angles = rotations.log(diffuser.sample_ref((20000,), seeded(12), torch.float64)).norm(dim=-1).numpy()
        return float(stats.kstest(angles, lambda a: (a - np.sin(a)) / math.pi).pvalue)

    uniform, seeds_base = SO3Diffuser(SO3Config(base="haar", max_sigma=2.5)), SO3Diffuser(SO3Config())
    assert p_value(uniform) > 1e-3
    assert p_value(seeds_base) < 1e-10
    rots, turn = rotations.haar((5,), seeded(13)), rotations.haar((1,), seeded(14))
    assert bool((uniform.log_ref(rots) == 0).all())
    assert float((seeds_base.log_ref(turn @ rots) - seeds_base.log_ref(rots)).abs().max()) > 0.1


def test_base_of_the_seed_has_its_density() -> None:
    """sample_ref of the igso3 base passes KS against its own marginal, and log_ref is that density's log."""
    diffuser = SO3Diffuser(SO3Config())
    rots = diffuser.sample_ref((20000,), seeded(15), torch.float64)
    vectors = rotations.log(rots)
    assert stats.kstest(vectors.norm(dim=-1).numpy(), lambda x: angle_cdf(x, 1.5)).pvalue > 1e-3
    torch.testing.assert_close(diffuser.log_ref(rots), igso3.log_density(vectors.norm(dim=-1), double(1.5)))
