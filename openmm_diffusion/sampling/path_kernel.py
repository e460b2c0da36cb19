"""Denoising kernels of frames: a normal increment with the network's mean and the covariance of stiff links."""

import torch
from torch import Tensor

from ..diffusion.stiff_links import StiffLinks
from ..geometry import rotations
from ..geometry.link_jacobian import link_jacobian
from ..geometry.residue_constants import UNKNOWN
from ..geometry.rigid import Rigid
from ..models.score_network import ScoreNetwork
from .noise_grid import NoiseGrid
from .windows import FreeCoordinates

# Prior standard deviation of a soft link in the covariance (rad): about the width of a basin.
SOFT_WIDTH = 1.0


class LinkKernel:
    """Mean and covariance of an increment v from level k down to k - 1 (level 0 is clean).

    With S_k the variances of the noise at level k and D = S_k - S_{k-1}, the mean D * score is exact for flat
    coordinates and any data. For normal data the covariance is D + D (d^2 log p_k) D. Links l are normal about their
    centres with variances V, their derivative with respect to the frames is J, so d^2 log p_k = -J^T (V + J S_k
    J^T)^-1 J: along bonds and angles, which the data know far better than the noise, v is narrower than D. J is taken
    at the network's own guess of the clean frames.

    Where some residues are fixed, J and S_k are those of the free ones. The network sees the fixed ones noised to level
    k like everything that it was trained on, and gives a score that knows no more of them; but their clean frames are
    at hand. With e the fixed frames' distance from the network's guess of them, the same normal data ask for the score

        score - J^T (V + J S_k J^T)^-1 J_fixed e

    (the guess of the free ones conditioned on the fixed ones, for a posterior of precision 1 / S_k + J^T V^-1 J). A
    network that was trained with fixed residues sees them clean instead.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        stiff: StiffLinks,
        grid: NoiseGrid,
        coordinates: FreeCoordinates,
        aatype: Tensor | None,
        reads_fixed: bool = False,
    ) -> None:
        self._network, self._grid, self._coordinates = network, grid, coordinates
        self._n = len(stiff.names)
        device = coordinates.basis.device
        self._dtype = next(network.parameters()).dtype
        self._geometry = stiff.geometry
        self._reads_fixed = reads_fixed and not coordinates.whole
        free = coordinates.free
        self._links = (free[:-1] | free[1:]).nonzero()[:, 0]  # the others stay as they are
        width = torch.where(stiff.soft, SOFT_WIDTH, stiff.widths.clamp(max=SOFT_WIDTH)).to(device)
        self._prior = torch.diag((width[self._links] ** 2).flatten())
        types = torch.full((self._n,), UNKNOWN) if aatype is None else aatype
        self._types = types.to(device)
        self._variance = coordinates.columns(grid.rot_variance, grid.trans_variance)
        self._step = self._variance.diff(dim=0, prepend=torch.zeros_like(self._variance[:1]))

    def __call__(self, frames: Rigid, k: Tensor, clean: Rigid | None = None) -> tuple[Tensor, Tensor]:
        """Means [B, d] and lower Cholesky factors [B, d, d] for frames [B, N] at levels k [B] (0 to K-1).

        `clean` [B, N] holds the clean frames of fixed residues; what it has for the others is not read.
        """
        score, guess = self._predict(frames, k)
        step, variance = self._step[k], self._variance[k]
        by_first, by_second = link_jacobian(guess, self._geometry)
        jacobian = self._reduced_jacobian(by_first, by_second)
        root = torch.linalg.cholesky_ex(self._prior + (jacobian * variance[:, None]) @ jacobian.mT)[0]
        half = torch.linalg.solve_triangular(root, jacobian * step[:, None], upper=False)
        mean = step * score
        if clean is not None and not (self._coordinates.whole or self._reads_fixed):
            missed = self._missed(guess, clean, by_first, by_second)
            mean = mean - (half.mT @ torch.linalg.solve_triangular(root, missed[..., None], upper=False))[..., 0]
        return mean, torch.linalg.cholesky_ex(torch.diag_embed(step) - half.mT @ half)[0]

    def _predict(self, frames: Rigid, k: Tensor) -> tuple[Tensor, Rigid]:
        """Scores [B, d] in these coordinates, and the clean frames (Angstrom) that they point to."""
        network, diffuser = self._network, self._network.diffuser
        alpha, unit = self._grid.alpha[k][:, None, None], diffuser.coord_scale
        free, b = self._coordinates.free, len(k)
        ones = torch.ones(b, self._n, dtype=self._dtype, device=alpha.device)
        fixed, share, origin = torch.zeros_like(ones), alpha, torch.zeros_like(frames.trans[:, :1])
        if self._reads_fixed:
            fixed = fixed + (~free).to(fixed)
            share = torch.where(free[:, None], alpha, 1.0)
            origin = frames.trans[:, ~free].mean(1, keepdim=True)
        elif not self._coordinates.whole:
            origin = frames.trans.mean(1, keepdim=True)
        noised = frames.map_trans(lambda y: (y - origin) * share * unit).to(self._dtype)
        batch = {
            "t": self._grid.t[k].to(self._dtype),
            "res_mask": ones,
            "fixed_mask": fixed,
            "seq_idx": torch.arange(self._n, dtype=self._dtype, device=alpha.device).expand(b, -1),
            "aatype": self._types.expand(b, -1),
        }
        # Autocasting is a matter of the thread: drawing and scoring would be two functions.
        with torch.inference_mode(), torch.autocast(alpha.device.type, enabled=False):
            found = network.denoise(noised, batch)
        # d log p / dy = alpha * scale * d log p / d(diffused units), and x = alpha y.
        trans = found.trans_score.double() * (alpha * diffuser.r3.scale * unit)
        guess = found.clean.to(torch.float64).map_trans(lambda x: x / unit + origin)
        return self._coordinates.reduced(found.rot_score.double(), trans), guess

    def _reduced_jacobian(self, by_first: Tensor, by_second: Tensor) -> Tensor:
        """Derivatives [B, 6 links, d] of the links of free residues with respect to the coordinates."""
        touched, coordinates = self._links, self._coordinates
        rows = torch.arange(len(touched), device=touched.device)
        full = by_first.new_zeros(len(by_first), len(touched), 6, self._n, 6)
        full[:, rows, :, touched] = by_first[:, touched].transpose(0, 1)
        full[:, rows, :, touched + 1] = by_second[:, touched].transpose(0, 1)
        full = full.flatten(1, 2)
        turn = full[..., :3] if coordinates.whole else full[:, :, coordinates.index, :3]
        trans = torch.einsum("blnc,nj->bljc", full[..., 3:], coordinates.basis)
        return torch.cat([turn.flatten(2), trans.flatten(2)], -1)

    def _missed(self, guess: Rigid, clean: Rigid, by_first: Tensor, by_second: Tensor) -> Tensor:
        """How links [B, 6 links] change where the fixed frames go from the network's guess to what they are."""
        offset = torch.cat([rotations.log(guess.rots.mT @ clean.rots), clean.trans - guess.trans], -1)
        offset = torch.where(self._coordinates.free[:, None], 0.0, offset)[..., None]
        change = by_first @ offset[:, :-1] + by_second @ offset[:, 1:]
        return change[:, self._links, :, 0].flatten(1)
