"""Rotations on roma: rotation vectors, quaternions (w, x, y, z) with w >= 0, and the Jacobians of SO(3).

roma's logarithm goes through the quaternion and atan2; values and gradients are finite and right at the identity and at
pi. roma keeps quaternions as (x, y, z, w); here, as in the files of this field, the scalar comes first.
"""

import math

import roma
import torch
from torch import Tensor


def exp(rotvec: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] (axis times angle, rad)."""
    return roma.rotvec_to_rotmat(rotvec)


def log(rots: Tensor) -> Tensor:
    """Rotation vectors [..., 3] of rotation matrices [..., 3, 3]; angles in [0, pi]."""
    return roma.rotmat_to_rotvec(rots)


def to_quaternion(rots: Tensor) -> Tensor:
    """Unit quaternions [..., 4], (w, x, y, z) with w >= 0, of rotation matrices [..., 3, 3]."""
    quats = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(rots))
    return torch.where(quats[..., :1] < 0, -quats, quats)


def from_quaternion(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4], (w, x, y, z), of any length but zero and either sign."""
    return roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(roma.quat_normalize(quats)))


def hat(v: Tensor) -> Tensor:
    """Antisymmetric matrices [..., 3, 3] with hat(v) w = v x w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def haar(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rotations [*shape, 3, 3] from the Haar measure: normalised normal quaternions, on the generator's device."""
    quats = torch.randn((*shape, 4), generator=generator, dtype=dtype, device=generator.device)
    return from_quaternion(quats)


def left_jacobian(rotvec: Tensor) -> Tensor:
    """J_l [..., 3, 3] with Exp(v + dv) = Exp(J_l(v) dv) Exp(v) to first order; J_r(v) = J_l(-v).

    I + (1 - cos a)/a^2 hat(v) + (a - sin a)/a^3 hat(v)^2, a = |v| (Sola et al., arXiv 1812.01537, eq. 145). Its
    determinant is 2 (1 - cos a)/a^2, the density of Lebesgue measure on rotation vectors against Haar.
    """
    square = (rotvec**2).sum(-1)[..., None, None]
    # Both branches of a where are differentiated, so the large one must not see zero.
    small = square < 1e-3
    a = torch.where(small, torch.ones_like(square), square).sqrt()
    first = torch.where(small, 0.5 - square / 24 + square**2 / 720, 2 * torch.sin(a / 2) ** 2 / a**2)
    second = torch.where(small, 1 / 6 - square / 120 + square**2 / 5040, (a - torch.sin(a)) / a**3)
    cross = hat(rotvec)
    return torch.eye(3, dtype=rotvec.dtype, device=rotvec.device) + first * cross + second * cross @ cross


def log_left_jacobian_determinant(rotvec: Tensor) -> Tensor:
    """log det J_l(v) [...] = log(2 (1 - cos a)/a^2); -inf where a is a multiple of 2 pi."""
    square = (rotvec**2).sum(-1)
    half = 0.5 * torch.where(square < 1e-12, torch.full_like(square, 1e-12), square).sqrt()
    return 2 * torch.log(torch.sinc(half / math.pi).abs())
