"""Moves inside OpenMM's own multistate samplers: at each state its own target, temperature and counters."""

from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_diffusion.errors import SettingError
from openmm_diffusion.mcmc import context_kernel
from openmm_diffusion.mcmc.context_kernel import DiffusionKernel
from openmm_diffusion.mcmc.openmm_samplers import expanded_ensemble_sampler, replica_exchange_sampler
from openmm_diffusion.proposals import Candidates
from openmm_diffusion.workflows.systems import alanine_dipeptide

KELVIN = (300.0, 400.0, 550.0)
STATES = [{"temperature": kelvin * unit.kelvin} for kelvin in KELVIN]
R = 0.00831446261815324
REFERENCE = openmm.Platform.getPlatformByName("Reference")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks: threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Normal:
    """Independent normal draws of one particle with a known density: asymmetric about any present state."""

    def __init__(self, width: float) -> None:
        self.width = width

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        drawn = self.width * rng.standard_normal((n, *positions.shape))
        return Candidates(drawn, self._log_q(drawn), np.full(n, self._log_q(positions[None])[0]), np.zeros(n, bool))

    def _log_q(self, x: np.ndarray) -> np.ndarray:
        return -0.5 * (x**2).sum((-1, -2)) / self.width**2


def oscillator() -> app.Simulation:
    """A particle in a harmonic well of k = 1000 kJ/mol/nm^2: <u> is 3/2 at every temperature."""
    system = openmm.System()
    system.addParticle(10.0)
    well = openmm.CustomExternalForce("scale*500*(x^2+y^2+z^2)")
    well.addGlobalParameter("scale", 1.0)
    well.addParticle(0)
    system.addForce(well)
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    topology.addAtom("X", app.Element.getBySymbol("C"), residue)
    # Almost no friction and tiny steps: it is the moves that sample.
    simulation = app.Simulation(topology, system, openmm.LangevinMiddleIntegrator(300, 1e-3, 1e-5), REFERENCE)
    simulation.context.setPositions([[0.01, 0.02, 0.0]])
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


def energy(simulation: app.Simulation) -> float:
    return float(simulation.context.getState(energy=True).getPotentialEnergy()._value)


def z_of_mean(values: np.ndarray, expected: float) -> float:
    """z of a chain's mean by 20 batches."""
    batches = np.array_split(values, 20)
    means = np.array([batch.mean() for batch in batches])
    return float((means.mean() - expected) / (means.std(ddof=1) / np.sqrt(20)))


class AtOneTemperature(DiffusionKernel):
    """Control: moves that do not follow the state."""

    def step(self, *, temperature: Any = None) -> Any:
        return super().step(temperature=300.0)


def exchange_energies(kind: type[DiffusionKernel], n_iterations: int = 400) -> tuple[np.ndarray, Any]:
    """Reduced energies [iterations, states] of a replica exchange, exchanges included."""
    simulation = oscillator()
    kernel = kind(simulation, Normal(0.06), 1, seed=1)
    sampler = replica_exchange_sampler(kernel, STATES, simulation, 1)
    sampler.exchangesPerIteration = 2
    rows = []

    def record(made: Any) -> None:
        by_state = dict(zip(made.replicaStateIndex, made.replicaStateEnergy, strict=True))
        rows.append([by_state[k][k]._value / (R * KELVIN[k]) for k in range(3)])

    sampler.reporters.append(record)
    sampler.simulate(n_iterations)
    return np.array(rows)[10:], sampler


def test_replica_exchange_is_exact_at_each_temperature() -> None:
    """<u> is 3/2 and its variance 3/2 at all three temperatures; moves at 300 K throughout are caught."""
    u, sampler = exchange_energies(DiffusionKernel)
    for k in range(3):
        assert abs(z_of_mean(u[:, k], 1.5)) < 4.5
        assert abs(z_of_mean((u[:, k] - 1.5) ** 2, 1.5)) < 4.5
    assert [one["n_proposed"] for one in sampler.move_statistics] == [400] * 3
    assert all(80 < one["n_accepted"] < 400 for one in sampler.move_statistics)
    wrong, _ = exchange_energies(AtOneTemperature)
    assert max(abs(z_of_mean(wrong[:, k], 1.5)) for k in range(3)) > 6


@pytest.mark.parametrize("reinitialize", [False, True])
def test_expanded_ensemble_is_exact_at_each_temperature(reinitialize: bool) -> None:
    """With the right weights all states are visited alike, and <u> is 3/2 at each."""
    simulation = oscillator()
    kernel = DiffusionKernel(simulation, Normal(0.06), 1, seed=2)
    weights = [-1.5 * float(np.log(kelvin)) for kelvin in KELVIN]
    sampler = expanded_ensemble_sampler(
        kernel, STATES, simulation, 1, weights=weights, reinitializeVelocities=reinitialize
    )
    states, u = np.empty(1200, int), np.empty(1200)
    for i in range(1200):
        sampler.step(1)
        states[i] = sampler.currentStateIndex
        u[i] = energy(simulation) / (R * KELVIN[states[i]])
    for k in range(3):
        assert abs(z_of_mean(u[states == k], 1.5)) < 4.5
        assert abs(z_of_mean((states == k).astype(float), 1 / 3)) < 4.5
    assert [one["n_proposed"] for one in sampler.move_statistics] == [int((states == k).sum()) for k in range(3)]
    assert kernel.n_proposed == 1200


