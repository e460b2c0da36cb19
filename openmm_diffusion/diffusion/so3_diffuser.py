"""Noise of rotations: Brownian motion on SO(3), R_t = R_0 Exp(v) with v from IGSO(3), no drift.

Leach et al., "Denoising diffusion probabilistic models on SO(3)", 2022; schedule of Yim et al., "SE(3) diffusion model
with application to protein backbone generation", ICML 2023, appendix. Rotations act on residues [..., N], times t are
[...]; scores are in the body frame (left-trivialised). Everything is evaluated in float64; scores and rotations come
back in the dtype of the rotations, log densities as float64.
"""

import math

import torch
from torch import Tensor

from ..geometry import rotations
from . import igso3
from .se3_config import SO3Config
from .times import as_double, check_order, like


class SO3Diffuser:
    """Rotation noise of standard deviation sigma(t) = log(t e^max_sigma + (1 - t) e^min_sigma) rad.

    Parameters
    ----------
    conf
        Noise floor and ceiling (rad), schedule, and the base distribution at t = 1.
    """

    def __init__(self, conf: SO3Config) -> None:
        self.conf = conf

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise (rad) at times t in [0, 1], in t's dtype."""
        exact = as_double(t)
        low, high = math.exp(self.conf.min_sigma), math.exp(self.conf.max_sigma)
        return like(torch.log(low + exact * (high - low)), t)

    def g2(self, t: Tensor | float) -> Tensor:
        """Squared diffusion coefficient d sigma^2 / dt (rad^2) at times t, in t's dtype."""
        exact = as_double(t)
        low, high = math.exp(self.conf.min_sigma), math.exp(self.conf.max_sigma)
        mixed = low + exact * (high - low)
        return like(2 * torch.log(mixed) * (high - low) / mixed, t)

    def score_scaling(self, t: Tensor | float) -> Tensor:
        """Root mean square of a component of the score at times t, in t's dtype."""
        return like(igso3.score_scaling(self.sigma(as_double(t))), t)

    def forward_marginal(
        self, rots_0: Tensor, t: Tensor | float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noised rotations [..., N, 3, 3] at times t [...] and their scores [..., N, 3]."""
        sigma = self._sigma_of_residues(t, rots_0)
        rots_t, noise = _noised(rots_0, sigma, generator)
        return rots_t, igso3.score(noise, sigma).to(rots_0.dtype)

    def calc_rot_score(self, rots_t: Tensor, rots_0: Tensor, t: Tensor | float) -> Tensor:
        """Score [..., N, 3] of rotations [..., N, 3, 3] at times t [...] given clean ones, differentiable in both."""
        relative = _relative(rots_0, rots_t)
        return igso3.score(relative, self._sigma_of_residues(t, rots_t)).to(rots_t.dtype)

    def log_density(self, rots_t: Tensor, rots_0: Tensor, t: Tensor | float) -> Tensor:
        """log density [..., N] (normalised Haar measure) of rotations at times t [...] given clean ones."""
        return igso3.log_density_of(_relative(rots_0, rots_t), self._sigma_of_residues(t, rots_t))

    def transition(
        self, rots_s: Tensor, t_from: Tensor | float, t_to: Tensor | float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Rotations [..., N, 3, 3] noised on from time t_from to t_to > t_from.

        Raises
        ------
        SettingError
            Where t_to is not above t_from.
        """
        return _noised(rots_s, self._step_sigma(t_from, t_to, rots_s), generator)[0]

    def log_transition(self, rots_t: Tensor, rots_s: Tensor, t_from: Tensor | float, t_to: Tensor | float) -> Tensor:
        """log density [..., N] (normalised Haar measure) of `transition` taking rots_s at t_from to rots_t at t_to."""
        return igso3.log_density_of(_relative(rots_s, rots_t), self._step_sigma(t_from, t_to, rots_t))

    def reverse(
        self,
        rots_t: Tensor,
        score: Tensor,
        t: Tensor | float,
        dt: Tensor | float,
        noise_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One geodesic step of the reverse SDE, R Exp(g^2 s dt + noise_scale g sqrt(dt) z), dt > 0 down in time."""
        g2 = _over_residues(self.g2(as_double(t)), rots_t)[..., None]
        step = _over_residues(as_double(dt), rots_t)[..., None]
        move = g2 * score.double() * step
        if noise_scale != 0.0:
            z = torch.randn(score.shape, generator=generator, dtype=torch.float64, device=score.device)
            move = move + noise_scale * (g2 * step).sqrt() * z
        return (rots_t.double() @ rotations.exp(move)).to(rots_t.dtype)

    def sample_ref(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Rotations [*shape, 3, 3] from the base distribution at t = 1."""
        place = device or (generator.device if generator is not None else "cpu")
        if self.conf.base == "haar":
            quats = torch.randn((*shape, 4), generator=generator, dtype=torch.float64, device=place)
            return rotations.from_quaternion(quats).to(dtype)
        sigma = torch.full(shape, self.conf.max_sigma, dtype=torch.float64, device=place)
        return rotations.exp(igso3.sample(sigma, generator)).to(dtype)

    def log_ref(self, rots: Tensor) -> Tensor:
        """log density [..., N] of the base, against normalised Haar measure: zero where it is uniform."""
        if self.conf.base == "haar":
            return torch.zeros(rots.shape[:-2], dtype=torch.float64, device=rots.device)
        sigma = torch.full((), self.conf.max_sigma, dtype=torch.float64, device=rots.device)
        return igso3.log_density_of(rotations.log(rots.double()), sigma)

    def _sigma_of_residues(self, t: Tensor | float, rots: Tensor) -> Tensor:
        return self.sigma(_over_residues(as_double(t), rots))

    def _step_sigma(self, t_from: Tensor | float, t_to: Tensor | float, rots: Tensor) -> Tensor:
        """Noise of the step between two times; variances add, as heat kernels compose."""
        start, end = _over_residues(as_double(t_from), rots), _over_residues(as_double(t_to), rots)
        check_order(start, end)
        low, high = self.sigma(start), self.sigma(end)
        return ((high - low) * (high + low)).sqrt()


def _noised(rots: Tensor, sigma: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """R Exp(v) and v, v drawn from IGSO(3) for every residue."""
    noise = igso3.sample(sigma.expand(rots.shape[:-2]), generator)
    return (rots.double() @ rotations.exp(noise)).to(rots.dtype), noise


def _relative(rots_0: Tensor, rots_t: Tensor) -> Tensor:
    """Log(R_0^T R_t) in float64."""
    return rotations.log(rots_0.double().transpose(-1, -2) @ rots_t.double())


def _over_residues(t: Tensor, rots: Tensor) -> Tensor:
    """Times [...] as [..., 1], against residues [..., N]."""
    return t.to(rots.device)[..., None]
