"""`openmm-diffusion sample`: what it writes, that it goes on bit for bit, and every fault as one sentence."""

import copy
import errno
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
import yaml
from openmm import app, unit
from sample_jobs import SHORT, TINY, content, model, molecule, quick, run, settings
from tiny_network import TINY as TINY_FRAMES
from typer.testing import CliRunner

from openmm_diffusion.cli.main import app as command
from openmm_diffusion.errors import InputFileError, ModelFileError, OpenMMDiffusionError, OutputError, StateError
from openmm_diffusion.models import create, store
from openmm_diffusion.molecule import BackboneTorsions, write_pdb
from openmm_diffusion.workflows import chain_files, folder_lock
from openmm_diffusion.workflows import sample as job
from openmm_diffusion.workflows.chain_files import DCDFormat, Trajectory, read_table
from openmm_diffusion.workflows.folder_lock import FolderLock
from openmm_diffusion.workflows.sample_chain import SampledChain
from openmm_diffusion.workflows.sample_dynamics import ChainDynamics
from openmm_diffusion.workflows.sample_report import summary, summary_text
from openmm_diffusion.workflows.sample_state import Checkpoints
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide

__all__ = ["model", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick")


def stop_after(monkeypatch: pytest.MonkeyPatch, iterations: int) -> None:
    """Let chains be interrupted when they have made some iterations, before anything of the last is written."""
    write = SampledChain._write_row

    def interrupted(chain: SampledChain, *arguments: Any) -> None:
        if chain.iteration == iterations:
            raise KeyboardInterrupt
        write(chain, *arguments)

    monkeypatch.setattr(SampledChain, "_write_row", interrupted)


def stopped(monkeypatch: pytest.MonkeyPatch, iterations: int, output: Path, model: Path, **changes: Any) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, iterations)
        run(output, model, **changes)