def alanine() -> tuple[app.Simulation, DiffusionKernel]:
    molecule = alanine_dipeptide("vacuum")
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, REFERENCE)
    simulation.context.setPositions(molecule.positions)
    simulation.minimizeEnergy(maxIterations=50)
    name = "alanine-dipeptide-torsion-vacuum"
    return simulation, DiffusionKernel.from_pretrained(simulation, name, seed=3, device="cpu", pool_size=64)


class Spy:
    """Records the beta and the present energy of every move, and what the Context says of its temperature."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kelvin: list[float] = []
        self.thermostat: list[float] = []
        inner = context_kernel.metropolis_step

        def spying(context: Any, proposal: Any, positions: Any, beta: float, *rest: Any) -> Any:
            self.kelvin.append(1.0 / (R * beta))
            self.thermostat.append(context.getIntegrator().getTemperature()._value)
            record, x = inner(context, proposal, positions, beta, *rest)
            assert record.u_present == pytest.approx(beta * self._energy(context, positions, x), abs=1e-6)
            return record, x

        monkeypatch.setattr(context_kernel, "metropolis_step", spying)

    @staticmethod
    def _energy(context: Any, positions: np.ndarray, after: np.ndarray) -> float:
        context.setPositions(positions)
        value = float(context.getState(energy=True).getPotentialEnergy()._value)
        context.setPositions(after)
        return value


def test_replica_exchange_of_alanine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model in a temperature replica exchange: beta follows the state, replicas keep what they accepted."""
    simulation, kernel = alanine()
    spy = Spy(monkeypatch)
    sampler = replica_exchange_sampler(kernel, STATES, simulation, 20, n_moves=2)
    expected: list[float] = []

    def check(made: Any) -> None:
        expected.extend(KELVIN[k] for k in made.replicaStateIndex for _ in range(2))
        for i, state in enumerate(made.replicaConformation):
            x = state.getPositions(asNumpy=True)._value
            simulation.context.setPositions(x)
            assert energy(simulation) == pytest.approx(made.replicaStateEnergy[i][0]._value, abs=1e-6)

    sampler.reporters.append(check)
    sampler.simulate(6)
    np.testing.assert_allclose(spy.kelvin, expected, rtol=1e-9)
    np.testing.assert_allclose(spy.thermostat, expected, rtol=1e-9)
    assert [one["n_proposed"] for one in sampler.move_statistics] == [12] * 3
    assert sum(one["n_accepted"] for one in sampler.move_statistics) == kernel.n_accepted > 0
    assert sampler.currentIteration == 6


def test_expanded_ensemble_of_alanine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model in an expanded ensemble, weights found on the way: beta follows the state."""
    simulation, kernel = alanine()
    spy = Spy(monkeypatch)
    sampler = expanded_ensemble_sampler(kernel, STATES, simulation, 10)
    visited = []
    for _ in range(12):
        simulation.step(10)
        visited.append(KELVIN[sampler.currentStateIndex])
    np.testing.assert_allclose(spy.kelvin, visited, rtol=1e-9)
    np.testing.assert_allclose(spy.thermostat, visited, rtol=1e-9)
    assert kernel.n_proposed == 12 and kernel.n_accepted > 0


def test_hamiltonian_states_and_a_kernel_each() -> None:
    """States that differ in a parameter: energies follow it, the temperature is the integrator's; a kernel each."""
    simulation = oscillator()
    states = [{"scale": 1.0}, {"scale": 4.0}]
    kernels = [DiffusionKernel(simulation, Normal(width), 1, seed=5) for width in (0.05, 0.025)]
    sampler = replica_exchange_sampler(kernels, states, simulation, 1)
    rows = []
    sampler.reporters.append(
        lambda made: rows.append([made.replicaStateEnergy[made.replicaStateIndex.index(k)][k]._value for k in (0, 1)])
    )
    sampler.simulate(300)
    for k in (0, 1):
        assert abs(z_of_mean(np.array(rows)[10:, k] / (R * 300.0), 1.5)) < 4.5
        assert kernels[k].statistics == sampler.move_statistics[k]
        assert kernels[k].n_proposed == 300 and kernels[k].n_accepted > 150


def test_what_cannot_be_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force groups as states, a kernel of another Context, a wrong number of kernels, and OpenMM before 8.6."""
    simulation = oscillator()
    kernel = DiffusionKernel(simulation, Normal(0.05), 1)
    for make in (replica_exchange_sampler, expanded_ensemble_sampler):
        with pytest.raises(SettingError, match="force groups"):
            make(kernel, [{"groups": {0}}, {"groups": {1}}], simulation, 1)
        with pytest.raises(SettingError, match="another Context"):
            make(kernel, STATES, oscillator(), 1)
        with pytest.raises(SettingError, match="2 kernels for 3 states"):
            make([kernel] * 2, STATES, simulation, 1)
        with pytest.raises(SettingError, match="n_moves is -1"):
            make(kernel, STATES, simulation, 1, n_moves=-1)
    monkeypatch.delattr(app, "ReplicaExchangeSampler")
    with pytest.raises(SettingError, match=r"has no ReplicaExchangeSampler, which came with 8\.6"):
        replica_exchange_sampler(kernel, STATES, simulation, 1)
