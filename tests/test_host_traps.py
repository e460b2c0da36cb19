"""Traps of openmmtools, T1 to T5 and T18 to T24: what a move meets in a Context that others use too.

Each test is named after its trap; T6 to T17 are in test_host_traps_multistate.py.
"""

import copy
import logging
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from host_moves import (
    KELVIN,
    KINDS,
    MOLECULAR,
    Spoiled,
    at,
    contexts,
    make,
    nm,
    periodic,
    reduced,
    speeds,
    until,
    vacuum,
)
from openmm import app, unit
from openmmtools import cache, mcmc, states

from openmm_diffusion.errors import StateError
from openmm_diffusion.mcmc import ProposalMove
from openmm_diffusion.molecule import BackboneTorsions
from openmm_diffusion.proposals import Candidates


@pytest.fixture(scope="module")
def alanine() -> Any:
    return vacuum()


@pytest.mark.parametrize("kind", KINDS)
def test_T1_a_context_cache_given_to_the_constructor_is_only_warned_about(kind, alanine, caplog):
    """The deprecated argument is accepted and logged; the cache that is used is the one given to `apply`."""
    deprecated, used = contexts(), contexts()
    with caplog.at_level(logging.WARNING, logger="openmmtools"):
        move = make(kind, context_cache=deprecated)
    assert "Ignoring context_cache" in caplog.text
    move.apply(at(alanine.system), states.SamplerState(alanine.positions), context_cache=used)
    assert (len(deprecated), len(used)) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_T2_the_global_cache_is_looked_up_at_each_call(kind, alanine, monkeypatch):
    """Without a cache the module's global one of this moment is used; a DummyContextCache is refused, uncounted."""
    move, sampler = make(kind), states.SamplerState(alanine.positions)
    for _ in range(2):
        monkeypatch.setattr(cache, "global_context_cache", contexts())
        move.apply(at(alanine.system), sampler)
        assert len(cache.global_context_cache) == 1
    with pytest.raises(ValueError, match="not a valid ContextCache"):
        move.apply(at(alanine.system), sampler, context_cache=cache.DummyContextCache())
    assert move.n_proposed == 2


def two_replicas(alanine: Any) -> tuple[states.SamplerState, states.SamplerState]:
    """Two conformations; the first has velocities of 1 nm/ps, the second none."""
    other = states.SamplerState(alanine.positions)
    other.velocities = np.ones((22, 3)) * unit.nanometer / unit.picosecond
    torsions = BackboneTorsions(alanine.topology)
    mine = states.SamplerState(
        torsions.turn(nm(alanine.positions), [0.1, 0.1, 0.0, 0.0][: len(torsions)]) * unit.nanometer
    )
    return other, mine


@pytest.mark.parametrize("kind", KINDS)
def test_T3_a_shared_context_hands_over_nothing_of_another_replica(kind, alanine):
    """Energies are those of this replica's positions, velocities never another's; further moves add no Context."""
    shared, state, move = contexts(), at(alanine.system), make(kind)
    other, mine = two_replicas(alanine)
    context, _ = shared.get_context(state)
    for accepted in (False, True):
        other.apply_to_context(context)
        expected = nm(mine.positions)
        move.apply(state, mine, context_cache=shared)
        assert move.last.u_present == pytest.approx(reduced(alanine.system, expected), abs=1e-8)
        until(accepted, move, state, mine, shared)
        assert mine.velocities is None or not (speeds(mine) == 1.0).any()
    n_contexts = len(shared)
    for _ in range(3):
        move.apply(state, mine, context_cache=shared)
    assert len(shared) == n_contexts <= 2


