"""Which residues of a chain move: masks along the sequence, and the coordinates of the frames that they leave free."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..geometry import rotations
from ..geometry.rigid import Rigid


def contiguous_windows(n_residues: int, size: int) -> Tensor:
    """All windows of `size` residues along a chain: bool [n_residues - size + 1, n_residues], True = moves.

    Raises SettingError for a window without a residue or longer than the chain.
    """
    if not 1 <= size <= n_residues:
        raise SettingError(f"window is {size}; expected 1 to {n_residues}, the residues of the chain, caps included")
    start = torch.arange(n_residues - size + 1)[:, None]
    residue = torch.arange(n_residues)
    return (residue >= start) & (residue < start + size)


def centroid_free_basis(n: int) -> Tensor:
    """Orthonormal basis [n, n-1] of the vectors whose sum is zero (Helmert's), float64."""
    j = torch.arange(1, n, dtype=torch.float64)
    rows = torch.arange(n, dtype=torch.float64)[:, None]
    matrix = torch.where(rows < j, 1.0, torch.where(rows == j, -j, 0.0))
    return matrix / torch.sqrt(j * (j + 1))


@dataclass(frozen=True)
class FreeCoordinates:
    """Coordinates of increments of the frames that move.

    An increment is a rotation vector in own axes for each of the F residues that move, then M translations along the
    columns of `basis`: where all residues move those of zero centroid (M = N - 1), else one each (M = F), without
    centring, since the others hold the chain.

    Attributes
    ----------
    free
        Bool [N].
    index
        [F] the residues that move.
    basis
        [N, M] orthonormal, float64.
    """

    free: Tensor
    index: Tensor
    basis: Tensor

    @classmethod
    def of(cls, free: Tensor, device: torch.device | None = None) -> "FreeCoordinates":
        """The coordinates of a mask [N], True = moves; raises SettingError where it fixes every residue."""
        free = torch.as_tensor(free, dtype=torch.bool).cpu()
        if not bool(free.any()):
            raise SettingError(f"a mask fixes all {len(free)} residues; expected one or more that move")
        eye = torch.eye(len(free), dtype=torch.float64)
        basis = centroid_free_basis(len(free)) if bool(free.all()) else eye[:, free]
        return cls(free.to(device), free.nonzero()[:, 0].to(device), basis.to(device))

    @property
    def whole(self) -> bool:
        """Whether every residue moves."""
        return len(self.index) == len(self.free)

    @property
    def size(self) -> int:
        """Numbers in an increment."""
        return 3 * (len(self.index) + self.basis.shape[1])

    def columns(self, rot: Tensor, trans: Tensor) -> Tensor:
        """[..., size] of values [...] of rotations and of translations."""
        n_rot, n_trans = 3 * len(self.index), 3 * self.basis.shape[1]
        return torch.cat([rot[..., None].expand(*rot.shape, n_rot), trans[..., None].expand(*trans.shape, n_trans)], -1)

    def reduced(self, rot: Tensor, trans: Tensor) -> Tensor:
        """[..., size] of gradients with respect to rotations and translations [..., N, 3]."""
        turn = rot if self.whole else rot[..., self.index, :]
        return torch.cat([turn.flatten(-2), (self.basis.T @ trans).flatten(-2)], -1)

    def moved(self, frames: Rigid, step: Tensor) -> Rigid:
        """Frames [n, N] after an increment [n, size]."""
        turn, shift = self._split(step)
        if self.whole:
            return Rigid(frames.rots @ rotations.exp(turn), frames.trans + self.basis @ shift)
        turned = frames.rots[..., self.index, :, :] @ rotations.exp(turn)
        return Rigid(frames.rots.index_copy(-3, self.index, turned), frames.trans + self.basis @ shift)

    def walked(self, frames: Rigid, steps: Tensor) -> Rigid:
        """Frames [K+1, n, N] of a walk of increments [K, n, size] from frames [n, N], which are the first."""
        turn, shift = self._split(steps)
        trans = torch.cat([frames.trans[None], frames.trans + self.basis @ shift.cumsum(0)])
        rots = frames.rots.repeat(len(steps) + 1, *(1,) * frames.rots.dim())
        last = frames.rots[..., self.index, :, :]
        for k, turned in enumerate(rotations.exp(turn), 1):
            last = last @ turned
            rots[k].index_copy_(-3, self.index, last)
        return Rigid(rots, trans)

    def _split(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation vectors [..., F, 3] and reduced translations [..., M, 3]."""
        turn, shift = step.split([3 * len(self.index), 3 * self.basis.shape[1]], -1)
        return turn.unflatten(-1, (-1, 3)), shift.unflatten(-1, (-1, 3))
