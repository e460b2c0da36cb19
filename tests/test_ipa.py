"""Invariant point attention: the value and the derivatives of the slow twin, at a fraction of its memory."""

import pytest
import torch
from slow_ipa import plain_ipa
from torch import Tensor

from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.ipa import InvariantPointAttention, Linear
from openmm_diffusion.models.se3_config import IpaConfig

B, N, C_S, C_Z = 2, 9, 24, 16
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def attention(dtype: torch.dtype = torch.float64) -> InvariantPointAttention:
    layer = InvariantPointAttention(C_S, C_Z, IpaConfig(no_heads=3, c_hidden=8))
    generator = torch.Generator().manual_seed(3)
    for module in layer.modules():
        if isinstance(module, Linear):
            module.initialise(generator, zero=False)
    with torch.no_grad():
        layer.head_weights.normal_(generator=generator)
    return layer.to(dtype)


def inputs(dtype: torch.dtype = torch.float64, n: int = N) -> tuple[Tensor, Tensor, Rigid, Tensor]:
    g = torch.Generator().manual_seed(4)
    node = torch.randn(B, n, C_S, generator=g, dtype=torch.float64).to(dtype)
    edge = torch.randn(B, n, n, C_Z, generator=g, dtype=torch.float64).to(dtype)
    rigids = Rigid(rotations.haar((B, n), g), torch.randn(B, n, 3, generator=g, dtype=torch.float64)).to(dtype)
    present = torch.ones(B, n, dtype=torch.bool)
    present[1, n - 3 :] = False
    return node, edge, rigids, present


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_slow_twin(dtype: torch.dtype) -> None:
    """Values equal those with displacement tensors to 1e-5 in float32 and 1e-10 in float64, absent keys included."""
    layer, given = attention(dtype), inputs(dtype)
    torch.testing.assert_close(layer(*given), plain_ipa(layer, *given), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_gradients_equal_the_slow_twins() -> None:
    """So do the gradients with respect to weights, embeddings, rotations and translations (float64, 1e-10)."""
    layer, (node, edge, rigids, present) = attention(), inputs()
    leaves = [node, edge, rigids.rots, rigids.trans]
    for leaf in leaves:
        leaf.requires_grad_()
    parameters = [*leaves, *layer.parameters()]
    probe = torch.randn(B, N, C_S, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours = torch.autograd.grad((layer(node, edge, rigids, present) * probe).sum(), parameters)
    plain = torch.autograd.grad((plain_ipa(layer, node, edge, rigids, present) * probe).sum(), parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_far_from_the_origin_float32_still_holds() -> None:
    """Points are centred first: 1000 units away, |q|^2 + |k|^2 - 2 q.k loses no more than the input's own rounding.

    Without centring the error of the squares alone would be 1e6 * 6e-8 = 0.06 a point.
    """
    layer, (node, edge, rigids, present) = attention(torch.float32), inputs(torch.float32)
    away = rigids.map_trans(lambda x: x + 1000.0)
    back = away.map_trans(lambda x: x - 1000.0)  # the rounding of the input
    torch.testing.assert_close(layer(node, edge, away, present), layer(node, edge, back, present), rtol=1e-4, atol=1e-4)


def test_invariant_to_a_global_motion() -> None:
    """Rotating and moving all frames changes nothing (1e-10); moving one frame does."""
    layer, (node, edge, rigids, present) = attention(), inputs()
    g = torch.Generator().manual_seed(6)
    motion = Rigid(rotations.haar((1, 1), g), torch.randn(1, 1, 3, generator=g, dtype=torch.float64))
    reference = layer(node, edge, rigids, present)
    torch.testing.assert_close(layer(node, edge, motion.compose(rigids), present), reference, rtol=1e-9, atol=1e-10)
    trans = rigids.trans.clone()
    trans[0, 2, 0] += 0.5
    changed = layer(node, edge, Rigid(rigids.rots, trans), present)
    assert float((changed - reference)[0].detach().abs().min()) > 1e-7


def test_stores_nothing_of_the_size_of_displacements() -> None:
    """The largest tensor kept for the backward pass is N^2 by max(c_z, heads), not N^2 by heads, points, and axes."""
    n = 24
    layer, given = attention(torch.float32), inputs(torch.float32, n)
    assert largest_saved(lambda: layer(*given)) <= B * n * n * max(C_Z, layer.n_heads + layer.c_pair)
    assert largest_saved(lambda: plain_ipa(layer, *given)) == B * n * n * layer.n_heads * layer.n_qk * 3


def largest_saved(function) -> int:
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return max(sizes)


def test_without_any_residue_nothing_is_nan() -> None:
    """A batch element whose residues are all absent gives finite numbers."""
    layer, (node, edge, rigids, present) = attention(), inputs()
    present[0] = False
    assert bool(torch.isfinite(layer(node, edge, rigids, present)).all())