def test_T3_control_the_host_hands_over_velocities(alanine):
    """Control: `update_from_context` after `ignore_velocities=True` gives this replica the other's velocities."""
    other, mine = two_replicas(alanine)
    context, _ = contexts().get_context(at(alanine.system))
    other.apply_to_context(context)
    mine.apply_to_context(context, ignore_velocities=True)
    mine.update_from_context(context)
    assert (speeds(mine) == 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_T4_moves_are_moves_and_nothing_else_is(kind):
    """Moves inherit MCMCMove and not nn.Module; proposals have no `apply`, with which they would pass for moves."""
    move = make(kind)
    assert mcmc.MCMCMove in type(move).__mro__ and torch.nn.Module not in type(move).__mro__
    assert not isinstance(move.proposal, mcmc.MCMCMove)
    assert isinstance(torch.nn.Module(), mcmc.MCMCMove)  # control: the host takes a network for a move


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pressure", [None, 1.0])
def test_T5_the_system_of_a_state_is_never_copied(kind, pressure, monkeypatch):
    """A move that has its Context does not touch `thermodynamic_state.system`, which copies the System each time."""
    molecule, shared, move = periodic(), contexts(), make(kind)
    state = at(molecule.system, 300.0, None if pressure is None else pressure * unit.atmosphere)
    sampler = states.SamplerState(molecule.positions, box_vectors=molecule.system.getDefaultPeriodicBoxVectors())
    move.apply(state, sampler, context_cache=shared)
    copies: list[int] = []
    original = states.ThermodynamicState.system
    counted = property(lambda self: copies.append(1) or original.fget(self), original.fset)
    monkeypatch.setattr(states.ThermodynamicState, "system", counted)
    for _ in range(3):
        move.apply(state, sampler, context_cache=shared)
    assert not copies
    assert state.system is not None and len(copies) == 1  # control: the count works


def stretched(system: openmm.System, positions: np.ndarray) -> float:
    """Largest relative violation of a constraint."""
    errors = []
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        errors.append(np.linalg.norm(positions[i] - positions[j]) / length.value_in_unit(unit.nanometer) - 1)
    return float(np.abs(errors).max())


def along_constraints(system: openmm.System, sampler: states.SamplerState) -> float:
    """Largest velocity along a constraint, nm/ps."""
    x, v = nm(sampler.positions), speeds(sampler)
    pairs = np.array([system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())])
    bonds = x[pairs[:, 0]] - x[pairs[:, 1]]
    rates = ((v[pairs[:, 0]] - v[pairs[:, 1]]) * bonds).sum(-1) / np.linalg.norm(bonds, axis=-1)
    return float(np.abs(rates).max())


@pytest.mark.parametrize("kind", KINDS)
def test_T18_constraints_are_kept_and_never_projected(kind, alanine, monkeypatch):
    """After 40 accepted moves no constraint is violated by more than at the start (1e-6); nothing is projected."""

    def refuse(*_: Any) -> None:
        raise AssertionError("applyConstraints was called")

    monkeypatch.setattr(openmm.Context, "applyConstraints", refuse)
    shared, state, move = contexts(), at(alanine.system, 600.0), make(kind)
    sampler = states.SamplerState(alanine.positions)
    first = stretched(alanine.system, nm(sampler.positions))
    while move.n_accepted < 40:
        until(True, move, state, sampler, shared)
        # Dynamics inside a nonequilibrium move constrains to its own tolerance.
        assert stretched(alanine.system, nm(sampler.positions)) < max(first, 1e-6) + 1e-9


def test_T18_control_a_cartesian_move_violates_constraints(alanine):
    """Control: openmmtools' displacement of single atoms is accepted with bonds that are off by more than 1 %."""
    sampler = states.SamplerState(alanine.positions)
    shared, worst = contexts(), 0.0
    for atom in range(22):
        move = mcmc.MCDisplacementMove(displacement_sigma=0.005 * unit.nanometer, atom_subset=[atom])
        for _ in range(3):
            move.apply(at(alanine.system), sampler, context_cache=shared)
        worst = max(worst, stretched(alanine.system, nm(sampler.positions)))
    assert worst > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_T19_velocities_obey_constraints_after_acceptance_and_stay_on_rejection(kind, alanine):
    """Accepted: no velocity along a constraint (1e-4 nm/ps). Rejected: velocities are bit for bit what they were."""
    shared, state, move = contexts(), at(alanine.system, 600.0), make(kind)
    sampler = states.SamplerState(alanine.positions)
    mcmc.LangevinDynamicsMove(n_steps=5).apply(state, sampler, context_cache=shared)
    for _ in range(5):
        until(True, move, state, sampler, shared)
        assert along_constraints(alanine.system, sampler) < 1e-4
        before = speeds(sampler)
        accepted = move.n_accepted
        until(False, move, state, sampler, shared)
        if move.n_accepted == accepted:
            assert np.array_equal(speeds(sampler), before)


def test_T19_control_a_rotation_leaves_velocities_behind(alanine):
    """Control: openmmtools' rotation of the molecule keeps v, which then points along constraints (> 0.1 nm/ps)."""
    shared, state = contexts(), at(alanine.system)
    context, _ = shared.get_context(state)
    context.setPositions(alanine.positions)
    context.setVelocitiesToTemperature(state.temperature, 1)
    sampler = states.SamplerState.from_context(context)
    assert along_constraints(alanine.system, sampler) < 1e-4
    mcmc.MCRotationMove().apply(state, sampler, context_cache=shared)
    assert along_constraints(alanine.system, sampler) > 0.1


