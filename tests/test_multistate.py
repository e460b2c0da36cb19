"""Our moves inside openmmtools' multistate samplers: their life with a storage, one model, costs, random streams."""

import copy
import gc
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multistate_jobs as jobs
import numpy as np
import openmm
import pytest
from multistate_jobs import counts, create, diffusion_move, from_storage, ours, untrained, with_dynamics
from openmm import unit
from openmmtools import cache, mcmc, multistate

from openmm_diffusion import models
from openmm_diffusion.mcmc import DiffusionMove, ProposalMove, streams
from openmm_diffusion.models import TorsionNetwork, store
from openmm_diffusion.proposals import BackboneProposal, TorsionProposal

KINDS = ("torsion", "se3")


@pytest.fixture(autouse=True)
def _quiet_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One Context cache on Reference for everything that a sampler does, and no lists of papers."""
    contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))
    monkeypatch.setattr(cache, "global_context_cache", contexts)
    monkeypatch.setattr(multistate.MultiStateSampler, "_global_citation_silence", True)
    yield


@pytest.fixture(scope="module")
def shared() -> dict[str, models.Model]:
    return {kind: untrained(kind) for kind in KINDS}


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes random streams believe that this is another process, which knows nothing of the first."""

    def renew() -> None:
        monkeypatch.setattr(streams, "_copies", defaultdict(itertools.count))
        monkeypatch.setattr(streams, "_process", (0, 0))

    return renew


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", jobs.SAMPLERS)
def test_life_of_a_sampler(name: str, kind: str, shared: dict[str, models.Model], tmp_path: Path) -> None:
    """Create, equilibrate, run, extend, restore, extend: every stage works and the counters are exact after each.

    A state's move counts each replica that was in the state, equilibration included (T12); SAMS has one replica.
    """
    n_replicas = 1 if name == "sams" else 3
    sampler = create(name, with_dynamics(diffusion_move(shared[kind])), tmp_path / "a.nc", n_replicas=n_replicas)
    assert counts(sampler) == [0, 0, 0]
    for stage, n, made in (("equilibrate", 1, 1), ("run", 2, 3), ("extend", 1, 4)):
        getattr(sampler, stage)(n)
        assert sum(counts(sampler)) == made * n_replicas
        if name in ("replica-exchange", "parallel-tempering", "multistate"):
            assert counts(sampler) == [made] * 3
    before = [ours(move).statistics for move in sampler._mcmc_moves]
    x = [np.array(state.positions._value) for state in sampler.sampler_states]
    del sampler
    gc.collect()  # the storage is open until then

    again = from_storage(name, tmp_path / "a.nc")
    assert again.iteration == 3 and [ours(move).statistics for move in again._mcmc_moves] == before
    assert all(
        np.abs(state.positions._value - y).max() < 1e-6 for state, y in zip(again.sampler_states, x, strict=True)
    )
    again.extend(2)
    assert again.iteration == 5 and sum(counts(again)) == 6 * n_replicas
    assert all(isinstance(ours(move), DiffusionMove) for move in again._mcmc_moves)
    assert np.isfinite(again._energy_thermodynamic_states).all()
    assert all(np.isfinite(state.positions._value).all() for state in again.sampler_states)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_moves(kind: str, shared: dict[str, models.Model], tmp_path: Path) -> None:
    """In a WeightedMove, in samplers of one state and of several, the counter counts what was chosen, and is stored."""
    np.random.seed(5)  # noqa: NPY002 - what WeightedMove chooses by
    dynamics = mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=1)
    move = mcmc.WeightedMove([(diffusion_move(shared[kind]), 0.5), (dynamics, 0.5)])
    single = mcmc.MCMCSampler(jobs.thermodynamic_states(1)[0], jobs.sampler_state(), move=copy.deepcopy(move))
    single.run(30)
    n = single.move.statistics[0]["n_proposed"]
    assert 3 < n < 27 and single.move.statistics[1] == {}  # both beyond 4 standard deviations
    sampler = create("replica-exchange", move, tmp_path / "a.nc")
    sampler.run(4)
    stored = [move.statistics[0] for move in sampler._mcmc_moves]
    assert 0 < sum(one["n_proposed"] for one in stored) < 12
    del sampler
    gc.collect()
    assert [move.statistics[0] for move in from_storage("replica-exchange", tmp_path / "a.nc")._mcmc_moves] == stored


