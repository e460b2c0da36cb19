"""Traps of openmmtools, T6 to T17: what its multistate samplers do with moves, their counters and their storage.

Each test is named after its trap; T1 to T5 and T18 to T24 are in test_host_traps.py.
"""

import copy
import gc
import os
import time
from typing import Any

import numpy as np
import pytest
from host_moves import (
    KINDS,
    MOLECULAR,
    QUICK,
    Spoiled,
    at,
    contexts,
    make,
    nm,
    reduced,
    sampler_with,
    until,
    vacuum,
)
from openmm import unit
from openmmtools import cache, mcmc, multistate, states, utils
from upstream_moves import restored_globals

from openmm_diffusion import models
from openmm_diffusion.errors import ModelFileError, StateError
from openmm_diffusion.mcmc import DiffusionMove, ProposalMove
from openmm_diffusion.mcmc import move as move_module
from openmm_diffusion.mcmc.move_state import proposal_state
from openmm_diffusion.models import store
from openmm_diffusion.proposals import TorsionProposal

__all__ = ["restored_globals"]  # a fixture


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "global_context_cache", contexts())


def dynamics() -> mcmc.MCMCMove:
    return mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=2)


def test_T6_every_state_has_a_move_of_its_own(tmp_path):
    """A list of moves gives each state its settings and counters; the moves that were given stay as they were."""
    given = [make("diffusion", n_candidates=1), make("diffusion", n_candidates=3)]
    sampler, _ = sampler_with(given, tmp_path, 4)
    sampler.run()
    for move, n_candidates in zip(sampler._mcmc_moves, (1, 3), strict=True):
        assert move.n_proposed == 4 and move.last.n_candidates == n_candidates
    assert [move.n_proposed for move in given] == [0, 0]
    with pytest.raises(RuntimeError, match="Cannot modify"):  # control: what the host lets nobody do later
        sampler.mcmc_moves = given


def test_T7_bad_candidates_do_not_end_a_run(tmp_path, monkeypatch):
    """On the CPU platform, which raises for NaN, a run with nothing but NaN candidates ends well and counts them."""
    monkeypatch.setattr(cache, "global_context_cache", contexts("CPU"))
    sampler, reporter = sampler_with(ProposalMove(Spoiled(), seed=1), tmp_path)
    sampler.run()
    reporter.close()
    assert sampler.iteration == 3
    assert [move.statistics for move in sampler._mcmc_moves] == [{"n_proposed": 3, "n_accepted": 0, "n_invalid": 3}] * 2


def test_T7_an_impossible_state_ends_a_run_with_one_sentence(tmp_path):
    """A state that is NaN before the move raises StateError out of the sampler; nothing is counted for it."""
    sampler, _ = sampler_with(make("diffusion"), tmp_path)
    broken = sampler.sampler_states
    broken[1].positions = np.full((22, 3), np.nan) * unit.nanometer
    sampler._sampler_states = broken
    with pytest.raises(StateError, match="NaN"):
        sampler._propagate_replicas()
    assert [move.n_proposed for move in sampler._mcmc_moves] == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_T8_energies_after_a_move_are_those_of_its_positions(kind, tmp_path):
    """Energies in storage are the reduced potentials of the positions there, accepted or not."""
    molecule = vacuum()
    sampler, _ = sampler_with(mcmc.SequenceMove([dynamics(), make(kind)]), tmp_path, 4)
    for _ in range(4):
        sampler.run(1)
        expected = [
            [reduced(molecule.system, one.positions, kelvin) for kelvin in (300.0, 330.0)]
            for one in sampler.sampler_states
        ]
        assert np.allclose(sampler._energy_thermodynamic_states, expected, atol=1e-6)
    assert all(move.move_list[1].n_proposed == 4 for move in sampler._mcmc_moves)