def log_det_z(system: openmm.System, positions: np.ndarray) -> float:
    """log det of J M^-1 J^T, J the gradients of the constraints: what constrained dynamics weighs states with."""
    masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])
    rows = np.zeros((system.getNumConstraints(), len(masses), 3))
    for k in range(len(rows)):
        i, j, _ = system.getConstraintParameters(k)
        direction = positions[i] - positions[j]
        rows[k, i] = direction / np.linalg.norm(direction)
        rows[k, j] = -rows[k, i]
    scaled = (rows / np.sqrt(masses)[:, None]).reshape(len(rows), -1)
    return float(np.linalg.slogdet(scaled @ scaled.T)[1])


@pytest.mark.parametrize("constraints", [app.HBonds, app.AllBonds], ids=str)
def test_T20_the_metric_of_the_constraints_does_not_change(constraints):
    """det Z after 20 accepted moves is that of the start to 1e-9, so the ratio needs no Fixman term; MD changes it."""
    molecule = vacuum(constraints=constraints)
    shared, state, move = contexts(), at(molecule.system, 600.0), make("diffusion")
    sampler = states.SamplerState(molecule.positions)
    start = log_det_z(molecule.system, nm(sampler.positions))
    for _ in range(20):
        until(True, move, state, sampler, shared)
        assert log_det_z(molecule.system, nm(sampler.positions)) == pytest.approx(start, abs=1e-9)
    mcmc.LangevinDynamicsMove(n_steps=20).apply(state, sampler, context_cache=shared)
    assert abs(log_det_z(molecule.system, nm(sampler.positions)) - start) > 1e-5


def with_site() -> tuple[Any, openmm.System, np.ndarray]:
    """Alanine dipeptide with a virtual site between two atoms of NME, drawn to a plane; the site starts misplaced."""
    molecule = vacuum()
    system, topology = copy.deepcopy(molecule.system), copy.deepcopy(molecule.topology)
    site = system.addParticle(0.0)
    system.setVirtualSite(site, openmm.TwoParticleAverageSite(16, 18, 0.5, 0.5))
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.addParticle(0.0, 0.1, 0.0)
    plane = openmm.CustomExternalForce("300 * x^2")
    plane.addParticle(site)
    system.addForce(plane)
    topology.addAtom("EP", None, topology.addResidue("EP", topology.addChain()))
    return topology, system, np.vstack([nm(molecule.positions), [[9.0, 9.0, 9.0]]])


@pytest.mark.parametrize("kind", MOLECULAR)
def test_T21_virtual_sites_follow_the_torsions(kind):
    """The site is placed anew for the present state, for every candidate, and in what is accepted."""
    topology, system, positions = with_site()
    shared, state, move = contexts(), at(system), make(kind, topology=topology)
    sampler = states.SamplerState(positions * unit.nanometer)
    for _ in range(3):
        before = nm(sampler.positions)
        record = until(True, move, state, sampler, shared)
        after = nm(sampler.positions)
        assert np.allclose(after[22], (after[16] + after[18]) / 2, atol=1e-12)
        assert record.u_candidate == pytest.approx(reduced(system, after), abs=1e-6)
        stale = np.vstack([after[:22], before[22:]])
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(stale)
        energy = context.getState(energy=True).getPotentialEnergy() / state.kT
        assert abs(energy - record.u_candidate) > 0.01  # control: setPositions alone does not place it


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_T22_nan_candidates_are_rejected_and_counted(platform, alanine):
    """NaN coordinates are rejections on every platform: counted, the sampler state untouched, the next move works."""
    shared, state = contexts(platform), at(alanine.system)
    sampler, move = states.SamplerState(alanine.positions), ProposalMove(Spoiled(), seed=1)
    for _ in range(2):
        move.apply(state, sampler, context_cache=shared)
    assert move.statistics == {"n_proposed": 2, "n_accepted": 0, "n_invalid": 2}
    assert np.array_equal(nm(sampler.positions), nm(alanine.positions))
    until(True, make("diffusion"), state, sampler, shared)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("kind", KINDS)
def test_T22_nan_starts_are_refused(platform, kind, alanine):
    """A NaN start raises one sentence instead of rejecting for ever, and counts nothing."""
    positions = nm(alanine.positions)
    positions[4, 1] = np.nan
    move = make(kind)
    with pytest.raises(StateError, match="NaN"):
        move.apply(
            at(alanine.system), states.SamplerState(positions * unit.nanometer), context_cache=contexts(platform)
        )
    assert move.n_proposed == 0


