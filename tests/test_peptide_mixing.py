"""The comparison of peptides: moves in turn, the reference of parallel tempering, plain dynamics, workers that end."""

import importlib.util
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import openmm
import pytest
from numpy.typing import NDArray
from tiny_network import TINY

from openmm_diffusion import DiffusionMove
from openmm_diffusion.errors import InputFileError, OutputError, SettingError, StateError, TrajectoryError
from openmm_diffusion.models import create, save
from openmm_diffusion.molecule import BackboneTorsions, write_pdb
from openmm_diffusion.units import wrap
from openmm_diffusion.workflows import job_settings, peptide_comparison, simulate, walkers
from openmm_diffusion.workflows.escape_dynamics import DynamicsRecord, run_dynamics
from openmm_diffusion.workflows.hybrid import HybridChain
from openmm_diffusion.workflows.output import write_trajectory
from openmm_diffusion.workflows.peptide_mixing import MoveCycle, run_for
from openmm_diffusion.workflows.peptide_report import mixing_report, moves_report, population_report, table
from openmm_diffusion.workflows.peptide_settings import PeptideSettings
from openmm_diffusion.workflows.prepare_se3_settings import PrepareSE3Settings
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide, build_system
from openmm_diffusion.workflows.tempered_reference import TemperedReference, read_reference
from openmm_diffusion.workflows.train_se3_settings import TrainSE3Settings

ROOT = Path(__file__).parents[1]
REFERENCE = "Reference"
ONE_NETWORK = {
    **TINY,
    "embed": {
        "index_embed_size": 8,
        "relative_frames": True,
        "embed_self_conditioning": False,
        "embed_residue_type": True,
    },
}
NOISE = {
    "min_t": 0.005,
    "so3": {"min_sigma": 0.04, "max_sigma": 2.5, "base": "haar"},
    "r3": {"coordinate_scaling": 0.3},
}


def script(name: str) -> ModuleType:
    """A module of examples/."""
    sys.path.insert(0, str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "examples"))
    return module


def cycle(molecule: MolecularSystem, order: tuple[str, ...] = ("many", "one", "one"), seed: int = 3) -> MoveCycle:
    model = create("torsion", molecule.topology, seed=0)
    candidates = {"many": 4, "one": 1}
    moves = {
        name: DiffusionMove(model, molecule.topology, n_candidates=candidates[name], seed=seed + k, pool_size=32)
        for k, name in enumerate(candidates)
    }
    return MoveCycle(moves, order)


def hybrid(molecule: MolecularSystem, moves: MoveCycle) -> HybridChain:
    platform = openmm.Platform.getPlatformByName(REFERENCE)
    return HybridChain(molecule, moves, platform, md_steps=5, seed=1)  # type: ignore[arg-type]


