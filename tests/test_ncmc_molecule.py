"""Nonequilibrium moves on a real molecule with constraints: an equilibrium ensemble stays what it is.

Frames of alanine dipeptide in OBC come from exact moves alone (a diffusion move and GHMC). Each of them then makes
nonequilibrium moves of its own. Means over the frames, before and after, are compared in pairs.
"""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmmtools import cache as contexts
from openmmtools import mcmc, states

from openmm_diffusion import DiffusionMove, NCMCDiffusionMove
from openmm_diffusion.molecule import BackboneTorsions
from openmm_diffusion.workflows.systems import TEMPERATURE, alanine_dipeptide

# The reference's model, and one for another force field: without its density moves would follow that one.
MODEL, OTHER = "alanine-dipeptide-torsion", "alanine-dipeptide-torsion-vacuum"
N_FRAMES, N_MOVES = 600, 6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def molecule() -> Any:
    return alanine_dipeptide("obc")


@cache
def reference() -> contexts.ContextCache:
    return contexts.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))


@cache
def ensemble() -> np.ndarray:
    """Frames [n, atoms, 3] (nm) of the exact distribution, some picoseconds and three diffusion moves apart."""
    state = states.ThermodynamicState(molecule().system, TEMPERATURE)
    ghmc = mcmc.GHMCMove(timestep=2.0 * unit.femtoseconds, collision_rate=5 / unit.picosecond, n_steps=300)
    chain = mcmc.SequenceMove([DiffusionMove(MODEL, molecule().topology, seed=1), ghmc])
    sampler_state = states.SamplerState(molecule().positions * unit.nanometer)
    found = []
    for k in range(-50, 3 * N_FRAMES):
        chain.apply(state, sampler_state, reference())
        if k >= 0 and k % 3 == 2:
            found.append(sampler_state.positions.value_in_unit(unit.nanometer).copy())
    return np.array(found)


def observables(frames: np.ndarray) -> np.ndarray:
    """[n, 8]: cos and sin of phi and psi, basin R, energy (kT), angle N-CA-C (rad), distance of the ends (nm)."""
    torsions = BackboneTorsions(molecule().topology, ("phi", "psi"))
    tau = torsions.get(frames)
    state = states.ThermodynamicState(molecule().system, TEMPERATURE)
    context, _ = reference().get_context(state)
    u = []
    for x in frames:
        context.setPositions(x)
        u.append(state.reduced_potential(context))
    atoms = {(atom.residue.name, atom.name): atom.index for atom in molecule().topology.atoms()}
    n, ca, c = (frames[:, atoms["ALA", name]] for name in ("N", "CA", "C"))
    first, second = n - ca, c - ca
    cosine = (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    ends = np.linalg.norm(frames[:, atoms["ACE", "CH3"]] - frames[:, atoms["NME", "C"]], axis=-1)
    in_r = (tau[:, 0] > 0) & (tau[:, 0] < 2.2)
    return np.column_stack([np.cos(tau), np.sin(tau), in_r, u, np.arccos(cosine), ends])


def moved(move: NCMCDiffusionMove) -> np.ndarray:
    """Where N_MOVES moves of each frame lead."""
    state = states.ThermodynamicState(molecule().system, TEMPERATURE)
    ends = []
    for x in ensemble():
        sampler_state = states.SamplerState(x * unit.nanometer)
        for _ in range(N_MOVES):
            move.apply(state, sampler_state, reference())
        ends.append(sampler_state.positions.value_in_unit(unit.nanometer).copy())
    return np.array(ends)


def z_values(move: NCMCDiffusionMove) -> np.ndarray:
    """Mean changes of the observables over their standard errors, frames in blocks of four (neighbours correlate)."""
    change = (observables(moved(move)) - observables(ensemble())).reshape(N_FRAMES // 4, 4, -1).mean(1)
    error = change.std(0, ddof=1) / np.sqrt(len(change))
    # Where no frame changed basins there is nothing to see.
    z = np.divide(change.mean(0), error, out=np.zeros_like(error), where=error > 0)
    print(f"\naccepted {move.n_accepted} of {move.n_proposed}; z {np.round(z, 1)}")
    return np.asarray(np.abs(z))


def make(propagator: str) -> NCMCDiffusionMove:
    return NCMCDiffusionMove(
        OTHER, molecule().topology, n_rotations=4, n_propagation_steps=3, propagator=propagator, seed=2
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("propagator", ["GHMC", "langevin"])
def test_an_equilibrium_ensemble_stays_what_it_is(propagator: str) -> None:
    """With constraints, hydrogen masses and OpenMM's own integrators, no mean over the ensemble changes."""
    move = make(propagator)
    z = z_values(move)
    assert move.n_accepted > 300
    assert z.max() < 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_without_log_q_the_ensemble_changes() -> None:
    """Control: the same moves without the densities of the model are off by more than 6 sigma."""
    move = make("GHMC")
    proposal: Any = move.proposal
    propose = proposal.propose

    def uniform(positions: np.ndarray, n: int, rng: np.random.Generator) -> Any:
        drawn = propose(positions, n, rng)
        return dataclasses.replace(drawn, log_q=np.zeros(n), log_q_present=np.zeros(n))

    proposal.propose = uniform
    assert z_values(move).max() > 6
