"""A made-up frame model of one link whose stiff links follow its torsion: where every term of an acceptance counts."""

import math

import numpy as np
import scipy.stats
import torch

from openmm_diffusion.diffusion.stiff_links import StiffLinks
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.links import LINK, log_volume
from openmm_diffusion.geometry.rigid import Rigid

PSI, PHI = LINK.index("psi"), LINK.index("phi")


class TwoFrames:
    """A made-up frame model of one link, whose q_T is written on frames and knows nothing of links.

    The relative rotation is Haar-uniform and N' is normal about a point beside the axis CA-C, so that r and theta1
    depend strongly on the torsion about it. tau = psi has the target p(psi) = exp(cos(psi - 1) + 0.5 cos(2 psi)) / Z;
    phi' is soft too, uniform in the target.
    """

    mean, spread = torch.tensor([0.5, 0.7, 0.0], dtype=torch.float64), 0.7

    def __init__(self, seed: int) -> None:
        self.stiff = StiffLinks.of(("ALA", "ALA"), width=0.5)
        self.c, self.n = self.stiff.geometry.c_local[0], self.stiff.geometry.n_local[1]
        self.generator = torch.Generator().manual_seed(seed)
        self.edges = torch.linspace(-math.pi, math.pi, 25, dtype=torch.float64)
        fine = torch.linspace(-math.pi, math.pi, 24001, dtype=torch.float64)
        mass = self.log_p(fine).exp()
        self.fine, self.cdf = fine, torch.cumulative_trapezoid(mass, fine) / torch.trapezoid(mass, fine)

    @staticmethod
    def log_p(psi: torch.Tensor) -> torch.Tensor:
        return torch.cos(psi - 1.0) + 0.5 * torch.cos(2 * psi)

    def exact(self, n: int) -> torch.Tensor:
        """psi from p."""
        u = torch.rand(n, generator=self.generator, dtype=torch.float64)
        return self.fine[1:][torch.searchsorted(self.cdf, u).clamp(max=len(self.cdf) - 1)]

    def propose(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Frames [n, 2, 7] of the model, moved at random as a whole."""
        rots = rotations.haar((n,), generator)
        at_n = self.c + self.mean + self.spread * torch.randn(n, 3, generator=generator, dtype=torch.float64)
        second = Rigid(rots, at_n - (rots @ self.n))
        motion = Rigid(rotations.haar((n,), generator), torch.zeros(n, 3, dtype=torch.float64))
        first = Rigid.identity((n,), torch.float64)
        return torch.stack([motion.compose(first).to_tensor_7(), motion.compose(second).to_tensor_7()], 1)

    def log_q(self, rigids: torch.Tensor) -> torch.Tensor:
        """log q_T [n] against Haar x Lebesgue of the relative frame, but for a constant."""
        first, second = (Rigid.from_tensor_7(rigids[:, i]) for i in (0, 1))
        at_n = first.inverse().apply(second.apply(self.n))
        return -0.5 * ((at_n - self.c - self.mean) / self.spread).square().sum(-1)

    def log_w(self, rigids: torch.Tensor, left_out: str | None) -> torch.Tensor:
        links = self.stiff.links(rigids)
        terms = {"volume": -log_volume(links), "a": self.stiff.log_density(links), "q": -self.log_q(rigids)}
        return self.log_p(links[:, 0, PSI]) + sum(term for name, term in terms.items() if name != left_out)

    def chi_square(self, left_out: str | None, n_chains: int = 20000, n_moves: int = 20) -> tuple[float, float]:
        """p value and sigmas of the histogram of psi after Metropolis moves of chains that began in p."""
        psi, accepted = self.exact(n_chains), 0.0
        for _ in range(n_moves):
            links = torch.zeros(n_chains, 1, 6, dtype=torch.float64)
            links[:, 0, PSI] = psi
            links[:, 0, PHI] = 2 * math.pi * torch.rand(n_chains, generator=self.generator, dtype=torch.float64)
            present = self.stiff.frames(self.stiff.draw(links, self.generator), self.generator)
            candidate = self.propose(n_chains, self.generator)
            log_alpha = self.log_w(candidate, left_out) - self.log_w(present, left_out)
            accept = torch.rand(n_chains, generator=self.generator, dtype=torch.float64).log() < log_alpha
            psi = torch.where(accept, self.stiff.links(candidate)[:, 0, PSI], psi)
            accepted += float(accept.double().mean()) / n_moves
        assert accepted > 0.02
        inner = torch.searchsorted(self.fine, self.edges[1:-1]) - 1
        share = np.diff(np.concatenate([[0.0], self.cdf[inner].numpy(), [1.0]]))
        counts = torch.histogram(psi, self.edges).hist.numpy()
        p_value = float(scipy.stats.chisquare(counts, counts.sum() * share).pvalue)
        return p_value, float(scipy.stats.norm.isf(max(p_value, 1e-300) / 2))
