"""openmmtools' own test classes for moves, samplers and reporters, run with our moves in the place of theirs.

The upstream functions are called as they are; while one runs, some names of `openmmtools.mcmc` stand for our moves.
With `-s` the list of all upstream tests that ran is printed at the end.
"""

import collections
import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache as once
from types import SimpleNamespace
from typing import Any

import openmm
import pytest
from openmm import unit
from openmmtools import cache, mcmc, testsystems
from openmmtools.tests import test_mcmc, test_sampling
from upstream_moves import COUNTS, STAND_INS, DiffusionStandIn, GaussianProposal, restored_globals

from openmm_diffusion.mcmc import ProposalMove, streams

__all__ = ["restored_globals"]  # a fixture

LISTING: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def listing() -> Iterator[None]:
    """Prints what ran, once all of it has."""
    yield
    print("\n" + "\n".join(LISTING))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts, random streams and counts that do not depend on what ran before."""
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache())
    monkeypatch.setattr(streams, "_copies", collections.defaultdict(itertools.count))
    COUNTS.clear()


def run_upstream(name: str, kind: str, function: Callable[..., None], *arguments: Any, applied: bool = True) -> None:
    """Run an upstream test, list it, and make sure that our move was made and applied."""
    started, verdict = time.perf_counter(), "FAILED"
    try:
        function(*arguments)
        verdict = "passed"
    finally:
        label = f"{name}{list(arguments) or ''}"
        LISTING.append(f"{label} with {kind}: {verdict}, {time.perf_counter() - started:.1f} s, {dict(COUNTS)}")
    assert COUNTS["made"] > 0 and (COUNTS["applied"] > 0 or not applied)


@once
def prepared(name: str) -> Any:
    """An upstream class with its test systems, once a process."""
    suite = getattr(test_sampling, name)
    suite.setup_class()
    return suite


def substituted(monkeypatch: pytest.MonkeyPatch, kind: str, names: tuple[str, ...]) -> None:
    """Let names of `openmmtools.mcmc` stand for our move; the first of them for a class of its own."""
    twin, move = STAND_INS[kind]
    for k, name in enumerate(names):
        monkeypatch.setattr(mcmc, name, twin if k == 0 else move)


# Upstream test -> the moves of theirs that are replaced, and the kinds of ours that stand for them. A drift leaves
# positions nearly where they were, which test_propagate_replicas compares. The tests of online analysis want an
# estimate by MBAR of two or three samples, which rejections, that is equal samples, make impossible now and then: there
# ours comes beside theirs, in a SequenceMove, as it does in use.
EVERY, MOLECULAR, PLAIN = ("proposal", "diffusion", "ncmc"), ("diffusion", "ncmc"), ("diffusion",)
BESIDE = ("beside",)
SEQUENCE = ("MCRotationMove", "GHMCMove")
SAMPLER_TESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "test_create": (("LangevinDynamicsMove",), EVERY),
    "test_from_storage": (("LangevinDynamicsMove",), EVERY),
    "test_stored_properties": (("LangevinDynamicsMove",), PLAIN),
    "test_propagate_replicas": (("IntegratorMove",), ("proposal",)),
    "test_compute_energies": (("LangevinDynamicsMove",), PLAIN),
    "test_equilibrate": (("LangevinDynamicsMove", "GHMCMove"), EVERY),
    "test_run_extend": (SEQUENCE, EVERY),
    "test_checkpointing": (("IntegratorMove",), EVERY),
    "test_resume_positions_velocities_from_storage": (SEQUENCE, EVERY),
    "test_last_iteration_functions": (("IntegratorMove",), PLAIN),
    "test_storage_reporter_and_string": (("IntegratorMove",), MOLECULAR),
    "test_online_analysis_works": (("IntegratorMove",), BESIDE),
    "test_online_analysis_stops": (("IntegratorMove",), BESIDE),
    "test_context_cache_energy_propagation": (("IntegratorMove",), EVERY),
    "test_real_time_analysis_yaml": (("IntegratorMove",), BESIDE),
    "test_real_time_analysis_yaml_restore": (("IntegratorMove",), BESIDE),
    "test_state_histogram": (("IntegratorMove",), PLAIN),
    "test_temperatures": (("LangevinDynamicsMove",), PLAIN),
}
MADE_ONLY = {"test_create", "test_stored_properties", "test_compute_energies", "test_temperatures"}
# Upstream returns at once where there is a single replica.
SEVERAL_REPLICAS = {"test_propagate_replicas", "test_context_cache_energy_propagation"}
SUITES = (
    "TestMultiStateSampler",
    "TestExtraSamplersMultiStateSampler",
    "TestReplicaExchange",
    "TestSingleReplicaSAMS",
    "TestMultipleReplicaSAMS",
    "TestParallelTempering",
)
FAST = {("TestReplicaExchange", name) for name in ("test_create", "test_from_storage", "test_run_extend")}


def sampler_cases() -> list[Any]:
    cases = []
    for suite, (name, (names, kinds)) in itertools.product(SUITES, SAMPLER_TESTS.items()):
        function = getattr(getattr(test_sampling, suite), name, None)
        if function is None or (suite == "TestSingleReplicaSAMS" and name in SEVERAL_REPLICAS):
            continue
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        extra = list(marks[0].args[1]) if marks else [()]
        for kind, arguments in itertools.product(kinds, extra):
            fast = (suite, name) in FAST and kind == "diffusion"
            label = "-".join([suite, name, kind, *map(str, arguments)])
            cases.append(
                pytest.param(suite, name, kind, names, arguments, id=label, marks=[] if fast else pytest.mark.slow)
            )
    return cases


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("suite", "name", "kind", "names", "arguments"), sampler_cases())
def test_sampler_classes_pass(suite, name, kind, names, arguments, monkeypatch):
    """openmmtools' tests of its multistate samplers pass with our moves in the place of theirs."""
    upstream = prepared(suite)
    if kind != "proposal":
        # A model of alanine dipeptide has no place in a host with a guest: the peptide takes that place.
        upstream = type(suite, (upstream,), {"hostguest_test": upstream.alanine_test})
    substituted(monkeypatch, kind, names)
    run_upstream(f"{suite}.{name}", kind, getattr(upstream(), name), *arguments, applied=name not in MADE_ONLY)


