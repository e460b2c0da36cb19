"""The terms of the stiff links in the acceptance of `BackboneProposal` and `LocalProposal` themselves.

In a molecule they are nearly invisible, so the frames of the network are replaced by those of `two_frames`, where the
stiff links follow the torsion: chains from exact draws then drift by many sigma where one of the terms is left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from two_frames import TwoFrames

from openmm_diffusion import models
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.links import log_volume
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.molecule import peptide
from openmm_diffusion.proposals import BackboneProposal, LocalProposal
from openmm_diffusion.proposals.chain_density import ChainDensity
from openmm_diffusion.proposals.local_chain import LocalChain
from openmm_diffusion.sampling.path import PathSample, SE3Path
from openmm_diffusion.workflows import se3_exactness
from openmm_diffusion.workflows.exactness import ExactnessResult, compare, von_mises
from openmm_diffusion.workflows.many_chains import IndependentMoves, LocalMoves, run_many

WIDTH = 0.5
N_CHAINS, N_MOVES = 6000, 10


class MadeUpPath(SE3Path):
    """Draws and scores the made-up frames; noise for local moves is drawn afresh, whatever the present frames are."""

    n_steps = 1

    def __init__(self) -> None:
        self.model = TwoFrames(0)

    def sample(self, n: int, generator: torch.Generator) -> PathSample:
        rigids = self.model.propose(n, generator)
        return PathSample(rigids, self.model.log_q(rigids))

    def score(self, rigids: Tensor, generator: torch.Generator) -> Tensor:
        return self.model.log_q(rigids)

    def walk(self, frames: Rigid, level: int, generator: torch.Generator) -> tuple[Rigid, Tensor]:
        noise = rotations.haar(tuple(frames.shape), generator)
        rots, trans = torch.stack([frames.rots, noise]), torch.stack([frames.trans, torch.zeros_like(frames.trans)])
        return Rigid(rots, trans), torch.zeros(1, frames.shape[0], 0)

    def log_ratio(self, walk: Rigid, steps: Tensor) -> Tensor:
        return self.model.log_q(walk[0].to_tensor_7())

    def descend(
        self, frames: Rigid, level: int, generator: torch.Generator, walk: Rigid | None = None
    ) -> tuple[Rigid, Tensor]:
        sample = self.sample(frames.shape[0], generator)
        return Rigid.from_tensor_7(sample.rigids), sample.log_q


def chains(local: bool, n_candidates: int) -> ExactnessResult:
    """Chains from exact draws of a density of (psi, phi), moved by a proposal with the made-up frames."""
    molecule = peptide("ALA-ALA")
    model = models.create("se3", molecule.topology, 0, **se3_exactness._RANDOM)
    moves: Any
    if local:
        near = LocalProposal(model, molecule.topology, torsions=("phi", "psi"), t_star=0.1, width=WIDTH, device="cpu")
        near._chains[0].path = lambda mask: MadeUpPath()  # type: ignore[method-assign]
        moves = LocalMoves(near)
    else:
        far = BackboneProposal(
            model, molecule.topology, torsions=("phi", "psi"), width=WIDTH, background=False, device="cpu"
        )
        far._chains[0].frames = MadeUpPath()
        moves = IndependentMoves(far, molecule.positions)
    target = von_mises([(1.0, 1.0), (-1.0, 0.5)], ("psi", "phi"))
    rng = np.random.default_rng(8)
    ends = run_many(target.reduced_potential, moves, target.draw(N_CHAINS, rng), N_MOVES, n_candidates, rng)
    sd = float(ends.log_q.std())
    return compare(target, ends.tau, ends.n_moves, ends.n_accepted, ends.n_invalid, sd)


def without_volume(self: Any, links: Tensor) -> Tensor:
    return -stiff(self).log_density(links)


def without_a(self: Any, links: Tensor) -> Tensor:
    return log_volume(links)


def stiff(chain: Any) -> Any:
    return chain.stiff if isinstance(chain, ChainDensity) else chain._stiff


@pytest.mark.parametrize("n_candidates", [1, 4])
@pytest.mark.parametrize("local", [False, True], ids=["independent", "local"])
def test_moves_with_stiff_links_that_follow_the_torsion_are_exact(local: bool, n_candidates: int) -> None:
    """The proposals' own terms leave the target unchanged, with one candidate and with several."""
    result = chains(local, n_candidates)
    print(result)
    assert result.is_informative and result.is_exact()


@pytest.mark.parametrize("spoiled", [without_volume, without_a])
@pytest.mark.parametrize("local", [False, True], ids=["independent", "local"])
def test_moves_need_the_terms_of_the_stiff_links(
    local: bool, spoiled: Callable[[Any, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without the volume element, or without a(s), in the very code, the chains are off by over 6 sigma."""
    monkeypatch.setattr(LocalChain if local else ChainDensity, "_auxiliary", spoiled)
    result = chains(local, 1)
    print(f"{spoiled.__name__}: {result.sigma:.1f} sigma")
    assert result.n_accepted >= 500
    assert result.sigma > 6
