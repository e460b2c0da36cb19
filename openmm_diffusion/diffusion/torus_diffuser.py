"""Variance-exploding diffusion on the torus: wrapped normal marginals, their scores and densities.

Jing, Corso et al., "Torsional diffusion for molecular conformer generation", NeurIPS 2022, section 3.2; variance
schedule of Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eq. 30.
"""

import math

import torch
from torch import Tensor

from ..errors import SettingError
from ..units import TWO_PI, wrap


class TorusDiffuser:
    """Brownian motion of torsions tau in [-pi, pi)^T with sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    Parameters
    ----------
    min_sigma, max_sigma
        Noise (rad) at t = 0 and t = 1. At max_sigma the marginal has to be uniform for practical purposes, because the
        uniform density is the base of every sampler: at pi its first Fourier coefficient is 0.007.
    """

    def __init__(self, min_sigma: float = 0.05, max_sigma: float = math.pi) -> None:
        if not 0.0 < min_sigma < max_sigma:
            raise SettingError(
                f"min_sigma, max_sigma are {min_sigma}, {max_sigma}; expected 0 < min_sigma < max_sigma (rad)"
            )
        if max_sigma < 2.0:
            raise SettingError(f"max_sigma is {max_sigma}; expected at least 2 rad, where the noise covers the torus")
        self.min_sigma = min_sigma
        self.max_sigma = max_sigma

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level (rad) at time t in [0, 1]."""
        return self.min_sigma * (self.max_sigma / self.min_sigma) ** t

    def forward_marginal(self, tau_0: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noised torsions [..., T] at times t [...] and the score [..., T] of the kernel that they were drawn from."""
        sigma = self.sigma(t)[..., None]
        noise = torch.randn(tau_0.shape, generator=generator, dtype=tau_0.dtype, device=tau_0.device) * sigma
        return wrap(tau_0 + noise), self.score(noise, sigma)

    def score(self, displacement: Tensor, sigma: Tensor) -> Tensor:
        """d log p / d(displacement) of the wrapped normal of standard deviation sigma (broadcast against it)."""
        shifted, weights = self._images(displacement, sigma)
        return -(weights * shifted).sum(-1) / sigma**2

    def log_density(self, displacement: Tensor, sigma: Tensor) -> Tensor:
        """log of the wrapped normal density, one term an angle (not summed over torsions)."""
        shifted = self._shifted(displacement, sigma)
        exponent = -(shifted**2) / (2 * sigma[..., None] ** 2)
        return torch.logsumexp(exponent, -1) - torch.log(sigma) - 0.5 * math.log(TWO_PI)

    def score_scaling(self, t: Tensor) -> Tensor:
        """Root mean square of the kernel's score at time t, which normalises the loss over noise levels.

        The integral over the circle is a trapezoid sum, which converges exponentially for periodic functions.
        """
        sigma = self.sigma(t)[..., None]
        grid = torch.linspace(-1.0, 1.0, 401, dtype=sigma.dtype, device=sigma.device)[:-1]
        # For narrow kernels the grid spans +-8 sigma, beyond which nothing is left.
        reach = torch.clamp(8.0 * sigma, max=math.pi)
        x = grid * reach
        density = self.log_density(x, sigma).exp()
        return ((density * self.score(x, sigma) ** 2).sum(-1) / density.sum(-1)).sqrt()

    def log_base(self, n_torsions: int) -> float:
        """log density of the base, uniform on the torus."""
        return -n_torsions * math.log(TWO_PI)

    def _images(self, displacement: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self._shifted(displacement, sigma)
        return shifted, torch.softmax(-(shifted**2) / (2 * sigma[..., None] ** 2), -1)

    def _shifted(self, displacement: Tensor, sigma: Tensor) -> Tensor:
        """Images that count: their exponent differs from the nearest one's by at most 40, which is below 1e-17."""
        widest = float(sigma.max()) if sigma.numel() else self.max_sigma
        n = math.ceil(0.5 + math.sqrt(0.25 + 80.0 * widest**2 / TWO_PI**2))
        images = TWO_PI * torch.arange(-n, n + 1, dtype=displacement.dtype, device=displacement.device)
        return wrap(displacement)[..., None] + images
