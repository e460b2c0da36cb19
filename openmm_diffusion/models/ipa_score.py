"""The trunk of the score network: blocks of point attention and sequence transformer that refine frames."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..geometry import rotations
from ..geometry.rigid import Rigid
from .ipa import InvariantPointAttention, Linear, centroid
from .se3_config import ScoreNetworkConfig


@dataclass(frozen=True)
class Update:
    """How far one block may move the frames, and which: `rot` and `trans` [B], `mask` [B, N].

    Lengths are in diffused units. Without preconditioning both factors are one.
    """

    rot: Tensor
    trans: Tensor
    mask: Tensor


class IpaScore(nn.Module):
    """`num_blocks` times: point attention, sequence transformer, transition, frame update, edge transition.

    Yim et al., "SE(3) diffusion model with application to protein backbone generation", ICML 2023, algorithm 2, with
    smooth activations throughout, so that the score has derivatives of every order.
    """

    def __init__(self, config: ScoreNetworkConfig) -> None:
        super().__init__()
        n_edges = config.ipa.num_blocks - 1
        self.blocks = nn.ModuleList(_Block(config, index < n_edges) for index in range(config.ipa.num_blocks))

    def forward(
        self, node: Tensor, edge: Tensor, rigids: Rigid, present: Tensor, update: Update, alpha: Tensor
    ) -> tuple[Tensor, Rigid]:
        """Last node embedding [B, N, c_s] and predicted clean frames [B, N].

        Parameters
        ----------
        node, edge
            Embeddings of `Embedder`.
        rigids
            Noised frames [B, N], translations in diffused units.
        present
            [B, N] bool; absent residues are neither attended to nor moved.
        update
            Scale and mask of the frame updates.
        alpha
            [B] contraction of the translations that are moved, applied after the first block has seen the noised
            frames: alpha x_t is the best guess of unit-variance data from x_t alone. It is about the point that the
            process contracts to: the centroid, or, in samples with residues that are present and not moved, the origin
            (see `SE3Diffuser.forward_marginal` for where that has to be).
        """
        first = node
        anchored = (present & (update.mask < 0.5)).any(-1)[:, None, None]
        for index, block in enumerate(self.blocks):
            node, edge, rigids = block(node, edge, first, rigids, present, update)
            if index == 0:
                centre = torch.where(anchored, 0.0, centroid(rigids.trans, present))
                share = (update.mask * (1 - alpha[:, None]))[..., None]
                rigids = Rigid(rigids.rots, rigids.trans - share * (rigids.trans - centre))
        return node, rigids


class _Block(nn.Module):
    def __init__(self, config: ScoreNetworkConfig, with_edges: bool) -> None:
        super().__init__()
        c_s, c_z, ipa = config.node_embed_size, config.edge_embed_size, config.ipa
        self.ipa = InvariantPointAttention(c_s, c_z, ipa)
        self.ipa_norm = nn.LayerNorm(c_s)
        self.skip = Linear(c_s, ipa.c_skip)
        width = c_s + ipa.c_skip
        self.transformer = nn.ModuleList(
            TransformerLayer(width, ipa.seq_tfmr_num_heads) for _ in range(ipa.seq_tfmr_num_layers)
        )
        self.post_transformer = Linear(width, c_s, closing=True)
        self.transition = StructureTransition(c_s)
        self.backbone_update = BackboneUpdate(c_s)
        self.edge_transition = EdgeTransition(c_s, c_z) if with_edges else None

    def forward(
        self, node: Tensor, edge: Tensor, first: Tensor, rigids: Rigid, present: Tensor, update: Update
    ) -> tuple[Tensor, Tensor, Rigid]:
        node = self.ipa_norm(node + self.ipa(node, edge, rigids, present))
        hidden = torch.cat([node, self.skip(first).to(node.dtype)], -1)
        for layer in self.transformer:
            hidden = layer(hidden, ~present)
        node = self.transition(node + self.post_transformer(hidden))
        rigids = self.backbone_update(node, rigids, update)
        if self.edge_transition is not None:
            edge = self.edge_transition(node, edge)
        return node, edge, rigids


class TransformerLayer(nn.Module):
    """Self-attention along the sequence and a feed-forward layer, each followed by normalisation; no dropout.

    Written out, because `nn.TransformerEncoderLayer` leaves its ordinary path in eval mode for one that has no
    forward-mode derivative and packs padded batches into nested tensors.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.last_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        """[B, N, width] of [B, N, width]; keys where the mask [B, N] (bool) is True are not attended to."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        # Where nothing is present the rows mean nothing, but must not be NaN.
        keep = ~src_key_padding_mask | src_key_padding_mask.all(-1, keepdim=True)
        attended = _attention(query, key, value, keep[:, None, None, :])
        x = self.norm(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.last_norm(x + self.feed_forward(x))


def _attention(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    arguments: dict[str, Any] = {"attn_mask": keep.expand(-1, 1, query.shape[-2], -1)}
    if forward_ad.unpack_dual(query).tangent is None:
        return nn.functional.scaled_dot_product_attention(query, key, value, **arguments)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
        return nn.functional.scaled_dot_product_attention(query, key, value, **arguments)


class StructureTransition(nn.Module):
    """Three linear layers on a residual, normalised (Jumper et al. 2021, SI algorithm 20, lines 8-9)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Linear(width, width), nn.SiLU(), Linear(width, width), nn.SiLU(), Linear(width, width, closing=True)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, node: Tensor) -> Tensor:
        """[..., width] of [..., width]."""
        return self.norm(node + self.layers(node))


