"""A move of some of a model's torsions: the others are auxiliary, drawn from a(s), whose density is accounted for."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from openmm_diffusion import models
from openmm_diffusion.proposals import TorsionProposal
from openmm_diffusion.workflows.systems import alanine_dipeptide

CENTRE, WIDTH = 1.0, 0.8


class Uncorrected:
    """Control: a(s) is drawn from but left out of the densities."""

    def __init__(self, inner: Any) -> None:
        self.draw = inner.draw

    def log_density(self, tau: np.ndarray) -> np.ndarray:
        return np.zeros(len(tau))


@pytest.fixture(scope="module")
def proposal() -> TorsionProposal:
    """Moves phi of a random (phi, psi) network, whose card gives psi a narrow a(s)."""
    topology = alanine_dipeptide("vacuum").topology
    model = models.create("torsion", topology, seed=1)
    card = {"torsion_statistics": {"psi:ALA2": [CENTRE, WIDTH]}}
    return TorsionProposal(dataclasses.replace(model, card=card), topology, torsions=("phi",), pool_size=4096)


def candidate_integral(proposal: TorsionProposal) -> float:
    """z of mean(1 / q) over candidates against the integral of one over phi, 2 pi."""
    drawn = proposal.propose(alanine_dipeptide("vacuum").positions, 4000, np.random.default_rng(2))
    values = np.exp(-drawn.log_q[~drawn.invalid])
    return float((values.mean() - 2 * math.pi) / (values.std() / math.sqrt(len(values))))


def present_marginal(proposal: TorsionProposal, n: int = 600) -> float:
    """z of mean(q) of the present state over its auxiliary draws against the marginal of q, by quadrature."""
    x, rng = alanine_dipeptide("vacuum").positions, np.random.default_rng(3)
    values = np.exp([proposal.propose(x, 1, rng).log_q_present[0] for _ in range(n)])
    psi = -math.pi + (np.arange(400) + 0.5) * 2 * math.pi / 400
    phi = np.full_like(psi, proposal.torsions.get(x)[0])
    marginal = np.exp(proposal.log_density(np.stack([phi, psi], -1))).sum() * 2 * math.pi / 400
    return float((values.mean() - marginal) / (values.std() / math.sqrt(n)))


def test_densities_contain_the_auxiliary_ones(proposal: TorsionProposal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the ratio are densities of phi alone; with a(s) left out neither is."""
    z = candidate_integral(proposal), present_marginal(proposal)
    monkeypatch.setattr(proposal, "_auxiliary", Uncorrected(proposal._auxiliary))
    control = candidate_integral(proposal), present_marginal(proposal)
    print(f"z {z}, without a(s) {control}")
    assert max(map(abs, z)) < 4.0
    assert min(map(abs, control)) > 6.0


def test_auxiliary_density_is_normalised(proposal: TorsionProposal) -> None:
    """a(s) integrates to one, and its draws have its mean."""
    psi = -math.pi + (np.arange(2000) + 0.5) * 2 * math.pi / 2000
    auxiliary = proposal._auxiliary
    assert auxiliary is not None
    density = np.exp(auxiliary.log_density(np.stack([np.zeros_like(psi), psi], -1)))
    assert density.sum() * 2 * math.pi / 2000 == pytest.approx(1.0, abs=1e-9)
    rng = np.random.default_rng(4)
    draws = np.array([auxiliary.draw(rng)[1] for _ in range(4000)])
    mean = (density @ np.sin(psi)) * 2 * math.pi / 2000
    assert abs(np.sin(draws).mean() - mean) < 4 * np.sin(draws).std() / math.sqrt(4000)
