"""The main job: resume bit for bit, and what it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from tiny_network import TINY

from openmm_diffusion import DiffusionMove
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.errors import InputFileError, OutputError, SettingError
from openmm_diffusion.models import Model, create, save
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


READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}


def untrained(kind: str, topology: Any) -> Model:
    """A small model with random weights."""
    if kind == "torsion":
        return create("torsion", topology, seed=0)
    noise = SE3Config.acceptance(1 / 2.2).model_dump()
    return create("se3", topology, 3, model_conf={**TINY, "embed": READING}, se3_conf=noise)


def chain(seed: int = 5, kind: str = "torsion", **options: Any) -> HybridChain:
    molecule = alanine_dipeptide("vacuum")
    if kind == "se3":
        options = {"n_diffusion_steps": 4, **options}
    move = DiffusionMove(untrained(kind, molecule.topology), molecule.topology, 4, seed=seed, pool_size=64, **options)
    return HybridChain(molecule, move, openmm.Platform.getPlatformByName("Reference"), md_steps=5, seed=seed)


@pytest.mark.parametrize("kind", ["torsion", "se3"])
def test_resume_is_bit_for_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain stopped at a checkpoint and loaded into new objects equals one never stopped, in every bit.

    Control: another seed is another chain.
    """
    monkeypatch.setattr(hybrid, "BLOCK", 15)
    first = chain(kind=kind)
    first.equilibrate(100)
    first.run(30, tmp_path, progress=False)
    first.run(60, progress=False)
    second = chain(kind=kind)
    second.load(tmp_path / "checkpoint.npz")
    assert len(second.series) == 30
    second.run(60, progress=False)
    whole, resumed = first.series.arrays(), second.series.arrays()
    for name in NOT_TIMES:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
    assert first.move.statistics == second.move.statistics
    other = chain(seed=6, kind=kind)
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
    frames = chain(kind="se3")
    (tmp_path / "se3").mkdir()
    frames.run(1, tmp_path / "se3", progress=False)
    with pytest.raises(OutputError, match="other settings \\(n_diffusion_steps\\)"):
        chain(kind="se3", n_diffusion_steps=5).load(tmp_path / "se3" / "checkpoint.npz")
    chain(kind="se3", background=False).load(tmp_path / "se3" / "checkpoint.npz")
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
    assert "times plain MD" in table(summary)
    json.dumps(summary, allow_nan=False)


def test_table_has_a_column_for_each_chain_and_for_md() -> None:
    """Two chains stand side by side with plain MD; without a comparison there are two columns.

    The chains differ in the share accepted, which stands in the column of each.
    """
    n, rng = 400, np.random.default_rng(0)
    tau = np.where(rng.random(n)[:, None] < 0.2, 1.0, -1.5) * np.ones(2)
    arrays = {**{name: np.ones(n) for name in hybrid._COLUMNS}, "tau_before": -tau, "tau_after": tau, "tau_end": tau}
    reference = {"tau_rl_ns": 2.0, "tau_rl_error_ns": 0.3, "delta_f_kT": 3.9, "delta_f_error_kT": 0.03}
    shares = {"se3": 0.25, "torsion": 0.75}
    both = [
        {
            **summarise(arrays | {"accepted": np.arange(n) < share * n}, 10.0, 0.2, reference),
            "model": kind,
            "kind": kind,
            "n_candidates": 8,
            "platform": "Reference",
        }
        for kind, share in shares.items()
    ]
    lines = table({**both[0], "comparison": both[1]}).splitlines()
    assert lines[0].split() == ["SE(3)", "torsion", "plain", "MD"]
    row = next(line for line in lines if "accepted" in line)
    assert row.split() == ["accepted", "25.0%", "75.0%", "-"]
    assert "3.90 +- 0.03 (reference)" in next(line for line in lines if "Delta F" in line)
    assert table({**both[0], "comparison": None}).splitlines()[0].split() == ["SE(3)", "plain", "MD"]
    assert both[0]["times_md"] == pytest.approx(both[0]["basin_changes_per_s"] / both[0]["md_basin_changes_per_s"])


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


@pytest.mark.slow
def test_example_compares_two_models(tmp_path: Path) -> None:
    """With an SE(3) model the torsion model's chain follows; both go on from their checkpoints."""
    output, model = tmp_path / "out", tmp_path / "tiny"
    save(untrained("se3", alanine_dipeptide("obc").topology), model)
    command = [sys.executable, str(EXAMPLE), "--quiet", "--limit-frames", "2", "--output", str(output)]
    command += ["--model", str(model), "--platform", "Reference", "--md-steps", "20"]
    for words in (["--iterations", "20"], ["--iterations", "30", "--resume"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on at iteration 20") == 2
    summary = json.loads((output / "summary.json").read_text())
    assert set(KEYS) <= set(summary["comparison"])
    assert (summary["kind"], summary["comparison"]["kind"]) == ("se3", "torsion")
    assert (summary["iterations"], summary["comparison"]["iterations"]) == (30, 30)
    assert summary["acceptance_limit"] == summary["comparison"]["acceptance_limit"] > 0
    assert (output / "comparison" / "ramachandran.png").stat().st_size > 0
    assert "SE(3)" in done.stdout
