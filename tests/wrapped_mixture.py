"""An analytic score model: mixtures of wrapped normals, which stay mixtures of wrapped normals under noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_diffusion.units import TWO_PI


@dataclass(frozen=True)
class WrappedMixture:
    """Components [M]: weights [M], centres and widths [M, T] in rad. A `ScoreModel` whose score is exact."""

    weights: Tensor
    centres: Tensor
    widths: Tensor

    def condition(self, sigma: Tensor) -> Tensor:
        return sigma

    def score_and_jacobian(self, tau: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        log_share, slope, curvature = self._components(tau, condition)
        share = torch.softmax(log_share, -1)[..., None]
        score = (share * slope).sum(-2)
        outer = torch.einsum("...mi,...mj->...ij", share * slope, slope)
        jacobian = outer + torch.diag_embed((share * curvature).sum(-2)) - score[..., :, None] * score[..., None, :]
        return score, jacobian

    def log_density(self, tau: Tensor, sigma: Tensor) -> Tensor:
        """log of the mixture noised to sigma, at tau [n, T]."""
        return torch.logsumexp(self._components(tau, sigma)[0], -1)

    def _components(self, tau: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(weight x density) [..., n, M] of each component, its slopes and curvatures [..., n, M, T]."""
        variance = self.widths**2 + sigma[..., None, None, None] ** 2
        reach = math.ceil(1.5 * float(variance.max()) ** 0.5) + 1  # beyond it images weigh less than 1e-17
        images = TWO_PI * torch.arange(-reach, reach + 1, dtype=tau.dtype)
        x = (tau[..., None, :] - self.centres + math.pi) % TWO_PI - math.pi
        shifted = x[..., None] + images
        exponent = -(shifted**2) / (2 * variance[..., None])
        p = torch.softmax(exponent, -1)
        mean = (p * shifted).sum(-1)
        spread = (p * (shifted - mean[..., None]) ** 2).sum(-1)
        log_p = torch.logsumexp(exponent, -1) - 0.5 * torch.log(TWO_PI * variance)
        return torch.log(self.weights) + log_p.sum(-1), -mean / variance, spread / variance**2 - 1 / variance


def example(n_torsions: int) -> WrappedMixture:
    """Three components, one of them across the cut at pi."""
    centres = torch.tensor([[-1.4, 2.9, 0.5, 1.0, -2.0], [-2.6, -3.0, 1.5, 0.0, 2.0], [1.0, 0.4, -0.5, 3.0, 0.0]])
    widths = torch.tensor([[0.3, 0.4, 0.5, 0.3, 0.6], [0.5, 0.3, 0.4, 0.6, 0.5], [0.25, 0.35, 0.6, 0.5, 0.4]])
    weights = torch.tensor([0.6, 0.3, 0.1])
    return WrappedMixture(weights.double(), centres[:, :n_torsions].double(), widths[:, :n_torsions].double())
