"""A million mixed steps on Reference: constraints hold as at the start, nothing becomes NaN, memory stays flat."""

import os
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmmtools import cache, mcmc, states

from openmm_diffusion import DiffusionMove
from openmm_diffusion.workflows.hybrid import HybridChain
from openmm_diffusion.workflows.systems import TEMPERATURE, TIMESTEP, alanine_dipeptide

MD_STEPS = 250


def constraints(system: openmm.System) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of atoms [C, 2] and their distances [C] (nm)."""
    found = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    return np.array([row[:2] for row in found]), np.array([row[2].value_in_unit(unit.nanometer) for row in found])


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mixed_steps(n_steps: int, model: str, **options: object) -> dict[str, np.ndarray]:
    """Violations of constraints (relative), energies (kJ/mol), memory (bytes) after each move and its dynamics."""
    molecule = alanine_dipeptide("obc")
    platform = openmm.Platform.getPlatformByName("Reference")
    move = DiffusionMove(model, molecule.topology, seed=1, **options)
    chain = HybridChain(molecule, move, platform)
    chain.equilibrate()
    dynamics = mcmc.LangevinDynamicsMove(timestep=TIMESTEP, collision_rate=1 / unit.picosecond, n_steps=MD_STEPS)
    both = mcmc.SequenceMove([move, dynamics])
    state = states.ThermodynamicState(molecule.system, TEMPERATURE)
    contexts = cache.ContextCache(platform=platform)
    pairs, lengths = constraints(molecule.system)
    rows = []
    for _ in range(n_steps // MD_STEPS):
        both.apply(state, chain.sampler_state, contexts)
        x = chain.sampler_state.positions.value_in_unit(unit.nanometer)
        violation = np.abs(np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1) / lengths - 1).max()
        energy = chain.sampler_state.potential_energy.value_in_unit(unit.kilojoule_per_mole)
        rows.append((violation, energy, resident()))
    assert move.n_accepted > 0.05 * move.n_proposed
    return dict(zip(("violation", "energy", "memory"), np.array(rows).T, strict=True))


def check(rows: dict[str, np.ndarray]) -> None:
    fifth = len(rows["energy"]) // 5
    first, last = (slice(fifth, 2 * fifth), slice(-fifth, None))
    violation, energy, memory = rows["violation"], rows["energy"], rows["memory"]
    growth = memory[last].mean() / memory[first].mean() - 1
    print(
        f"\nviolation {violation[first].mean():.1e} -> {violation[last].mean():.1e}, largest {violation.max():.1e}; "
        f"energy {energy[first].mean():.1f} -> {energy[last].mean():.1f} kJ/mol; memory grows by {growth:.2%}"
    )
    assert np.isfinite(energy).all()
    assert violation.max() < 1e-5
    assert violation[last].mean() < 1.5 * violation[first].mean()
    assert abs(energy[last].mean() - energy[first].mean()) < 6 * energy.std() * np.sqrt(2 / fifth)
    assert growth < 0.01


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("model", ["alanine-dipeptide-torsion", "alanine-dipeptide"])
def test_a_million_mixed_steps(model: str) -> None:
    """10^6 steps of dynamics with a move after every 250: no drift, no NaN, memory flat to 1 %."""
    options = {} if model.endswith("torsion") else {"n_diffusion_steps": 16}
    check(mixed_steps(1_000_000, model, n_candidates=2, **options))


def test_violations_that_grow_are_seen() -> None:
    """Control: a chain whose constraints drift, or whose memory grows, does not pass."""
    n = 500
    rows = {"violation": np.full(n, 1e-8), "energy": np.random.default_rng(0).normal(0, 1, n), "memory": np.ones(n)}
    check(rows)
    for name, values in (("violation", np.linspace(1e-8, 3e-8, n)), ("memory", np.linspace(1.0, 1.1, n))):
        with pytest.raises(AssertionError):
            check({**rows, name: values})
    before, kept = resident(), np.ones(8_000_000)
    assert resident() - before > 0.9 * kept.nbytes
