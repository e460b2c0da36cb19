"""Killed at any instant, a chain goes on to the files of one that was never stopped; walkers end with their parent."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_jobs import SHORT, content, model, quick, run

from openmm_diffusion.workflows import chain_files, folder_lock
from openmm_diffusion.workflows.sample_state import Checkpoints

__all__ = ["model", "quick"]  # fixtures
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
ROOT = Path(__file__).parents[1]
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime")


def in_child(work: Callable[[], Any], seconds: float | None = None) -> bool:
    """Run something in a forked process; whether it was killed before its end, after some seconds for instance."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("moments", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(moments: int, tmp_path: Path, model: Path) -> None:
    """kill -9 of one chain at as many moments, each drawn from the whole length of a run, loses and doubles nothing."""
    rng = np.random.default_rng(moments)
    length = {"n_iterations": 6 * moments, "checkpoint_interval": 4}
    start = time.perf_counter()
    run(tmp_path / "whole", model, **length)
    whole = time.perf_counter() - start
    out, progressed, killed = tmp_path / "out", set(), 0
    for _ in range(moments):
        killed += in_child(lambda: run(out, model, resume=True, **length), rng.uniform(0.0, 2.5 * whole / moments))
        progressed.add(max(out.glob("checkpoints/i*"), default=out).name)
    # How far each comes is a matter of the machine's load; one at least must have been stopped on its way.
    assert killed and progressed != {out.name}, "no child was killed after a checkpoint, so nothing was tested"
    run(out, model, resume=True, **length)
    assert content(out) == content(tmp_path / "whole")


def killed_at(event: int, out: Path, work: Callable[[], Any]) -> Callable[[], Any]:
    """Let a process kill itself at its n-th touch of files in a folder, in the midst of a write for instance."""
    count, write, fsync = itertools.count(), chain_files.write_all, os.fsync

    def tick() -> None:
        if next(count) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def seen(name: str, arguments: tuple[Any, ...]) -> None:
        if name in FILE_EVENTS and str(arguments[0]).startswith(str(out)):
            tick()

    def write_in_parts(file: Any, data: bytes) -> None:
        write(file, data[: len(data) // 2])
        tick()
        write(file, data[len(data) // 2 :])

    def sync(descriptor: int) -> None:
        tick()
        fsync(descriptor)

    def watched() -> None:
        chain_files.write_all, os.fsync = write_in_parts, sync
        sys.addaudithook(seen)
        work()

    return watched


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_touch_of_a_file(stride: int, tmp_path: Path, model: Path) -> None:
    """Killed before any opening, syncing, renaming or removing of a file, and in the middle of any write, a chain goes
    on to the same files; so it does when the one that goes on is killed there as well."""
    length = {"n_iterations": 4, "checkpoint_interval": 2}
    run(tmp_path / "whole", model, **length)
    for event in itertools.count(3, stride):
        out = tmp_path / f"out{event}"
        again = killed_at(event, out, lambda out=out: run(out, model, resume=True, **length))
        killed = in_child(again)
        in_child(again)
        run(out, model, resume=True, **length)
        assert content(out) == content(tmp_path / "whole"), f"killed at event {event}"
        if not killed:
            break
    assert event > 60  # as many touches at least were tried


def command(out: Path, model: Path, **changes: Any) -> list[str]:
    values = {**SHORT, "model": model, "output": out, **changes}
    words = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "openmm_diffusion", "sample", *words, "--resume", "--quiet"]


def parent_of(process: int) -> int:
    """0 where there is no such process any more, or it has ended and only waits to be noticed."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[1])


def children(process: int) -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and parent_of(int(p.name)) == process]


def wait_for(condition: Callable[[], Any], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_walkers_end_with_their_parent_and_go_on(tmp_path: Path, model: Path) -> None:
    """The command with two walkers, killed with -9: the walkers are gone at once; --resume at once gives the files of
    an undisturbed run."""
    length = {"n_iterations": 200, "walkers": 2, "checkpoint_interval": 20}
    subprocess.run(command(tmp_path / "whole", model, **length), cwd=ROOT, check=True)
    out = tmp_path / "out"
    parent = subprocess.Popen(command(out, model, **length), cwd=ROOT)
    wait_for(lambda: len(list(out.glob("walker_*/checkpoints/iteration_00000*[1-9]*"))) >= 2)
    walkers = children(parent.pid)
    assert len(walkers) >= 2
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(parent_of, walkers)), seconds=20.0)
    subprocess.run(command(out, model, **length), cwd=ROOT, check=True)
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_queue_that_says_stop(tmp_path: Path, model: Path) -> None:
    """SIGTERM ends the command with one line; the lock is gone, and --resume goes on."""
    out = tmp_path / "out"
    process = subprocess.Popen(command(out, model, n_iterations=100_000), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("checkpoints/iteration_00000*[1-9]*")))
    process.terminate()
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in message
    assert "Traceback" not in message
    assert not (out / folder_lock.NAME).exists()
    done = Checkpoints(out / "checkpoints").iterations
    run(out, model, resume=True, n_iterations=done + 200)
    run(tmp_path / "whole", model, n_iterations=done + 200)
    assert content(out) == content(tmp_path / "whole")
