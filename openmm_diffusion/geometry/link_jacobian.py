"""How the links of a chain change with its frames: the derivative that projects noise of frames onto bonds, angles."""

import torch
from torch import Tensor

from . import rotations
from .links import LinkGeometry
from .rigid import Rigid


def link_jacobian(rigids: Rigid, geometry: LinkGeometry) -> tuple[Tensor, Tensor]:
    """Derivatives of the links [..., N-1, 6] of frames [..., N], which see two frames each.

    Rotations change by R Exp(v), v in the frame's own axes; translations by addition. Each link is the angle, or the
    length, of one joint of a serial arm that carries the next frame, so the six joint axes are the columns of the
    derivative of the relative frame, and its inverse is sought (the Jacobian of a serial manipulator; Lynch & Park,
    "Modern Robotics", 2017, section 5.1).

    Returns
    -------
    tuple
        The derivatives with respect to the first and to the second frame of each link: two tensors
        [..., N-1, 6, 6], rows in the order of `links.LINK`, columns rotation vector (3) and translation (3).
        Infinite or NaN where an angle is 0 or pi.
    """
    first, second = rigids[..., :-1], rigids[..., 1:]
    c0 = first.apply(geometry.c_local[:-1].to(rigids.trans))
    n1 = second.apply(geometry.n_local[1:].to(rigids.trans))
    ca0, ca1 = first.trans, second.trans
    along, bond, onward = _unit(c0 - ca0), _unit(n1 - c0), _unit(ca1 - n1)
    bend1, bend2 = _unit(torch.linalg.cross(along, bond)), _unit(torch.linalg.cross(bond, onward))
    joints = torch.stack(
        [
            _turn(along, ca1 - c0),
            _turn(-bend1, ca1 - c0),
            torch.cat([torch.zeros_like(bond), bond], -1),
            _turn(bond, ca1 - n1),
            _turn(-bend2, ca1 - n1),
            _turn(onward, torch.zeros_like(ca1)),
        ],
        -1,
    )
    inverse = torch.linalg.inv_ex(joints)[0]
    turn, shift = inverse[..., :3], inverse[..., 3:]
    # The twist of the second frame relative to the first: (w2 - w1, t2 - t1 - w1 x (ca1 - ca0)).
    lever = shift @ rotations.hat(ca1 - ca0)
    by_first = torch.cat([(lever - turn) @ first.rots, -shift], -1)
    by_second = torch.cat([turn @ second.rots, shift], -1)
    return by_first, by_second


def _turn(axis: Tensor, lever: Tensor) -> Tensor:
    """Twist [..., 6] of a point at `lever` from an axis, turned about it."""
    return torch.cat([axis, torch.linalg.cross(axis, lever)], -1)


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
