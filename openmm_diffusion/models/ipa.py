"""Invariant point attention without displacement tensors, and the linear layer that all SE(3) modules share."""

import math

import torch
from torch import Tensor, nn

from ..geometry.rigid import Rigid
from .se3_config import IpaConfig

_NEVER = -1e9  # Finite, so that a batch element without any residue gives numbers, and exp of it is exactly zero.


class Linear(nn.Linear):
    """A linear layer that says how it is to be initialised.

    Weights are normal with standard deviation gain / sqrt(inputs), biases zero. A `closing` layer ends a residual
    branch or makes an update: zero at first, unless a random network is asked for.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0, closing: bool = False) -> None:
        super().__init__(inputs, outputs, bias)
        self.gain = gain
        self.closing = closing

    def initialise(self, generator: torch.Generator, zero: bool) -> None:
        """Draw the weights; `zero` makes closing layers zero."""
        gain = self.gain if not self.closing else 0.0 if zero else 0.3
        with torch.no_grad():
            self.weight.normal_(0.0, 1.0, generator=generator).mul_(gain / math.sqrt(self.in_features))
            if self.bias is not None:
                self.bias.zero_()


class InvariantPointAttention(nn.Module):
    """Jumper et al. 2021, SI algorithm 22: attention over residues by scalars, points in frames, and pairs.

    With w_h the weight of a head, -w_h/2 sum_p |q_p - k_p|^2 = w_h sum_p q_p.k_p - w_h/2 sum_p |k_p|^2 + a term that
    softmax over keys does not see. So points stand beside the scalars in one product of queries and keys, and nothing
    larger than the weights [B, H, N, N] is made. The weights are formed once and shared by scalars, points and pairs:
    the pair values differ for each query, which no fused attention kernel takes, and a fused call beside explicit
    weights forms them twice (1.3 to 1.7 times slower; `examples/benchmark_ipa.py` has the comparison with
    displacement tensors).
    """

    def __init__(self, c_s: int, c_z: int, config: IpaConfig) -> None:
        super().__init__()
        heads, hidden = config.no_heads, config.c_hidden
        self.n_heads, self.hidden = heads, hidden
        self.n_qk, self.n_v = config.no_qk_points, config.no_v_points
        self.c_pair = c_z // 4
        self.scalars = Linear(c_s, 3 * heads * hidden)
        self.points = Linear(c_s, heads * (2 * self.n_qk + self.n_v) * 3)
        self.pair = Linear(c_z, heads + self.c_pair)
        self.head_weights = nn.Parameter(torch.full((heads,), math.log(math.e - 1)))  # softplus of it is 1
        self.out = Linear(heads * (hidden + 4 * self.n_v + self.c_pair), c_s, closing=True)

    def forward(self, node: Tensor, edge: Tensor, rigids: Rigid, present: Tensor) -> Tensor:
        """Updates of the nodes.

        Parameters
        ----------
        node, edge
            Embeddings [B, N, c_s] and [B, N, N, c_z].
        rigids
            Frames [B, N], translations in units of about 10 Angstrom.
        present
            [B, N] bool; absent residues are never attended to.

        Returns
        -------
        [B, N, c_s]; rows of absent residues mean nothing.
        """
        rigids, points = self._points(node, rigids, present)
        scalars = self.scalars(node).to(points.dtype)
        bias, pair_values = self.pair(edge).to(points.dtype).split([self.n_heads, self.c_pair], -1)
        with torch.autocast(node.device.type, enabled=False):
            # Squared distances are differences of larger numbers: never in bf16.
            queries, keys, values = self._augmented(scalars, points)
            bias = math.sqrt(1 / 3) * bias.permute(0, 3, 1, 2)
            bias = bias.masked_fill(~present[:, None, None, :], _NEVER)
            weights = torch.softmax(torch.matmul(queries, keys.transpose(-1, -2)) + bias, -1)
            gathered = (weights @ values).transpose(1, 2)
            pairs = weights.permute(0, 2, 1, 3) @ pair_values
            features = self._readout(gathered, pairs, rigids)
        return self.out(features)

    def _points(self, node: Tensor, rigids: Rigid, present: Tensor) -> tuple[Rigid, Tensor]:
        """Frames about the centroid, and query, key and value points [B, N, H, P, 3] seen from there."""
        local = self.points(node).to(rigids.trans.dtype)
        with torch.autocast(node.device.type, enabled=False):
            # Exact, since only differences count, and it keeps |q|^2 + |k|^2 - 2 q.k from cancelling.
            centred = Rigid(rigids.rots, rigids.trans - centroid(rigids.trans, present))
            local = local.unflatten(-1, (-1, 3))
            outside = local @ centred.rots.transpose(-1, -2) + centred.trans[..., None, :]
            return centred, outside.unflatten(-2, (self.n_heads, -1))

    def _augmented(self, scalars: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, N, c + 3 P_qk + 1], values [B, H, N, c + 3 P_v]."""
        scalars = scalars.unflatten(-1, (self.n_heads, 3 * self.hidden))
        query, key, value = scalars.split(self.hidden, -1)
        query_points, key_points, value_points = points.split([self.n_qk, self.n_qk, self.n_v], -2)
        weight = nn.functional.softplus(self.head_weights) * math.sqrt(2 / (9 * self.n_qk)) * math.sqrt(1 / 3)
        weight = weight.to(points.dtype)[:, None]
        query = query * math.sqrt(1 / (3 * self.hidden))
        half = (-0.5 * weight).expand(*query.shape[:-1], 1)
        squares = (key_points**2).sum((-1, -2))[..., None]
        queries = torch.cat([query, weight * query_points.flatten(-2), half], -1)
        keys = torch.cat([key, key_points.flatten(-2), squares], -1)
        values = torch.cat([value, value_points.flatten(-2)], -1)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def _readout(self, gathered: Tensor, pairs: Tensor, rigids: Rigid) -> Tensor:
        """Invariant features [B, N, H (c + 4 P_v + c_pair)] of what was gathered [B, N, H, c + 3 P_v]."""
        scalars, points = gathered.split([self.hidden, 3 * self.n_v], -1)
        local = (points.unflatten(-1, (-1, 3)).flatten(2, 3) - rigids.trans[..., None, :]) @ rigids.rots
        norms = torch.sqrt((local**2).sum(-1) + 1e-8)
        return torch.cat([scalars.flatten(2), local.flatten(2), norms, pairs.flatten(2)], -1)


def centroid(points: Tensor, present: Tensor) -> Tensor:
    """Mean [B, 1, 3] of the present ones among points [B, N, 3]; zero where none is."""
    shares = present.to(points.dtype)[..., None]
    return (points * shares).sum(-2, keepdim=True) / shares.sum(-2, keepdim=True).clamp(min=1.0)
