"""Frames of a chain as links: six internal coordinates between consecutive frames, and their volume element.

A link is (psi, theta1, r, omega, theta2, phi'): the torsion about CA-C, the angle CA-C-N', the bond C-N', the torsion
about C-N', the angle C-N'-CA', the torsion about N'-CA', where a dash marks the next residue. N and C of each residue
stand still in its frame, so six numbers are a chart of the relative frame. With Haar measure on rotations

    prod_i dT_i / dT_first = const * prod_i r_i^2 sin(theta1_i) sin(theta2_i) dl_i

because N' is in spherical coordinates about C (r^2 sin theta1) and the axes of the next frame are in Euler angles
(omega, theta2, phi') about C-N' (sin theta2). Angles in rad, lengths in the unit of the frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MoleculeError
from . import residue_constants as rc
from .dihedral import dihedral
from .rigid import Rigid

LINK = ("psi", "theta1", "r", "omega", "theta2", "phi")
FIRST_CAPS, LAST_CAPS = ("ACE",), ("NME", "NH2")
CAPS = FIRST_CAPS + LAST_CAPS

# A cap is a triangle of three atoms in the roles of (N, CA, C): two bonds and the angle between them, in Angstrom and
# degrees, from Amber's parm99 (Wang, Cieplak & Kollman, J. Comput. Chem. 21, 1049 (2000)).
_ACE = (1.522, 1.229, 120.4)  # CH3-C, C-O, CH3-C-O
_NME = (1.449, 1.010, 118.04)  # CH3-N, N-H, CH3-N-H
_NH2 = (1.010, 1.010, 120.0)  # H1-N, N-H2, H1-N-H2


def _ace() -> tuple[list[float], list[float]]:
    """(O, CH3, C): origin CH3, +x towards the carbonyl C, O at y > 0."""
    along, bond, angle = _ACE
    angle = math.radians(angle)
    return [along - bond * math.cos(angle), bond * math.sin(angle), 0.0], [along, 0.0, 0.0]


def _amide(along: float, bond: float, angle: float) -> tuple[list[float], list[float]]:
    """(N, CH3, H) of NME, (N, H1, H2) of NH2: origin on the second, +x towards the third, N at y > 0.

    The third is an amide H (not a methyl H: it would turn freely).
    """
    angle = math.radians(angle)
    across = math.sqrt(along**2 + bond**2 - 2 * along * bond * math.cos(angle))
    cosine = (along**2 + across**2 - bond**2) / (2 * along * across)
    return [along * cosine, along * math.sqrt(1 - cosine**2), 0.0], [across, 0.0, 0.0]


@dataclass(frozen=True)
class LinkGeometry:
    """Where the atoms in the roles of N and C stand in the frames of a chain.

    Attributes
    ----------
    n_local
        [N, 3], in the xy plane with y > 0.
    c_local
        [N, 3], on +x.
    """

    n_local: Tensor
    c_local: Tensor

    def __post_init__(self) -> None:
        n, c = self.n_local, self.c_local
        if n.shape != c.shape or n.ndim != 2 or n.shape[1] != 3:
            raise MoleculeError(
                f"Local N and C have the shapes {tuple(n.shape)} and {tuple(c.shape)}; expected [N, 3] both."
            )
        if not bool(((n[:, 1] > 0) & (n[:, 2] == 0) & (c[:, 0] > 0) & (c[:, 1:] == 0).all(-1)).all()):
            raise MoleculeError("Local N and C do not fit the frames; expected C on +x, N in the xy plane with y > 0.")

    @classmethod
    def of(cls, names: Sequence[str], coord_scale: float = 1.0) -> "LinkGeometry":
        """Ideal geometry (float64) of canonical residue names such as ("ACE", "ALA", "NME").

        coord_scale is in length units per Angstrom. ACE stands as (O, CH3, C), NME as (N, CH3, H) and NH2 as
        (N, H1, H2) in the roles of (N, CA, C), H being the amide's: psi of ACE and phi of NME and NH2 are then stiff,
        near pi.
        Raises MoleculeError for a residue that is neither of the 20 nor a cap, and for a cap inside the chain.
        """
        n_local, c_local = [], []
        for i, name in enumerate(names):
            if (name in FIRST_CAPS and i > 0) or (name in LAST_CAPS and i < len(names) - 1):
                raise MoleculeError(
                    f"Residue {i + 1} of {len(names)} is the cap {name}; ACE only begins, NME and NH2 only end."
                )
            if name in CAPS:
                n, c = {"ACE": _ace(), "NME": _amide(*_NME), "NH2": _amide(*_NH2)}[name]
            elif name in rc.RESTYPES_3[: rc.UNKNOWN]:
                n, _, c, _ = rc.IDEAL_BACKBONE[rc.RESTYPES_3.index(name)].tolist()
            else:
                raise MoleculeError(
                    f"Residue {i + 1} is {name!r}; expected {', '.join(CAPS)} or the canonical name of one of the 20 "
                    "residues."
                )
            n_local.append(n)
            c_local.append(c)
        table = coord_scale * torch.tensor([n_local, c_local], dtype=torch.float64)
        return cls(table[0], table[1])


def links_from_frames(rigids: Rigid, geometry: LinkGeometry) -> Tensor:
    """Links [..., N-1, 6] of frames [..., N]: angles in (0, pi), torsions in [-pi, pi], r > 0.

    Raises MoleculeError where the number of frames is not that of the geometry.
    """
    _check_number(rigids.shape[-1], geometry)
    n, c = (rigids.apply(local.to(rigids.trans)) for local in (geometry.n_local, geometry.c_local))
    ca = rigids.trans
    n0, ca0, c0 = (atom[..., :-1, :] for atom in (n, ca, c))
    n1, ca1, c1 = (atom[..., 1:, :] for atom in (n, ca, c))
    return torch.stack(
        [
            dihedral(n0, ca0, c0, n1),
            _angle(ca0, c0, n1),
            torch.linalg.vector_norm(n1 - c0, dim=-1),
            dihedral(ca0, c0, n1, ca1),
            _angle(c0, n1, ca1),
            dihedral(c0, n1, ca1, c1),
        ],
        -1,
    )


def frames_from_links(links: Tensor, geometry: LinkGeometry, first: Rigid) -> Rigid:
    """Frames [..., N] of links [..., N-1, 6] behind a first frame [...]. The inverse of `links_from_frames`.

    Raises MoleculeError where the number of links is not one less than that of residues.
    """
    _check_number(links.shape[-2] + 1, geometry)
    psi, theta1, r, omega, theta2, phi = links.unbind(-1)
    n_local, c_local = geometry.n_local[1:].to(links), geometry.c_local[:-1].to(links)
    length_n = torch.linalg.vector_norm(n_local, dim=-1)
    inner = torch.atan2(n_local[:, 1], n_local[:, 0])  # the angle N'-CA'-C', C' being on +x
    # A walk along the chain: at each atom, +x along the bond that led to it, y on the side of the atom before.
    at_n = _turn(psi, theta1)
    at_ca = at_n @ _turn(omega, theta2)
    rots = at_ca @ _turn(phi, inner.expand_as(phi))
    trans = c_local + r[..., None] * at_n[..., 0] + length_n[:, None] * at_ca[..., 0]
    shape = torch.broadcast_shapes(first.shape, links.shape[:-2])
    start_rots, start_trans = first.rots.expand(*shape, 3, 3), first.trans.expand(*shape, 3)
    return _prefix_products(
        Rigid(
            torch.cat([start_rots.unsqueeze(-3), rots.expand(*shape, *rots.shape[-3:])], -3),
            torch.cat([start_trans.unsqueeze(-2), trans.expand(*shape, *trans.shape[-2:])], -2),
        )
    )


def log_volume(links: Tensor) -> Tensor:
    """Sum over links [..., N-1, 6] of log(r^2 sin theta1 sin theta2): [...], the log of dT/dl up to a constant.

    NaN outside the chart (r > 0, 0 < theta < pi).
    """
    theta1, r, theta2 = links[..., 1], links[..., 2], links[..., 4]
    inside = (r > 0) & (theta1 > 0) & (theta1 < math.pi) & (theta2 > 0) & (theta2 < math.pi)
    value = 2 * torch.log(r) + torch.log(torch.sin(theta1)) + torch.log(torch.sin(theta2))
    return torch.where(inside, value, torch.full_like(value, math.nan)).sum(-1)


def _angle(p0: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    a, b = p0 - p1, p2 - p1
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1), (a * b).sum(-1))


def _turn(torsion: Tensor, angle: Tensor) -> Tensor:
    """Rx(torsion) Rz(pi - angle) [..., 3, 3]: from the axes at one atom to those at the next."""
    sin_t, cos_t, sin_a, cos_a = torch.sin(torsion), torch.cos(torsion), torch.sin(angle), torch.cos(angle)
    zero = torch.zeros_like(sin_t)
    rows = [-cos_a, -sin_a, zero, cos_t * sin_a, -cos_t * cos_a, -sin_t, sin_t * sin_a, -sin_t * cos_a, cos_t]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _prefix_products(steps: Rigid) -> Rigid:
    """Frames T_k = G_0 G_1 ... G_k of steps [..., N], in log2(N) rounds of doubling."""
    shift = 1
    while shift < steps.shape[-1]:
        later = steps[..., :-shift].compose(steps[..., shift:])
        steps = Rigid(
            torch.cat([steps.rots[..., :shift, :, :], later.rots], -3),
            torch.cat([steps.trans[..., :shift, :], later.trans], -2),
        )
        shift *= 2
    return steps


def _check_number(n_frames: int, geometry: LinkGeometry) -> None:
    if n_frames != len(geometry.n_local):
        raise MoleculeError(
            f"A chain of {n_frames} frames does not fit the geometry of {len(geometry.n_local)} residues; give both "
            "for the same residues, caps included."
        )