@pytest.mark.parametrize("kind", EVERY)
def test_reporter_stores_moves(kind, monkeypatch):
    """TestReporter.test_store_mcmc_moves: what a reporter reads is pickled to the bytes of what it wrote."""
    substituted(monkeypatch, kind, ("LangevinDynamicsMove", "GHMCMove"))
    suite = test_sampling.TestReporter()
    run_upstream("TestReporter.test_store_mcmc_moves", kind, suite.test_store_mcmc_moves, applied=False)


# Two moves that upstream makes, of which the first is ours: each has a Context of its own there, and ours has one.
CONTEXT_TESTS = (
    "test_default_context_cache_apply",
    "test_context_cache_specific_apply",
    "test_context_cache_sequence_apply",
    "test_context_cache_local_vs_global",
    "test_context_cache_compatibility",
)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("name", CONTEXT_TESTS)
def test_context_caches_are_used_as_upstream_expects(name, kind, monkeypatch):
    """The context-cache tests of test_mcmc: one access a move, compatible moves share a Context, none goes astray."""
    monkeypatch.setattr(test_mcmc, "LangevinDynamicsMove", STAND_INS[kind][1])
    run_upstream(f"test_mcmc.{name}", kind, getattr(test_mcmc, name))


@pytest.mark.parametrize("kind", EVERY)
def test_moves_are_serialised(kind, monkeypatch):
    """test_mcmc.test_moves_serialization: bare, in a SequenceMove and in a WeightedMove, byte for byte."""
    for name in ("LangevinDynamicsMove", "GHMCMove", "HMCMove"):
        monkeypatch.setattr(test_mcmc, name, STAND_INS[kind][1])
    run_upstream("test_mcmc.test_moves_serialization", kind, test_mcmc.test_moves_serialization, applied=False)


def test_a_move_accepts_and_rejects(monkeypatch):
    """test_mcmc.test_metropolized_moves: both happen, and what is accepted has moved."""
    monkeypatch.setattr(test_mcmc, "MetropolizedMove", SimpleNamespace(__subclasses__=lambda: [DiffusionStandIn]))
    run_upstream("test_mcmc.test_metropolized_moves", "diffusion", test_mcmc.test_metropolized_moves)


