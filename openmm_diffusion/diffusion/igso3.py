"""The isotropic normal distribution on SO(3), IGSO(3): the heat kernel at time sigma^2, in float64.

Density f(omega; sigma) against the *normalised* Haar measure, omega the rotation angle; |rotation vector| = omega is
the metric, so sigma is the standard deviation of each component of the rotation vector as sigma -> 0. The angle itself
has the density f(omega) (1 - cos omega) / pi on [0, pi]; that factor belongs to sampling and never to the score.

Two exact forms, each used where it does not cancel (Nikolayev & Savyolov, Textures and Microstructures 29, 1997):

- sigma >= 0.8: characters, f = sum_l (2l+1) exp(-l(l+1) sigma^2/2) sin((l+1/2) omega) / sin(omega/2), l <= 12, written
  as a cosine series. The first term left out is below 27^2 exp(-91 sigma^2) <= 4e-23, against f >= 0.014.
- sigma < 0.8: the Poisson dual, a sum over images omega - 2 pi k, with exp(-omega^2/(2 sigma^2)) taken out so that no
  exponent is positive. Images |k| >= 2 are below exp(-4 pi^2/sigma^2) <= 2e-27 relative to f.

Both are written with omega^2 as the variable, finite with all derivatives at omega = 0 and at pi, without branches that
depend on data.
"""

import math

import numpy as np
import torch
from torch import Tensor

NARROW = 0.8
DEGREE = 12
# pi = math.pi + PI_REST; near pi at small sigma the score depends on pi - omega to the last digit.
PI_REST = 1.2246467991473532e-16
# |B_2n| / (2n)!: (1/x - cot(x/2)/2) / x = sum_n c_n x^(2n-2).
COTANGENT = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000)
SMALLEST_SQUARE = 1e-12
QUADRATURE_POINTS = 48
PROPOSALS_A_ROUND = 1024


def log_density(omega: Tensor, sigma: Tensor) -> Tensor:
    """log f of angles omega [...] in [0, pi] against normalised Haar; sigma broadcasts; float64."""
    return log_density_and_slope(omega.double() ** 2, sigma)[0]


def d_log_density(omega: Tensor, sigma: Tensor) -> Tensor:
    """d log f / d omega at angles omega [...] in [0, pi]; sigma broadcasts; float64."""
    omega = omega.double()
    return omega * log_density_and_slope(omega**2, sigma)[1]


def log_density_of(rotvec: Tensor, sigma: Tensor) -> Tensor:
    """log f [...] of rotation vectors [..., 3] against normalised Haar; sigma [...] broadcasts; float64."""
    return log_density_and_slope((rotvec.double() ** 2).sum(-1), sigma)[0]


def score(rotvec: Tensor, sigma: Tensor) -> Tensor:
    """Gradient of log f along R Exp(eps e_i), [..., 3], at R = Exp(rotvec); sigma [...] broadcasts; float64.

    It is (d log f/d omega) v/omega: v is the axis of its own rotation, so body and space components agree.
    """
    rotvec = rotvec.double()
    return log_density_and_slope((rotvec**2).sum(-1), sigma)[1][..., None] * rotvec


