"""Two MPI ranks: counters of every layout, restarts, candidates that no rank repeats, a GPU for each rank."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import multistate_jobs as jobs
import pytest
import torch

from openmm_diffusion import models
from openmm_diffusion.proposals import devices

JOB = Path(__file__).parent / "mpi_job.py"
CONTROL = "control: one state of 4 replicas"


def mpiexec() -> str:
    """The launcher that comes with the wheel of mpich."""
    launcher = Path(sys.executable).parent / "mpiexec"
    if not launcher.exists():
        pytest.fail(
            "there is no mpiexec beside the Python that runs the tests; install the extra: pip install '.[mpi]'"
        )
    try:
        import mpi4py.MPI  # noqa: F401
    except ImportError as error:
        pytest.fail(f"mpi4py cannot be imported ({error}); install the extra: pip install '.[mpi]'")
    return str(launcher)


def two_ranks(*arguments: str | Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    command = [mpiexec(), "-n", "2", sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What both ranks wrote, of a start and of a restart in fresh processes."""
    folder = tmp_path_factory.mktemp("mpi")
    models.save(jobs.untrained("torsion"), folder / "model")
    found = {}
    for stage in ("start", "restart"):
        done = two_ranks(JOB, folder, stage)
        assert done.returncode == 0, done.stderr[-3000:]
        found[stage] = [json.loads((folder / f"{stage}-{rank}.json").read_text()) for rank in range(2)]
    return found


def test_counters_are_exact_in_every_layout(results: dict[str, list[Any]]) -> None:
    """After 6 iterations, and 4 more in new processes, each rank knows what both counted, state by state.

    T10: with one replica a state, several, and SAMS, where any number of replicas is in a state.
    """
    totals: dict[str, list[int]] = {}
    for stage, iterations in (("start", 6), ("restart", 10)):
        assert [rank["ranks"] for rank in results[stage]] == [2, 2]
        for layout, here in results[stage][0]["layouts"].items():
            if layout == CONTROL:
                continue
            there = results[stage][1]["layouts"][layout]
            assert here["statistics"] == there["statistics"], layout
            for k, (mine, yours) in enumerate(zip(here["own"], there["own"], strict=True)):
                totals.setdefault(f"{layout} {k}", [0, 0])
                totals[f"{layout} {k}"] = [a + b for a, b in zip(totals[f"{layout} {k}"], (mine, yours), strict=True)]
                counted = here["statistics"][k]
                assert counted["n_proposed"] == sum(totals[f"{layout} {k}"]), (layout, k)
                by_rank = counted["by_rank"]
                assert [by_rank.get(rank, [0])[0] for rank in "01"] == totals[f"{layout} {k}"], (layout, k)
                assert counted["n_accepted"] == sum(row[1] for row in by_rank.values()), (layout, k)
            n_replicas = int(layout.split(" of ")[1].split()[0]) if " of " in layout else 3
            assert sum(one["n_proposed"] for one in here["statistics"]) == iterations * n_replicas, layout


def test_the_check_sees_lost_counts(results: dict[str, list[Any]]) -> None:
    """The control: plain counters of one state with 4 replicas tell 12 of the 24 moves that the ranks made."""
    layouts = [rank["layouts"][CONTROL] for rank in results["start"]]
    assert sum(layout["own"][0] for layout in layouts) == 24
    assert {layout["statistics"][0]["n_proposed"] for layout in layouts} == {12}


def test_no_candidate_twice_on_ranks_and_after_a_restart(results: dict[str, list[Any]]) -> None:
    """Copies of one seeded move, 3 states on 2 ranks, and the same after a restart: no candidate is handed out twice.

    Control: the same list with one rank's candidates in it twice is seen.
    """
    lists = [rank["candidates"] for stage in results.values() for rank in stage]
    every = [tuple(row) for one in lists for row in one]
    assert len(every) == 2 * 3 * 10 and all(lists)
    assert len(set(every)) == len(every)
    assert len(set(every + every[:6])) < len(every) + 6


def test_an_error_on_one_rank_ends_all(tmp_path: Path) -> None:
    """A rank that ends with one of the package's errors ends the others, which would wait for it for ever."""
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from mpi4py import MPI\n"
        "from openmm_diffusion.errors import SettingError\n"
        "from openmm_diffusion.workflows.console import run_program\n"
        "def job():\n"
        "    if MPI.COMM_WORLD.rank == 1:\n"
        "        raise SettingError('the wrong teapot')\n"
        "    MPI.COMM_WORLD.Barrier()\n"
        "sys.exit(run_program(job))\n"
    )
    done = two_ranks(script, timeout=120.0)
    assert done.returncode != 0 and "Error: the wrong teapot" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_RANK": "11"}, 3),
        ({"MPI_LOCALRANKID": "1", "PMI_RANK": "5"}, 1),
        ({"SLURM_LOCALID": "2", "SLURM_PROCID": "6"}, 2),
        ({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "5"}, 5),  # mpiexec in a batch job
        ({"PMI_RANK": "7"}, 7),
        ({"MPI_LOCALRANKID": "", "SLURM_LOCALID": "-1"}, None),
    ],
)
def test_local_rank(environment: dict[str, str], expected: int | None) -> None:
    """The launchers' variables are read, those of MPI before those of Slurm, and nothing is made of nonsense."""
    assert devices.local_rank(environment) == expected


@pytest.mark.parametrize(
    ("count", "rank", "expected"),
    [(0, "1", "cpu"), (1, "3", "cuda"), (4, "1", "cuda:1"), (4, "6", "cuda:2"), (4, None, "cuda")],
)
def test_ranks_take_the_devices_in_turn(
    count: int, rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank k of a machine takes CUDA device k modulo their number; without MPI, or with one device, the default."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    environment = {} if rank is None else {"MPI_LOCALRANKID": rank}
    assert devices.default_device(environment) == expected