@pytest.mark.slow
def test_moves_share_a_context_cache(monkeypatch):
    """test_mcmc.test_mcmc_move_context_cache_shallow_copy: moves of all replicas name one and the same cache."""
    monkeypatch.setattr(test_mcmc, "LangevinSplittingDynamicsMove", STAND_INS["proposal"][1])
    name = "test_mcmc_move_context_cache_shallow_copy"
    run_upstream(f"test_mcmc.{name}", "proposal", getattr(test_mcmc, name), applied=False)


def walk(shift: float = 0.001, with_density: bool = True) -> ProposalMove:
    """A drifting random walk of every atom, of half the width of the oscillators."""
    COUNTS["made"] += 1
    return ProposalMove(GaussianProposal(1.0, shift, 0.0035, with_density), seed=4)


def velocities() -> mcmc.MCMCMove:
    """A single step of dynamics: it draws the velocities whose kinetic energy upstream asks for."""
    return mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=1, reassign_velocities=True)


def hybrid() -> mcmc.MCMCMove:
    """Ours four times out of five."""
    return mcmc.WeightedMove([(walk(), 0.8), (mcmc.HMCMove(10 * unit.femtosecond, 10), 0.2)])


# System -> moves of an iteration. An ideal gas has 648 coordinates, in which only a small drift is ever accepted.
EXPECTATIONS: dict[str, Callable[[], tuple[Any, list[mcmc.MCMCMove]]]] = {
    "HarmonicOscillator-WeightedMove": lambda: (
        testsystems.HarmonicOscillator(),
        [*(hybrid() for _ in range(5)), velocities()],
    ),
    "HarmonicOscillatorArray-SequenceMove": lambda: (
        testsystems.HarmonicOscillatorArray(N=4),
        [*(walk() for _ in range(20)), velocities()],
    ),
    "IdealGas-MonteCarloBarostatMove": lambda: (
        testsystems.IdealGas(nparticles=216),
        [walk(2e-5), mcmc.MonteCarloBarostatMove()],
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXPECTATIONS)
def test_expectations_are_the_analytic_ones(name, monkeypatch):
    """subtest_mcmc_expectation: mean energy and mean volume agree at 6 sigma, our move weighted or in a sequence."""
    reference = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=reference))
    system, moves = EXPECTATIONS[name]()
    run = lambda: test_mcmc.subtest_mcmc_expectation(system, mcmc.SequenceMove(moves))  # noqa: E731
    run_upstream(f"test_mcmc.subtest_mcmc_expectation[{name}]", "proposal", run, applied=False)
    flat = [getattr(move, "move_set", [(move, 1.0)])[0][0] for move in moves]
    # By type: for the host everything that has an `apply` is an instance of every move (T4).
    ours = [one for one in flat if type(one) is ProposalMove]
    assert ours and all(0.02 < one.fraction_accepted < 0.98 for one in ours)


@pytest.mark.slow
def test_expectations_are_wrong_without_the_density(monkeypatch):
    """Negative control: the same walk with log q dropped is caught by upstream's test."""
    reference = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=reference))
    move = mcmc.SequenceMove([*(walk(with_density=False) for _ in range(20)), velocities()])
    with pytest.raises(AssertionError, match="Potential energy expectation"):
        test_mcmc.subtest_mcmc_expectation(testsystems.HarmonicOscillatorArray(N=4), move)


ANALYTIC = ("MultiStateSampler", "ReplicaExchangeSampler")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["test_without_unsampled_states", "test_entropy_enthalpy"])
@pytest.mark.parametrize("suite", ANALYTIC)
def test_analytic_free_energies_entropies_and_enthalpies(suite, name, monkeypatch, tmp_path):
    """Free energies, entropies and enthalpies of oscillators agree at 6 sigma (300 and 750 iterations)."""

    def displacement(displacement_sigma: Any) -> ProposalMove:
        COUNTS["made"] += 1
        return ProposalMove(GaussianProposal(0.5, 0.04, 0.14), seed=1)

    upstream = getattr(test_sampling, f"TestHarmonicOscillators{suite}")
    monkeypatch.setattr(mcmc, "MCDisplacementMove", displacement)
    monkeypatch.setattr(upstream, "N_ITERATIONS", 300)
    function = getattr(upstream(), name)
    arguments = (True, tmp_path) if len(inspect.signature(function).parameters) else ()
    upstream.setup_class()
    try:
        run_upstream(f"{upstream.__name__}.{name}", "proposal", function, *arguments, applied=False)
    finally:
        upstream.teardown_class()
