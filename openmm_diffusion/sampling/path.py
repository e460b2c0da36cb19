"""Frames of a peptide with the exact density of how they were drawn, in the space of noising paths (DESIGN: 2.5).

A path leads from clean frames T_0 through K levels of noise to the base. Forward it is a random walk: R_k =
R_{k-1} Exp(u), y_k = y_{k-1} + w, u and w normal. Backward each increment v = -(u, w) is drawn from a normal
distribution whose mean is the score network's and whose covariance is the posterior's of the links (`LinkKernel`). The
*increments themselves* are the auxiliary variables, not the rotations they lead to: T_0 and all u determine T_K and all
v, right multiplication keeps Haar measure, and so both sides are plain normal densities in R^3, normalised for steps of
any length, without images of a wrapped normal. log q of a structure is replaced by

    log p(T_K) + sum_k log N(v_k; mean(T_k), C(T_k)) - sum_k log N(u_k; 0, difference of variances)

along the path that was drawn: downwards for a candidate, upwards for the present state. Exact for every network, grid
and covariance; they change the spread of log w only.

Where some residues are fixed, only the others walk. What the network sees of the fixed ones, their clean frames or a
noise path of their own, does not depend on what moves and is the same for both directions, so nothing else changes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.stiff_links import StiffLinks
from ..errors import SettingError
from ..geometry import rotations
from ..geometry.rigid import Rigid
from ..models.score_network import ScoreNetwork
from .noise_grid import NoiseGrid
from .path_kernel import LinkKernel
from .windows import FreeCoordinates

_ROWS = 4096  # frames that the network sees at once


@dataclass(frozen=True)
class PathSample:
    """Frames [n, N, 7] (Angstrom, float64) and the path-space log density [n] of each."""

    rigids: Tensor
    log_q: Tensor


class SE3Path:
    """Draws frames down a path of denoising kernels and scores frames up a path of noise.

    Densities are against normalised Haar measure on each rotation times Lebesgue measure (Angstrom) on the translations
    without their centroid.

    Parameters
    ----------
    network
        Gives the means; any dtype. No self-conditioning is used.
    stiff
        The chain with its stiff links, whose widths enter the covariance.
    n_steps
        Levels of noise K between min_t and max_t, and denoising steps.
    min_t, max_t
        Times of the lowest and of the highest level; the lowest of the noise process by default.
    aatype
        [N] residue types for the network; unknown for all by default.
    free
        Bool [N], the residues that move; all by default. With fixed ones there is no base, so that `walk`, `log_ratio`
        and `descend` remain.
    reads_fixed
        Show fixed residues clean, by `fixed_mask`: for networks that were trained with it.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        stiff: StiffLinks,
        *,
        n_steps: int = 50,
        min_t: float | None = None,
        max_t: float = 0.4,
        aatype: Tensor | None = None,
        free: Tensor | None = None,
        reads_fixed: bool = False,
    ) -> None:
        if network.config.embed.embed_self_conditioning:
            raise SettingError(
                "the network reads its own earlier prediction (embed_self_conditioning), so its score is no fixed "
                "function of the frames; expected a model trained with the preset acceptance"
            )
        parameter = next(network.parameters())
        self.device = parameter.device
        diffuser = network.diffuser
        lowest = diffuser.conf.min_t if min_t is None else min_t
        self.grid = NoiseGrid.geometric(diffuser, n_steps, lowest, max_t).to(self.device)
        self.n_residues = len(stiff.names)
        everything = torch.ones(self.n_residues, dtype=torch.bool)
        self._moving = FreeCoordinates.of(everything if free is None else free, self.device)
        # A network that knows no fixed residues sees them walk, too.
        shown_noised = not (self._moving.whole or reads_fixed)
        self._flank = FreeCoordinates.of(~self._moving.free, self.device) if shown_noised else None
        self._kernel = LinkKernel(network, stiff, self.grid, self._moving, aatype, reads_fixed)
        zero = torch.zeros(1, dtype=torch.float64, device=self.device)
        steps = (self.grid.rot_variance.diff(prepend=zero), self.grid.trans_variance.diff(prepend=zero))
        self._deviations = torch.stack(steps).sqrt()
        self._scales = self._moving.columns(*self._deviations)
        self._base_variance = self.grid.trans_variance[-1] + float(diffuser.coordinate_scaling) ** -2

    @property
    def n_steps(self) -> int:
        """Denoising steps of a candidate."""
        return len(self.grid)

    def sample(self, n: int, generator: torch.Generator) -> PathSample:
        """n independent frames from the base down."""
        self._check_whole()
        rots = rotations.haar((n, self.n_residues), generator)
        z = torch.randn(n, self.n_residues - 1, 3, generator=generator, dtype=torch.float64, device=self.device)
        frames = Rigid(rots, self._moving.basis @ (self._base_variance.sqrt() * z))
        frames, ratio = self.descend(frames, self.n_steps, generator)
        return PathSample(frames.to_tensor_7(), ratio + self._log_base(z * self._base_variance.sqrt()))

    def score(self, rigids: Tensor, generator: torch.Generator) -> Tensor:
        """Path-space log density [n] of frames [n, N, 7]: one path each, all its levels in one pass of the network."""
        self._check_whole()
        top, ratio = self.ascend(Rigid.from_tensor_7(rigids.double()), self.n_steps, generator)
        return ratio + self._log_base(self._moving.basis.T @ top.trans)

    def descend(
        self, frames: Rigid, level: int, generator: torch.Generator, walk: Rigid | None = None
    ) -> tuple[Rigid, Tensor]:
        """Frames [n, N] denoised from a level (1 to K) to clean ones, and log p - log f [n] summed along the path.

        Where residues are fixed `walk` holds what they are at each level, [level + 1, n, N] (see `walk`).
        """
        total = torch.zeros(frames.shape[0], dtype=torch.float64, device=self.device)
        for k in reversed(range(level)):
            parts = []
            for rows in _blocks(frames.shape[0]):
                index = torch.full_like(total[rows], k, dtype=torch.long)
                mean, root = self._kernel(frames[rows], index, None if walk is None else walk[0, rows])
                noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64, device=self.device)
                parts.append((mean + (root @ noise[..., None])[..., 0], _log_normal(noise, root)))
            step, log_p = (torch.cat(part) for part in zip(*parts, strict=True))
            total = total + log_p - self._log_noise(step, self._scales[k])
            frames = self._moving.moved(frames, step)
            if walk is not None:
                frames = self._with_flank(frames, walk[k])
        return frames, total

    def ascend(self, frames: Rigid, level: int, generator: torch.Generator) -> tuple[Rigid, Tensor]:
        """Frames [n, N] noised from clean ones to a level, and log p - log f [n] summed along the path."""
        walk, steps = self.walk(frames, level, generator)
        return walk[-1], self.log_ratio(walk, steps)

    def walk(self, frames: Rigid, level: int, generator: torch.Generator) -> tuple[Rigid, Tensor]:
        """Frames [n, N] noised to a level: frames [level + 1, n, N] from level 0 up, and increments [level, n, d].

        Fixed residues walk, too, for a network that does not read `fixed_mask`; they have no increments.
        """
        n = frames.shape[0]
        steps = self._noise(self._moving, level, n, generator)
        walk = self._moving.walked(frames, steps)
        if self._flank is None:
            return walk, steps
        return self._with_flank(walk, self._flank.walked(frames, self._noise(self._flank, level, n, generator))), steps

    def log_ratio(self, walk: Rigid, steps: Tensor) -> Tensor:
        """log p - log f [n] of a walk [level + 1, n, N] by increments [level, n, d]."""
        level, n = steps.shape[:2]
        above = Rigid(walk.rots[1:].flatten(0, 1), walk.trans[1:].flatten(0, 1))
        below = -steps.flatten(0, 1)
        index = torch.arange(level, device=self.device).repeat_interleave(n)
        chain = torch.arange(n, device=self.device).repeat(level)
        log_p = []
        for rows in _blocks(len(index)):
            mean, root = self._kernel(above[rows], index[rows], None if self._moving.whole else walk[0, chain[rows]])
            white = torch.linalg.solve_triangular(root, (below[rows] - mean)[..., None], upper=False)[..., 0]
            log_p.append(_log_normal(white, root))
        log_f = self._log_noise(steps, self._scales[:level, None])
        return (torch.cat(log_p).unflatten(0, (level, n)) - log_f).sum(0)

    def _noise(self, coordinates: FreeCoordinates, level: int, n: int, generator: torch.Generator) -> Tensor:
        """Increments [level, n, d] of a walk up."""
        noise = torch.randn(level, n, coordinates.size, generator=generator, dtype=torch.float64, device=self.device)
        return noise * coordinates.columns(*self._deviations[:, :level])[:, None]

    def _with_flank(self, frames: Rigid, flank: Rigid) -> Rigid:
        """Frames [..., N], fixed residues as in `flank`."""
        free = self._moving.free[:, None]
        rots = torch.where(free[..., None], frames.rots, flank.rots)
        return Rigid(rots, torch.where(free, frames.trans, flank.trans))

    def _log_noise(self, step: Tensor, scales: Tensor) -> Tensor:
        return _log_standard(step / scales) - torch.log(scales).sum(-1)

    def _log_base(self, reduced: Tensor) -> Tensor:
        z = (reduced / self._base_variance.sqrt()).flatten(-2)
        return _log_standard(z) - 0.5 * z.shape[-1] * torch.log(self._base_variance)

    def _check_whole(self) -> None:
        if not self._moving.whole:
            raise SettingError("a path with fixed residues has no base to start from; expected a mask that frees all")


def _log_standard(z: Tensor) -> Tensor:
    return -0.5 * (z**2).sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _log_normal(white: Tensor, root: Tensor) -> Tensor:
    """log density of mean + root @ white."""
    return _log_standard(white) - torch.log(torch.diagonal(root, dim1=-2, dim2=-1)).sum(-1)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(n, start + _ROWS)) for start in range(0, n, _ROWS))
