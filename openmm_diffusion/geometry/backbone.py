"""Backbone atoms of frames: N, CA, C, CB and O from ideal local coordinates and psi. Rigid bodies with one torsion."""

import math

import torch
from torch import Tensor

from . import residue_constants as rc
from .frames import atom37_mask, atom37_to_atom14, lookup
from .rigid import Rigid

_N, _CA, _C, _O = 0, 1, 2, 4  # in atom37, where CB is 3
_BACKBONE = 5
# Where the angle CA-C-O lies against the half of what the angle CA-C-N leaves of the plane: 121.7 - 120.56 degrees at
# Engh & Huber's CA-C-N of 116.6 degrees, kept when that angle is strained.
_OXYGEN_TILT = math.radians(1.14)
# C-N over CA-C beyond which two residues in sequence are not taken to be bonded (2.3 Angstrom).
_BROKEN = 1.5


def compute_backbone(
    rigids: Rigid, psi: Tensor, aatype: Tensor | None = None, coord_scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Backbone atoms of frames [..., L]: atom37 [..., L, 37, 3], its bool mask [..., L, 37], atom14 [..., L, 14, 3].

    N, CA, C and CB stand at the ideal local coordinates of the residue's type (glycine and X have no CB), O at the
    ideal place of the psi frame. AlphaFold2, SI algorithm 24. All other atoms are zeros.

    Parameters
    ----------
    psi
        [..., L, 2], (sin, cos) of length one.
    aatype
        [..., L]; alanine everywhere by default.
    coord_scale
        Length units of the frames per Angstrom.
    """
    dtype, shape = rigids.trans.dtype, rigids.shape
    if aatype is None:
        aatype = torch.zeros(shape, dtype=torch.long, device=rigids.trans.device)
    aatype = aatype.expand(shape)
    local = coord_scale * lookup("IDEAL_BACKBONE", aatype, dtype)
    oxygen = coord_scale * lookup("IDEAL_OXYGEN", aatype, dtype)
    sine, cosine = psi.to(dtype).unbind(-1)
    # The psi frame is turned by pi about x, so that O stands opposite to the N that psi points to.
    turned = torch.stack([oxygen[..., 0], -oxygen[..., 1] * cosine, -oxygen[..., 1] * sine], -1)
    local = torch.cat([local, (local[..., _C, :] + turned)[..., None, :]], -2)
    mask = atom37_mask(aatype) & (torch.arange(rc.N_ATOM37, device=aatype.device) < _BACKBONE)
    placed = Rigid(rigids.rots[..., None, :, :], rigids.trans[..., None, :]).apply(local)
    rest = placed.new_zeros((*shape, rc.N_ATOM37 - _BACKBONE, 3))
    atom37 = torch.where(mask[..., None], torch.cat([placed, rest], -2), placed.new_zeros(()))
    return atom37, mask, atom37_to_atom14(atom37, aatype)


def place_oxygens(atom37: Tensor, mask: Tensor) -> Tensor:
    """Coordinates [..., L, 37, 3] with O in the plane of CA, C and the next residue's N, its distance from C kept.

    What O's angles deviate from the ideal is shared between CA-C-O and O-C-N. O stays where it is in the last residue,
    where one of the atoms is missing (mask [..., L, 37] is 0) and across a break of the chain (C-N > 1.5 CA-C).
    """
    ca, c, o = (atom37[..., :-1, k, :] for k in (_CA, _C, _O))
    following = atom37[..., 1:, _N, :]
    to_ca, to_n = ca - c, following - c
    length_ca, length_n, length_o = (torch.linalg.vector_norm(v, dim=-1) for v in (to_ca, to_n, o - c))
    normal = torch.linalg.cross(to_ca, to_n)
    sine = torch.linalg.vector_norm(normal, dim=-1)
    there = mask.bool()
    moved = (there[..., :-1, [_CA, _C, _O]].all(-1) & there[..., 1:, _N]) & (length_n < _BROKEN * length_ca)
    moved = (moved & (sine > 1e-4 * length_ca * length_n))[..., None]
    x_axis, y_axis = torch.eye(2, 3, dtype=atom37.dtype, device=atom37.device)
    to_ca, to_n = torch.where(moved, to_ca, x_axis), torch.where(moved, to_n, y_axis)
    u = to_ca / torch.linalg.vector_norm(to_ca, dim=-1, keepdim=True)
    along = (to_n * u).sum(-1, keepdim=True)
    across = to_n - along * u
    height = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    angle = math.pi - torch.atan2(height, along) / 2 - _OXYGEN_TILT
    direction = torch.cos(angle) * u - torch.sin(angle) * across / height
    placed = torch.where(moved, c + length_o[..., None] * direction, o)
    result = atom37.clone()
    result[..., :-1, _O, :] = placed
    return result
