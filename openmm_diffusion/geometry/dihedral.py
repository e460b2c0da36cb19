"""Dihedral angles of points, in the IUPAC sign."""

import torch
from torch import Tensor


def dihedral(p0: Tensor, p1: Tensor, p2: Tensor, p3: Tensor) -> Tensor:
    """Dihedral angles (rad, in [-pi, pi]) of points [..., 3] about the bond p1-p2.

    Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996), eq. 4: atan2 has no singularity but for collinear points.
    """
    b1, b2, b3 = p1 - p0, p2 - p1, p3 - p2
    n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
    sine = (b1 * n2).sum(-1) * b2.norm(dim=-1)
    return torch.atan2(sine, (n1 * n2).sum(-1))
