"""Local moves: exact for any network, number of levels and mask, with one candidate and eight; t_star is the step."""

import itertools
import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from openmm import unit
from openmmtools import states
from scipy import stats
from tiny_network import TINY

from openmm_diffusion import models
from openmm_diffusion.data.crops import balls
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.diffusion.stiff_links import StiffLinks
from openmm_diffusion.errors import ModelError, SettingError
from openmm_diffusion.geometry.link_jacobian import link_jacobian
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.mcmc import DiffusionMove
from openmm_diffusion.models import Model
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.molecule.load import LoadedMolecule
from openmm_diffusion.molecule.peptide import peptide
from openmm_diffusion.proposals import BackboneProposal, LocalProposal, Proposal
from openmm_diffusion.proposals.backbone import DEFAULTS
from openmm_diffusion.sampling.path import SE3Path
from openmm_diffusion.sampling.windows import FreeCoordinates, contiguous_windows
from openmm_diffusion.units import wrap
from openmm_diffusion.workflows.systems import alanine_dipeptide

READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}
CONF = {**TINY, "embed": READING}
NAMES = ("ACE", "ALA", "ALA", "ALA", "NME")
BINS = 60


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def topology() -> Any:
    return alanine_dipeptide("vacuum").topology


@cache
def tripeptide() -> LoadedMolecule:
    return peptide("-".join(NAMES))


def random_model(of: Any, seed: int = 3) -> Model:
    """An untrained network with no zero in its last layers: scores of rotations depend on everything."""
    model = models.create("se3", of, seed, model_conf=CONF, se3_conf=SE3Config.acceptance(1 / 2.2).model_dump())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@cache
def dipeptide_model() -> Model:
    return random_model(topology())


@cache
def tripeptide_model() -> Model:
    return random_model(tripeptide().topology)


def proposal(**options: Any) -> LocalProposal:
    settings = {"t_star": 0.012, "n_diffusion_steps": 3, "width": 0.5, "device": "cpu", **options}
    return LocalProposal(dipeptide_model(), topology(), **settings)


def log_target(tau: np.ndarray) -> np.ndarray:
    """A correlated density of (phi, psi) with a narrow and a wide mode, up to a constant."""
    phi, psi = tau[..., 0], tau[..., 1]
    first = 3.0 * np.cos(phi + 1.2) + 3.0 * np.cos(psi - 0.5) + 1.5 * np.cos(phi - psi)
    return np.logaddexp(first, 4.0 * np.cos(phi - 1.0) + 2.0 * np.cos(psi + 2.0))


@cache
def cells() -> tuple[np.ndarray, np.ndarray]:
    """Centres [BINS^2, 2] and probabilities of a fine grid."""
    centres = -math.pi + (np.arange(BINS) + 0.5) * 2 * math.pi / BINS
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    p = np.exp(log_target(points))
    return points, p / p.sum()


def exact_draws(n: int, rng: np.random.Generator) -> np.ndarray:
    """Independent draws [n, 2] by rejection."""
    top = log_target(cells()[0]).max() + 0.1
    tau = rng.uniform(-np.pi, np.pi, (400 * n, 2))
    return tau[np.log(rng.random(len(tau))) < log_target(tau) - top][:n]


def run_chains(
    local: LocalProposal, n_chains: int, n_moves: int, n_candidates: int, keep_present: bool = True
) -> tuple[np.ndarray, float]:
    """Ends of chains from exact draws, and the fraction accepted; multiple-try as in DESIGN 2.2.

    Without the present state's path term a constant stands for it: the candidates' mean, since for others everything
    would be rejected and nothing seen.
    """
    rng = np.random.default_rng(5)
    tau, accepted = exact_draws(n_chains, rng), 0
    assert len(tau) == n_chains
    for _ in range(n_moves):
        new, log_q, log_q_present = local.move(tau, n_candidates, rng)
        if not keep_present:
            log_q_present = np.full(n_chains, log_q.mean())
        log_w, present = log_target(new) - log_q, log_target(tau) - log_q_present
        total = np.logaddexp.reduce(log_w, 1)
        share = np.exp(log_w - total[:, None]).cumsum(1)
        chosen = (share < rng.random(n_chains)[:, None]).sum(1).clip(max=n_candidates - 1)
        rest = np.where(np.arange(n_candidates) == chosen[:, None], -np.inf, log_w)
        log_alpha = total - np.logaddexp(np.logaddexp.reduce(rest, 1), present)
        accept = np.log(rng.random(n_chains)) < log_alpha
        tau = np.where(accept[:, None], new[np.arange(n_chains), chosen], tau)
        accepted += accept.sum()
    return tau, float(accepted / (n_chains * n_moves))


