"""What `tests/test_mpi.py` runs on every rank: `mpiexec -n 2 python mpi_job.py FOLDER start|restart [model]`.

Writes FOLDER/STAGE-RANK.json: the counters that this rank has of every state in every layout, what it counted itself,
and its candidates.
"""

import json
import sys
from pathlib import Path
from typing import Any

import multistate_jobs as jobs
import openmm
from mpi4py import MPI
from openmmtools import cache, multistate

from openmm_diffusion.models import store
from openmm_diffusion.proposals import TorsionProposal
from openmm_diffusion.workflows.tempering import restored

FOLDER, STAGE = Path(sys.argv[1]), sys.argv[2]
N_STEPS = {"start": 6, "restart": 4}[STAGE]
# name: sampler, states, replicas, class of the move
LAYOUTS = {
    "replica exchange, 3 states of 3 replicas": ("replica-exchange", 3, 3, "merged"),
    "one state of 4 replicas": ("multistate", 1, 4, "merged"),
    "2 states of 5 replicas": ("multistate", 2, 5, "merged"),
    "SAMS, 3 states of 4 replicas": ("sams", 3, 4, "merged"),
    "control: one state of 4 replicas": ("multistate", 1, 4, "unmerged"),
    "diffusion, 3 states of 3 replicas": ("replica-exchange", 3, 3, "diffusion"),
}


def make(kind: str) -> Any:
    if kind == "diffusion":
        return jobs.with_dynamics(jobs.diffusion_move(store.load(FOLDER / "model")))
    return jobs.with_dynamics((jobs.Unmerged if kind == "unmerged" else jobs.ProposalMove)(jobs.Nudge(), 1, 3))


def run() -> dict[str, Any]:
    result = {}
    for number, (layout, (name, n_states, n_replicas, kind)) in enumerate(LAYOUTS.items()):
        storage = FOLDER / f"{number}.nc"
        if STAGE == "start":
            sampler = jobs.create(name, make(kind), storage, n_states, n_replicas)
        else:
            sampler = restored(jobs.SAMPLERS[name], storage)
        # What a rank counts itself, which nobody tells it.
        own = [0] * n_states
        for k, move in enumerate(sampler._mcmc_moves):
            watch(jobs.ours(move), own, k)
        sampler.extend(N_STEPS)
        statistics = [jobs.ours(move).statistics for move in sampler._mcmc_moves]
        result[layout] = {"own": own, "statistics": statistics}
    return result


def watch(move: Any, own: list[int], k: int) -> None:
    apply = move.apply

    def counted(*arguments: Any, **options: Any) -> None:
        own[k] += 1
        apply(*arguments, **options)

    move.apply = counted


def main() -> None:
    cache.global_context_cache = cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))
    multistate.MultiStateSampler._global_citation_silence = True
    draws = jobs.Draws(TorsionProposal, setattr)
    result = {"layouts": run(), "candidates": draws.tau, "ranks": MPI.COMM_WORLD.size}
    (FOLDER / f"{STAGE}-{MPI.COMM_WORLD.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
