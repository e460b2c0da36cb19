"""The torsion head: psi as a unit vector, from the last node embedding."""

import torch
from torch import Tensor, nn

from .ipa import Linear


class TorsionAngles(nn.Module):
    """(sin, cos) of torsions from node embeddings, by one residual layer (Jumper et al. 2021, SI algorithm 20).

    The last layer is not zero at first: the direction of a zero vector is undefined, and its gradient is as large as
    the guard against division by zero is small.
    """

    def __init__(self, c_s: int, n_torsions: int = 1) -> None:
        super().__init__()
        self.first = Linear(c_s, c_s)
        self.second = Linear(c_s, c_s)
        self.out = Linear(c_s, 2 * n_torsions)

    def forward(self, node: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Unit vectors [..., T, 2], (sin, cos), of node embeddings [..., c_s]; the dtype given, else the node's."""
        hidden = node + self.second(nn.functional.silu(self.first(nn.functional.silu(node))))
        raw = self.out(hidden).to(dtype or node.dtype).unflatten(-1, (-1, 2))
        return raw / torch.sqrt((raw**2).sum(-1, keepdim=True) + 1e-8)
