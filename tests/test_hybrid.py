"""The main job: resume bit for bit, and what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest

from openmm_diffusion import DiffusionMove
from openmm_diffusion.errors import InputFileError, OutputError, SettingError
from openmm_diffusion.models import create
from openmm_diffusion.workflows import hybrid
from openmm_diffusion.workflows.alanine_report import summarise, table
from openmm_diffusion.workflows.hybrid import HybridChain
from openmm_diffusion.workflows.systems import alanine_dipeptide

EXAMPLE = Path(__file__).parents[1] / "examples" / "alanine_dipeptide.py"
KEYS = (
    "acceptance",
    "basin_changes",
    "basin_changes_per_s",
    "md_basin_changes_per_s",
    "md_basin_changes_per_s_error",
    "eta",
    "delta_f_kT",
    "delta_f_error_kT",
    "ess_R",
    "seconds_network",
    "seconds_energy",
    "seconds_md",
    "seconds_total",
    "platform",
    "model",
    "n_candidates",
    "seed",
)
NOT_TIMES = ("accepted", "log_alpha", "u_candidate", "log_q_present", "log_q_candidate", "tau_end", "positions")


def chain(seed: int = 5, **options: int) -> HybridChain:
    molecule = alanine_dipeptide("vacuum")
    model = create("torsion", molecule.topology, seed=0)
    move = DiffusionMove(model, molecule.topology, n_candidates=4, seed=seed, pool_size=64)
    return HybridChain(molecule, move, openmm.Platform.getPlatformByName("Reference"), md_steps=5, seed=seed, **options)


def test_resume_is_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain stopped at a checkpoint and loaded into new objects equals one never stopped, in every bit."""
    monkeypatch.setattr(hybrid, "BLOCK", 15)
    first = chain()
    first.equilibrate(100)
    first.run(30, tmp_path, progress=False)
    first.run(60, progress=False)
    second = chain()
    second.load(tmp_path / "checkpoint.npz")
    assert len(second.series) == 30
    second.run(60, progress=False)
    whole, resumed = first.series.arrays(), second.series.arrays()
    for name in NOT_TIMES:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
    assert first.move.statistics == second.move.statistics
    other = chain(seed=6)
    other.equilibrate(100)
    other.run(60, progress=False)
    assert not np.array_equal(other.series.arrays()["tau_end"], whole["tau_end"])


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    """Another seed, or a file that is no checkpoint, is refused with one sentence that names it."""
    first = chain()
    first.equilibrate(50)
    first.run(3, tmp_path, progress=False)
    with pytest.raises(OutputError, match="other settings \\(seed\\)"):
        chain(seed=7).load(tmp_path / "checkpoint.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "checkpoint.npz").read_bytes()[:200])
    with pytest.raises(InputFileError, match="not a checkpoint"):
        chain().load(tmp_path / "broken.npz")


def test_the_move_alone_is_refused() -> None:
    """md_steps = 0 would not be ergodic: a SettingError says so."""
    molecule = alanine_dipeptide("vacuum")
    move = DiffusionMove(create("torsion", molecule.topology, seed=0), molecule.topology)
    with pytest.raises(SettingError, match="not ergodic"):
        HybridChain(molecule, move, openmm.Platform.getPlatformByName("Reference"), md_steps=0)


def test_summary_says_null_where_it_does_not_know() -> None:
    """A chain that never saw R has no rate, no free energy and no eta, and the table prints a dash for them."""
    n = 50
    tau = np.full((n, 2), -1.5)
    columns = {name: np.zeros(n) for name in (*hybrid._COLUMNS,)}
    arrays = {**columns, "tau_before": tau, "tau_after": tau, "tau_end": tau}
    reference = {"tau_rl_ns": 2.0, "tau_rl_error_ns": 0.3, "delta_f_kT": 3.9, "delta_f_error_kT": None}
    summary = summarise(arrays, 10.0, 0.2, reference)
    for key in ("md_basin_changes_per_s", "eta", "delta_f_kT", "ess_R"):
        assert summary[key] is None
    summary |= {"model": "m", "n_candidates": 8, "platform": "Reference"}
    assert "ratio" in table(summary)
    json.dumps(summary, allow_nan=False)


def test_example_writes_everything(tmp_path: Path) -> None:
    """The example ends with a table, all files, every key of the summary; a second run is refused, --resume goes on."""
    output = tmp_path / "out"
    command = [sys.executable, str(EXAMPLE), "--vacuum", "--quiet", "--limit-frames", "3", "--output", str(output)]
    done = subprocess.run([*command, "--iterations", "60"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout
    summary = json.loads((output / "summary.json").read_text())
    assert set(KEYS) <= set(summary)
    assert summary["iterations"] == 60
    for name in ("ramachandran.png", "trajectory.dcd", "topology.pdb", "checkpoint.npz"):
        assert (output / name).stat().st_size > 0
    again = subprocess.run([*command, "--iterations", "60"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 1
    assert again.stderr.strip().splitlines()[-1].startswith("Error: the output folder")
    more = subprocess.run([*command, "--iterations", "80", "--resume"], capture_output=True, text=True, timeout=300)
    assert more.returncode == 0, more.stderr
    assert "going on at iteration 60" in more.stdout
    assert json.loads((output / "summary.json").read_text())["iterations"] == 80
