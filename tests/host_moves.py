"""Moves and systems for the tests of openmmtools' traps: one move of each kind, and small molecules to put it on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit
from openmmtools import cache, multistate, states, testsystems
from upstream_moves import QUICK, Drift, alanine

from openmm_diffusion.mcmc import DiffusionMove, ProposalMove
from openmm_diffusion.mcmc.ncmc import NCMCDiffusionMove
from openmm_diffusion.proposals import Candidates

KELVIN = unit.kelvin
KINDS = ("proposal", "diffusion", "ncmc")
MOLECULAR = ("diffusion", "ncmc")


@dataclass(frozen=True)
class Spoiled(Drift):
    """Candidates with NaN coordinates."""

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        drawn = super().propose(positions, n, rng)
        drawn.positions[:, 3] = np.nan
        return drawn


def make(kind: str, seed: int | None = 1, topology: Any = None, **options: Any) -> Any:
    """A move of a kind: a rigid drift, torsions from the shipped model, or these in three rotations."""
    own, model = alanine()
    if kind == "proposal":
        return ProposalMove(Drift(), seed=seed, **options)
    if kind == "diffusion":
        return DiffusionMove(model, topology or own, seed=seed, **{"n_candidates": 4, **QUICK, **options})
    return NCMCDiffusionMove(model, topology or own, seed=seed, **{"n_rotations": 3, **QUICK, **options})


def contexts(platform: str = "Reference") -> cache.ContextCache:
    return cache.ContextCache(platform=openmm.Platform.getPlatformByName(platform))


def vacuum(**options: Any) -> Any:
    return testsystems.AlanineDipeptideVacuum(**options)


def periodic() -> Any:
    """Alanine dipeptide alone in a box of 3 nm, with a cutoff."""
    molecule = vacuum()
    force = next(one for one in molecule.system.getForces() if isinstance(one, openmm.NonbondedForce))
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(1.0)
    molecule.system.setDefaultPeriodicBoxVectors(*(3.0 * np.eye(3)))
    return molecule


def at(system: openmm.System, kelvin: float = 300.0, pressure: Any = None) -> states.ThermodynamicState:
    return states.ThermodynamicState(system, kelvin * KELVIN, pressure)


def nm(quantity: Any) -> np.ndarray:
    return np.array(quantity.value_in_unit(unit.nanometer))


def speeds(sampler: states.SamplerState) -> np.ndarray:
    return np.array(sampler.velocities.value_in_unit(unit.nanometer / unit.picosecond))


def reduced(system: openmm.System, positions: Any, kelvin: float = 300.0, platform: str = "Reference") -> float:
    """Potential energy over kT in a Context that no move has touched."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions)
    context.computeVirtualSites()
    return float(context.getState(energy=True).getPotentialEnergy() / (unit.MOLAR_GAS_CONSTANT_R * kelvin * KELVIN))


def until(accepted: bool, move: Any, state: Any, sampler: Any, shared: Any, at_most: int = 300) -> Any:
    """Apply a move until one is accepted, or rejected; its record."""
    for _ in range(at_most):
        move.apply(state, sampler, context_cache=shared)
        if move.last.accepted == accepted:
            return move.last
    raise AssertionError(f"no move with accepted = {accepted} in {at_most}")


def sampler_with(
    move: Any,
    folder: Path,
    n_iterations: int = 3,
    *,
    n_states: int = 2,
    interval: int = 1,
    kind: Any = multistate.ReplicaExchangeSampler,
    molecule: Any = None,
) -> Any:
    """A multistate sampler of alanine dipeptide at 300 K, 330 K, ..., and its reporter."""
    molecule = molecule or vacuum()
    ladder = [at(molecule.system, 300.0 + 30.0 * k) for k in range(n_states)]
    replicas = [states.SamplerState(molecule.positions) for _ in ladder]
    sampler = kind(mcmc_moves=move, number_of_iterations=n_iterations)
    reporter = multistate.MultiStateReporter(str(folder / "out.nc"), checkpoint_interval=interval)
    sampler.create(ladder, replicas, reporter)
    return sampler, reporter
