"""The example of parallel tempering: outputs, resume, two ranks, refusals; the numbers of its report."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import openmm
import pytest
from openmm import unit
from test_mpi import mpiexec

from openmm_diffusion import DiffusionMove, models
from openmm_diffusion.analysis.tempering_plots import phi_densities, replica_walk
from openmm_diffusion.errors import OutputError, SettingError, TrajectoryError
from openmm_diffusion.workflows.hybrid import HybridChain
from openmm_diffusion.workflows.output import prepare_folder
from openmm_diffusion.workflows.systems import alanine_dipeptide
from openmm_diffusion.workflows.tempering import Tempering, ladder, refuse_other
from openmm_diffusion.workflows.tempering_report import round_trips, summarise, table
from openmm_diffusion.workflows.tempering_series import TemperingSeries

EXAMPLE = Path(__file__).parents[1] / "examples" / "parallel_tempering.py"
REFERENCE = {"delta_f_kT": 3.88, "delta_f_error_kT": 0.03}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny torsion model, untrained."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    topology = alanine_dipeptide("obc").topology
    return models.save(models.create("torsion", topology, seed=0, hidden_size=8, n_layers=1, n_harmonics=1), path)


def example(folder: Path, model: Path, *words: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    fixed = ["--model", str(model), "--output", str(folder), "--platform", "Reference", "--quiet", "--md-steps", "4"]
    command = [*launcher, sys.executable, str(EXAMPLE), *fixed, "--n-candidates", "2", "--equilibration", "1", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLE.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def stored(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all iterations and replicas, and the states of the replicas."""
    with netCDF4.Dataset(folder / "tempering_checkpoint.nc") as file:
        positions = np.asarray(file["positions"][:])
    with netCDF4.Dataset(folder / "tempering.nc") as file:
        return positions, np.asarray(file["states"][:])