def test_frames_rows_and_settings_agree(tmp_path: Path, model: Path) -> None:
    """A row an iteration, a frame every second one; torsions of frames are those of rows; settings are resolved."""
    values = run(tmp_path / "out", model, report_interval=2)
    out = tmp_path / "out"
    table = read_table(out / "chain.csv")
    assert table["iteration"].tolist() == list(range(1, 9))
    assert values["accepted"] == table["accepted"].mean()
    frames = mdtraj.load(str(out / "trajectory.dcd"), top=str(out / "topology.pdb"))
    assert frames.n_frames == 4
    torsions = BackboneTorsions(molecule().topology, ("phi", "psi"))
    tau = torsions.get(frames.xyz.astype(np.float64))
    recorded = np.stack([table[label][1::2] for label in torsions.labels], axis=1)
    np.testing.assert_allclose(np.exp(1j * tau), np.exp(1j * recorded), atol=1e-5)
    # log alpha is made of its terms wherever there is one candidate of weight.
    alpha = -(table["u_candidate"] - table["u_present"]) + table["log_q_present"] - table["log_q_candidate"]
    assert np.isfinite(alpha).all()
    # What the next move starts from is the energy that the dynamics ended with.
    beta = 1.0 / (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
    np.testing.assert_allclose(table["u_present"][1:], beta * table["potential_energy"][:-1], rtol=1e-12)
    assert yaml.safe_load((out / "settings.yaml").read_text())["platform"] == "Reference"
    assert json.loads((out / "summary.json").read_text())["iterations"] == 8
    assert not list(out.glob("*.lock"))


def test_one_candidate_has_the_log_alpha_of_its_terms(tmp_path: Path, model: Path) -> None:
    """With one candidate log alpha is min(0, -(u' - u) + log q - log q') of the recorded terms."""
    run(tmp_path / "out", model, n_candidates=1)
    table = read_table(tmp_path / "out" / "chain.csv")
    alpha = -(table["u_candidate"] - table["u_present"]) + table["log_q_present"] - table["log_q_candidate"]
    np.testing.assert_allclose(table["log_alpha"], np.minimum(0.0, alpha), atol=1e-9)


@pytest.mark.parametrize("form", ["dcd", "xtc"])
@pytest.mark.parametrize("iterations", [2, 5])
def test_a_stopped_chain_goes_on_bit_for_bit(
    form: str, iterations: int, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before or after its first block, a resumed chain writes the files of one never stopped."""
    run(tmp_path / "whole", model, format=form)
    stopped(monkeypatch, iterations, tmp_path / "out", model, format=form)
    assert len(read_table(tmp_path / "out" / "chain.csv")["iteration"]) == iterations - 1
    run(tmp_path / "out", model, resume=True, format=form)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_without_its_generator_a_resumed_chain_would_differ(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the comparison notices a candidate pool, and thermostat noise, that were not restored."""
    whole = tmp_path / "whole"
    run(whole, model)
    for name, broken in (
        ("import_stream", lambda move, stream, pool: type(move).__mro__[1].import_stream(move, stream, {})),
        ("seed", lambda dynamics, block: 77),
    ):
        out = tmp_path / name
        stopped(monkeypatch, 5, out, model)
        with monkeypatch.context() as patch:
            if name == "seed":
                patch.setattr(ChainDynamics, "seed", broken)
            else:
                patch.setattr("openmm_diffusion.mcmc.DiffusionMove.import_stream", broken)
            run(out, model, resume=True)
        assert content(out)["chain.csv"] != content(whole)["chain.csv"]
        assert content(out)["chain.csv"][:4] == content(whole)["chain.csv"][:4]


def test_files_that_were_not_cut_back_would_be_seen(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: frames doubled because a trajectory was not cut back differ; a doubled row is refused."""
    run(tmp_path / "whole", model)
    opened = SampledChain._open_files
    for key, name in (("trajectory_bytes", "trajectory.dcd"), ("table_bytes", "chain.csv")):
        out = tmp_path / key
        stopped(monkeypatch, 6, out, model)

        def uncut(chain: SampledChain, card: Any, key: str = key, path: Path = out / name) -> None:
            opened(chain, {**card, key: path.stat().st_size})

        with monkeypatch.context() as patch:
            patch.setattr(SampledChain, "_open_files", uncut)
            if name == "chain.csv":
                with pytest.raises(InputFileError, match="does not hold the 3 iterations"):
                    run(out, model, resume=True)
                continue
            run(out, model, resume=True)
        assert content(out)[name] != content(tmp_path / "whole")[name]


def test_a_longer_run_has_the_blocks_of_one_that_was_long_from_the_start(tmp_path: Path, model: Path) -> None:
    """7 iterations, gone on to 11, equal 11 at once, although 7 is no multiple of the block; fewer are refused."""
    out = tmp_path / "out"
    run(tmp_path / "whole", model, n_iterations=11)
    run(out, model, n_iterations=7)
    before = content(out)
    run(out, model, n_iterations=7, resume=True)  # nothing left to do
    assert content(out) == before
    with pytest.raises(OutputError, match="has 7 iterations already"):
        run(out, model, n_iterations=5, resume=True)
    assert content(out) == before
    run(out, model, n_iterations=11, resume=True)
    assert content(out) == content(tmp_path / "whole")


def test_only_iterations_and_platform_may_change(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another value of a setting is refused; one that is not given is that of the start; the platform may change."""
    out = tmp_path / "out"
    stopped(monkeypatch, 5, out, model, temperature=310.0)
    for changes in ({"temperature": 300.0}, {"md_steps": 3}, {"seed": 1}, {"walkers": 2}, {"format": "xtc"}):
        with pytest.raises(OutputError, match=f"was run with {next(iter(changes))}"):
            run(out, model, resume=True, **{"temperature": 310.0, **changes})
    bare = job.SampleSettings.build({"output": out, "n_iterations": 6, "platform": "CPU"})
    values = job.sample(bare, resume=True, progress=False)
    assert (values["iterations"], values["platform"]) == (6, "CPU")
    assert "--temperature 310.0" in values["command"]


def test_a_new_job_never_touches_an_old_one(tmp_path: Path, model: Path) -> None:
    """A folder with results is refused without --resume or --overwrite, which exclude each other."""
    out = tmp_path / "out"
    run(out, model, n_iterations=3)
    before = content(out)
    with pytest.raises(OutputError, match="--overwrite, --resume or another name"):
        run(out, model)
    with pytest.raises(OutputError, match="exclude each other"):
        run(out, model, resume=True, overwrite=True)
    assert content(out) == before
    (out / "alien.txt").write_text("old")
    run(out, model, n_iterations=3, overwrite=True)
    assert content(out) == before


def test_a_model_that_was_swapped_is_refused(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights under the same name: one sentence with both sha256, and the chain stays as it was."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    monkeypatch.setattr(store, "load", store.load.__wrapped__)
    for suffix in (".json", ".safetensors"):
        shutil.copy(f"{model}{suffix}", f"{mine}{suffix}")
    stopped(monkeypatch, 5, out, mine)
    before = content(out)
    store.save(create("torsion", molecule().topology, seed=1, **TINY), mine)
    first, second = store.load(model).sha256()[:12], store.load(mine).sha256()[:12]
    with pytest.raises(ModelFileError, match=rf"{first}.*is now {second}"):
        run(out, mine, resume=True)
    assert content(out) == before


def renamed(topology: app.Topology) -> app.Topology:
    """The same molecule with the names of two hydrogens exchanged."""
    other = copy.deepcopy(topology)
    atoms = {atom.name: atom for atom in other.atoms() if atom.residue.name == "ALA"}
    atoms["HB1"].name, atoms["HB2"].name = "HB2", "HB1"
    return other


def softened(system: openmm.System) -> openmm.System:
    """The same System with one force constant changed by one part in a million."""
    other = copy.deepcopy(system)
    bonds = next(force for force in other.getForces() if isinstance(force, openmm.HarmonicBondForce))
    i, j, length, k = bonds.getBondParameters(0)
    bonds.setBondParameters(0, i, j, length, k * (1 + 1e-6))
    return other


def test_another_molecule_or_force_field_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Atoms named otherwise, and a force constant that changed, are noticed; the chain stays as it was."""
    out, own = tmp_path / "out", molecule()
    stopped(monkeypatch, 5, out, model)
    before = content(out)
    for other, message in (
        (MolecularSystem(own.name, renamed(own.topology), own.system, own.positions), "another molecule"),
        (MolecularSystem(own.name, own.topology, softened(own.system), own.positions), "another force field"),
    ):
        monkeypatch.setattr(job, "build_system", lambda settings, other=other: other)
        with pytest.raises(OutputError, match=message):
            run(out, model, resume=True)
        assert content(out) == before
    # Where another version of OpenMM wrote the System, its energy is compared instead of its text.
    vacuum, obc = own.system, alanine_dipeptide("obc")
    monkeypatch.setattr("openmm.version.version", "9.0")
    monkeypatch.setattr(
        job, "build_system", lambda settings: MolecularSystem("a", own.topology, obc.system, own.positions)
    )
    with pytest.raises(OutputError, match="another force field"):
        run(out, model, resume=True)
    monkeypatch.setattr(job, "build_system", lambda settings: MolecularSystem("a", own.topology, vacuum, own.positions))
    run(out, model, resume=True)


@pytest.mark.parametrize("name", ["chain.json", "state.xml", "pool.npz"])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    name: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file of the newest checkpoint is cut off or altered, the chain goes on from the one before."""
    run(tmp_path / "whole", model)
    stopped(monkeypatch, 8, tmp_path / "stopped", model)
    newest = f"checkpoints/iteration_{6:09d}/{name}"
    data = (tmp_path / "stopped" / newest).read_bytes()
    middle = len(data) // 2
    altered = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for number, damaged in enumerate((data[:0], data[:middle], data[:-1], altered)):
        out = tmp_path / f"out{number}"
        shutil.copytree(tmp_path / "stopped", out)
        (out / newest).write_bytes(damaged)
        assert Checkpoints(out / "checkpoints").newest().iteration == 3
    run(out, model, resume=True)
    assert content(out) == content(tmp_path / "whole")


def test_no_usable_checkpoint_is_one_sentence(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all checkpoints damaged, or a trajectory or table that lost bytes, nothing is begun anew in silence."""
    stopped(monkeypatch, 8, tmp_path / "stopped", model)
    for name in ("trajectory.dcd", "chain.csv", "card"):
        out = tmp_path / name
        shutil.copytree(tmp_path / "stopped", out)
        if name == "card":
            for path in out.glob("checkpoints/*/chain.json"):
                path.write_text("{}")
            message = "no checkpoint in .* can be read"
        else:
            (out / name).write_bytes((out / name).read_bytes()[:100])
            message = f"{name} is missing or shorter"
        with pytest.raises(InputFileError, match=message):
            run(out, model, resume=True)


def test_what_a_checkpoint_counts_on_is_synced_before_it_has_its_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each renaming to a checkpoint, trajectory, table, the three files and their folder were synced."""
    synced: list[str] = []
    rename = os.rename
    renamed_to: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def seen(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        renamed_to.append(Path(target).name)
        assert {"trajectory.dcd", "chain.csv", "chain.json", "state.xml", "pool.npz", "unfinished"} <= set(synced)
        synced.clear()

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.rename", seen)
    run(tmp_path / "out", model)
    assert renamed_to == [f"iteration_{n:09d}" for n in (0, 3, 6)]
    assert [path.name for path in sorted(tmp_path.glob("out/checkpoints/i*"))] == renamed_to[1:]


def test_disk_full_keeps_the_chain(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at any write: one sentence, and with room again the chain goes on as if nothing had been."""
    run(tmp_path / "whole", model)
    write = chain_files.write_all
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(chain_files, "write_all", lambda file, data: (next(calls), write(file, data)))
        run(tmp_path / "counted", model)
    n_writes = next(calls)
    assert n_writes > 20
    for full_at in (1, 6, n_writes // 2, n_writes - 1):
        out, count = tmp_path / f"out{full_at}", itertools.count()

        def full(file: Any, data: bytes, full_at: int = full_at, count: Iterator[int] = count) -> None:
            if next(count) >= full_at:
                write(file, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(file, data)

        with monkeypatch.context() as patch:
            patch.setattr(chain_files, "write_all", full)
            with pytest.raises(OutputError, match=r"No space left on device.*make room.*--resume"):
                run(out, model)
        run(out, model, resume=True)
        assert content(out) == content(tmp_path / "whole")


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A small file system on a folder; False where this process may not mount one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_fills_up(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system of 64 kB the job ends with one sentence; on a larger one it goes on to the same files.

    Where no file system may be mounted, a limit on the size of files takes its place.
    """
    with small_disk(tmp_path / "disk", 64) as mounted:
        out = tmp_path / "disk" / "out"
        with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"make room|check the rights"):
            if not mounted:
                patch.setattr(chain_files, "write_all", limited(8192))
            run(out, model, n_iterations=400)
        n_done = Checkpoints(out / "checkpoints").newest().iteration
        assert n_done > 0
        shutil.copytree(out, tmp_path / "out")
    run(tmp_path / "out", model, n_iterations=n_done + 2, resume=True)
    run(tmp_path / "whole", model, n_iterations=n_done + 2)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def limited(size: int) -> Any:
    write = chain_files.write_all

    def write_some(file: Any, data: bytes) -> None:
        if file.tell() + len(data) > size:
            raise OSError(errno.EFBIG, "File too large")
        write(file, data)

    return write_some


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_storage_that_may_only_be_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start, and going on, in a folder without the right to write: one sentence, nothing changed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        stopped(monkeypatch, 5, folder / "out", model)
        before = content(folder / "out")
        for path in (folder, folder / "out"):
            path.chmod(0o555)
        loaded = store.load(str(model))  # by root, whose folder it is in
        monkeypatch.setattr(store, "load", lambda name: loaded)
        with unprivileged():
            for output, resume in ((folder / "new", False), (folder / "out", True)):
                with pytest.raises(OutputError, match=r"cannot be made or written \(Permission denied\)"):
                    run(output, model, resume=resume)
        for path in (folder, folder / "out"):
            path.chmod(0o755)
        assert content(folder / "out") == before
        assert not (folder / "new").exists()


def test_two_jobs_in_one_folder(tmp_path: Path, model: Path) -> None:
    """The second is told which process has the folder; once that is gone there is no lock."""
    out = tmp_path / "out"
    with FolderLock(out):
        for switches in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"):
                run(out, model, **switches)
        assert [path.name for path in out.iterdir()] == [folder_lock.NAME]
    assert not list(out.iterdir())
    run(out, model, n_iterations=3)


def test_locks_that_are_left_over(tmp_path: Path) -> None:
    """Taken over: one of a process of this machine that is gone, one of another machine that is old; a young one of
    another machine is respected, and so is the one of a process that only waits to be gone."""
    lock = tmp_path / folder_lock.NAME
    here = {"pid": 2**22 + 1, "host": socket.gethostname()}
    lock.write_text(json.dumps(here))
    with FolderLock(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(OutputError, match="process 1 on elsewhere"), FolderLock(tmp_path):
        pass
    os.utime(lock, (0, os.stat(lock).st_mtime - 2 * folder_lock.STALE))
    with FolderLock(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    lock.write_text("not JSON")  # killed while it signed
    with FolderLock(tmp_path):
        assert lock.exists()


def test_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the age of the lock decides, and its owner keeps it young."""
    monkeypatch.setattr(folder_lock, "_flock", lambda descriptor: None)
    monkeypatch.setattr(folder_lock, "HEARTBEAT", 0.02)
    with FolderLock(tmp_path):
        lock = tmp_path / folder_lock.NAME
        os.utime(lock, (0, 0))
        for _ in range(100):
            if os.stat(lock).st_mtime > 0:
                break
            folder_lock.time.sleep(0.05)
        with pytest.raises(OutputError, match="in use"), FolderLock(tmp_path):
            pass
    assert not lock.exists()


def test_a_bad_start_writes_nothing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN coordinates in a file, NaN in memory, atoms that lie on each other: one sentence, no folder."""
    own, out = molecule(), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(job, "build_system", job_build_system)
        path = write_pdb(tmp_path / "start.pdb", own.topology, own.positions)
        lines = path.read_text().splitlines()
        row = next(k for k, line in enumerate(lines) if line[:6] in ("ATOM  ", "HETATM"))
        lines[row] = lines[row][:30] + "     nan" + lines[row][38:]
        path.write_text("\n".join(lines))
        with pytest.raises(OpenMMDiffusionError, match="NaN"):
            run(out, model, system=str(path))
    nan, clash = own.positions.copy(), own.positions.copy()
    nan[3] = np.nan
    clash[3] = clash[10]
    for positions in (nan, clash):
        bad = MolecularSystem(own.name, own.topology, own.system, positions)
        monkeypatch.setattr(job, "build_system", lambda settings, bad=bad: bad)
        with pytest.raises(StateError, match="give"):
            run(out, model)
    assert not out.exists()


job_build_system = job.build_system


def test_dynamics_that_explode_are_one_sentence(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN in the middle of a chain ends it, and the last checkpoint is still good."""
    out = tmp_path / "out"
    step = SampledChain._iterate

    def explode(chain: SampledChain) -> None:
        if chain.iteration == 4:
            chain.dynamics.present.velocities = chain.dynamics.present.velocities * np.nan
        step(chain)

    with monkeypatch.context() as patch:
        patch.setattr(SampledChain, "_iterate", explode)
        # An accepted move would draw velocities afresh.
        patch.setattr("openmm_diffusion.mcmc.kernel.accepts", lambda *_: False)
        with pytest.raises(StateError, match="failed after 4 iterations"):
            run(out, model)
    assert Checkpoints(out / "checkpoints").newest().iteration == 3


def periodic() -> MolecularSystem:
    """Alanine dipeptide in a box of 3 nm."""
    own = molecule()
    topology = copy.deepcopy(own.topology)
    topology.setPeriodicBoxVectors(np.diag([3.0, 3.0, 3.0]) * unit.nanometer)
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(
        topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.9 * unit.nanometer, constraints=app.HBonds
    )
    return MolecularSystem("box", topology, system, own.positions + 2.9)


@pytest.mark.parametrize("form", ["dcd", "xtc"])
def test_a_periodic_box_is_kept(form: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Molecules that are moved back into the box, and the box itself, survive a stop; frames carry the cell."""
    box = periodic()
    monkeypatch.setattr(job, "build_system", lambda settings: box)
    run(tmp_path / "whole", model, timestep=2.0, format=form)
    stopped(monkeypatch, 5, tmp_path / "out", model, timestep=2.0, format=form)
    run(tmp_path / "out", model, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    frames = mdtraj.load(str(tmp_path / "out" / f"trajectory.{form}"), top=str(tmp_path / "out" / "topology.pdb"))
    np.testing.assert_allclose(frames.unitcell_vectors[0], 3.0 * np.eye(3), atol=1e-5)


def test_dcd_of_a_triclinic_box(tmp_path: Path) -> None:
    """mdtraj reads back positions, lengths and angles of a cell that is not rectangular."""
    topology = periodic().topology
    vectors = np.array([[3.0, 0.0, 0.0], [0.5, 2.5, 0.0], [-0.4, 0.3, 2.8]])
    trajectory = Trajectory(tmp_path / "t.dcd", DCDFormat(topology, 1, 0.5), None, 0)
    for iteration in (1, 2):
        trajectory.add(iteration, molecule().positions * iteration, vectors)
    trajectory.close()
    frames = mdtraj.load(str(tmp_path / "t.dcd"), top=mdtraj.Topology.from_openmm(topology))
    np.testing.assert_allclose(frames.unitcell_vectors[1], vectors, atol=1e-5)
    np.testing.assert_allclose(frames.xyz[1], 2 * molecule().positions, atol=1e-6)


def test_walkers_have_streams_of_their_own(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three walkers differ in every row, go on bit for bit, and R-hat is taken between them."""
    monkeypatch.setattr(job, "_run_walkers", in_turn)
    values = run(tmp_path / "whole", model, walkers=3, n_iterations=6)
    assert values["walkers"] == len(values["accepted_by_chain"]) == 3
    assert set(values["r_hat"]) == {"potential_energy", "phi:ALA2", "psi:ALA2"}
    energies = [read_table(tmp_path / "whole" / f"walker_0{k}" / "chain.csv")["potential_energy"] for k in range(3)]
    assert len(np.unique(np.concatenate(energies))) == 18
    stopped(monkeypatch, 4, tmp_path / "out", model, walkers=3, n_iterations=6)
    run(tmp_path / "out", model, resume=True, walkers=3, n_iterations=6)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def in_turn(settings: Any, progress: bool) -> None:
    for walker in range(settings.walkers):
        job._run_walker(settings, walker, progress)


def test_r_hat_tells_walkers_that_disagree() -> None:
    """Walkers of one distribution have an R-hat near 1, stuck in two basins far above; the text names the worst."""
    rng = np.random.default_rng(0)

    def table(phi: float) -> dict[str, Any]:
        numbers = {"iteration": np.arange(200.0), "accepted": np.ones(200), "seconds": np.ones(200)}
        tau = {"phi": phi + 0.1 * rng.standard_normal(200), "psi": rng.uniform(-3, 3, 200)}
        return {**numbers, **tau, "potential_energy": rng.standard_normal(200), "log_alpha": np.zeros(200)}

    alike = summary([table(1.0), table(1.0)], ("phi", "psi"))
    apart = summary([table(1.0), table(-1.0)], ("phi", "psi"))
    assert alike["r_hat"]["phi"] < 1.05 < 1.5 < apart["r_hat"]["phi"]
    assert "walkers: " in summary_text({**apart, "walkers": 2})
    assert "(phi)" in summary_text({**apart, "walkers": 2})


def test_batches_of_flows_end_with_blocks() -> None:
    """A pool of a flow cannot be stored, so it is made to be used up exactly where a checkpoint is written."""
    for n, interval in itertools.product((1, 3, 8), (1, 7, 100, 1000)):
        chosen = settings(Path("out"), "m", density="flow", n_candidates=n, checkpoint_interval=interval, pool_size=600)
        size = chosen.move_options()["pool_size"]
        assert n * interval % size == 0
        assert size <= 600 or size == n


@pytest.mark.parametrize(
    "options",
    [
        {"n_diffusion_steps": 4},
        {"t_star": 0.2, "n_diffusion_steps": 4},
        pytest.param({"density": "flow", "n_diffusion_steps": 2}, marks=pytest.mark.slow),
    ],
    ids=["path", "local", "flow"],
)
def test_frame_models_go_on_bit_for_bit(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains with moves of an SE(3) model, in path space, local and by flow, with their own pools and threads."""
    conf = {**TINY_FRAMES, "embed": {**TINY_FRAMES["embed"], "embed_self_conditioning": False}}
    store.save(create("se3", molecule().topology, seed=0, model_conf=conf), tmp_path / "frames")
    changes = {"n_candidates": 1, "pool_size": None if "t_star" in options else 2, **options}
    run(tmp_path / "whole", tmp_path / "frames", **changes)
    stopped(monkeypatch, 5, tmp_path / "out", tmp_path / "frames", **changes)
    run(tmp_path / "out", tmp_path / "frames", resume=True, **changes)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_the_command(tmp_path: Path, model: Path) -> None:
    """A YAML file is the argument, flags go before it; the summary and the files are told; --resume takes no flags."""
    out, file = tmp_path / "out", tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump({**SHORT, "model": str(model), "seed": 3}))
    result = CliRunner().invoke(command, ["sample", str(file), "--output", str(out), "--n-iterations", "4", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "1 x 4 iterations" in result.stdout
    assert "chain.csv" in result.stdout
    assert yaml.safe_load((out / "settings.yaml").read_text())["seed"] == 3
    words = ["sample", "--output", str(out), "--n-iterations", "5", "--resume", "--quiet"]
    assert CliRunner().invoke(command, words).exit_code == 0
    assert len(read_table(out / "chain.csv")["iteration"]) == 5
    for bad, expected in (
        (["sample", str(tmp_path / "none.yaml")], "none.yaml"),
        (["sample", "--output", str(out), "--n-iterations", "0"], "n_iterations is 0"),
        (["sample", "--output", str(tmp_path / "new"), "--model", "no-such"], "no-such"),
        (["sample", str(file), "--output", str(tmp_path / "new"), "--density", "path"], "unknown options"),
        (["sample", str(file), "--output", str(tmp_path / "new"), "--platform", "Abacus"], "Abacus"),
        (["sample", str(file), "--output", str(out)], "--resume"),
    ):
        result = CliRunner().invoke(command, bad)
        assert result.exit_code == 1
        assert [expected in line for line in result.stderr.splitlines() if line.startswith("Error: ")] == [True]
    assert not (tmp_path / "new").exists()


def test_the_bar_tells_acceptance_and_ess(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a chain runs, its bar shows both."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    job.sample(settings(tmp_path / "out", model), progress=True)
    told = sys.stderr.getvalue()
    assert "accepted=" in told
    assert "ESS=" in told
