"""The kernel on a plain Context: exact at the context's temperature, and a rejected step leaves no trace."""

from functools import cache
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_diffusion.errors import IncompatibleSystemError, MoleculeError, SettingError, StateError
from openmm_diffusion.mcmc import context_kernel
from openmm_diffusion.mcmc.context_kernel import DiffusionKernel, thermostat_temperature
from openmm_diffusion.models import create, load
from openmm_diffusion.proposals import Candidates, TorsionProposal
from openmm_diffusion.workflows.exactness import FrozenTarget, compare
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide

VACUUM = "alanine-dipeptide-torsion-vacuum"
SCRIPT = """
from openmm import app, unit, LangevinMiddleIntegrator, Platform
from openmmtools.testsystems import AlanineDipeptideVacuum
from openmm_diffusion.mcmc.context_kernel import DiffusionKernel
alanine, integrator = AlanineDipeptideVacuum(), LangevinMiddleIntegrator(300, 1, 0.002)
simulation = app.Simulation(alanine.topology, alanine.system, integrator, Platform.getPlatformByName("Reference"))
simulation.context.setPositions(alanine.positions)
kernel = DiffusionKernel.from_pretrained(simulation, "alanine-dipeptide-torsion-vacuum", seed=1)
for _ in range(25):
    simulation.step(100)
    kernel.step()
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks: threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def molecule() -> MolecularSystem:
    return alanine_dipeptide("vacuum")


@cache
def target() -> FrozenTarget:
    return FrozenTarget(molecule())


@cache
def starts() -> np.ndarray:
    return target().draw(320, np.random.default_rng(3))


class Tampered:
    """Draws of a proposal, all accepted or all rejected, or without their density; `fail` raises in the middle."""

    def __init__(self, inner: TorsionProposal, manner: str) -> None:
        self.inner, self.manner, self.torsions = inner, manner, inner.torsions
        self.seen: list[np.ndarray] = []

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        drawn = self.inner.propose(positions, n, rng)
        self.seen.append(drawn.positions)
        shift = {"reject": 1e4, "accept": -1e4, "no density": 0.0}[self.manner]
        return Candidates(drawn.positions, np.full(n, shift), np.zeros(n), drawn.invalid)


@cache
def trained() -> TorsionProposal:
    return TorsionProposal(load(VACUUM), molecule().topology, pool_size=1024, device="cpu")


def untrained(manner: str) -> Tampered:
    model = create("torsion", molecule().topology, 1, hidden_size=16, n_layers=1)
    return Tampered(TorsionProposal(model, molecule().topology, pool_size=64, device="cpu"), manner)


def context(
    integrator: Any = None, system: openmm.System | None = None, positions: Any = "those of the molecule"
) -> openmm.Context:
    integrator = integrator or openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    platform = openmm.Platform.getPlatformByName("Reference")
    made = openmm.Context(system or molecule().system, integrator, platform)
    if positions is not None:
        made.setPositions(molecule().positions if isinstance(positions, str) else positions)
        made.setVelocitiesToTemperature(300, 1)
    return made


def arrays(made: openmm.Context) -> tuple[np.ndarray, np.ndarray]:
    state = made.getState(positions=True, velocities=True)
    return state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value


def test_ten_lines_of_a_script() -> None:
    """Ten lines run a hybrid simulation of alanine dipeptide with a shipped model."""
    assert len(SCRIPT.strip().splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(SCRIPT, names)
    kernel = names["kernel"]
    assert kernel.n_proposed == 25 and kernel.n_accepted >= 10
    assert kernel.statistics == {"n_proposed": 25, "n_accepted": kernel.n_accepted, "n_invalid": kernel.n_invalid}
    assert kernel.fraction_accepted == kernel.n_accepted / 25
    assert kernel.last is not None and np.isfinite(kernel.last.log_alpha)
    assert names["simulation"].currentStep == 2500


def ends(kernel: DiffusionKernel, n_chains: int, n_moves: int) -> Any:
    """The result of chains from exact draws, everything but (phi, psi) frozen."""
    goal = target()
    tau = np.empty((n_chains, 2))
    for i, x in enumerate(goal.place(starts()[:n_chains])):
        kernel.context.setPositions(x)
        for _ in range(n_moves):
            kernel.step()
        tau[i] = goal.torsions.get(arrays(kernel.context)[0])
    return compare(goal, tau, n_chains * n_moves, kernel.n_accepted, kernel.n_invalid, 1.0)


def test_steps_leave_the_target_unchanged() -> None:
    """320 chains from exact draws are still distributed as exp(-u); at another temperature, or without log q, not."""
    result = ends(DiffusionKernel(context(), trained(), seed=2), 320, 2)
    assert result.is_exact() and result.is_informative, result
    hot = DiffusionKernel(context(), trained(), temperature=600 * unit.kelvin, seed=2)
    assert not ends(hot, 320, 1).is_exact()
    without = DiffusionKernel(context(), Tampered(trained(), "no density"), seed=2)
    assert not ends(without, 320, 4).is_exact()


def test_rejection_leaves_no_trace() -> None:
    """On rejection positions, velocities, box and parameters keep every bit; the control, an acceptance, changes x."""
    made = context()
    kernel = DiffusionKernel(made, untrained("reject"), seed=1)
    made.getIntegrator().step(5)
    before = arrays(made)
    assert not any(kernel.step().accepted for _ in range(3))
    for old, new in zip(before, arrays(made), strict=True):
        np.testing.assert_array_equal(old, new)
    assert kernel.statistics["n_proposed"] == 3 and kernel.n_accepted == 0
    kernel = DiffusionKernel(made, untrained("accept"), seed=1)
    assert kernel.step().accepted
    assert np.abs(arrays(made)[0] - before[0]).max() > 1e-3


def test_acceptance_redraws_velocities_at_the_temperature() -> None:
    """After acceptance velocities are Maxwell-Boltzmann at the integrator's temperature then, along all constraints."""
    made = context()
    kernel = DiffusionKernel(made, untrained("accept"), seed=1)
    system = made.getSystem()
    freedom = 3 * system.getNumParticles() - system.getNumConstraints()
    for kelvin in (300.0, 900.0):
        made.getIntegrator().setTemperature(kelvin)
        assert kernel.temperature == pytest.approx(kelvin)
        kinetic = []
        for _ in range(40):
            kernel.step()
            kinetic.append(made.getState(energy=True).getKineticEnergy()._value)
        expected = 0.5 * freedom * 0.00831446 * kelvin
        assert np.mean(kinetic) == pytest.approx(expected, abs=5 * expected * np.sqrt(2 / freedom / 40))
    x, v = arrays(made)
    for k in range(system.getNumConstraints()):
        i, j, _ = system.getConstraintParameters(k)
        assert abs((x[i] - x[j]) @ (v[i] - v[j])) < 1e-4