def test_models_and_settings_of_their_own_for_every_state(shared: dict[str, models.Model], tmp_path: Path) -> None:
    """A list of moves gives each state its model, number of candidates and torsions, also after a restart (T6)."""
    moves = [
        with_dynamics(diffusion_move(shared["torsion"], n_candidates=1)),
        with_dynamics(diffusion_move(shared["se3"], n_candidates=3, n_diffusion_steps=6)),
        with_dynamics(diffusion_move(shared["torsion"], n_candidates=4, torsions=("phi",))),
    ]

    def describe(sampler: Any) -> list[tuple[Any, ...]]:
        inner = [ours(move) for move in sampler._mcmc_moves]
        return [
            (type(m.proposal), m.n_candidates, m.proposal.n_diffusion_steps, m.proposal.torsions.labels) for m in inner
        ]

    sampler = create("replica-exchange", moves, tmp_path / "a.nc")
    sampler.run(2)
    first = describe(sampler)
    del sampler
    gc.collect()
    again = from_storage("replica-exchange", tmp_path / "a.nc")
    again.extend(1)
    both, phi = ("phi:ALA2", "psi:ALA2"), ("phi:ALA2",)
    kinds = [(TorsionProposal, 1, 4, both), (BackboneProposal, 3, 6, both), (TorsionProposal, 4, 4, phi)]
    assert first == describe(again) == kinds
    assert [ours(move).last.n_candidates for move in again._mcmc_moves] == [1, 3, 4]


def networks(n_states: int, path: Path, storage: Path) -> tuple[set[int], int]:
    """Identities of the networks that the moves of a restored sampler evaluate, and how many of the size are alive."""
    sampler = create("multistate", with_dynamics(diffusion_move(path)), storage, n_states, n_states)
    sampler.run(1)
    del sampler
    gc.collect()
    store._cache.clear()
    store._evaluation.clear()
    again = from_storage("multistate", storage)
    again.extend(2)
    used = {id(ours(move).proposal._flow._model) for move in again._mcmc_moves}
    gc.collect()
    width = 17  # of no other network in the test process
    alive = [item for item in gc.get_objects() if type(item) is TorsionNetwork]
    return used, sum(network.config.hidden_size == width for network in alive)


def test_one_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarted with 2 or with 5 states, the file is read once, all states evaluate one object, none is left over.

    Kept are the weights as loaded and the frozen float64 network that all moves evaluate.
    """
    model = models.create("torsion", jobs.ALANINE.topology, 2, hidden_size=17, n_layers=1)
    path = models.save(model, tmp_path / "model")
    del model
    read, reads = store._read, []
    monkeypatch.setattr(store, "_read", lambda *arguments: reads.append(arguments) or read(*arguments))
    monkeypatch.setattr(store, "_cache", {})
    monkeypatch.setattr(store, "_evaluation", {})
    alive = []
    for n_states in (2, 5):
        reads.clear()
        used, n_alive = networks(n_states, path, tmp_path / f"{n_states}.nc")
        # one for making the move, one for restoring it in a process without models
        assert len(reads) == 2 and len(used) == 1
        alive.append(n_alive)
    assert alive[0] == alive[1] <= 3


class Heavy(ProposalMove):
    """The control: a move that stores the weights of a small network."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "weights": np.linspace(0.0, 1.0, 2000).tolist()}


def overhead(moves: list[Any], bare: list[Any], folder: Path, repeats: int = 15) -> float:
    """CPU milliseconds that writing and copying `moves` take beyond `bare`, as an iteration of a sampler does it."""
    medians = []
    for name, each in (("with", moves), ("bare", bare)):
        reporter = multistate.MultiStateReporter(str(folder / f"{name}.nc"), open_mode="w")
        times = []
        for _ in range(repeats):
            start = time.process_time()
            reporter.write_mcmc_moves(each)
            copy.deepcopy(each)
            for move in each:
                move.statistics = move.statistics
            times.append(time.process_time() - start)
        reporter.close()
        medians.append(float(np.median(times)))
    return 1e3 * (medians[0] - medians[1])