def deviation(tau: np.ndarray) -> tuple[float, float]:
    """The largest |z| of the moments of both torsions, and the p value of chi-squared on 10 x 10 cells."""
    points, p = cells()
    worst = 0.0
    for function in (np.cos, np.sin):
        values, found = function(points), function(tau)
        mean = p @ values
        worst = max(worst, float(np.abs((found.mean(0) - mean) / np.sqrt((p @ values**2 - mean**2) / len(tau))).max()))
    expected = p.reshape(10, BINS // 10, 10, BINS // 10).sum((1, 3)).ravel() * len(tau)
    edges = np.linspace(-np.pi, np.pi, 11)
    observed = np.histogram2d(*wrap(tau).T, bins=[edges, edges])[0].ravel()
    rare = expected < 5
    e, o = np.append(expected[~rare], expected[rare].sum()), np.append(observed[~rare], observed[rare].sum())
    return worst, float(stats.chi2.sf(((o - e) ** 2 / e).sum(), len(e) - 1))


def check(n_candidates: int, options: dict[str, Any], n_chains: int, n_moves: int) -> None:
    """Chains from exact draws stay there; without the present state's path term they are more than 6 sigma off."""
    local = proposal(**options)
    tau, accepted = run_chains(local, n_chains, n_moves, n_candidates)
    worst, p = deviation(tau)
    spoiled, _ = run_chains(local, n_chains, n_moves, n_candidates, keep_present=False)
    control, _ = deviation(spoiled)
    print(f"\n{n_candidates} {options}: accepted {accepted:.2f}, z {worst:.1f}, p {p:.2g}; control {control:.1f}")
    assert accepted * n_moves > 0.4
    assert worst < 4
    assert p > 1e-4
    assert control > 6


@pytest.mark.parametrize(
    ("n_candidates", "options", "n_chains", "n_moves"),
    [
        (1, {"t_star": 0.009}, 800, 4),
        (8, {"t_star": 0.02, "n_diffusion_steps": 2}, 500, 4),
        (1, {"window": 2}, 800, 4),
        (8, {"t_star": 0.025, "n_diffusion_steps": 2, "window": 2}, 500, 4),
    ],
)
def test_local_moves_leave_the_target_unchanged(
    n_candidates: int, options: dict[str, Any], n_chains: int, n_moves: int
) -> None:
    """A random network, wide a(s), three levels: the distribution of exact draws is kept, whole or by windows."""
    check(n_candidates, options, n_chains, n_moves)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options", [{}, {"window": 1, "t_star": 0.03}, {"window": 2}, {"window": 2, "n_diffusion_steps": 2}]
)
@pytest.mark.parametrize("n_candidates", [1, 8])
@pytest.mark.parametrize("reads_fixed", [False, True])
def test_many_local_moves(
    n_candidates: int, options: dict[str, Any], reads_fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for 12 000 moves, whether the network sees the fixed residues clean or noised."""
    monkeypatch.setitem(dipeptide_model().card, "acceptance", {"reads_fixed": reads_fixed})
    check(n_candidates, options, 2000, 6)


def test_step_grows_with_t_star() -> None:
    """The median change of a torsion grows with t_star, from degrees to a full turn."""
    tau = np.random.default_rng(0).uniform(-np.pi, np.pi, (100, 2))
    steps = []
    for t_star in (0.002, 0.01, 0.05, 0.5):
        new = proposal(t_star=t_star).move(tau, 2, np.random.default_rng(1))[0]
        steps.append(float(np.degrees(np.median(np.abs(wrap(new - tau[:, None]))))))
    print(f"\nmedian |displacement|: {np.round(steps, 1)} degrees")
    assert steps[0] < 10 < 60 < steps[-1]
    assert all(b > 1.3 * a for a, b in itertools.pairwise(steps))


def path_of(free: torch.Tensor, dtype: torch.dtype, reads_fixed: bool = False) -> SE3Path:
    network = tripeptide_model().network
    assert isinstance(network, ScoreNetwork)
    copy = ScoreNetwork(network.config, network.diffuser)
    copy.load_state_dict(network.state_dict())
    copy = copy.to(dtype).eval()
    stiff = StiffLinks.of(NAMES, width=0.3)
    return SE3Path(copy, stiff, n_steps=4, max_t=0.05, free=free, reads_fixed=reads_fixed)


def start(n: int) -> Rigid:
    stiff, generator = StiffLinks.of(NAMES, width=0.1), torch.Generator().manual_seed(2)
    links = stiff.draw(torch.zeros(n, len(NAMES) - 1, 6), generator)
    return Rigid.from_tensor_7(stiff.frames(links, generator))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-2)])
@pytest.mark.parametrize("window", [(0, 1, 2, 3, 4), (1, 2), (4,)])
@pytest.mark.parametrize("reads_fixed", [False, True])
def test_a_path_has_one_density_both_ways(
    window: tuple[int, ...], reads_fixed: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log p - log f along the way down is that of the same walk scored on the way up; fixed frames never move."""
    free = torch.tensor([i in window for i in range(5)])
    path, generator = path_of(free, dtype, reads_fixed), torch.Generator().manual_seed(7)
    walk, _ = path.walk(start(3), 4, generator)
    record: list[torch.Tensor] = []
    moved = FreeCoordinates.moved

    def recorded(self: FreeCoordinates, frames: Rigid, step: torch.Tensor) -> Rigid:
        record.append(step)
        return moved(self, frames, step)

    monkeypatch.setattr(FreeCoordinates, "moved", recorded)
    whole = bool(free.all())
    clean, down = path.descend(walk[-1], 4, generator, None if whole else walk)
    steps = -torch.stack(record[::-1])
    again = path._moving.walked(clean, steps)
    if not whole:
        again = path._with_flank(again, walk)
    torch.testing.assert_close(again[-1].trans, walk[-1].trans, rtol=0, atol=1e-9)
    torch.testing.assert_close(again[-1].rots, walk[-1].rots, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.log_ratio(again, steps), down, rtol=0, atol=tolerance)
    assert torch.equal(clean.trans[:, ~free], walk.trans[0][:, ~free])
    assert not torch.allclose(clean.trans[:, free], walk.trans[0][:, free])
    if whole:
        torch.testing.assert_close(clean.trans.sum(1), torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_guess_of_fixed_frames_is_corrected_to_first_order() -> None:
    """What the kernel adds where the network missed the fixed frames is how links change when they are set right."""
    free = torch.tensor([False, True, True, False, False])
    kernel = path_of(free, torch.float64)._kernel
    guess, stiff = start(4), StiffLinks.of(NAMES)
    fixed, generator = FreeCoordinates.of(~free), torch.Generator().manual_seed(1)
    steps = torch.randn(4, fixed.size, generator=generator, dtype=torch.float64)
    missed = []
    for scale in (1e-4, 1e-5):
        clean = fixed.moved(guess, scale * steps)
        linear = kernel._missed(guess, clean, *link_jacobian(guess, stiff.geometry))
        change = (stiff.links(clean.to_tensor_7()) - stiff.links(guess.to_tensor_7()))[:, :3].flatten(1)
        missed.append(float((wrap(change.numpy()) - linear.numpy()).__abs__().max() / scale))
    assert missed[0] < 1e-2
    assert missed[1] < 0.2 * missed[0]


def test_windows_leave_other_torsions_alone() -> None:
    """A window of one residue changes the two torsions beside it (one at the chain's ends) and no other bit."""
    model, molecule = tripeptide_model(), tripeptide()
    local = LocalProposal(model, molecule.topology, t_star=0.05, window=1, n_diffusion_steps=2, device="cpu")
    assert local.masks.tolist() == np.eye(5, dtype=bool).tolist()
    rng, seen = np.random.default_rng(3), set()
    tau = np.random.default_rng(4).uniform(-np.pi, np.pi, (1, 6))
    for _ in range(40):
        new, log_q, present = local.move(tau, 2, rng)
        changed = np.flatnonzero((new[0] != tau).any(0))
        seen.add(tuple(local.torsions.labels[i] for i in changed))
        assert np.isfinite(log_q).all() and np.isfinite(present).all()
    ends = {("phi:ALA2",), ("psi:ALA4",)}
    inner = {("phi:ALA2", "psi:ALA2", "phi:ALA3"), ("psi:ALA2", "phi:ALA3", "psi:ALA3", "phi:ALA4")}
    assert ends <= seen
    assert {frozenset(x) for x in inner} <= {frozenset(x) for x in seen}
    assert len(seen) == 5


def test_crops_come_from_the_reference_only() -> None:
    """With a reference structure windows are its nearest residues, whatever the present structure is."""
    molecule = tripeptide()
    local = LocalProposal(
        tripeptide_model(), molecule.topology, t_star=0.05, window=3, reference=molecule.positions, device="cpu"
    )
    chain = local._chains[0]
    carbons = {"ACE": "CH3", "ALA": "CA", "NME": "C"}
    atoms = [atom.index for atom in molecule.topology.atoms() if atom.name == carbons[atom.residue.name]]
    positions = molecule.positions[atoms]
    assert {tuple(x) for x in local.masks} == {tuple(x) for x in balls(positions, 3)}
    assert len(chain.chain.names) == 5
    again = LocalProposal.from_state(json.loads(json.dumps(local.to_state())))
    np.testing.assert_array_equal(again.masks, local.masks)


def test_several_chains_have_windows_of_their_own() -> None:
    """Windows lie within a chain; without a window all chains move."""
    molecule = peptide("ACE-ALA-NME", "ACE-GLY-ALA-NME")
    model = random_model(molecule.topology)
    options: dict[str, Any] = {"t_star": 0.05, "n_diffusion_steps": 2, "device": "cpu"}
    local = LocalProposal(model, molecule.topology, window=2, **options)
    assert local.masks.shape == (5, 7)
    assert not (local.masks[:, 2] & local.masks[:, 3]).any()
    tau = np.zeros((1, len(local.torsions)))
    assert (LocalProposal(model, molecule.topology, **options).move(tau, 1, np.random.default_rng(0))[0] != 0).all()


def test_candidates_share_constraints_and_bonds() -> None:
    """Candidates are structures of the same bond lengths; the densities are finite, the present one shared."""
    system, local = alanine_dipeptide("vacuum"), proposal(t_star=0.3)
    assert isinstance(local, Proposal)
    drawn = local.propose(system.positions, 4, np.random.default_rng(2))
    assert drawn.positions.shape == (4, 22, 3)
    assert not drawn.invalid.any() and (drawn.log_q_present == drawn.log_q_present[0]).all()
    pairs = np.array([(a.index, b.index) for a, b in topology().bonds()])
    lengths = np.linalg.norm(drawn.positions[:, pairs[:, 0]] - drawn.positions[:, pairs[:, 1]], axis=-1)
    now = np.linalg.norm(system.positions[pairs[:, 0]] - system.positions[pairs[:, 1]], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(now, lengths.shape), atol=1e-9)


def test_broken_frames_are_invalid_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate without a density has weight zero, is a structure all the same, and nothing is raised."""
    descend = SE3Path.descend

    def broken(self: SE3Path, *arguments: Any) -> tuple[Rigid, torch.Tensor]:
        frames, ratio = descend(self, *arguments)
        frames.trans[0] = torch.nan
        return frames, ratio

    monkeypatch.setattr(SE3Path, "descend", broken)
    drawn = proposal().propose(alanine_dipeptide("vacuum").positions, 3, np.random.default_rng(2))
    assert drawn.invalid.tolist() == [True, False, False]
    assert np.isfinite(drawn.positions).all()


def test_round_trip_of_the_state() -> None:
    """The state is plain JSON, and the proposal made from it draws the same candidates."""
    local = proposal(window=2, n_diffusion_steps=None)
    again = LocalProposal.from_state(json.loads(json.dumps(local.to_state())))
    assert (again.t_star, again.window, again.n_diffusion_steps) == (local.t_star, 2, local.n_diffusion_steps)
    tau = np.array([[-1.0, 2.0]])
    for a, b in zip(*(x.move(tau, 2, np.random.default_rng(8)) for x in (local, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_levels_are_as_dense_as_the_models_own() -> None:
    """Without n_diffusion_steps a local move takes its share of the model's levels, fewer for smaller t_star."""
    counts = [proposal(t_star=t, n_diffusion_steps=None).n_diffusion_steps for t in (0.0011, 0.05, 0.4)]
    assert counts[0] == 2 < counts[1] < counts[2] == DEFAULTS["n_steps"]


def test_diffusion_move_takes_t_star() -> None:
    """DiffusionMove(t_star=...) is local, t_star=None the independent move; it survives a round trip and applies."""
    system = alanine_dipeptide("vacuum")
    options: dict[str, Any] = {"n_diffusion_steps": 2, "device": "cpu", "seed": 1}
    move = DiffusionMove(dipeptide_model(), topology(), t_star=0.01, window=2, n_candidates=2, **options)
    assert isinstance(move.proposal, LocalProposal)
    again = DiffusionMove.__new__(DiffusionMove)
    again.__setstate__(json.loads(json.dumps(move.__getstate__())))
    sampler = states.SamplerState(system.positions * unit.nanometer)
    again.apply(states.ThermodynamicState(system.system, 300 * unit.kelvin), sampler)
    assert again.n_proposed == 1
    assert again.proposal.t_star == 0.01
    whole = DiffusionMove(dipeptide_model(), topology(), t_star=None, pool_size=2, **options)
    assert isinstance(whole.proposal, BackboneProposal)
    with pytest.raises(SettingError, match="window"):
        DiffusionMove(dipeptide_model(), topology(), window=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"t_star": 0.001}, "t_star is 0.001; expected a time above min_t"),
        ({"t_star": 1.2}, "at most 1"),
        ({"t_star": None}, "t_star is None"),
        ({"t_star": float("nan")}, "t_star is nan"),
        ({"window": 4}, "window is 4; expected 1 to 3"),
        ({"window": 0}, "window is 0"),
        ({"window": 4, "reference": np.eye(22, 3)}, "window is 4"),
        ({"window": 2, "reference": np.eye(3, 3)}, "reference has the shape"),
        ({"masks": [[False, False, False]]}, "fixes all residues"),
        ({"masks": [[True, False]]}, "masks have the shape"),
        ({"masks": [[True, False, False]], "window": 1}, "no window"),
        ({"n_diffusion_steps": 1}, "n_diffusion_steps is 1"),
    ],
)
def test_bad_settings_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    """Settings out of range name the value and what was expected."""
    with pytest.raises(SettingError, match=sentence) as error:
        proposal(**options)
    assert "\n" not in str(error.value)