def test_runs_and_resumes(model: Path, tmp_path: Path) -> None:
    """Six iterations, then six more from the storage: counters, figures, table and summary; the first six stay.

    A run of other settings is refused in one sentence, and nothing of the folder is lost.
    """
    folder = tmp_path / "out"
    first = example(folder, model, "--iterations", "6", "--temperatures", "3", "--compare", "4")
    assert first.returncode == 0, first.stderr
    before, states = stored(folder)
    assert before.shape == (7, 3, 22, 3)
    again = example(folder, model, "--iterations", "12", "--temperatures", "3", "--resume")
    assert again.returncode == 0, again.stderr
    after, states_after = stored(folder)
    assert after.shape == (13, 3, 22, 3)
    assert np.array_equal(after[:7], before) and np.array_equal(states_after[:7], states)
    assert len(np.unique(after[:, :, 8, 0])) == 13 * 3 - 2  # three replicas start alike; no frame is written twice
    for name in ("phi.png", "replica_walk.png", "single/300.0K/checkpoint.npz"):
        assert (folder / name).stat().st_size > 1000, name
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["iterations"], summary["platform"], summary["ranks"]) == (11, "Reference", 1)
    assert [round(state["temperature_K"]) for state in summary["states"]] == [300, 424, 600]
    assert all(0.0 <= state["acceptance"] <= 1.0 for state in summary["states"])
    assert summary["delta_f_reference_kT"] == 3.88 and summary["seconds_per_iteration"] > 0
    assert "reference of Delta F at 300 K: 3.88 +- 0.03 kT" in again.stdout

    other = example(folder, model, "--iterations", "14", "--temperatures", "4", "--resume")
    assert other.returncode == 1 and "temperatures_K" in other.stderr and "Traceback" not in other.stderr
    assert stored(folder)[0].shape == after.shape and not (folder / "running.lock").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks(model: Path, tmp_path: Path) -> None:
    """The same on two ranks, gone on with on two and then on one: exact counters, single chains shared out."""
    folder = tmp_path / "out"
    words = ("--temperatures", "3", "--compare", "4")
    for n, ranks, more in ((6, 2, ()), (9, 2, ("--resume",)), (12, 1, ("--resume",))):
        done = example(folder, model, "--iterations", str(n), *words, *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("accepted") == 1  # one table, not one a rank
        assert stored(folder)[0].shape == (n + 1, 3, 22, 3)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["ranks"] == ranks and summary["iterations"] == n - 1
        assert all(state["single"]["pi_R"] >= 0.0 for state in summary["states"])
        with netCDF4.Dataset(folder / "tempering.nc") as file:
            texts = [str(file["mcmc_moves"][f"move{k}"][0]) for k in range(3)]
        assert all(f"n_proposed: {n}\n" in text for text in texts)
    refused = example(folder, model, "--iterations", "14", "--temperatures", "4", "--resume", ranks=2)
    assert refused.returncode != 0 and "temperatures_K" in refused.stderr


def made(kelvin: Any, p_r: Any, n: int = 4000) -> TemperingSeries:
    """Independent draws with the population p_r [states] of R."""
    rng = np.random.default_rng(3)
    states = len(kelvin)
    phi = np.where(rng.random((n, states)) < np.asarray(p_r), 1.0, -1.5)
    walk = np.array([rng.permutation(states) for _ in range(n)])
    return TemperingSeries(np.asarray(kelvin, float), phi, walk, np.full(states, n), np.full(states, n // 4))


def test_report_knows_the_populations() -> None:
    """Populations, free energies, differences and their errors are those of the draws; a wrong chain is told apart."""
    p = np.array([0.1, 0.2])
    series, other = made((300.0, 600.0), p), made((300.0, 600.0), p[::-1])
    summary = summarise(series, series.phi[:2000], REFERENCE)
    for state, share in zip(summary["states"], p, strict=True):
        error = np.sqrt(share * (1 - share) / 4000)
        assert abs(state["pi_R"] - share) < 4 * error and state["pi_R_error"] == pytest.approx(error, rel=0.2)
        assert state["acceptance"] == 0.25
        assert abs(state["difference_kT"]) < 4 * state["difference_error_kT"]
    assert "single chain" in table(summary) and "3.88 +- 0.03" in table(summary)
    wrong = summarise(series, other.phi, REFERENCE)["states"][0]
    assert abs(wrong["difference_kT"]) > 8 * wrong["difference_error_kT"]
    nothing = summarise(made((310.0, 600.0), (0.0, 0.0), 50), None, REFERENCE)
    assert nothing["delta_f_kT"] is None and nothing["delta_f_reference_kT"] is None
    assert "single chain" not in table(nothing)


def test_round_trips() -> None:
    """A round trip is from the lowest state to the highest and back; what never reaches an end makes none."""
    walks = {(0, 1, 2, 1, 0): 1, (0, 1, 0, 1, 0): 0, (2, 0, 2, 0): 1, (0, 2, 0, 2): 1, (1, 1, 1, 1): 0, (2, 1, 0, 0): 0}
    for walk, expected in walks.items():
        assert round_trips(np.array(walk)[:, None], 3) == expected, walk
    assert round_trips(np.array([[0, 2], [2, 0], [0, 2]]), 3) == 1


def test_a_chain_at_another_temperature() -> None:
    """A hybrid chain has the temperature given: its kinetic energies are those of 600 K, not of 300 K."""
    molecule = alanine_dipeptide("vacuum")
    network = models.create("torsion", molecule.topology, seed=0, hidden_size=8, n_layers=1)
    means = {}
    for kelvin in (300.0, 600.0):
        move = DiffusionMove(network, molecule.topology, 8, 1, device="cpu", n_diffusion_steps=4, pool_size=256)
        platform = openmm.Platform.getPlatformByName("Reference")
        chain = HybridChain(molecule, move, platform, md_steps=5, temperature=kelvin * unit.kelvin)
        chain.equilibrate(500)
        kinetic = []
        for n in range(1, 61):
            chain.run(n, progress=False)
            kinetic.append(chain.sampler_state.kinetic_energy.value_in_unit(unit.kilojoule_per_mole))
        means[kelvin] = np.mean(kinetic) / (54 * 0.5 * 0.00831446)  # 66 coordinates less 12 constraints
    assert abs(means[300.0] - 300.0) < 60.0 and abs(means[600.0] - 600.0) < 120.0


def test_wrong_requests_are_refused(model: Path, tmp_path: Path) -> None:
    """Impossible ladders, no dynamics, foreign folders and shapes raise one sentence."""
    for low, high, n in ((300.0, 600.0, 1), (600.0, 300.0, 4), (0.0, 300.0, 4), (300.0, np.inf, 4)):
        with pytest.raises(SettingError, match="temperatures"):
            ladder(low, high, n)
    assert np.allclose(np.diff(np.log(ladder(300.0, 600.0, 6))), np.log(2.0) / 5)
    molecule = alanine_dipeptide("obc")
    move = DiffusionMove(model, molecule.topology)
    with pytest.raises(SettingError, match="md_steps"):
        Tempering(molecule, move, "Reference", ladder(300.0, 600.0, 3), md_steps=0)
    settings = Tempering(molecule, move, "Reference", ladder(300.0, 600.0, 3)).settings()
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    refuse_other(tmp_path, settings)
    with pytest.raises(OutputError, match="n_candidates"):
        refuse_other(tmp_path, settings | {"n_candidates": 3})
    (tmp_path / "running.lock").touch()
    with pytest.raises(OutputError, match="holds results already"):
        prepare_folder(tmp_path, resume=False, ignore=("running.lock",))
    prepare_folder(tmp_path, overwrite=True, resume=False, ignore=("running.lock",))
    assert [item.name for item in tmp_path.iterdir()] == ["running.lock"]
    prepare_folder(tmp_path, resume=False, ignore=("running.lock",))
    for call in (lambda: phi_densities([0.1], [300.0]), lambda: replica_walk([0, 1], [300.0])):
        with pytest.raises(TrajectoryError, match="shape"):
            call()