class BackboneUpdate(nn.Module):
    """Moves frames by a rotation and a translation in their own axes (Jumper et al. 2021, SI algorithm 23).

    The rotation is the quaternion (1, v/2), normalised: angle 2 atan(|v|/2), smooth for every v.
    """

    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear = Linear(c_s, 6, closing=True)

    def forward(self, node: Tensor, rigids: Rigid, update: Update) -> Rigid:
        """Frames [B, N] moved by what node embeddings [B, N, c_s] say, within the scales and the mask of `update`."""
        raw = self.linear(node).to(rigids.trans.dtype)
        with torch.autocast(node.device.type, enabled=False):
            # Rotations never in bf16.
            raw = raw * update.mask[..., None]
            turn = 0.5 * update.rot[:, None, None] * raw[..., :3]
            quaternion = torch.cat([torch.ones_like(turn[..., :1]), turn], -1)
            shift = update.trans[:, None, None] * raw[..., 3:]
            return rigids.compose(Rigid(rotations.from_quaternion(quaternion), shift))


class EdgeTransition(nn.Module):
    """Edges from edges and their two nodes by a residual two-layer perceptron, normalised.

    norm(out(x + hidden(hidden(x)))) with x = [edge, node i, node j]. Layers that act on x are applied to its parts: the
    same function with a quarter less arithmetic and without the concatenated tensor [B, N, N, 3 c_z].
    """

    def __init__(self, c_s: int, c_z: int) -> None:
        super().__init__()
        self.reduce = Linear(c_s, c_z)
        self.first = Linear(3 * c_z, 3 * c_z)
        self.second = Linear(3 * c_z, 3 * c_z)
        self.out = Linear(3 * c_z, c_z)
        self.norm = nn.LayerNorm(c_z)

    def forward(self, node: Tensor, edge: Tensor) -> Tensor:
        """Edges [B, N, N, c_z] of nodes [B, N, c_s] and edges [B, N, N, c_z]."""
        node = self.reduce(node)
        hidden = nn.functional.silu(_on_parts(self.first, edge, node))
        hidden = nn.functional.silu(self.second(hidden))
        return self.norm(nn.functional.linear(hidden, self.out.weight) + _on_parts(self.out, edge, node))


def _on_parts(layer: Linear, edge: Tensor, node: Tensor) -> Tensor:
    """The layer on [edge, node i, node j]: [B, N, N, outputs]."""
    of_edge, of_query, of_key = layer.weight.chunk(3, -1)
    query = nn.functional.linear(node, of_query, layer.bias)
    key = nn.functional.linear(node, of_key)
    return nn.functional.linear(edge, of_edge) + (query[:, :, None] + key[:, None])
