"""The row of acceptance: expectations over candidates' choice, the origins of the spread of log w, and the command."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from scipy import special
from tiny_network import TINY

from openmm_diffusion import models
from openmm_diffusion.analysis import acceptance as numbers
from openmm_diffusion.analysis.acceptance import GridDensities, Trials
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.diffusion.stiff_links import StiffLinks
from openmm_diffusion.errors import SettingError, TrajectoryError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.links import log_volume
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.mcmc.acceptance import choose
from openmm_diffusion.molecule import BackboneTorsions, peptide, write_pdb
from openmm_diffusion.proposals import BackboneProposal, TorsionProposal
from openmm_diffusion.workflows import trials
from openmm_diffusion.workflows.output import write_trajectory
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide

EXAMPLE = Path(__file__).parents[1] / "examples" / "measure_acceptance.py"
READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}


def made_up(log_w: np.ndarray, log_w_present: np.ndarray, tau: np.ndarray | None = None) -> Trials:
    """Trials with these weights; torsions zero unless given."""
    n, m = log_w.shape
    return Trials(np.zeros((n, m, 2)) if tau is None else tau, np.zeros((n, 2)), log_w, log_w_present, np.zeros(n))


def test_chances_are_those_of_the_kernel() -> None:
    """The chance of each candidate is its share of the choice times the kernel's own acceptance probability.

    Control: without the weight of the present state, the acceptance is another one.
    """
    rng = np.random.default_rng(0)
    log_w, present = rng.normal(scale=3.0, size=(40, 5)), rng.normal(scale=3.0, size=40)
    log_w[0, 2], log_w[1], present[2], present[3] = -np.inf, -np.inf, np.inf, -60.0
    expected = np.zeros_like(log_w)
    for i in range(40):
        if not np.isfinite(log_w[i]).any():
            continue
        share = np.exp(log_w[i] - special.logsumexp(log_w[i]))
        ends = np.concatenate([[0.0], np.cumsum(share)])
        for j in np.flatnonzero(share > 0.0):
            choice = choose(log_w[i].tolist(), float(present[i]), float(ends[j : j + 2].mean()))
            assert choice.index == j
            expected[i, j] = share[j] * math.exp(choice.log_alpha)
    np.testing.assert_allclose(numbers.chances(log_w, present), expected, atol=1e-12)
    assert np.abs(numbers.chances(log_w, np.zeros(40)) - expected).max() > 0.1


@pytest.mark.parametrize("n", [1, 4])
def test_expected_acceptance_is_what_is_counted(n: int) -> None:
    """The expectation is the share of accepted moves, for normal distributions and for 1 and 4 candidates.

    Control: weights without the proposal's density miss it by more than ten standard errors.
    """
    rng = np.random.default_rng(1)
    shift, sigma, n_states, m = 1.5, 1.3, 4000, 12
    x, y = rng.normal(size=n_states), shift + sigma * rng.normal(size=(n_states, m))

    def log_w(z: np.ndarray) -> np.ndarray:
        return -0.5 * z**2 + 0.5 * ((z - shift) / sigma) ** 2

    chance = numbers.acceptance(made_up(log_w(y), log_w(x)[:, None]), n)
    counted = 0
    for i in range(n_states):
        choice = choose(log_w(y[i, :n]).tolist(), float(log_w(x[i])), rng.random())
        counted += rng.random() < math.exp(choice.log_alpha)
    error = math.sqrt(chance.var() / n_states + 0.25 / n_states)
    assert abs(chance.mean() - counted / n_states) < 4 * error
    wrong = numbers.acceptance(made_up(-0.5 * y**2, -0.5 * x[:, None] ** 2), n)
    assert abs(wrong.mean() - counted / n_states) > 10 * error


def test_perfect_proposal_accepts_and_changes_basins_like_independent_draws() -> None:
    """Equal weights: acceptance is 1, changes a move are 2 pi_L pi_R, and a present state without density rejects."""
    rng = np.random.default_rng(2)
    tau = rng.uniform(-np.pi, np.pi, (2000, 16, 2))
    flat = Trials(tau, rng.uniform(-np.pi, np.pi, (2000, 2)), np.zeros((2000, 16)), np.zeros((2000, 1)), np.zeros(2000))
    assert numbers.acceptance(flat, 8).min() == pytest.approx(1.0)
    pi_r = 2.2 / (2 * np.pi)
    assert numbers.flux_into_r(flat, 8) == pytest.approx(2 * pi_r * (1 - pi_r), abs=0.03)
    assert numbers.displacements(flat, 1)["median_displacement_deg"] == pytest.approx(90.0, abs=2.0)
    lost = made_up(np.zeros((5, 4)), np.full((5, 1), np.inf))
    assert numbers.acceptance(lost, 2).max() == 0.0
    with pytest.raises(SettingError, match="expected 1 to 4"):
        numbers.acceptance(lost, 5)


def coupled_target(n_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Energies on a grid of a target whose phi and psi follow rho, its draws, and their energies and centres."""
    kappa, bins = 3.0, 36
    centre = rng.normal(scale=0.5, size=(n_frames, 2))
    tau = rng.vonmises(centre, kappa)
    axis = -np.pi + (np.arange(bins) + 0.5) * 2 * np.pi / bins
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    offset = rng.normal(scale=5.0, size=n_frames)  # rho's own energy
    u = offset[:, None] - kappa * np.cos(grid - centre[:, None]).sum(-1)
    return u, tau, offset - kappa * np.cos(tau - centre).sum(-1), centre


