"""Rigid frames: a rotation and a translation, composed, inverted, applied, and packed as [quaternion, translation]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import rotations


@dataclass(frozen=True)
class Rigid:
    """Frames of any batch shape: x in the frame is rots @ x + trans outside.

    Attributes
    ----------
    rots
        Rotation matrices [..., 3, 3]; the columns are the frame's axes.
    trans
        Origins [..., 3], in whatever length unit the caller keeps.
    """

    rots: Tensor
    trans: Tensor

    @classmethod
    def from_tensor_7(cls, tensor: Tensor) -> "Rigid":
        """Frames of [..., 7] = quaternion (w, x, y, z) of either sign, translation."""
        return cls(rotations.from_quaternion(tensor[..., :4]), tensor[..., 4:])

    def to_tensor_7(self) -> Tensor:
        """[..., 7] = quaternion (w, x, y, z) with w >= 0, translation."""
        return torch.cat([rotations.to_quaternion(self.rots), self.trans], -1)

    @classmethod
    def identity(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> "Rigid":
        """Frames [*shape] at the origin."""
        rots = torch.eye(3, dtype=dtype, device=device).expand(*shape, 3, 3)
        return cls(rots, torch.zeros((*shape, 3), dtype=dtype, device=device))

    @classmethod
    def from_3_points(cls, on_negative_x: Tensor, origin: Tensor, in_xy_plane: Tensor) -> "Rigid":
        """Gram-Schmidt frames of three points [..., 3] each: AlphaFold2 (Jumper et al. 2021), SI algorithm 21.

        The origin is the second point, the first lies on the negative x axis, the third in the half plane y > 0.
        Collinear points give NaN.
        """
        x = origin - on_negative_x
        x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        y = in_xy_plane - origin
        y = y - (x * y).sum(-1, keepdim=True) * x
        y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        return cls(torch.stack([x, y, torch.linalg.cross(x, y)], -1), origin)

    @property
    def shape(self) -> torch.Size:
        """The batch shape."""
        return self.trans.shape[:-1]

    def __getitem__(self, index: Any) -> "Rigid":
        """Frames of an index into the batch dimensions."""
        index = index if isinstance(index, tuple) else (index,)
        return Rigid(self.rots[(*index, slice(None), slice(None))], self.trans[(*index, slice(None))])

    def unsqueeze(self, dim: int) -> "Rigid":
        """Frames with one more batch dimension; negative dims count batch dimensions from the end."""
        dim = dim if dim >= 0 else len(self.shape) + 1 + dim
        return Rigid(self.rots.unsqueeze(dim), self.trans.unsqueeze(dim))

    def compose(self, other: "Rigid") -> "Rigid":
        """self after other: x -> self(other(x))."""
        return Rigid(self.rots @ other.rots, self.apply(other.trans))

    def inverse(self) -> "Rigid":
        """The inverse motion."""
        rots = self.rots.transpose(-1, -2)
        return Rigid(rots, -(rots @ self.trans[..., None])[..., 0])

    def apply(self, points: Tensor) -> Tensor:
        """Points [..., 3] of the frame, seen from outside."""
        return (self.rots @ points[..., None])[..., 0] + self.trans

    def invert_apply(self, points: Tensor) -> Tensor:
        """Points [..., 3] from outside, in the frame."""
        return (self.rots.transpose(-1, -2) @ (points - self.trans)[..., None])[..., 0]

    def map_trans(self, function: Callable[[Tensor], Tensor]) -> "Rigid":
        """Frames with the translations replaced by a function of them, such as a scaling."""
        return Rigid(self.rots, function(self.trans))

    def to(self, *args: Any) -> "Rigid":
        """Frames of another dtype or on another device."""
        return Rigid(self.rots.to(*args), self.trans.to(*args))