def tempered(folder: Path, molecule: MolecularSystem, tau: NDArray[np.float64], weights: NDArray[np.float64]) -> Path:
    """A folder as `simulate` leaves it, of torsions [walkers, times, temperatures, T] and weights without the last."""
    folder.mkdir(parents=True)
    n_walkers, n_times, n_temperatures = weights.shape
    values = {"output": folder, "system": "ACE-ALA-NME", "n_replicas": n_temperatures, "n_iterations": n_times}
    settings = job_settings.SimulateSettings.build({**values, "walkers": n_walkers, "steps_per_iteration": 10})
    settings.write(folder / "settings.yaml")
    torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))

    def in_order(x: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(x, 2, 0).reshape(-1, *x.shape[3:])

    frames = torsions.set(np.repeat(molecule.positions[None], weights.size, 0), in_order(tau))
    write_pdb(folder / "topology.pdb", molecule.topology, molecule.positions[None])
    write_trajectory(folder / "trajectory.dcd", molecule.topology, frames)
    grid = np.meshgrid(np.arange(n_walkers), np.arange(n_times), np.arange(n_temperatures), indexing="ij")
    indices = {"temperature_index": in_order(grid[2]), "walker": in_order(grid[0])}
    np.savez(folder / "weights.npz", weights=in_order(weights), **indices)
    (folder / "simulation.json").write_text(json.dumps({"system": "ACE-ALA-NME"}))
    return folder


def two_basins(rng: np.random.Generator, *shape: int, share: float = 0.3) -> NDArray[np.float64]:
    """Independent phi and psi [*shape, 2] with this share of R."""
    centres = np.where(rng.random(shape)[..., None] < share, [1.0, 0.7], [-1.4, 2.4])
    return np.asarray(centres + rng.normal(scale=0.15, size=(*shape, 2)))


@pytest.fixture(scope="module")
def dipeptide() -> MolecularSystem:
    return alanine_dipeptide("vacuum")


@pytest.fixture(scope="module")
def reference(dipeptide: MolecularSystem, tmp_path_factory: pytest.TempPathFactory) -> TemperedReference:
    rng = np.random.default_rng(0)
    tau, weights = two_basins(rng, 2, 40, 3), rng.random((2, 40, 3))
    folder = tempered(tmp_path_factory.mktemp("pt") / "md", dipeptide, tau, weights)
    found = read_reference(folder, dipeptide, BackboneTorsions(dipeptide.topology, ("phi", "psi")))
    np.testing.assert_allclose(wrap(found.tau - tau), 0.0, atol=1e-3)
    np.testing.assert_allclose(found.weights, weights / weights.sum())
    return found


def test_moves_take_turns_and_a_chain_resumes_bit_for_bit(dipeptide: MolecularSystem, tmp_path: Path) -> None:
    """Moves follow the order whatever was accepted, counters are sums, and a chain resumed in the middle of a cycle
    equals one that was never stopped; another order is refused."""
    first = hybrid(dipeptide, cycle(dipeptide))
    first.equilibrate(50)
    first.run(7, tmp_path, progress=False)
    # Blocks begin where `run` was called: the chain to compare with stops there too.
    first.run(13, progress=False)
    counts = first.move.statistics
    assert {name: c["n_proposed"] for name, c in counts["moves"].items()} == {"many": 5, "one": 8}
    assert counts["n_proposed"] == 13
    second = hybrid(dipeptide, cycle(dipeptide))
    second.load(tmp_path / "checkpoint.npz")
    second.run(13, progress=False)
    whole, resumed = first.series.arrays(), second.series.arrays()
    for name in ("tau_end", "accepted", "log_q_candidate", "positions"):
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
    assert second.move.statistics == counts
    with pytest.raises(OutputError, match="other settings"):
        hybrid(dipeptide, cycle(dipeptide, ("many", "one"))).load(tmp_path / "checkpoint.npz")
    with pytest.raises(SettingError, match="expected each at least once"):
        MoveCycle(cycle(dipeptide).moves, ["many"])


def test_a_chain_runs_for_its_time(dipeptide: MolecularSystem, tmp_path: Path) -> None:
    """The chain ends soon after its minutes, has a checkpoint, and adds nothing where its time is over already."""
    chain = hybrid(dipeptide, cycle(dipeptide))
    run_for(chain, 1.0 / 60.0, tmp_path, progress=False)
    assert chain.seconds >= 1.0
    assert (tmp_path / "checkpoint.npz").exists()
    n = len(chain.series)
    assert n >= 20
    run_for(chain, 1.0 / 60.0, tmp_path, progress=False)
    assert len(chain.series) == n


def test_the_report_of_moves_separates_their_kinds() -> None:
    """Acceptance, cost and turns belong to the kind of the move; turns are of accepted moves and torsions that move."""
    n = 12
    kinds = np.array(["independent", "local", "local"] * 4)
    accepted = (kinds == "local") & (np.arange(n) % 2 == 1)
    before = np.full((n, 3), 3.0)
    turn = np.where(accepted[:, None], [0.5, -0.5, 2.0], 1.0)
    arrays = {
        "accepted": accepted.astype(float),
        "tau_before": before,
        "tau_after": wrap(before + turn),
        "seconds_move": np.where(kinds == "local", 0.01, 0.03),
        "n_invalid": np.zeros(n),
    }
    report = moves_report(arrays, kinds, np.array([True, True, False]))
    assert report["independent"]["acceptance"] == 0.0
    assert report["independent"]["median_turn_degrees"] is None
    assert report["independent"]["ms_a_move"] == pytest.approx(30.0)
    assert report["local"]["acceptance"] == pytest.approx(0.5)
    assert report["local"]["median_turn_degrees"] == pytest.approx(math.degrees(0.5))


def test_reference_starts_are_in_the_core_of_r(reference: TemperedReference, dipeptide: MolecularSystem) -> None:
    """Structures to start dynamics from have phi in the core of R; the share of R is the weighted one."""
    torsions = BackboneTorsions(dipeptide.topology, ("phi", "psi"))
    starts = reference.starts_in_r(0, 20, np.random.default_rng(0))
    phi = torsions.get(starts)[:, 0]
    assert ((phi > 0.55) & (phi < 1.65)).all()
    in_r = (reference.tau[..., 0] > 0) & (reference.tau[..., 0] < 2.2)
    assert reference.share_of_r(0) == pytest.approx(float(reference.weights[in_r].sum()))
    assert reference.md_steps == 2 * 3 * 40 * 10


def test_other_folders_are_refused(dipeptide: MolecularSystem, tmp_path: Path) -> None:
    """A folder without a finished simulation, of another molecule or temperature, or with too few weights."""
    torsions = BackboneTorsions(dipeptide.topology, ("phi", "psi"))
    with pytest.raises(InputFileError, match="no finished simulation"):
        read_reference(tmp_path, dipeptide, torsions)
    rng = np.random.default_rng(1)
    folder = tempered(tmp_path / "md", dipeptide, two_basins(rng, 2, 5, 3), rng.random((2, 5, 3)))
    with np.load(folder / "weights.npz") as file:
        arrays = dict(file)
    np.savez(folder / "weights.npz", **{**arrays, "walker": arrays["walker"][::-1]})
    with pytest.raises(TrajectoryError, match="equally many of each"):
        read_reference(folder, dipeptide, torsions)
    other = build_system(job_settings.SimulateSettings.build({"output": tmp_path, "system": "ACE-GLY-NME"}))
    with pytest.raises(TrajectoryError, match="expected one of ACE-GLY-NME"):
        read_reference(folder, other, torsions)
    text = (folder / "settings.yaml").read_text()
    (folder / "settings.yaml").write_text(text.replace("\ntemperature: 300.0", "\ntemperature: 310.0"))
    with pytest.raises(TrajectoryError, match="310 K"):
        read_reference(folder, dipeptide, torsions)


def test_the_three_ways_are_compared_on_one_scale(reference: TemperedReference) -> None:
    """Independent draws of the reference's ensemble agree with it and are worth one draw each; a chain of another
    ensemble, the control, does not agree; one stuck in L has no effective draws."""
    rng = np.random.default_rng(2)
    share = reference.share_of_r(0)
    phi = two_basins(rng, 2000, share=share)[:, :1]
    escapes = np.array([[1.0, 0.0]] * 50 + [[-1.4, 0.0]])
    dynamics = DynamicsRecord([escapes] * 9, seconds=2.0)
    rows = mixing_report(phi, 10.0, reference, 100.0, dynamics, [0], ["phi:ALA2"])
    for name in ("cos phi", "sin phi", "in R", "phi"):
        assert abs(rows[0]["hybrid"][name]["value"] - 200.0) < 4 * rows[0]["hybrid"][name]["error"]
    # 240 frames with weights: fewer draws than frames, in 2400 steps at 100 a second.
    assert 0.1 * 10.0 < rows[0]["tempering"]["in R"]["value"] < 3.0 * 10.0
    dwell_ns = 9 * 50 * dynamics.frame_ns
    expected = 9 / dwell_ns / (2 * (1 - share)) * dynamics.ns / 2.0
    assert rows[0]["dynamics"]["in R"]["value"] == pytest.approx(expected)
    assert rows[0]["dynamics"]["in R"]["error"] == pytest.approx(expected / 3.0)
    assert rows[0]["dynamics"]["escapes"] == 9
    assert rows[0]["over_dynamics"]["error"] > 0.0

    silent = DynamicsRecord([escapes[:-1]], seconds=2.0)
    bounded = mixing_report(phi, 10.0, reference, 100.0, silent, [0], ["phi:ALA2"])[0]
    assert bounded["dynamics"]["phi"]["error"] is None
    assert bounded["over_dynamics"]["error"] is None
    stuck = mixing_report(two_basins(rng, 2000, share=0.0)[:, :1], 10.0, reference, 100.0, silent, [0], ["phi:ALA2"])
    assert stuck[0]["hybrid"]["phi"] is None
    assert stuck[0]["over_dynamics"] is None

    same = population_report(phi, reference, [0], ["phi:ALA2"], rng)
    assert abs(same["phi"][0]["z"]) < 3.0
    assert [row["name"] for row in same["joint"]] == ["L", "R"]
    assert same["p_value"] > 0.01
    other = population_report(two_basins(rng, 2000, share=0.75)[:, :1], reference, [0], ["phi:ALA2"], rng)
    assert abs(other["phi"][0]["z"]) > 5.0
    assert other["p_value"] < 1e-3
    move = {"moves": 9, "candidates": 8, "acceptance": 0.2, "acceptance_error": 0.1, "ms_a_move": 5.0}
    summary = {"sequence": "ACE-ALA-NME", "model": "m", "platform": "Reference", "populations": same}
    text = table(
        summary | {"moves": {"local": {**move, "median_turn_degrees": None}}, "mixing": [*rows, bounded, *stuck]}
    )
    assert "< " in text
    assert "> " in text
    assert "chi^2" in text


def test_dynamics_starts_in_r_and_goes_on(
    reference: TemperedReference, dipeptide: MolecularSystem, tmp_path: Path
) -> None:
    """Every trajectory begins in the core of R; a second call adds to the record what is missing of its time."""
    torsions = BackboneTorsions(dipeptide.topology, ("phi", "psi"))
    starts = [(0, x) for x in reference.starts_in_r(0, 4, np.random.default_rng(0))]
    path = tmp_path / "dynamics.npz"
    arguments = (dipeptide, torsions, starts, REFERENCE)
    first = run_dynamics(*arguments, 0.5 / 60, 1, path, progress=False)
    assert first.seconds == pytest.approx(0.5)
    assert all(0.5 < tau[0, 0] < 1.7 for tau in first.trajectories)
    assert first.ns == pytest.approx(sum(len(tau) - 1 for tau in first.trajectories) * 4e-4)
    again = run_dynamics(*arguments, 0.5 / 60, 1, path, progress=False)
    np.testing.assert_array_equal(np.concatenate(again.trajectories), np.concatenate(first.trajectories))
    more = run_dynamics(*arguments, 0.7 / 60, 1, path, progress=False)
    assert more.seconds == pytest.approx(0.7)
    assert len(more.trajectories) > len(first.trajectories)
    with pytest.raises(SettingError, match="core of R"):
        run_dynamics(dipeptide, torsions, [], REFERENCE, 1.0, 1, path, progress=False)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputFileError, match="no record"):
        DynamicsRecord.load(path)