def test_an_interrupted_step_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a candidate is being tried leaves the chain where it was and counts nothing."""
    made = context()
    kernel = DiffusionKernel(made, untrained("accept"), seed=1)
    before = arrays(made)[0]

    def interrupted(tried: openmm.Context, *_: Any) -> None:
        tried.setPositions(before + 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(context_kernel, "metropolis_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.step()
    np.testing.assert_array_equal(arrays(made)[0], before)
    assert kernel.n_proposed == 0


def test_kernels_of_one_seed_have_streams_of_their_own() -> None:
    """Two kernels with the same seed, and two without, never try the same candidate."""
    proposals = [untrained("reject") for _ in range(4)]
    for proposal, seed in zip(proposals, (4, 4, None, None), strict=True):
        DiffusionKernel(context(), proposal, 2, seed=seed).step()
    first = [proposal.seen[0][0] for proposal in proposals]
    for i in range(4):
        for j in range(i):
            assert np.abs(first[i] - first[j]).max() > 1e-6


def thermostats() -> dict[str, openmm.Context]:
    custom = openmm.CustomIntegrator(0.001)
    custom.addGlobalVariable("temperature", 350.0)
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(openmm.LangevinIntegrator(350, 1, 0.001))
    andersen = openmm.XmlSerializer.clone(molecule().system)
    andersen.addForce(openmm.AndersenThermostat(350, 1))
    return {
        "Langevin": context(openmm.LangevinIntegrator(350, 1, 0.001)),
        "Nose-Hoover": context(openmm.NoseHooverIntegrator(350, 1, 0.001)),
        "custom": context(custom),
        "compound": context(compound),
        "Andersen": context(openmm.VerletIntegrator(0.001), andersen),
    }


def test_every_thermostat_is_read() -> None:
    """The temperature comes from the integrator, a CustomIntegrator's variable, or an Andersen thermostat."""
    for name, made in thermostats().items():
        assert thermostat_temperature(made) == pytest.approx(350.0), name
    with pytest.raises(SettingError, match="VerletIntegrator; give temperature="):
        DiffusionKernel(context(openmm.VerletIntegrator(0.001)), untrained("accept"))
    kernel = DiffusionKernel(context(openmm.VerletIntegrator(0.001)), untrained("accept"), temperature=310)
    assert kernel.temperature == 310.0


def test_settings_are_checked() -> None:
    """Values out of range, things that are no Context, and a Context without topology get one sentence."""
    proposal = untrained("accept")
    for values, words in (
        ({"n_candidates": 0}, "n_candidates is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "warm"}, "temperature|could not convert"),
    ):
        with pytest.raises((SettingError, ValueError), match=words):
            DiffusionKernel(context(), proposal, **values)
    with pytest.raises(SettingError, match=r"expected an openmm\.Context"):
        DiffusionKernel(molecule().system, proposal)
    with pytest.raises(SettingError, match="no topology"):
        DiffusionKernel.from_pretrained(context(), VACUUM)
    with pytest.raises(MoleculeError, match="no peptide backbone"):
        DiffusionKernel.from_pretrained(context(), VACUUM, app.Topology())


def test_systems_are_checked() -> None:
    """Frozen atoms and dynamics on some of the forces are refused before anything moves."""
    frozen = openmm.XmlSerializer.clone(molecule().system)
    while frozen.getNumConstraints():
        frozen.removeConstraint(0)
    frozen.setParticleMass(21, 0.0)
    with pytest.raises(IncompatibleSystemError, match="massless"):
        DiffusionKernel(context(system=frozen), untrained("accept"))
    grouped = openmm.XmlSerializer.clone(molecule().system)
    grouped.getForce(0).setForceGroup(3)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    integrator.setIntegrationForceGroups({0})
    with pytest.raises(IncompatibleSystemError, match=r"leaves out force groups \[3\]"):
        DiffusionKernel(context(integrator, grouped), untrained("accept"))
    DiffusionKernel(context(system=grouped), untrained("accept"))


def test_states_are_checked() -> None:
    """No positions, a torn molecule and NaN are refused at the step, which counts nothing."""
    torn, spoiled = molecule().positions.copy(), molecule().positions.copy()
    torn[16:] += 2.0
    spoiled[3] = np.nan
    for positions, words in ((None, "has no positions"), (torn, "torn"), (spoiled, "NaN")):
        kernel = DiffusionKernel(context(positions=positions), untrained("accept"))
        with pytest.raises(StateError, match=words):
            kernel.step()
        assert kernel.n_proposed == 0 and kernel.last is None
