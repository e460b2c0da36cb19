"""The slow twin of `InvariantPointAttention`: algorithm 22 line by line, with displacements [B, N, N, H, P, 3]."""

import math

import torch
from torch import Tensor

from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.ipa import InvariantPointAttention


def plain_ipa(layer: InvariantPointAttention, node: Tensor, edge: Tensor, rigids: Rigid, present: Tensor) -> Tensor:
    """What `layer` computes, with its weights: Jumper et al. 2021, SI algorithm 22."""
    heads, hidden, n_qk = layer.n_heads, layer.hidden, layer.n_qk
    query, key, value = layer.scalars(node).unflatten(-1, (heads, 3, hidden)).unbind(-2)
    local = layer.points(node).unflatten(-1, (heads, -1, 3))
    frames = Rigid(rigids.rots[:, :, None, None], rigids.trans[:, :, None, None])
    query_points, key_points, value_points = frames.apply(local).split([n_qk, n_qk, layer.n_v], -2)
    pair = layer.pair(edge)
    bias, pair_values = pair[..., :heads], pair[..., heads:]

    displacement = query_points[:, :, None] - key_points[:, None]
    strength = torch.nn.functional.softplus(layer.head_weights) * math.sqrt(2 / (9 * n_qk))
    logits = torch.einsum("bihc,bjhc->bijh", query, key) / math.sqrt(hidden)
    logits = math.sqrt(1 / 3) * (logits + bias - 0.5 * strength * (displacement**2).sum((-1, -2)))
    logits = logits.masked_fill(~present[:, None, :, None], -math.inf)
    weights = torch.softmax(logits, 2)

    scalars = torch.einsum("bijh,bjhc->bihc", weights, value)
    points = frames.invert_apply(torch.einsum("bijh,bjhpx->bihpx", weights, value_points))
    norms = torch.sqrt((points**2).sum(-1) + 1e-8)
    pairs = torch.einsum("bijh,bijc->bihc", weights, pair_values)
    return layer.out(torch.cat([x.flatten(2) for x in (scalars, points, norms, pairs)], -1))