@pytest.mark.parametrize("name", ["alanine-dipeptide", "alanine-dipeptide-torsion"])
def test_cost_of_an_iteration(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Storing and copying six moves adds 5 ms of CPU time to an iteration, 15 at the very most; weights add far more.

    T13: hosts write and copy every move in every iteration.
    """
    dynamics = mcmc.LangevinDynamicsMove(n_steps=1)
    move = DiffusionMove.from_pretrained(name, jobs.ALANINE.topology, **jobs.QUICK)
    moves = [mcmc.SequenceMove([copy.deepcopy(move), dynamics]) for _ in range(6)]
    bare = [mcmc.SequenceMove([dynamics]) for _ in range(6)]
    cost = overhead(moves, bare, tmp_path)
    with capsys.disabled():
        print(f"\n{name}: {cost:.1f} ms an iteration of 6 states")
    assert cost < 15.0
    heavy = Heavy(move.proposal)
    assert overhead([mcmc.SequenceMove([heavy, dynamics])] * 6, bare, tmp_path, repeats=2) > 60.0


def restarted(
    model: models.Model, storage: Path, fresh_process: Callable[[], None], stage: Callable[[Any], None]
) -> list[int]:
    """Run a stage of a sampler of three seeded copies, and go on from its storage as another process; the counters."""
    fresh_process()
    sampler = create("replica-exchange", with_dynamics(diffusion_move(model)), storage, checkpoint_interval=2)
    stage(sampler)
    del sampler
    gc.collect()
    fresh_process()
    again = from_storage("replica-exchange", storage, 2)
    again.extend(3)
    return counts(again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["equilibrate", "run"])
def test_no_candidate_twice_after_a_restart(
    stage: str,
    kind: str,
    shared: dict[str, models.Model],
    tmp_path: Path,
    fresh_process: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three states' copies of one seeded move, before and after a restart in another process, repeat no candidate.

    Counters of a sampler stopped after its equilibration are those of none made (T12), and of one stopped between
    checkpoints those of iterations that are run again (T11): neither may lead to the same stream.
    """
    draws = jobs.Draws(BackboneProposal if kind == "se3" else TorsionProposal, monkeypatch.setattr)
    n = restarted(shared[kind], tmp_path / "a.nc", fresh_process, lambda sampler: getattr(sampler, stage)(3))
    assert n == [3, 3, 3] if stage == "equilibrate" else [6, 6, 6]
    assert len(draws.tau) == 2 * 3 * 6 and draws.repeats() == 0


def test_the_check_sees_a_repeat(
    shared: dict[str, models.Model],
    tmp_path: Path,
    fresh_process: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: streams that do not ask which process a move is from repeat all candidates of the equilibration."""
    from openmm_diffusion.mcmc import move as module

    draws = jobs.Draws(TorsionProposal, monkeypatch.setattr)
    monkeypatch.setattr(module, "new_stream", lambda seed, n, origin: streams.new_stream(seed, n))
    restarted(shared["torsion"], tmp_path / "a.nc", fresh_process, lambda sampler: sampler.equilibrate(3))
    assert draws.repeats() == 2 * 3 * 3


def test_a_fork_has_a_stream_of_its_own(
    shared: dict[str, models.Model], fresh_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move that goes on in a forked process, with its parent's generator and pool in memory, draws others."""
    draws = jobs.Draws(TorsionProposal, monkeypatch.setattr)
    move = diffusion_move(shared["torsion"], pool_size=64)
    state, sampler = jobs.thermodynamic_states(1)[0], jobs.sampler_state()
    move.apply(state, sampler)
    parent, child = move, copy.copy(move)
    child.__dict__.update(proposal_memory(move))
    parent.apply(state, sampler)
    fresh_process()
    child.apply(state, sampler)
    assert len(draws.tau) == 6 and draws.repeats() == 0


def proposal_memory(move: Any) -> dict[str, Any]:
    """The move's memory, copied as a fork copies it."""
    proposal = copy.copy(move.proposal)
    return {**move.__dict__, "_proposal": proposal, "_rng": copy.deepcopy(move._rng)}