def test_T9_a_stored_move_finds_its_model_from_anywhere(tmp_path, monkeypatch):
    """On another node, in another folder, the model is found by its absolute path; a missing file is one sentence."""
    topology = vacuum().topology
    monkeypatch.chdir(tmp_path)
    models.save(models.create("torsion", topology, 90210, hidden_size=8), "model")
    state = utils.serialize(DiffusionMove.from_pretrained("model", topology, **QUICK))
    assert os.path.isabs(proposal_state(state)["source"]["path"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for present in (True, False):
        # Another rank has loaded nothing yet.
        monkeypatch.setattr(store, "_cache", {})
        monkeypatch.setattr(store, "_evaluation", {})
        move = utils.deserialize(dict(state))
        if present:
            move.apply(at(vacuum().system), states.SamplerState(vacuum().positions))
            (tmp_path / "model.safetensors").unlink()
        else:
            with pytest.raises(ModelFileError, match="there is no model"):
                move.apply(at(vacuum().system), states.SamplerState(vacuum().positions))


@pytest.mark.parametrize("kind", KINDS)
def test_T10_nothing_but_statistics_changes_as_a_move_is_applied(kind):
    """Whatever is stored, besides `statistics`, is the same before and after: so ranks cannot drift apart."""
    move, sampler = make(kind), states.SamplerState(vacuum().positions)
    before = move.__getstate__()
    for _ in range(20):
        move.apply(at(vacuum().system), sampler)
    after = move.__getstate__()
    changed = {name for name in after if after[name] != before[name]}
    assert "n_proposed" in changed and changed <= set(move.statistics)


def test_T10_counters_gathered_from_two_ranks_are_exact_with_a_replica_a_state():
    """The host's way of gathering, with a rank's copies for each half of four replicas: every state counts its own."""
    ranks = [[make("diffusion") for _ in range(4)] for _ in range(2)]
    sampler, state = states.SamplerState(vacuum().positions), at(vacuum().system)
    exchange = np.random.default_rng(1)
    for _ in range(3):
        state_of = exchange.permutation(4)
        for replica, k in enumerate(state_of):
            ranks[replica % 2][k].apply(state, sampler)
        gathered = [ranks[replica % 2][k].statistics for replica, k in enumerate(state_of)]
        for moves in ranks:
            for replica, k in enumerate(state_of):
                moves[k].statistics = gathered[replica]
    for moves in ranks:
        assert [move.n_proposed for move in moves] == [3, 3, 3, 3]
    assert [a.statistics for a in ranks[0]] == [b.statistics for b in ranks[1]]


def drawn_log_q(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The log densities of all candidates that are drawn from now on: equal ones are the same candidate."""
    drawn: list[float] = []
    propose = TorsionProposal.propose

    def recorded(proposal: Any, positions: Any, n: int, rng: Any) -> Any:
        candidates = propose(proposal, positions, n, rng)
        drawn.extend(candidates.log_q.tolist())
        return candidates

    monkeypatch.setattr(TorsionProposal, "propose", recorded)
    return drawn


@pytest.mark.parametrize("streams", ["own", "repeated"])
def test_T11_a_restart_repeats_no_candidate(streams, tmp_path, monkeypatch):
    """Stopped at 7 with checkpoints at 5: positions of 5, counters of 7, and no candidate twice in 3 states.

    Control: with one and the same stream for all, candidates are repeated.
    """
    drawn = drawn_log_q(monkeypatch)
    if streams == "repeated":
        monkeypatch.setattr(move_module, "new_stream", lambda *_: np.random.default_rng(1))
    sampler, reporter = sampler_with(make("diffusion"), tmp_path, 7, n_states=3, interval=5)
    sampler.run()
    reporter.close()
    n_before = len(drawn)
    del sampler
    gc.collect()
    sampler = multistate.ReplicaExchangeSampler.from_storage(
        multistate.MultiStateReporter(str(tmp_path / "out.nc"), open_mode="a", checkpoint_interval=5)
    )
    assert sampler.iteration == 5
    assert [move.n_proposed for move in sampler._mcmc_moves] == [7, 7, 7]
    sampler.extend(3)
    assert n_before == 7 * 3 * 4 and len(drawn) > n_before
    assert (len(set(drawn)) == len(drawn)) == (streams == "own")


def test_T12_equilibration_counts_unless_it_has_moves_of_its_own(tmp_path):
    """`equilibrate(n)` uses and counts production's moves; `equilibrate(n, mcmc_moves=...)` leaves them at zero."""
    for name, own in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        move = make("diffusion")
        sampler, _ = sampler_with(move, tmp_path / name)
        sampler.equilibrate(2, **({"mcmc_moves": move} if own else {}))
        assert [one.n_proposed for one in sampler._mcmc_moves] == ([0, 0] if own else [2, 2])
        sampler.run(1)
        assert [one.n_proposed for one in sampler._mcmc_moves] == ([1, 1] if own else [3, 3])
    move = sampler.mcmc_moves[0]
    move.statistics = {}
    assert move.n_proposed == 0


@pytest.mark.parametrize("kind", MOLECULAR)
def test_T13_copies_share_one_model_and_cost_little(kind, tmp_path, monkeypatch):
    """Deep copies of 8 states' moves, used, in a SequenceMove: below 5 ms in all, one network, nothing read."""
    sampler, _ = sampler_with(mcmc.SequenceMove([make(kind), dynamics()]), tmp_path, 1, n_states=8)
    sampler.run()
    used = [move.move_list[0] for move in sampler._mcmc_moves]
    assert len({id(move.proposal._flow._model) for move in used}) == 1

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was looked for while moves were only copied")

    seconds = []
    with monkeypatch.context() as patch:
        for name in ("load", "resolve", "remember", "evaluation_network"):
            patch.setattr(store, name, refuse)
        for _ in range(20):
            started = time.perf_counter()
            copies = sampler.mcmc_moves
            seconds.append(time.perf_counter() - started)
    assert min(seconds) < 5e-3
    assert {id(move.move_list[0].proposal._flow._model) for move in copies} == {id(used[0].proposal._flow._model)}


class Timed(ProposalMove):
    """Control: a move whose time step is a bare number."""

    timestep, n_steps = 0.002, 1


@pytest.mark.parametrize("kind", KINDS)
def test_T14_no_move_passes_for_dynamics(kind, tmp_path):
    """No move has both `timestep` and `n_steps`, or can be iterated: the host would ask for units, or parts."""
    move = make(kind)
    assert not (hasattr(move, "timestep") and hasattr(move, "n_steps"))
    assert not hasattr(type(move), "__iter__") and not hasattr(type(move), "__getitem__")
    if kind != "ncmc":
        assert not hasattr(move, "timestep")
    sampler, _ = sampler_with(mcmc.SequenceMove([move, dynamics()]), tmp_path, 2)
    sampler.run()
    # 2 steps of 1 fs are all that counts as dynamics, in each of two states.
    simulated = sampler._timing_data["ns_per_day"] * sampler._timing_data["average_seconds_per_iteration"] / 86400
    assert simulated == pytest.approx(2 * 2e-6)


def test_T14_control_a_bare_time_step_ends_the_run(tmp_path):
    """Control: a move with a float `timestep` and `n_steps` ends the run in its first iteration."""
    sampler, _ = sampler_with(Timed(make("proposal").proposal), tmp_path)
    with pytest.raises(AttributeError, match="value_in_unit"):
        sampler.run()


@pytest.mark.parametrize("kind", MOLECULAR)
def test_T15_after_a_restart_everything_is_taken_from_the_restored_positions(kind, tmp_path):
    """Storage rounds to single precision: u and log q of the present state are those of the rounded positions."""
    molecule = vacuum()
    sampler, reporter = sampler_with(mcmc.SequenceMove([dynamics(), make(kind)]), tmp_path, 2)
    sampler.run()
    before = [nm(one.positions) for one in sampler.sampler_states]
    reporter.close()
    del sampler
    sampler = multistate.ReplicaExchangeSampler.from_storage(reporter)
    for index, one in enumerate(sampler.sampler_states):
        restored = nm(one.positions)
        assert 0 < np.abs(restored - before[index]).max() < 1e-6  # the trap
        move = sampler._mcmc_moves[0].move_list[1]
        move.apply(at(molecule.system), one)
        assert move.last.u_present == pytest.approx(reduced(molecule.system, restored * unit.nanometer), abs=1e-8)
        if kind == "diffusion":
            tau = move.proposal.torsions.get(restored)
            assert move.last.log_q_present == pytest.approx(move.proposal.log_density(tau[None])[0], abs=1e-8)
        until(True, move, at(molecule.system, 600.0), one, None)
        kept = nm(one.positions)
        assert np.abs(np.linalg.norm(kept[0] - kept[1]) - np.linalg.norm(restored[0] - restored[1])) < 1e-6
        assert np.isfinite(one.velocities._value).all()


@pytest.mark.parametrize("kind", KINDS)
def test_T16_a_box_without_periodicity_means_nothing(kind, tmp_path):
    """The host gives a molecule in vacuum a box of 2 nm; a move samples far outside of it just the same."""
    molecule = vacuum()
    sampler, _ = sampler_with(make(kind), tmp_path)
    box = sampler.sampler_states[0].box_vectors
    assert box is not None and not at(molecule.system).is_periodic  # the trap
    move, ratios, ends = make(kind), [], []
    move.apply(at(molecule.system), states.SamplerState(molecule.positions))
    stream = copy.deepcopy(move.export_stream())
    for vectors in (None, box):
        move.import_stream(*copy.deepcopy(stream))
        one = states.SamplerState(molecule.positions + 10.0 * unit.nanometer, box_vectors=vectors)
        start = nm(one.positions)
        move.apply(at(molecule.system), one)
        ratios.append((move.last.u_present, move.last.log_q_candidate))
        until(True, move, at(molecule.system), one, None)
        ends.append(np.abs(nm(one.positions).mean(0) - start.mean(0)).max())
    assert ratios[0] == ratios[1]
    assert max(ends) < 1.0  # not imaged


def test_T17_parallel_tempering_takes_temperatures_with_their_number(tmp_path):
    """The host's `temperatures=` alone is a TypeError; with `n_temperatures=` every temperature's move counts."""
    molecule = vacuum()
    ladder = [kelvin * unit.kelvin for kelvin in (300.0, 350.0, 400.0)]
    options: dict[str, Any] = {"temperatures": ladder}
    for name, number in (("control", {}), ("right", {"n_temperatures": 3})):
        sampler = multistate.ParallelTemperingSampler(mcmc_moves=make("diffusion"), number_of_iterations=2)
        reporter = multistate.MultiStateReporter(str(tmp_path / f"{name}.nc"), checkpoint_interval=1)
        replicas = [states.SamplerState(molecule.positions) for _ in ladder]
        if name == "control":
            with pytest.raises(TypeError):
                sampler.create(at(molecule.system), replicas, reporter, **options)
            continue
        sampler.create(at(molecule.system), replicas, reporter, **options, **number)
    sampler.run()
    assert [move.n_proposed for move in sampler._mcmc_moves] == [2, 2, 2]
    assert [state.temperature / unit.kelvin for state in sampler._thermodynamic_states] == [300.0, 350.0, 400.0]