def test_models_of_other_kinds_are_refused() -> None:
    """A torsion model and a model of another peptide are refused."""
    with pytest.raises(ModelError, match="'torsion'"):
        LocalProposal(models.create("torsion", topology()), topology(), t_star=0.1)
    with pytest.raises(SettingError, match=r"take an SE\(3\) model, such as 'alanine-dipeptide'"):
        DiffusionMove(models.create("torsion", topology()), topology(), t_star=0.1)
    with pytest.raises(ModelError, match="ACE-ALA-NME"):
        LocalProposal(tripeptide_model(), topology(), t_star=0.1)


@pytest.mark.parametrize("name", ["t_star", "window", "n_diffusion_steps", "masks"])
def test_settings_are_frozen(name: str) -> None:
    """Adaptation in production is impossible: setting anything raises, `with_settings` gives another proposal."""
    local = proposal(window=2)
    with pytest.raises(SettingError, match=f"{name} of a proposal is frozen"):
        setattr(local, name, getattr(local, name))
    other = local.with_settings(t_star=0.2, window=None)
    assert (other.t_star, other.window, local.t_star) == (0.2, None, 0.012)
    with pytest.raises(SettingError, match="unknown settings"):
        local.with_settings(width=0.1)


def test_paths_with_fixed_residues_have_no_base() -> None:
    """`sample` and `score` of a masked path, and a mask that fixes everything, raise."""
    path = path_of(torch.tensor([True, False, False, False, False]), torch.float32)
    with pytest.raises(SettingError, match="no base"):
        path.sample(1, torch.Generator())
    with pytest.raises(SettingError, match="fixes all 5 residues"):
        path_of(torch.zeros(5, dtype=torch.bool), torch.float32)
    assert contiguous_windows(4, 3).int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