def test_origins_of_the_spread_are_told_apart() -> None:
    """Noise, error and coupling to rho that were put into log q and the target come out; the marginal is the true one.

    Control: with the noise left out of log q, the noise found is zero.
    """
    rng = np.random.default_rng(3)
    u, tau, u_present, centre = coupled_target(600, rng)
    densities = GridDensities.of(u, tau, u_present)
    log_i0 = math.log(2 * math.pi * special.i0(3.0))
    np.testing.assert_allclose(densities.log_conditional, 3.0 * np.cos(tau - centre).sum(-1) - 2 * log_i0, atol=1e-6)
    draws = rng.normal(scale=0.5, size=(4000, 2))
    true = np.log(np.exp(3.0 * np.cos(tau[:, None, 0] - draws[:, 0])).mean(1)) - log_i0
    true += np.log(np.exp(3.0 * np.cos(tau[:, None, 1] - draws[:, 1])).mean(1)) - log_i0
    likely = true > np.quantile(true, 0.1)  # the tail of the marginal rests on few frames
    np.testing.assert_allclose(densities.log_marginal[likely], true[likely], atol=0.15)
    wrong = 0.4 * np.sin(3 * tau[:, 0])
    noise = 0.3 * rng.normal(size=(600, 64)) - 0.5 * 0.3**2
    found = numbers.origins(densities, (densities.log_marginal + wrong)[:, None] + noise)
    assert found["noise"] == pytest.approx(0.3, rel=0.05)
    assert found["systematic"] == pytest.approx(wrong.std(), rel=0.1)
    assert found["divergence"] == pytest.approx(-wrong.mean(), abs=0.02)
    assert found["path_divergence"] - found["divergence"] == pytest.approx(0.5 * 0.3**2, rel=0.2)
    expected = (densities.log_conditional - densities.log_marginal).std()
    assert found["rho"] == pytest.approx(expected)
    assert 0.3 < expected < 1.5
    quiet = numbers.origins(densities, np.repeat((densities.log_marginal + wrong)[:, None], 8, 1))
    assert quiet["noise"] == pytest.approx(0.0, abs=1e-9)


def test_log_density_of_frames_is_normalised_over_torsions() -> None:
    """Volume and constant turn integrals over frames into integrals over links: that of a(s) is the mean volume.

    Both are averages, one over frames of a known density, one over draws of a(s). Control: without the constant they
    differ by its exponential.
    """
    generator = torch.Generator().manual_seed(4)
    stiff, n = StiffLinks.of(("ACE", "ALA", "NME"), width=1.0), 100_000
    rots, scale = rotations.haar((n, 3), generator), 1.8
    z = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    basis = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    trans = torch.einsum("kn,bkc->bnc", basis / basis.norm(dim=-1, keepdim=True), scale * z)
    log_q = -0.5 * (z**2).sum((1, 2)) - 3 * math.log(2 * math.pi) - 6 * math.log(scale)
    links = stiff.links(Rigid(rots, trans).to_tensor_7())
    log_ratio = stiff.log_density(links) - 2 * math.log(2 * math.pi) - log_q
    volume = torch.exp(log_volume(stiff.draw(torch.zeros(n, 2, 6), generator)))
    integral = torch.exp(log_ratio + trials.log_measure([3]))
    error = math.sqrt(float(integral.var() + volume.var()) / n)
    assert error < 0.1 * float(volume.mean())
    assert abs(float(integral.mean() - volume.mean())) < 4 * error
    assert abs(float(torch.exp(log_ratio).mean() - volume.mean())) > 10 * error


def test_log_density_of_a_proposal_counts_its_frames(vacuum: MolecularSystem, tmp_path: Path) -> None:
    """What is taken off is that of three frames: ACE, ALA and NME."""
    proposal = BackboneProposal(models.load(tiny_model(tmp_path, vacuum.topology)), vacuum.topology, device="cpu")
    assert trials._excess(proposal) == trials.log_measure([3]) != trials.log_measure([4])


@pytest.fixture(scope="module")
def vacuum() -> MolecularSystem:
    return alanine_dipeptide("vacuum")


