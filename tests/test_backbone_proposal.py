"""Independent proposals from frame models: candidates used once, states that survive, chains, subsets, bad input."""

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmmtools import cache as contexts
from openmmtools import mcmc, states
from peptides import build
from scipy import stats
from scipy.spatial.transform import Rotation
from tiny_network import TINY

from openmm_diffusion import models
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.errors import ModelError, MoleculeError, SettingError
from openmm_diffusion.mcmc import DiffusionMove
from openmm_diffusion.models import Model
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.molecule.load import LoadedMolecule
from openmm_diffusion.molecule.peptide import peptide
from openmm_diffusion.peptide import MoleculeDescription
from openmm_diffusion.proposals import BackboneProposal, Proposal
from openmm_diffusion.workflows.systems import alanine_dipeptide

READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}
QUICK: dict[str, Any] = {"n_diffusion_steps": 3, "pool_size": 16, "device": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def alanine() -> Any:
    return alanine_dipeptide("vacuum")


@cache
def tripeptide() -> LoadedMolecule:
    return peptide("ACE-ALA-GLY-NME")


def random_model(of: Any, seed: int = 0, **embed: Any) -> Model:
    conf = {**TINY, "embed": {**READING, **embed}}
    return models.create("se3", of, seed, model_conf=conf, se3_conf=SE3Config.acceptance(1 / 2.2).model_dump())


def proposal(seed: int = 0, **options: Any) -> BackboneProposal:
    topology = alanine().topology
    return BackboneProposal(random_model(topology, seed), topology, **{**QUICK, **options})


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_it_is_a_proposal() -> None:
    """Candidates keep every bond and all but the torsions; densities are float64, equal ones for the present state."""
    moves = proposal()
    assert isinstance(moves, Proposal)
    x = alanine().positions
    drawn = moves.propose(x, 5, rng())
    assert drawn.positions.shape == (5, *x.shape) and drawn.log_q.shape == drawn.invalid.shape == (5,)
    assert drawn.log_q.dtype == np.float64 and len(set(drawn.log_q_present)) == 1
    assert np.isfinite(drawn.log_q).all() and not drawn.invalid.any()
    assert len({tuple(row) for row in moves.torsions.get(drawn.positions)}) == 5
    bonds = moves.torsions.bonds
    for moved in drawn.positions:
        lengths = (np.linalg.norm(p[bonds[:, 0]] - p[bonds[:, 1]], axis=-1) for p in (x, moved))
        assert np.abs(np.subtract(*lengths)).max() < 1e-12


def test_each_candidate_is_used_once() -> None:
    """Over several pools no candidate comes twice, and a move of more candidates than a pool is served."""
    moves, random = proposal(pool_size=8), rng()
    drawn = [moves.propose(alanine().positions, n, random) for n in (3, 3, 3, 8, 20, 5)]
    log_q = np.concatenate([candidates.log_q for candidates in drawn])
    assert len(set(log_q)) == len(log_q) == 42


@pytest.mark.parametrize("density", ["path", "flow"])
def test_draws_are_one_for_each_generator(density: Any) -> None:
    """Equal seeds give the same candidates and scores, other seeds others; candidates know no present state."""
    x = alanine().positions
    one = proposal(density=density, n_diffusion_steps=2, pool_size=4)
    again = proposal(density=density, n_diffusion_steps=2, pool_size=4)
    first, second = one.propose(x, 3, rng(5)), again.propose(x, 3, rng(5))
    assert np.array_equal(first.log_q, second.log_q) and np.array_equal(first.positions, second.positions)
    assert np.array_equal(first.log_q_present, second.log_q_present)
    other = proposal(density=density, n_diffusion_steps=2, pool_size=4).propose(x, 3, rng(6))
    assert not np.isin(other.log_q, first.log_q).any()
    turned = one.torsions.turn(x, np.array([1.0, -0.7]))
    elsewhere = proposal(density=density, n_diffusion_steps=2, pool_size=4).propose(turned, 3, rng(5))
    assert np.array_equal(elsewhere.log_q, first.log_q)
    assert np.allclose(elsewhere.positions, first.positions, atol=1e-12)


def test_the_state_is_plain_and_comes_back() -> None:
    """to_state is JSON as it is, small, without weights and pool; from_state proposes the same, with a pool or not."""
    x, random = alanine().positions, rng()
    moves = proposal(torsions=("phi", "psi"), width=0.2)
    moves.propose(x, 3, random)
    text = json.dumps(moves.to_state())
    assert len(text) < 5000
    again = BackboneProposal.from_state(json.loads(text))
    assert again.to_state() == moves.to_state()
    fresh = proposal(torsions=("phi", "psi"), width=0.2)
    assert np.array_equal(again.propose(x, 4, rng(2)).log_q, fresh.propose(x, 4, rng(2)).log_q)
    later = BackboneProposal.from_state(json.loads(text))
    later.import_pool(moves.export_pool())
    seeds = rng(7), rng(7)
    for _ in range(8):  # past the end of the pool
        pair = [p.propose(x, 3, seed) for p, seed in zip((moves, later), seeds, strict=True)]
        assert np.array_equal(pair[0].positions, pair[1].positions)
        assert np.array_equal(pair[0].log_q, pair[1].log_q)


@pytest.mark.filterwarnings("ignore:invalid value encountered in remainder")
def test_present_states_without_a_density_are_unscorable() -> None:
    """NaN torsions score -inf, which rejects; they raise nothing and leave the others of a batch alone."""
    tau = np.array([[0.3, 1.0], [np.nan, 1.0], [-2.0, np.inf]])
    log_q = proposal().log_density(tau, rng())
    assert np.isfinite(log_q[0]) and np.isneginf(log_q[1:]).all()


def test_broken_candidates_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network gives NaN or infinite scores, candidates are invalid: structures still, weight zero."""
    honest = ScoreNetwork.denoise

    def broken(self: ScoreNetwork, noised: Any, batch: Any) -> Any:
        output = honest(self, noised, batch)
        rot, trans = output.rot_score.clone(), output.trans_score.clone()
        rot[::3] = torch.nan
        trans[1::3] = torch.inf
        return dataclasses.replace(output, rot_score=rot, trans_score=trans)

    monkeypatch.setattr(ScoreNetwork, "denoise", broken)
    drawn = proposal(pool_size=9).propose(alanine().positions, 9, rng())
    assert drawn.invalid.sum() == 6 and np.isfinite(drawn.positions).all()
    assert np.isneginf(drawn.log_q[drawn.invalid]).all() and np.isfinite(drawn.log_q[~drawn.invalid]).all()
    move = DiffusionMove(random_model(alanine().topology), alanine().topology, 9, 1, **{**QUICK, "pool_size": 9})
    state = states.ThermodynamicState(alanine().system, 300 * unit.kelvin)
    move.apply(state, states.SamplerState(alanine().positions * unit.nanometer), reference())
    assert move.n_proposed == 1 and move.n_invalid >= 6


def test_two_chains_are_drawn_independently(tmp_path: Path) -> None:
    """Two chains of other lengths have candidates each; the density of both is the sum of those of one at a time."""
    both = build(tmp_path, "ACE-ALA-NME", "ACE-GLY-ALA-NME")
    model = random_model(both.topology)
    moves = BackboneProposal(model, both.topology, **{**QUICK, "pool_size": 1500})
    assert len(moves.torsions) == 6
    drawn = moves.propose(both.positions, 1500, rng())
    tau = moves.torsions.get(drawn.positions)
    first, second = tau[:, :2], tau[:, 2:]
    together = np.corrcoef(np.column_stack([np.cos(first), np.cos(second)]).T)[:2, 2:]
    assert np.abs(together).max() < 5 / math.sqrt(1500)
    torsions = np.repeat(tau[:1], 200, 0)
    apart = torsions.copy()
    apart[:, 2:] = tau[1, 2:]
    same_first = [
        chain.score(torch.as_tensor(t), torch.Generator().manual_seed(3))
        for t in (torsions, apart)
        for chain in moves._chains[:1]
    ]
    assert torch.equal(same_first[0], same_first[1]), "the score of one chain depends on the other's torsions"


@pytest.mark.parametrize(
    ("kinds", "labels"), [(("phi",), ["phi:ALA2"]), (("psi", "omega"), ["omega:ACE1", "psi:ALA2"])]
)
def test_subsets_of_torsions(kinds: tuple[str, ...], labels: list[str]) -> None:
    """Only the torsions asked for are set; the others are stiff, and not one of them moves."""
    moves = proposal(torsions=kinds)
    assert set(labels) <= set(moves.torsions.labels)
    everything = proposal(torsions=("phi", "psi", "omega")).torsions
    x = alanine().positions
    change = everything.get(moves.propose(x, 6, rng()).positions) - everything.get(x)
    for column, label in enumerate(everything.labels):
        moved = np.abs(np.exp(1j * change[:, column]) - 1).max()
        assert (moved > 0.05) == (label in moves.torsions.labels), label
        assert label in moves.torsions.labels or moved < 1e-10


def test_omega_is_soft_where_it_moves() -> None:
    """With omega moved it is no part of a(s), and candidates turn it: torsions of candidates are what was drawn."""
    moves = proposal(torsions=("phi", "psi", "omega"))
    assert len(moves.torsions) == 4
    tau, _ = moves.draw(200, rng())
    omega = [k for k, kind in enumerate(moves.torsions.kinds) if kind == "omega"]
    assert np.abs(tau[:, omega]).std() > 0.1
    soft = moves._chains[0].stiff.soft
    assert int(soft.sum()) == 4 and bool(soft[:, 3].all())


def test_scores_do_not_depend_on_the_pose() -> None:
    """The present state scores alike, in distribution, however the whole molecule stands; a turned torsion does not."""
    moves, x = proposal(n_diffusion_steps=2), alanine().positions
    turned = Rotation.from_rotvec([0.4, 2.0, -1.0]).apply(x) + 3.0
    tau = moves.torsions.get(np.stack([x, turned]))
    assert np.abs(tau[0] - tau[1]).max() < 1e-9
    first, second = (moves.log_density(np.repeat(t[None], 1500, 0), rng(seed)) for seed, t in enumerate(tau))
    assert stats.ks_2samp(first, second).pvalue > 1e-3
    # The frames' own global rotation is drawn from Haar measure, so that the network need not be equivariant.
    chain = moves._chains[0]
    links = chain.stiff.draw(chain.chain.links(torch.as_tensor(tau[:1])).expand(2000, -1, -1), torch.Generator())
    quats = chain.stiff.frames(links, torch.Generator().manual_seed(1))[:, 0, :4].numpy()
    assert np.abs((quats**2).mean(0) - 0.25).max() < 5 / 4 / math.sqrt(2000)


@cache
def reference() -> Any:
    return contexts.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))


@pytest.mark.parametrize("density", ["path", "flow"])
def test_runs_in_a_sampler_of_openmmtools(density: str) -> None:
    """DiffusionMove with an SE(3) model goes where a LangevinDynamicsMove goes, and counts its moves."""
    options = {**QUICK, "n_diffusion_steps": 2, "density": density, "context_cache": reference()}
    move = DiffusionMove(random_model(alanine().topology), alanine().topology, 4, 3, **options)
    langevin = mcmc.LangevinDynamicsMove(1 * unit.femtosecond, n_steps=5, context_cache=reference())
    sampler = mcmc.MCMCSampler(
        states.ThermodynamicState(alanine().system, 300 * unit.kelvin),
        states.SamplerState(alanine().positions * unit.nanometer),
        mcmc.SequenceMove([move, langevin]),
    )
    sampler.run(3)
    done = sampler.move.move_list[0]
    assert done.n_proposed == 3 and done.last is not None and math.isfinite(done.last.log_q_present)


def without(molecule: Any, name: str, residue: str) -> Any:
    modeller = openmm.app.Modeller(molecule.topology, molecule.positions * unit.nanometer)
    modeller.delete([a for a in modeller.topology.atoms() if a.name == name and a.residue.name == residue])
    return modeller.topology


def test_other_molecules_are_refused() -> None:
    """Other residues, other caps, a longer chain, and a missing atom: one sentence each, with both names."""
    topology = alanine().topology
    for sequence in (("ACE", "GLY", "NME"), ("ACE", "ALA", "NH2"), ("ACE", "ALA"), ("ALA",)):
        model = random_model(MoleculeDescription((sequence,)))
        with pytest.raises(ModelError, match=f"{'-'.join(sequence)}, the topology holds ACE-ALA-NME.*caps"):
            BackboneProposal(model, topology, **QUICK)
    with pytest.raises(ModelError, match="ACE-ALA-NME, the topology holds ACE-ALA-GLY-NME"):
        BackboneProposal(random_model(topology), tripeptide().topology, **QUICK)
    cut = without(tripeptide(), "CA", "GLY")
    with pytest.raises(MoleculeError, match=r"GLY3 has no atom CA; expected N, CA and C"):
        BackboneProposal(random_model(tripeptide().topology), cut, **QUICK)
    with pytest.raises(MoleculeError, match=r"NME3 .*has no atom H; expected N, CH3, H"):
        BackboneProposal(random_model(topology), without(alanine(), "H", "NME"), **QUICK)


def test_models_that_cannot_serve_are_refused() -> None:
    """A torsion model and one that reads its own predictions raise one sentence with the remedy."""
    topology = alanine().topology
    with pytest.raises(ModelError, match="kind 'torsion'; expected 'se3'"):
        BackboneProposal(models.create("torsion", topology), topology, **QUICK)
    with pytest.raises(SettingError, match=r"embed_self_conditioning.*preset acceptance"):
        BackboneProposal(random_model(topology, embed_self_conditioning=True), topology, **QUICK)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pool_size": 0}, "pool_size is 0; expected at least 1"),
        ({"n_diffusion_steps": 1}, "n_diffusion_steps is 1; expected at least 2"),
        ({"max_t": 1.5}, "expected 0 < min_t < max_t <= 1"),
        ({"max_t": 1e-4}, "expected 0 < min_t < max_t <= 1"),
        ({"width": 0.0}, "width of stiff links is 0.0; expected"),
        ({"width": 3.0}, "width of stiff links is 3.0; expected"),
        ({"density": "exact"}, "density is 'exact'; expected 'path' or 'flow'"),
        ({"device": "teapot"}, "device 'teapot' is not available"),
        ({"torsions": ("chi",)}, "chi"),
        ({"torsions": ()}, "torsion"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    """Every setting out of its range is one sentence: the value, what was expected."""
    with pytest.raises((SettingError, MoleculeError, ModelError), match=sentence):
        proposal(**options)