def log_density_and_slope(square: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """log f and (d log f/d omega)/omega, both float64, as functions of omega^2 [...]; sigma broadcasts."""
    square, sigma = square.double(), sigma.double()
    # The slope is even in omega and smooth, so that this floor changes it by 1e-13, and the root has a gradient.
    angle = square.clamp(min=SMALLEST_SQUARE).sqrt()
    narrow = sigma < NARROW
    # Both branches of a where are differentiated, so each sees only widths that it is made for.
    log_narrow, slope_narrow = _images(square, angle, torch.where(narrow, sigma, 0.5))
    log_wide, slope_wide = _characters(angle, torch.where(narrow, 1.0, sigma))
    return torch.where(narrow, log_narrow, log_wide), torch.where(narrow, slope_narrow, slope_wide)


def _images(square: Tensor, angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The Poisson dual with images k = -1, 0, 1."""
    variance, turn = sigma**2, 2 * math.pi
    # The images' part is even and smooth in the angle, and below 1e-10 where this floor acts.
    a = angle.clamp(min=1e-3)
    near = torch.exp(-turn * ((math.pi - a) + PI_REST) / variance)
    far = torch.exp(-turn * (math.pi + a) / variance)
    images = ((turn - a) * near - (turn + a) * far) / a
    slope = ((turn * (turn - a) / variance - 1) * near + (turn * (turn + a) / variance - 1) * far - images) / a
    log_f = (
        0.5 * math.log(8 * math.pi)
        - 3 * torch.log(sigma)
        + variance / 8
        - square / (2 * variance)
        - torch.log(torch.sinc(angle / turn))
        + torch.log1p(images)
    )
    return log_f, _cotangent_part(angle) - 1 / variance + slope / (a * (1 + images))


def _cotangent_part(angle: Tensor) -> Tensor:
    """(1/x - cot(x/2)/2) / x, by its series where the difference cancels."""
    small = angle < 0.5
    x = torch.where(small, 1.0, angle)
    direct = (1 / x - 0.5 / torch.tan(0.5 * x)) / x
    y = torch.where(small, angle, 0.0) ** 2
    series = torch.full_like(y, COTANGENT[-1])
    for coefficient in reversed(COTANGENT[:-1]):
        series = series * y + coefficient
    return torch.where(small, series, direct)


def _characters(angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over characters up to degree 12 as a cosine series."""
    degree = torch.arange(DEGREE + 1, dtype=angle.dtype, device=angle.device)
    terms = (2 * degree + 1) * torch.exp(-0.5 * degree * (degree + 1) * sigma[..., None] ** 2)
    # sin((l+1/2) x) / sin(x/2) = 1 + 2 sum_{m<=l} cos(m x): coefficient m collects the terms l >= m.
    tails = terms.flip(-1).cumsum(-1).flip(-1)
    m, coefficients = degree[1:], 2 * tails[..., 1:]
    f = tails[..., 0] + (coefficients * torch.cos(m * angle[..., None])).sum(-1)
    slope = -(coefficients * m**2 * torch.sinc(m * angle[..., None] / math.pi)).sum(-1)
    return torch.log(f), slope / f


def score_scaling(sigma: Tensor) -> Tensor:
    """Root mean square of a component of the score, sqrt(E[(d log f/d omega)^2] / 3), for sigma [...]; float64.

    Gauss-Legendre over [0, min(pi, 10 sigma)]; the density's tail beyond 10 sigma is below 1e-20.
    """
    sigma = sigma.double()[..., None]
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    x = torch.as_tensor(0.5 * (nodes + 1), device=sigma.device) * (10 * sigma).clamp(max=math.pi)
    log_f, slope = log_density_and_slope(x**2, sigma)
    mass = torch.as_tensor(weights, device=sigma.device) * torch.exp(log_f) * torch.sin(x / 2) ** 2
    return ((mass * (slope * x) ** 2).sum(-1) / mass.sum(-1) / 3).sqrt()


def sample(sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rotation vectors [..., 3], angles in [0, pi], one for each sigma [...]; float64.

    Rejection, so exact but for rounding: from the normal distribution of rotation vectors, whose density is above f
    times pi/4 exp(-sigma^2/8), for sigma < 1.6, and from the uniform distribution, f being highest at 0, above. At
    least half of the proposals are accepted.
    """
    flat = sigma.double().reshape(-1)
    log_top = log_density(torch.zeros_like(flat), flat)
    result = flat.new_empty((flat.numel(), 3))
    pending = torch.arange(flat.numel(), device=flat.device)
    while pending.numel():
        # Few left over: several proposals for each, of which one accepted counts, make fewer rounds.
        several = (pending.numel(), min(max(PROPOSALS_A_ROUND // pending.numel(), 1), 32))
        proposal, log_accept = _propose(flat[pending, None].expand(several), log_top[pending, None], generator)
        uniform = torch.rand(several, generator=generator, dtype=flat.dtype, device=flat.device)
        accepted = torch.log(uniform) < log_accept
        first, done = accepted.int().argmax(-1), accepted.any(-1)
        result[pending[done]] = proposal[done, first[done]]
        pending = pending[~done]
    return result.reshape(*sigma.shape, 3)


def _propose(sigma: Tensor, log_top: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Proposed rotation vectors [..., 3] and log of the probabilities to accept them [...]; log_top is log f(0)."""
    normals = torch.randn((*sigma.shape, 4), generator=generator, dtype=sigma.dtype, device=sigma.device)
    length = torch.linalg.vector_norm(normals[..., 1:], dim=-1)
    normal = sigma < 1.6
    # The angle of a normalised normal quaternion, which is a uniform rotation.
    uniform_angle = 2 * torch.atan2(length, normals[..., 0].abs())
    angle = torch.where(normal, sigma * length, uniform_angle)
    rotvec = (angle / length)[..., None] * normals[..., 1:]
    log_f = log_density(angle.clamp(max=math.pi), sigma)
    # The normal density of rotation vectors against Haar measure, which is sinc^2 / (8 pi^2) d^3 v.
    log_normal = (
        0.5 * math.log(8 * math.pi)
        - 3 * torch.log(sigma)
        - 0.5 * (angle / sigma) ** 2
        - 2 * torch.log(torch.sinc(angle / (2 * math.pi)).abs())
    )
    from_normal = log_f - log_normal - sigma**2 / 8 - math.log(4 / math.pi)
    log_accept = torch.where(normal, from_normal, log_f - log_top)
    return rotvec, torch.where(angle <= math.pi, log_accept, -math.inf)
