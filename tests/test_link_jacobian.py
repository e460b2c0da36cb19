"""The derivative of links with respect to frames, in closed form, against automatic differentiation."""

import pytest
import torch
from torch import Tensor

from openmm_diffusion.diffusion.stiff_links import StiffLinks
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.link_jacobian import link_jacobian
from openmm_diffusion.geometry.links import links_from_frames
from openmm_diffusion.geometry.rigid import Rigid

CHAINS = [
    ("ALA", "GLY"),
    ("ACE", "ALA", "NME"),
    ("ACE", "GLY", "NH2"),
    ("ACE", "ALA", "PRO", "GLY", "TRP", "SER", "NME"),
]


def frames_of(names: tuple[str, ...], width: float, n: int = 8, seed: int = 0) -> tuple[StiffLinks, Rigid]:
    """n chains with links drawn from a(s), psi and phi uniform."""
    generator = torch.Generator().manual_seed(seed)
    stiff = StiffLinks.of(names, width=width)
    links = 6.28 * torch.rand(n, len(names) - 1, 6, generator=generator, dtype=torch.float64) - 3.14
    return stiff, Rigid.from_tensor_7(stiff.frames(stiff.draw(links, generator), generator))


def by_autograd(stiff: StiffLinks, frames: Rigid) -> Tensor:
    """d links [n, N-1, 6] / d (rotation vector, translation) of all frames: [n, N-1, 6, N, 6]."""

    def links(step: Tensor) -> Tensor:
        moved = Rigid(frames.rots @ rotations.exp(step[..., :3]), frames.trans + step[..., 3:])
        return links_from_frames(moved, stiff.geometry).sum(0)

    n = frames.shape[-1]
    derivative = torch.autograd.functional.jacobian(links, torch.zeros(*frames.shape, 6, dtype=torch.float64))
    return derivative.permute(2, 0, 1, 3, 4).reshape(-1, n - 1, 6, n, 6)


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
@pytest.mark.parametrize("width", [0.05, 0.5])
def test_derivative_is_that_of_autograd(names: tuple[str, ...], width: float) -> None:
    """Both blocks of every link agree to 1e-8 relative to their size; no link depends on any other frame."""
    stiff, frames = frames_of(names, width)
    expected = by_autograd(stiff, frames)
    first, second = link_jacobian(frames, stiff.geometry)
    k = torch.arange(len(names) - 1)
    found = torch.zeros_like(expected)
    found[:, k, :, k] = first.transpose(0, 1)
    found[:, k, :, k + 1] = second.transpose(0, 1)
    scale = expected.abs().amax((-1, -2, -3), keepdim=True)
    assert float(((found - expected) / scale).abs().max()) < 1e-8
    # Control: derivatives in the axes of the other frame, or with the frames exchanged, are far off.
    assert float(((found.flip(3) - expected) / scale).abs().max()) > 0.1
    turned = link_jacobian(Rigid(frames.rots.mT, frames.trans), stiff.geometry)[0]
    assert float((turned - first).abs().max()) > 0.1


def test_common_motions_change_no_link() -> None:
    """A common shift, and a common rotation about the origin, are in the kernel of the derivative."""
    stiff, frames = frames_of(("ACE", "ALA", "VAL", "NME"), 0.2)
    first, second = link_jacobian(frames, stiff.geometry)
    shift = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)
    change = first[..., 3:] @ shift + second[..., 3:] @ shift
    assert float(change.abs().max()) < 1e-10
    omega = torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64)
    step = torch.cat([frames.rots.mT @ omega, torch.linalg.cross(omega.expand_as(frames.trans), frames.trans)], -1)
    change = first @ step[:, :-1, :, None] + second @ step[:, 1:, :, None]
    assert float(change.abs().max()) < 1e-10
    only_turned = first[..., :3] @ step[:, :-1, :3, None] + second[..., :3] @ step[:, 1:, :3, None]
    assert float(only_turned.abs().max()) > 0.1, "the control: rotating each frame where it stands changes links"


def test_singular_links_are_not_finite_and_leave_others_alone() -> None:
    """A straight angle has no derivative: infinite or NaN there, the other chains and links stay as they are."""
    stiff, frames = frames_of(("ALA", "ALA", "ALA"), 0.1)
    links = stiff.links(frames.to_tensor_7())
    links[0, 0, 4] = torch.pi
    generator = torch.Generator().manual_seed(1)
    bent = Rigid.from_tensor_7(stiff.frames(links, generator))
    first, second = link_jacobian(bent, stiff.geometry)
    size = torch.cat([first, second], -1).abs().amax((-1, -2))
    assert not bool(torch.isfinite(size[0, 0])) or float(size[0, 0]) > 1e6
    assert bool(torch.isfinite(size[1:]).all()) and float(size[1:].max()) < 1e3 and float(size[0, 1]) < 1e3