PARENT = """
import os, sys, time
sys.path.insert(0, {tests!r})
from test_orphans import idle, work
from openmm_diffusion.workflows.walkers import walker_pool
if __name__ == "__main__":
    pool = walker_pool(2)
    futures = [pool.submit(idle, {folder!r}), pool.submit(work, {folder!r})]
    futures[0].result()
    print("ready", flush=True)
    time.sleep(600)
"""
CHILD = """
import os, time
from pathlib import Path
from openmm_diffusion.workflows.walkers import at_work, parent_is_gone

def idle(folder):
    Path(folder, "idle").write_text(str(os.getpid()))
    while not Path(folder, "work").exists():
        time.sleep(0.02)

def work(folder):
    with at_work():
        Path(folder, "work").write_text(str(os.getpid()))
        while not parent_is_gone():
            time.sleep(0.02)
        time.sleep(0.3)
        Path(folder, "whole").write_text("written to the end")
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Killed without a chance to tell, a program leaves neither an idle worker nor a busy one; the busy one writes its
    file to the end first. Negative control: before, both were alive."""
    (tmp_path / "test_orphans.py").write_text(CHILD)
    program = tmp_path / "parent.py"
    program.write_text(PARENT.format(tests=str(tmp_path), folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        workers = [int((tmp_path / name).read_text()) for name in ("idle", "work")]
        assert all(alive(pid) for pid in workers)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        end = time.monotonic() + 60
        while any(alive(pid) for pid in workers) and time.monotonic() < end:
            time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    assert (tmp_path / "whole").read_text() == "written to the end"
    assert not walkers.parent_is_gone()  # of this very process, which has none to watch


def test_an_orphaned_ladder_stops_whole_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ladder whose parent is gone stops between two chunks with a closed file, and --resume goes on from it."""
    values = {"output": tmp_path / "md", "system": "alanine-dipeptide-vacuum", "n_iterations": 4, "walkers": 1}
    values |= {"n_replicas": 2, "steps_per_iteration": 2, "platform": REFERENCE, "discard": 0.0}
    settings = job_settings.SimulateSettings.build(values)
    answers = iter([False, True])
    monkeypatch.setattr(simulate, "CHUNK", 2)
    monkeypatch.setattr(simulate, "parent_is_gone", lambda: next(answers))
    with pytest.raises(StateError, match="--resume"):
        simulate.simulate(settings, progress=False)
    assert not (tmp_path / "md" / "simulation.json").exists()
    monkeypatch.setattr(simulate, "parent_is_gone", lambda: False)
    simulate.simulate(settings, resume=True, progress=False)
    assert json.loads((tmp_path / "md" / "simulation.json").read_text())["frames"] == 8


def test_stages_of_the_shipped_models_are_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of every model names settings that there are, from one stage's files to the next's."""
    example = script("train_se3_models")
    stages: list[tuple[Path, str, str]] = []

    def record(folder: Path, given: Any, **values: Any) -> None:
        stages.extend((folder, result, words.format(**values)) for result, words in given)

    monkeypatch.setattr(example, "run_stages", record)
    monkeypatch.setattr(sys, "argv", ["train_se3_models.py", "--output", str(tmp_path), "--minutes", "2"])
    example.main()
    classes = {"simulate": job_settings.SimulateSettings, "prepare": PrepareSE3Settings, "train": TrainSE3Settings}
    assert len(stages) == 9
    built = [settings_of(words, classes) for _, _, words in stages]
    for simulated, prepared, trained in zip(built[::3], built[1::3], built[2::3], strict=True):
        assert prepared.trajectory == [simulated.output / "trajectory.dcd"]
        assert prepared.weights == [simulated.output / "weights.npz"]
        assert prepared.caps
        assert trained.data_dir == prepared.output
        assert trained.preset == "acceptance"
        assert trained.self_conditioning == 0.0
        assert trained.max_minutes == 2.0
    assert [s.n_iterations for s in built[::3]] == [7000, 5000, 2500]
    assert [folder.name for folder, _, _ in stages[::3]] == ["alanine-dipeptide", "ace-ala3-nme", "ace-ala5-nme"]


def settings_of(words: str, classes: dict[str, Any]) -> Any:
    """The settings that the words of a command give."""
    first, *rest = shlex.split(words)
    cls, given, key = classes[first], {}, ""
    for word in rest:
        if word.startswith("--"):
            key = word[2:].replace("-", "_")
            given[key] = True
        elif key:
            given[key] = word
    given = {k: [v] if k in ("trajectory", "weights") else v for k, v in given.items() if k != "resume"}
    return cls.build(given)


def test_the_comparison_writes_everything(
    dipeptide: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With independent and local moves of an untrained SE(3) model: all files, every key, and a resumed run with more
    minutes goes on; another model's settings are refused."""
    molecule = build_system(job_settings.SimulateSettings.build({"output": tmp_path, "system": "ACE-ALA-NME"}))
    rng = np.random.default_rng(3)
    folder = tempered(tmp_path / "md", molecule, two_basins(rng, 2, 60, 3), rng.random((2, 60, 3)))
    model = create("se3", molecule.topology, model_conf=ONE_NETWORK, se3_conf=NOISE)
    path = save(model, tmp_path / "model")
    monkeypatch.setattr(peptide_comparison, "tempering_speed", lambda *_: 1000.0)
    monkeypatch.setattr(peptide_comparison, "available_cores", lambda: 1)
    monkeypatch.setattr(peptide_comparison, "time_platforms", lambda *_: {REFERENCE: 1.0})
    values = {"output": tmp_path / "out", "sequence": "ACE-ALA-NME", "model": str(path), "tempering": folder}
    values |= {"local_moves": 1, "n_candidates": 2, "local_candidates": 1, "t_star": 0.05, "md_steps": 5}
    values |= {"minutes": 0.01, "md_minutes": 0.005}
    summary = peptide_comparison.compare(PeptideSettings.build(values), progress=False)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["iterations"] == summary["iterations"] >= 20
    assert set(written["moves"]) == {"independent", "local"}
    assert {"mixing", "populations", "tempering", "dynamics", "sha256", "cores"} <= set(written)
    assert set(script("peptides").FILES) == {p.name for p in (tmp_path / "out").iterdir()}
    assert "ACE-ALA-NME" in table(written)
    with pytest.raises(OutputError, match="holds results already"):
        peptide_comparison.compare(PeptideSettings.build(values), progress=False)
    with pytest.raises(OutputError, match="t_star"):
        peptide_comparison.compare(PeptideSettings.build(values | {"t_star": 0.1}), resume=True, progress=False)
    longer = values | {"minutes": 1.1 * max(0.01, written["seconds"] / 60.0)}
    more = peptide_comparison.compare(PeptideSettings.build(longer), resume=True, progress=False)
    assert more["iterations"] > written["iterations"]


@pytest.mark.slow
def test_the_example_runs_from_its_command(tmp_path: Path) -> None:
    """One command makes its own parallel tempering, prints the table, and says what it left."""
    molecule = build_system(job_settings.SimulateSettings.build({"output": tmp_path, "system": "ACE-ALA-NME"}))
    model = create("se3", molecule.topology, model_conf=ONE_NETWORK, se3_conf=NOISE)
    path = save(model, tmp_path / "model")
    command = [sys.executable, str(ROOT / "examples" / "peptides.py"), "--sequence", "ACE-ALA-NME", "--quiet"]
    command += ["--model", str(path), "--output", str(tmp_path / "out"), "--platform", REFERENCE]
    command += ["--tempering-iterations", "400", "--minutes", "0.1", "--md-minutes", "0.05", "--tempering-seconds", "2"]
    command += ["--n-candidates", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    if done.returncode:
        # Ladders as short as this may never see R, and then there is nothing to start plain dynamics from.
        assert "core of R" in done.stderr and "Traceback" not in done.stderr
        return
    assert "Effective draws a second" in done.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["tempering"]["steps_per_s"] > 0.0
    assert (tmp_path / "out-tempering" / "simulation.json").is_file()