class Walled:
    """Candidates at x = 1 nm, where the energy of `test_T22_nan_energies_are_rejected` is NaN."""

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        return Candidates(np.ones((n, 1, 3)), np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool))


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_T22_nan_energies_are_rejected(platform):
    """Finite coordinates with a NaN energy are rejected and counted as invalid."""
    system = openmm.System()
    system.addParticle(10.0)
    wall = openmm.CustomExternalForce("sqrt(0.5 - x)")
    wall.addParticle(0)
    system.addForce(wall)
    sampler, move = states.SamplerState(np.zeros((1, 3)) * unit.nanometer), ProposalMove(Walled())
    move.apply(at(system), sampler, context_cache=contexts(platform))
    assert move.statistics == {"n_proposed": 1, "n_accepted": 0, "n_invalid": 1}
    assert not nm(sampler.positions).any()


def test_T22_control_the_host_raises_and_keeps_nan(alanine):
    """Control: on the CPU platform openmmtools' own Metropolised move raises and leaves NaN in the sampler state."""

    class NaNMove(mcmc.MetropolizedMove):
        def _propose_positions(self, positions: Any) -> Any:
            return positions * np.nan

    sampler = states.SamplerState(alanine.positions)
    with pytest.raises(openmm.OpenMMException):
        NaNMove().apply(at(alanine.system), sampler, context_cache=contexts("CPU"))
    assert np.isnan(nm(sampler.positions)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_T23_a_state_without_a_box_does_not_take_that_of_another(kind):
    """Without box vectors the box is the System's, whatever a replica before left in the shared Context."""
    molecule, shared, move = periodic(), contexts(), make(kind)
    state, expected = at(molecule.system), reduced(molecule.system, molecule.positions)
    other = states.SamplerState(molecule.positions, box_vectors=2.0 * np.eye(3) * unit.nanometer)
    move.apply(state, other, context_cache=shared)
    # In a box of 2 nm the molecule is close to its own images, so that its energy is another.
    assert abs(move.last.u_present - expected) > 0.01
    move.apply(state, states.SamplerState(molecule.positions), context_cache=shared)
    assert move.last.u_present == pytest.approx(expected, abs=1e-8)
    context, _ = shared.get_context(state)
    other.apply_to_context(context)
    states.SamplerState(molecule.positions).apply_to_context(context)
    kept = context.getState().getPeriodicBoxVectors(asNumpy=True)
    assert np.allclose(nm(kept), 2.0 * np.eye(3))  # control: the host leaves the box of the replica before


def test_T23_imaged_molecules_are_sampled_alike_and_torn_ones_refused():
    """Moved by lattice vectors, a molecule gives the same log alpha (1e-9); torn over the boundary it is refused."""
    molecule, shared = periodic(), contexts()
    state, box = at(molecule.system), molecule.system.getDefaultPeriodicBoxVectors()
    move = make("diffusion")
    move.apply(state, states.SamplerState(molecule.positions, box_vectors=box), context_cache=shared)
    stream = copy.deepcopy(move.export_stream())
    ratios = []
    for shift in ([0.0, 0.0, 0.0], [3.0, -6.0, 9.0]):
        move.import_stream(*copy.deepcopy(stream))
        sampler = states.SamplerState((nm(molecule.positions) + shift) * unit.nanometer, box_vectors=box)
        move.apply(state, sampler, context_cache=shared)
        ratios.append((move.last.u_present, move.last.u_candidate, move.last.log_alpha))
    assert ratios[0] == pytest.approx(ratios[1], abs=1e-9)
    positions = nm(molecule.positions)
    positions[10:] += [3.0, 0.0, 0.0]
    with pytest.raises(StateError, match="torn"):
        move.apply(state, states.SamplerState(positions * unit.nanometer, box_vectors=box), context_cache=shared)


@pytest.mark.parametrize(("platform", "tolerance"), [("Reference", 1e-8), ("CPU", 1e-2)])
def test_T24_candidates_are_compared_at_one_place(platform, tolerance, alanine):
    """The anchor atoms of what is accepted have not moved by a bit, so single precision costs nothing by translation.

    Far from the origin log alpha is the same within the platform's precision.
    """
    shared, state, move = contexts(platform), at(alanine.system), make("diffusion")
    anchor = move.proposal.torsions.anchor
    move.apply(state, states.SamplerState(alanine.positions), context_cache=shared)
    stream, ratios = copy.deepcopy(move.export_stream()), []
    for shift in (0.0, 7.3):
        start = nm(alanine.positions) + shift
        move.import_stream(*copy.deepcopy(stream))
        sampler = states.SamplerState(start * unit.nanometer)
        move.apply(state, sampler, context_cache=shared)
        ratios.append(move.last.u_candidate - move.last.u_present)
        until(True, move, state, sampler, shared)
        held = start if platform == "Reference" else start.astype(np.float32)
        assert np.array_equal(nm(sampler.positions)[anchor].astype(held.dtype), held[anchor])
    assert ratios[0] == pytest.approx(ratios[1], abs=tolerance)
    assert state.temperature == 300.0 * KELVIN
