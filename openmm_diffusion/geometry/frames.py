"""Atoms and backbone frames: atom14 <-> atom37, atoms -> frames, atoms -> torsions. Any batch shape, any length unit.

A missing atom is three zeros, in the input as in the output; where an atom may stand at the origin, hand a mask over.
"""

import functools

import torch
from torch import Tensor

from . import residue_constants as rc
from .rigid import Rigid

TORSIONS = ("omega", "phi", "psi", "chi1", "chi2", "chi3", "chi4")
# CA, C, N and O in the two orders; the first three stand alike.
_N, _CA, _C, _O37 = 0, 1, 2, rc.ATOM37_INDEX["O"]
# psi is measured to O, which stands opposite to the next N.
_SIGNS = (1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0)
# Smallest sine of the angle N-CA-C, and of the angles within a torsion, that still defines a plane.
_COLLINEAR = 1e-4


def lookup(table: str, aatype: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Rows of a table of `residue_constants`, by its name: types [..., L] -> [..., L, *row], on the types' device."""
    return _tensor(table, aatype.device, dtype)[aatype.long()]


@functools.cache
def _tensor(table: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    # The cached tensor must serve autograd too, wherever it was first asked for.
    with torch.inference_mode(False):
        return torch.as_tensor(getattr(rc, table), device=device, dtype=dtype)


def atom37_mask(aatype: Tensor) -> Tensor:
    """Which of the 37 atoms a residue of the type has, OXT never: [..., L] -> bool [..., L, 37]."""
    return lookup("ATOM37_MASK", aatype)


def atom14_mask(aatype: Tensor) -> Tensor:
    """Which of the 14 atoms a residue of the type has: [..., L] -> bool [..., L, 14]."""
    return lookup("ATOM14_MASK", aatype)


def atom14_to_atom37(atom14: Tensor, aatype: Tensor) -> Tensor:
    """Coordinates [..., L, 14, 3] in the atom37 order [..., L, 37, 3]; zero where the type has no such atom."""
    return _reorder(atom14, lookup("ATOM37_TO_ATOM14", aatype), atom37_mask(aatype))


def atom37_to_atom14(atom37: Tensor, aatype: Tensor) -> Tensor:
    """Coordinates [..., L, 37, 3] in the atom14 order [..., L, 14, 3]; zero where the type has no such atom."""
    return _reorder(atom37, lookup("ATOM14_TO_ATOM37", aatype), atom14_mask(aatype))


def present_atoms(atoms: Tensor) -> Tensor:
    """Which atoms are there: bool [..., L, A] of coordinates [..., L, A, 3] in either order.

    Three zeros mean a missing atom, but a CA at the origin is there if its N and C are (a residue centred on its CA).
    """
    present = (atoms != 0).any(-1)
    alpha = present[..., _CA] | (present[..., _N] & present[..., _C])
    return torch.cat([present[..., :_CA], alpha[..., None], present[..., _C:]], -1)


def frames_from_atoms(n: Tensor, ca: Tensor, c: Tensor) -> Rigid:
    """Backbone frames of N, CA and C [..., 3]: origin CA, +x = CA -> C, N in the xy plane with y > 0.

    Jing et al. 2024 (MDGen): AlphaFold2's frame of (C, CA, N) (SI algorithm 21), x and z reversed. Collinear or
    coinciding atoms give the identity rotation, with zero gradients.
    """
    to_c, to_n = c - ca, n - ca
    area = torch.linalg.cross(to_c, to_n).square().sum(-1)
    scale = to_c.square().sum(-1) * to_n.square().sum(-1)
    regular = (area > _COLLINEAR**2 * scale)[..., None]
    # Safe points before, not after, the divisions: where() hands the gradient of both branches on.
    x_axis, y_axis = torch.eye(2, 3, dtype=ca.dtype, device=ca.device)
    to_c = torch.where(regular, to_c, x_axis)
    to_n = torch.where(regular, to_n, y_axis)
    x = to_c / torch.linalg.vector_norm(to_c, dim=-1, keepdim=True)
    y = to_n - (x * to_n).sum(-1, keepdim=True) * x
    y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return Rigid(torch.stack([x, y, torch.linalg.cross(x, y)], -1), ca)


def atom14_to_frames(atom14: Tensor, mask: Tensor | None = None) -> Rigid:
    """Backbone frames [..., L] of coordinates [..., L, 14, 3] (or 37: only N, CA, C are read).

    mask [..., L, A] says which atoms are there (`present_atoms` by default). A residue without N, CA or C has the
    identity rotation, its CA as the origin, and no gradient into its rotation.
    """
    mask = present_atoms(atom14) if mask is None else mask.bool()
    whole = mask[..., : _C + 1].all(-1)[..., None]
    n, ca, c = atom14[..., _N, :], atom14[..., _CA, :], atom14[..., _C, :]
    return frames_from_atoms(torch.where(whole, n, ca), ca, torch.where(whole, c, ca))


def atom37_to_torsions(atom37: Tensor, aatype: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Torsions [..., L, 7, 2] as (sin, cos) and their mask, bool [..., L, 7], of coordinates [..., L, 37, 3].

    Order: omega and phi towards the residue before, psi, chi1-4. psi is measured to the residue's own O and turned by
    pi, so that the last residue has one too; it is the usual psi where the carbonyl is planar. mask [..., L, 37] says
    which atoms are there (`present_atoms` by default). A torsion that lacks an atom has mask False and the value
    (0, 1). Residues are taken to be linked in sequence, one chain. AlphaFold2, SI section 1.8.
    """
    aatype = aatype.expand(atom37.shape[:-2])
    present = (present_atoms(atom37) if mask is None else mask.bool()) & atom37_mask(aatype)
    # Presence travels as a fourth coordinate, so that it is gathered with the atoms.
    atoms = torch.cat([_zero_unless(present, atom37), present[..., None].to(atom37.dtype)], -1)
    chi = _gather(atoms, lookup("CHI_INDICES", aatype).flatten(-2)).unflatten(-2, (4, 4))
    atoms = torch.cat([_backbone_atoms(atoms), chi], -3)
    sin_cos, regular = _sin_cos(atoms[..., :3])
    exists = torch.nn.functional.pad(lookup("CHI_MASK", aatype), (3, 0), value=True)
    there = regular & exists & (atoms[..., 3] > 0).all(-1)
    signs, nothing = sin_cos.new_tensor(_SIGNS)[:, None], sin_cos.new_tensor([0.0, 1.0])
    return torch.where(there[..., None], signs * sin_cos, nothing), there


def _reorder(atoms: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(atoms.shape[:-2], index.shape[:-1])
    index, atoms = index.expand(*shape, -1), atoms.expand(*shape, -1, -1)
    return _zero_unless(mask, _gather(atoms, index))


def _zero_unless(mask: Tensor, atoms: Tensor) -> Tensor:
    # Not a product: what stands at an atom that does not exist may be NaN.
    return torch.where(mask[..., None], atoms, atoms.new_zeros(()))


def _gather(atoms: Tensor, index: Tensor) -> Tensor:
    """Atoms [..., A, d] at indices [..., K]: [..., K, d]."""
    return torch.gather(atoms, -2, index[..., None].expand(*index.shape, atoms.shape[-1]))


def _backbone_atoms(atoms: Tensor) -> Tensor:
    """The four atoms of omega, phi and psi [..., L, 3, 4, d] of [..., L, 37, d]; zeros before the first residue."""
    before = torch.cat([torch.zeros_like(atoms[..., :1, :, :]), atoms[..., :-1, :, :]], -3)
    n, ca, c, o = (atoms[..., k, :] for k in (_N, _CA, _C, _O37))
    omega = torch.stack([before[..., _CA, :], before[..., _C, :], n, ca], -2)
    phi = torch.stack([before[..., _C, :], n, ca, c], -2)
    return torch.stack([omega, phi, torch.stack([n, ca, c, o], -2)], -3)


def _sin_cos(points: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine [..., 2] of the dihedrals of points [..., 4, 3], and whether they are defined [...]."""
    b1, b2, b3 = (points[..., 1:, :] - points[..., :-1, :]).unbind(-2)
    n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
    s1, s2, s3 = (b.square().sum(-1) for b in (b1, b2, b3))
    a1, a2 = n1.square().sum(-1), n2.square().sum(-1)
    regular = (a1 > _COLLINEAR**2 * s1 * s2) & (a2 > _COLLINEAR**2 * s2 * s3)
    one = torch.ones_like(s2)
    sine = (b1 * n2).sum(-1) * torch.where(regular, s2, one).sqrt()
    cosine = (n1 * n2).sum(-1)
    length = torch.where(regular, sine.square() + cosine.square(), one).sqrt()
    return torch.stack([sine, cosine], -1) / length[..., None], regular