def test_trials_of_a_torsion_model_have_its_weights(vacuum: MolecularSystem) -> None:
    """log w of a candidate is -u - log q with its torsions set on the frame, all recomputed here one at a time."""
    proposal = TorsionProposal(models.create("torsion", vacuum.topology, seed=0), vacuum.topology)
    potential = trials.reduced_potential(vacuum, openmm.Platform.getPlatformByName("Reference"))
    torsions = BackboneTorsions(vacuum.topology, proposal.torsions.kinds)
    frames = torsions.turn(vacuum.positions, np.array([[0.0] * len(torsions), [0.3] * len(torsions)]))
    found = trials.independent_trials(proposal, potential, frames, 6, 2, np.random.default_rng(0))
    for i, frame in enumerate(frames):
        u = potential(torsions.set(frame, found.tau[i]))
        np.testing.assert_allclose(found.log_w[i], -u - proposal.log_density(found.tau[i]), rtol=1e-6)
        own = -potential(frame[None]) - proposal.log_density(torsions.get(frame)[None])
        np.testing.assert_allclose(found.log_w_present[i], [own[0], own[0]], rtol=1e-6)


def test_frames_are_drawn_by_weight(vacuum: MolecularSystem, tmp_path: Path) -> None:
    """Frames without weight never come, the others in proportion; another molecule's folder is refused."""
    torsions = BackboneTorsions(vacuum.topology, ("phi", "psi"))
    phi = np.linspace(-3.0, 3.0, 50)
    write_pdb(tmp_path / "topology.pdb", vacuum.topology, vacuum.positions[None])
    frames = torsions.set(vacuum.positions, np.stack([phi, phi], -1))
    write_trajectory(tmp_path / "trajectory.dcd", vacuum.topology, frames)
    weights = np.zeros(50)
    weights[[3, 40]] = 1.0, 3.0
    np.savez(tmp_path / "weights.npz", weights=weights)
    drawn = trials.simulated_frames(tmp_path, vacuum, 2000, np.random.default_rng(0))
    found = torsions.get(drawn)[:, 0]
    high = np.abs(found - phi[40]) < 1e-3
    assert (high | (np.abs(found - phi[3]) < 1e-3)).all()
    assert high.mean() == pytest.approx(0.75, abs=0.05)
    loaded = peptide("ACE-GLY-NME")
    other = MolecularSystem("ACE-GLY-NME", loaded.topology, openmm.System(), loaded.positions)
    with pytest.raises(TrajectoryError, match="ACE-GLY-NME has"):
        trials.simulated_frames(tmp_path, other, 5, np.random.default_rng(0))


def tiny_model(folder: Path, topology: Any) -> Path:
    noise = SE3Config.acceptance(1 / 2.2).model_dump()
    model = models.create("se3", topology, 3, model_conf={**TINY, "embed": READING}, se3_conf=noise)
    return models.save(model, folder / "tiny")


def test_command_refuses_settings_without_sense(tmp_path: Path) -> None:
    """Fewer candidates drawn than a move takes: one sentence, and nothing is written."""
    arguments = [sys.executable, str(EXAMPLE), "--drawn", "4", "--output", str(tmp_path / "out")]
    refused = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("Error: --drawn is 4")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_writes_a_row_for_each_model(vacuum: MolecularSystem, tmp_path: Path) -> None:
    """The command runs without a trajectory, with an SE(3) model, local moves and a torsion model, and says it all."""
    words = "--system alanine-dipeptide-vacuum --frames 3 --drawn 8 --candidates 1 8 --platform Reference --repeats 2"
    words += " --scorings 2 --chain 3 --md-seconds 0.5 --n-diffusion-steps 4 --local 0.1"
    words += " --model alanine-dipeptide-torsion-vacuum"
    words += f" --model {tiny_model(tmp_path, vacuum.topology)}"
    output = tmp_path / "out"
    arguments = [sys.executable, str(EXAMPLE), *words.split(), "--output", str(output)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((output / "acceptance.json").read_text())
    torsion, independent, local = result["rows"]
    assert (torsion["density"], independent["density"], local["proposal"]) == ("flow", "path", "local, t* = 0.1")
    assert all(set(row["acceptance"]) == {"1", "8"} and row["cost"]["ms"] > 0 for row in result["rows"])
    assert torsion["acceptance"]["8"]["mean"] > independent["acceptance"]["8"]["mean"]
    assert independent["origins"]["noise"] > 0.0
    assert independent["origins_doubled_steps"]["n_diffusion_steps"] == 8
    assert {"times_md", "basin_changes_per_s"} <= set(torsion["chain"])
    assert "8" in local["displacement"]
    assert (output / "acceptance.png").stat().st_size > 0
    assert "accepted, 8" in done.stdout
