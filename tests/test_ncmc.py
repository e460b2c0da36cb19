"""The nonequilibrium move: exact whatever happens between its rotations, and every term of its ratio is needed."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmmtools import cache as contexts_cache
from openmmtools import states, testsystems, utils
from tiny_network import TINY

from openmm_diffusion import models
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.errors import SettingError, StateError
from openmm_diffusion.mcmc import DiffusionMove, NCMCDiffusionMove, NCMCRecord, metropolis_step, ncmc_kernel, ncmc_step
from openmm_diffusion.mcmc.kernel import _energy
from openmm_diffusion.mcmc.ncmc_kernel import driven_step
from openmm_diffusion.mcmc.ncmc_protocol import Drive, TurningProposal, drive
from openmm_diffusion.mcmc.propagators import INTEGRATORS, DynamicsPropagator, Propagation, Propagator
from openmm_diffusion.mcmc.streams import process_key
from openmm_diffusion.molecule import BackboneTorsions
from openmm_diffusion.proposals import Candidates, TorsionProposal
from openmm_diffusion.units import wrap
from openmm_diffusion.workflows.exactness import ExactnessResult, FrozenTarget, compare
from openmm_diffusion.workflows.systems import alanine_dipeptide

TEMPERATURE = 300.0 * unit.kelvin
KT = (unit.MOLAR_GAS_CONSTANT_R * TEMPERATURE).value_in_unit(unit.kilojoule_per_mole)
BETA = 1.0 / KT
QUICK: dict[str, Any] = {"n_diffusion_steps": 8, "pool_size": 256, "device": "cpu"}


def reference() -> openmm.Platform:
    return openmm.Platform.getPlatformByName("Reference")


# A particle whose x is an angle tau and whose y and z are a bath: the bath's centre goes round with tau, so that its
# mean force vanishes and exp(-u) is drawn from by quadrature in one dimension.
STIFFNESS, ORBIT = 16.0, 0.15  # of the bath, in kT / nm^2 and nm
ENERGY = (
    f"1.1 * cos(x - 1) - 1.5 * cos(2 * x) + {STIFFNESS / 2} * ((y - {ORBIT} * sin(x))^2 + (z - {ORBIT} * cos(x))^2)"
)
CENTRE, CONCENTRATION = -0.8, 2.1  # of the proposal, a von Mises distribution


def angle_energy(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.1 * np.cos(x - 1) - 1.5 * np.cos(2 * x))


GRID = -math.pi + (np.arange(4000) + 0.5) * 2 * math.pi / 4000
DENSITY = np.exp(-angle_energy(GRID)) / np.exp(-angle_energy(GRID)).sum()


class AngleX:
    """x of the only particle as an angle: what `BackboneTorsions` is to a molecule."""

    def get(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(wrap(positions[..., 0, :1]))

    def turn(self, positions: np.ndarray, angles: np.ndarray) -> np.ndarray:
        turned = positions.copy()
        turned[..., 0, :1] += angles
        return turned


class VonMises:
    """Independent draws of each torsion from a von Mises distribution."""

    def __init__(self, torsions: Any, centres: tuple[float, ...], concentration: float) -> None:
        self.torsions, self.centres, self.concentration = torsions, np.array(centres), concentration

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        tau, now = rng.vonmises(self.centres, self.concentration, (n, len(self.centres))), self.torsions.get(positions)
        candidates = np.stack([self.torsions.turn(positions, one - now) for one in tau])
        return Candidates(candidates, self.log_density(tau), self.log_density(now[None]), np.zeros(n, dtype=bool))

    def log_density(self, tau: np.ndarray) -> np.ndarray:
        constant = math.log(2 * math.pi * np.i0(self.concentration))
        return np.asarray((self.concentration * np.cos(tau - self.centres) - constant).sum(-1))


def of_the_angle() -> VonMises:
    return VonMises(AngleX(), (CENTRE,), CONCENTRATION)


@dataclass
class Misscored:
    """Control: a proposal whose two densities are taken elsewhere than tau + Delta and tau_f - Delta.

    `score` gives (at the candidate, at the end) from (tau, tau_f, Delta); None leaves the densities out.
    """

    inner: Any
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None

    def __post_init__(self) -> None:
        self.torsions, self._first = self.inner.torsions, True

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        # A move asks twice: for the candidate, and for the density that the way back needs. Since the ratio contains
        # the difference of both only, the second answer can carry the whole of it.
        drawn = self.inner.propose(positions, n, rng)
        nothing = np.zeros(n)
        if self._first:
            self._tau = self.torsions.get(positions)
            self._delta = wrap(self.torsions.get(drawn.positions[0]) - self._tau)
            difference = nothing
        else:
            tau_f = self.torsions.get(positions) + self._delta
            difference = nothing if self.score is None else self._difference(tau_f)
        self._first = not self._first
        return Candidates(drawn.positions, nothing, difference, drawn.invalid, drawn.reversible)

    def _difference(self, tau_f: np.ndarray) -> np.ndarray:
        assert self.score is not None
        at_candidate, at_end = self.score(self._tau, tau_f, self._delta)
        density = self.inner.log_density(np.stack([at_end, at_candidate]).reshape(2, -1))
        with np.errstate(invalid="ignore"):  # -inf less -inf: neither way can be drawn, which rejects
            return np.atleast_1d(np.ravel(density)[0] - np.ravel(density)[1])


Score = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
MISSCORED: dict[str, Score | None] = {
    "none": None,
    "tau for tau + Delta": lambda tau, tau_f, delta: (tau, tau_f - delta),
    "tau_f for tau_f - Delta": lambda tau, tau_f, delta: (tau + delta, tau_f),
    "as if nothing had moved": lambda tau, tau_f, delta: (tau_f, tau),
}


def right(tau: np.ndarray, tau_f: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tau + delta, tau_f - delta


@dataclass
class Forgetful:
    """Control: a propagator that keeps its shadow work to itself."""

    inner: Propagator

    def __call__(self, context: Any, positions: np.ndarray, beta: float, rng: np.random.Generator) -> Propagation:
        done = self.inner(context, positions, beta, rng)
        return Propagation(done.positions, done.u_start, done.u_end, 0.0)


def drive_and_propagate(context: Any, torsions: Any, *rest: Any) -> Drive:
    """Control: a protocol that ends on a propagation. Its reverse would have to begin with one."""
    *_, propagator, beta, rng = rest
    end = drive(context, torsions, *rest)
    if not end.finite:
        return end
    done = propagator(context, end.positions, beta, rng)
    exchanged = end.exchanged + done.u_end - done.u_start
    shadow = end.shadow_work + done.shadow_work
    return Drive(done.positions, done.u_end, end.work, exchanged, shadow, None, 0.0)


def toy_context(kind: str, timestep: float) -> openmm.Context:
    system = openmm.System()
    system.addParticle(20.0)
    force = openmm.CustomExternalForce(f"{KT} * ({ENERGY})")
    force.addParticle(0, [])
    system.addForce(force)
    integrator = INTEGRATORS[kind](TEMPERATURE, timestep * unit.picosecond, 0.2 / unit.picosecond)
    integrator.setRandomNumberSeed(5)
    return openmm.Context(system, integrator, reference())


def toy_draws(n: int, rng: np.random.Generator) -> np.ndarray:
    """n exact draws of exp(-u), [n, 1, 3]."""
    x = rng.choice(GRID, n, p=DENSITY) + (rng.random(n) - 0.5) * (GRID[1] - GRID[0])
    centre = ORBIT * np.stack([np.sin(x), np.cos(x)], -1)
    return np.column_stack([x, centre + rng.standard_normal((n, 2)) / math.sqrt(STIFFNESS)])[:, None]


def toy_z(x: np.ndarray) -> dict[str, float]:
    """z values of independent draws x [n, 1, 3]: angle, bath relative to its centre, and their coupling."""
    tau, bath = x[:, 0, 0], x[:, 0, 1:] - ORBIT * np.stack([np.sin(x[:, 0, 0]), np.cos(x[:, 0, 0])], -1)
    variance = 1 / STIFFNESS
    functions = {f"{f.__name__} {k} tau": (lambda a, f=f, k=k: f(k * a)) for f in (np.cos, np.sin) for k in (1, 2)}
    result = {}
    for name, function in {**functions, "energy of tau": angle_energy}.items():
        mean = DENSITY @ function(GRID)
        deviation = math.sqrt(DENSITY @ function(GRID) ** 2 - mean**2)
        result[name] = (function(tau).mean() - mean) / (deviation / math.sqrt(len(x)))
    for k, name in enumerate("yz"):
        result[f"bath {name}"] = bath[:, k].mean() / math.sqrt(variance / len(x))
        result[f"bath {name}^2"] = ((bath[:, k] ** 2).mean() - variance) / math.sqrt(2 * variance**2 / len(x))
    return {name: float(value) for name, value in result.items()}


# Time steps (ps) against the bath's frequency, sqrt(16 kT / 20) = 1.41 / ps: Verlet is stable up to a product of 2.
CALM, WILD = 0.7, 1.1


def toy_run(
    kind: str = "GHMC",
    timestep: float = CALM,
    wrap_proposal: Callable[[Any], Any] = lambda inner: inner,
    wrap_propagator: Callable[[Any], Any] = lambda inner: inner,
    n_chains: int = 300,
    n_moves: int = 4,
    n_rotations: int = 3,
    n_steps: int = 4,
) -> float:
    """The largest |z| of chains that began in exact draws, after n_moves each."""
    rng = np.random.default_rng(3)
    context, proposal = toy_context(kind, timestep), wrap_proposal(of_the_angle())
    propagator = wrap_propagator(DynamicsPropagator(n_steps, TEMPERATURE))
    ends, records = [], []
    for x in toy_draws(n_chains, rng):
        for _ in range(n_moves):
            record, x = driven_step(context, proposal, x, BETA, n_rotations, propagator, rng)
            records.append(record)
        ends.append(x)
    z = toy_z(np.array(ends))
    accepted = np.mean([record.accepted for record in records])
    shadow = np.std([record.shadow_work for record in records])
    worst = max(z.values(), key=abs)
    print(f"\n{kind} {timestep}: accepted {accepted:.2f}, sd of shadow work {shadow:.2f}, worst z {worst:+.1f}; {z}")
    assert accepted > 0.05
    return abs(worst)


def test_toy_draws_are_exact() -> None:
    """The draws that chains begin with have the moments and the mean energy of quadrature; shifted ones do not."""
    x = toy_draws(20_000, np.random.default_rng(1))
    assert max(map(abs, toy_z(x).values())) < 4.0
    assert max(map(abs, toy_z(x + 0.05).values())) > 6.0
    context = toy_context("GHMC", CALM)
    u = [BETA * _energy(context, one) for one in x[:4000]]
    expected = DENSITY @ angle_energy(GRID) + 1.0
    assert abs(np.mean(u) - expected) < 4 * np.std(u) / math.sqrt(len(u))


@pytest.mark.parametrize(("kind", "timestep"), [("GHMC", CALM), ("langevin", CALM), ("langevin", WILD)])
def test_everything_free_stays_exact(kind: str, timestep: float) -> None:
    """Chains from exact draws of angle and bath stay exact under both propagators, also at too large a time step."""
    assert toy_run(kind, timestep, n_steps=1 if timestep == WILD else 4) < 4.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kind", "timestep"), [("GHMC", CALM), ("langevin", CALM), ("langevin", WILD)])
@pytest.mark.parametrize("n_rotations", [2, 5])
def test_everything_free_stays_exact_in_many_chains(kind: str, timestep: float, n_rotations: int) -> None:
    """The same with 2500 chains and other numbers of rotations."""
    n_steps = 1 if timestep == WILD else 4
    assert toy_run(kind, timestep, n_rotations=n_rotations, n_steps=n_steps, n_chains=2500) < 4.5


def test_shadow_work_is_needed() -> None:
    """Control: at a large time step the same chains are off by more than 6 sigma without the shadow work."""
    assert toy_run("langevin", WILD, n_steps=1, wrap_propagator=Forgetful) > 6.0


@pytest.mark.parametrize("name", ["none", "tau for tau + Delta", "tau_f for tau_f - Delta"])
def test_every_density_has_its_place(name: str) -> None:
    """Controls: without q, or with q taken at tau or tau_f, the same chains are off by more than 6 sigma."""
    n_chains = {"none": 1200, "tau for tau + Delta": 250}.get(name, 350)
    assert toy_run(wrap_proposal=lambda inner: Misscored(inner, MISSCORED[name]), n_chains=n_chains) > 6.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_densities_of_the_plain_move_are_wrong() -> None:
    """Control: log q(tau) - log q(tau_f), as if nothing had moved in between, is off by more than 6 sigma."""
    score = MISSCORED["as if nothing had moved"]
    assert toy_run(wrap_proposal=lambda inner: Misscored(inner, score), n_chains=4000) > 6.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_protocols_end_on_a_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: chains whose moves end on a propagation are off by more than 6 sigma, others are not."""
    options: dict[str, Any] = {"n_rotations": 1, "n_steps": 8, "n_moves": 8, "n_chains": 4000}
    assert toy_run(**options) < 4.5
    monkeypatch.setattr(ncmc_kernel, "drive", drive_and_propagate)
    assert toy_run(**options) > 6.0


def test_controls_are_fair() -> None:
    """The wrapper of the controls changes nothing where it takes q at the right places."""
    z = toy_run(wrap_proposal=lambda inner: Misscored(inner, right), n_chains=50)
    assert z == pytest.approx(toy_run(n_chains=50), abs=1e-6)


class TorsionMetropolis:
    """K in (phi, psi) alone, at frozen rho: symmetric Metropolis steps."""

    def __init__(self, torsions: Any, n_steps: int = 2, width: float = 0.5) -> None:
        self.torsions, self.n_steps, self.width = torsions, n_steps, width

    def __call__(self, context: Any, positions: np.ndarray, beta: float, rng: np.random.Generator) -> Propagation:
        x, u = positions, beta * _energy(context, positions)
        u_start = u
        for _ in range(self.n_steps):
            candidate = self.torsions.turn(x, self.width * rng.standard_normal(2))
            u_new = beta * _energy(context, candidate)
            if math.log(rng.random()) < u - u_new:
                x, u = candidate, u_new
        return Propagation(x, u_start, u)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks: threads cost more than they give, above all where other tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def frozen(n: int) -> tuple[FrozenTarget, np.ndarray]:
    target = FrozenTarget(alanine_dipeptide("vacuum"), bins=48)
    return target, target.draw(n, np.random.default_rng(11), n_steps=15)


def frozen_run(
    n_chains: int,
    n_moves: int = 5,
    wrap_proposal: Callable[[Any], Any] = lambda inner: inner,
    n_rotations: int = 2,
    n_steps: int = 2,
    trained: bool = False,
) -> ExactnessResult:
    """Chains at frozen rho against quadrature, with the trained model or two von Mises distributions."""
    target, starts = frozen(n_chains)
    inner: Any = VonMises(target.torsions, (-1.8, 1.8), 4.0)
    if trained:
        model = models.load("alanine-dipeptide-torsion-vacuum")
        inner = TorsionProposal(model, alanine_dipeptide("vacuum").topology, device="cpu")
    proposal, rng = wrap_proposal(inner), np.random.default_rng(1)
    propagator = TorsionMetropolis(inner.torsions, n_steps)
    context, beta, ends, records = target.energies.context, target.energies.beta, [], []
    for x in target.place(starts):
        for _ in range(n_moves):
            record, x = driven_step(context, proposal, x, beta, n_rotations, propagator, rng)
            records.append(record)
        ends.append(target.torsions.get(x))
    accepted = sum(record.accepted for record in records)
    invalid = sum(record.n_invalid for record in records)
    sd_log_q = float(np.std([record.log_q_candidate for record in records if record.log_q_candidate is not None]))
    result = compare(target, np.array(ends), len(records), accepted, invalid, sd_log_q)
    print(f"\n{result.sigma:.1f} sigma; {result}")
    return result


def test_frozen_rho_agrees_with_quadrature() -> None:
    """Everything but (phi, psi) frozen and K Metropolis in them, chains stay as by quadrature: model and von Mises."""
    assert frozen_run(100, 2, trained=True).is_exact()
    assert frozen_run(500, 3).is_exact()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_rotations", [2, 5])
def test_frozen_rho_agrees_with_quadrature_in_many_chains(n_rotations: int) -> None:
    """The same with a trained model in 800 chains of 5 moves: means and chi-squared, enough of them accepted."""
    result = frozen_run(800, n_rotations=n_rotations, trained=True)
    assert result.is_informative and result.is_exact()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["right", *MISSCORED])
def test_frozen_rho_sees_every_density(name: str) -> None:
    """Many chains agree with quadrature; with q left out, or taken at tau or tau_f, they are off by over 6 sigma."""
    result = frozen_run(6000, wrap_proposal=lambda inner: Misscored(inner, MISSCORED.get(name, right)))
    assert result.n_accepted > 500
    assert result.is_exact() if name == "right" else result.sigma > 6.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_frozen_rho_sees_a_last_propagation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a single rotation followed by a propagation is off by over 6 sigma, without that it is not."""
    options: dict[str, Any] = {"n_rotations": 1, "n_steps": 8}
    assert frozen_run(6000, **options).is_exact()
    monkeypatch.setattr(ncmc_kernel, "drive", drive_and_propagate)
    assert frozen_run(6000, **options).sigma > 6.0


@pytest.fixture(scope="module")
def alanine() -> Any:
    return testsystems.AlanineDipeptideVacuum()


def new_contexts() -> contexts_cache.ContextCache:
    return contexts_cache.ContextCache(platform=reference())


def start(system: openmm.System, positions: Any) -> states.SamplerState:
    """A sampler state with velocities that a move has to give back."""
    state = states.SamplerState(positions, box_vectors=system.getDefaultPeriodicBoxVectors())
    state.velocities = np.random.default_rng(6).standard_normal(state.positions.shape) * (
        unit.nanometer / unit.picosecond
    )
    return state


def move_for(alanine: Any, kind: type = NCMCDiffusionMove, seed: int | None = 5, **options: Any) -> Any:
    model = models.create("torsion", alanine.topology, 1, hidden_size=16, n_layers=2)
    return kind(model, alanine.topology, seed=seed, **{**QUICK, **options})


def arrays(sampler: Any) -> list[np.ndarray]:
    return [np.array(part._value) for part in (sampler.positions, sampler.velocities, sampler.box_vectors)]


def test_one_rotation_is_the_plain_move_bit_for_bit(alanine: Any) -> None:
    """n = 1 and `DiffusionMove` with one candidate give the same chain from the same stream, digit by digit."""
    state = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin)
    plain = move_for(alanine, DiffusionMove, n_candidates=1)
    driven = move_for(alanine, n_rotations=1)
    samplers = [start(alanine.system, alanine.positions) for _ in range(2)]
    contexts = new_contexts(), new_contexts()
    for move in (plain, driven):
        move._rng, move._rng_process = np.random.default_rng(8), process_key()
    while driven.n_accepted < 3:
        assert driven.n_proposed < 500
        for move, sampler, own in zip((plain, driven), samplers, contexts, strict=True):
            move.apply(state, sampler, context_cache=own)
        for one, other in zip(*map(arrays, samplers), strict=True):
            assert np.array_equal(one, other)
        old, new = plain.last.to_dict(), driven.last.to_dict()
        assert all(new[key] == old[key] for key in old if not key.startswith("seconds"))
        assert new["work"] == new["u_candidate"] - new["u_present"] and new["shadow_work"] == 0.0
    assert plain.statistics == driven.statistics and driven.n_accepted < driven.n_proposed


def test_the_general_step_with_one_rotation_is_the_plain_step(alanine: Any) -> None:
    """The protocol's own formula at n = 1 gives the plain log alpha to 1e-9: the q terms are the plain move's."""
    context = openmm.Context(alanine.system, openmm.VerletIntegrator(0.001), reference())
    x = np.array(alanine.positions._value)
    proposals = [move_for(alanine, DiffusionMove).proposal for _ in range(2)]
    nothing: Any = None
    for seed in range(5):
        plain, _ = metropolis_step(context, proposals[0], x, 0.04, 1, np.random.default_rng(seed))
        proposals[0].import_pool({})
        driven, _ = driven_step(context, proposals[1], x, 0.04, 1, nothing, np.random.default_rng(seed))
        proposals[1].import_pool({})
        assert driven.log_alpha == pytest.approx(plain.log_alpha, abs=1e-9 * max(1, abs(plain.log_alpha)))
        assert driven.log_q_present == pytest.approx(plain.log_q_present, abs=1e-9)


def periodic(alanine: Any) -> openmm.System:
    """Alanine dipeptide in a periodic box with a barostat that acts in every step, and momentum removal."""
    system = copy.deepcopy(alanine.system)
    system.setDefaultPeriodicBoxVectors(*(3.0 * np.eye(3) * unit.nanometer))
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    system.addForce(openmm.MonteCarloBarostat(1 * unit.atmosphere, 3000 * unit.kelvin, 1))
    system.addForce(openmm.CMMotionRemover(1))
    return system


@pytest.mark.parametrize("kind", ["GHMC", "langevin"])
def test_rejection_restores_everything(kind: str, alanine: Any) -> None:
    """With a barostat: positions, velocities and box are bitwise kept on rejection, the box on acceptance as well."""
    system = periodic(alanine)
    state = states.ThermodynamicState(system, 3000 * unit.kelvin, 1 * unit.atmosphere)
    sampler, contexts = start(system, alanine.positions), new_contexts()
    move = move_for(alanine, n_rotations=4, n_propagation_steps=3, propagator=kind, timestep=1 * unit.femtosecond)
    seen = set()
    for _ in range(200):
        before = arrays(sampler)
        move.apply(state, sampler, context_cache=contexts)
        after = arrays(sampler)
        seen.add(move.last.accepted)
        assert np.array_equal(before[2], after[2])
        same = [np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
        assert same == ([False, False, True] if move.last.accepted else [True, True, True])
        integrator = move._integrator(state.temperature)
        box = contexts.get_context(state, integrator)[0].getState().getPeriodicBoxVectors(asNumpy=True)._value
        assert np.array_equal(box, 3.0 * np.eye(3))
        if len(seen) == 2:
            break
    assert seen == {True, False}


def test_the_step_keeps_velocities_and_box_of_a_context(alanine: Any) -> None:
    """`ncmc_step` on a plain Context: on rejection it holds positions, velocities and box that it came with."""
    system = periodic(alanine)
    integrator = INTEGRATORS["GHMC"](TEMPERATURE, 1 * unit.femtosecond, 1 / unit.picosecond)
    context = openmm.Context(system, integrator, reference())
    x = np.array(alanine.positions._value)
    context.setPositions(x)
    context.setVelocitiesToTemperature(TEMPERATURE, 4)

    def held() -> list[np.ndarray]:
        state = context.getState(positions=True, velocities=True)
        quantities = state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True)
        return [q._value for q in quantities] + [state.getPeriodicBoxVectors(asNumpy=True)._value]

    before = held()
    proposal = move_for(alanine).proposal
    propagator = DynamicsPropagator(2, TEMPERATURE)
    record, after = ncmc_step(context, proposal, x, 100 * BETA, 3, propagator, np.random.default_rng(1))
    assert not record.accepted and np.array_equal(after, x)
    assert all(np.array_equal(one, other) for one, other in zip(before, held(), strict=True))


def energy_of(context: openmm.Context) -> float:
    state = context.getState(energy=True)
    return float((state.getPotentialEnergy() + state.getKineticEnergy())._value)


def test_langevin_without_a_bath_is_reversible_and_its_shadow_work_is_the_change_of_energy(alanine: Any) -> None:
    """With constraints and no friction: back to the start to 1e-7 nm, the shadow work is that of the total energy."""
    integrator = INTEGRATORS["langevin"](TEMPERATURE, 3 * unit.femtosecond, 0 / unit.picosecond)
    context = openmm.Context(alanine.system, integrator, reference())
    context.setPositions(alanine.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=30)
    context.setVelocitiesToTemperature(TEMPERATURE, 3)
    integrator.step(40)
    x = context.getState(positions=True).getPositions(asNumpy=True)._value
    before = energy_of(context)
    integrator.setGlobalVariableByName("shadow_work", 0.0)
    integrator.step(100)
    change = energy_of(context) - before
    assert integrator.getGlobalVariableByName("shadow_work") == pytest.approx(change, abs=1e-8)
    assert abs(change) > 1e-3
    context.setVelocities(-context.getState(velocities=True).getVelocities(asNumpy=True))
    integrator.step(100)
    assert np.abs(context.getState(positions=True).getPositions(asNumpy=True)._value - x).max() < 1e-7


def test_virtual_sites_are_never_stale() -> None:
    """Four-site water at a short time step does little shadow work; forces at stale sites do ten kT of it."""
    water = testsystems.FourSiteWaterBox(box_edge=1.5 * unit.nanometer, cutoff=0.7 * unit.nanometer)
    integrator = INTEGRATORS["langevin"](TEMPERATURE, 0.5 * unit.femtosecond, 0 / unit.picosecond)
    context = openmm.Context(water.system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(water.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=20)
    context.setVelocitiesToTemperature(TEMPERATURE, 3)
    done = DynamicsPropagator(10, TEMPERATURE)(
        context, context.getState(positions=True).getPositions(asNumpy=True)._value, BETA, np.random.default_rng(2)
    )
    assert abs(done.shadow_work) < 1.0
    assert done.u_end == pytest.approx(BETA * context.getState(energy=True).getPotentialEnergy()._value, abs=1e-3)


@pytest.mark.parametrize("kind", ["GHMC", "langevin"])
def test_momentum_removal_and_barostat_never_act(kind: str, alanine: Any) -> None:
    """Without a bath K conserves the momentum and the box, though the System removes the one and changes the other."""
    system = periodic(alanine)
    integrator = INTEGRATORS[kind](TEMPERATURE, 0.5 * unit.femtosecond, 0 / unit.picosecond)
    context = openmm.Context(system, integrator, reference())
    context.setPositions(alanine.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=30)
    context.setVelocitiesToTemperature(TEMPERATURE, 3)
    masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])

    def momentum() -> np.ndarray:
        return masses @ context.getState(velocities=True).getVelocities(asNumpy=True)._value

    before = momentum()
    integrator.step(20)
    # Steps that GHMC does not accept turn the momentum round.
    assert np.allclose(np.abs(momentum()), np.abs(before), atol=1e-4 * np.abs(before).max())
    assert np.abs(before).max() > 1.0
    box = context.getState().getPeriodicBoxVectors(asNumpy=True)._value
    assert np.array_equal(box, 3.0 * np.eye(3))


def test_ghmc_does_not_pass_nan() -> None:
    """A step that leads to NaN energies is rejected inside K, which goes back to where it began."""
    system = openmm.System()
    system.addParticle(20.0)
    force = openmm.CustomExternalForce("16 * x^2 + 1e-9 * sqrt(1 - x^2)")  # NaN beyond |x| = 1
    force.addParticle(0, [])
    system.addForce(force)
    integrator = INTEGRATORS["GHMC"](TEMPERATURE, 1.0 * unit.picosecond, 0.2 / unit.picosecond)
    context = openmm.Context(system, integrator, reference())
    x, rng, passed = np.array([[0.9, 0.0, 0.0]]), np.random.default_rng(2), []
    for _ in range(100):
        done = DynamicsPropagator(1, 100 * TEMPERATURE)(context, x, BETA, rng)
        passed.append(done.acceptance)
        assert math.isfinite(done.u_end) and abs(done.positions[0, 0]) <= 1.0
        assert done.acceptance == 1.0 or np.array_equal(done.positions, x)
    assert 0.0 < np.mean(passed) < 1.0


def test_incoming_velocities_are_unused(alanine: Any) -> None:
    """Two samplers that differ in their velocities alone make the same move from the same stream, step by step."""
    state, ends = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin), []
    for scale in (1.0, -3.0):
        sampler, contexts = start(alanine.system, alanine.positions), new_contexts()
        sampler.velocities = scale * sampler.velocities
        move = move_for(alanine, n_rotations=4, n_propagation_steps=2, timestep=1 * unit.femtosecond)
        move._rng, move._rng_process = np.random.default_rng(8), process_key()
        for _ in range(4):
            move.apply(state, sampler, context_cache=contexts)
        ends.append((move.last.work, move.last.torsions_end, move.n_accepted, arrays(sampler)[0]))
    assert ends[0][:3] == ends[1][:3] and np.array_equal(ends[0][3], ends[1][3])


def test_one_context_serves_every_temperature(alanine: Any) -> None:
    """Moves at two temperatures share a Context, and K is at the temperature of the state each time."""
    sampler, contexts = start(alanine.system, alanine.positions), new_contexts()
    move = move_for(alanine, n_rotations=2)
    for kelvin in (300.0, 600.0, 300.0):
        state = states.ThermodynamicState(alanine.system, kelvin * unit.kelvin)
        move.apply(state, sampler, context_cache=contexts)
        integrator = contexts.get_context(state, move._integrator(state.temperature))[1]
        kt = (unit.MOLAR_GAS_CONSTANT_R * kelvin * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
        assert integrator.getGlobalVariableByName("kT") == pytest.approx(kt, rel=1e-5)
    assert len(contexts) == 1


def test_protocols_that_meet_nan_are_rejected_and_counted(alanine: Any) -> None:
    """A time step that blows the molecule up costs acceptance only: invalid, rejected, everything restored."""
    state = states.ThermodynamicState(alanine.system, TEMPERATURE)
    sampler = start(alanine.system, alanine.positions)
    before = arrays(sampler)
    move = move_for(alanine, n_rotations=3, n_propagation_steps=40, propagator="langevin", timestep=1 * unit.picosecond)
    move.apply(state, sampler, context_cache=new_contexts())
    assert move.statistics == {"n_proposed": 1, "n_accepted": 0, "n_invalid": 1}
    assert move.last.log_alpha == -math.inf and move.last.u_candidate is None
    assert all(np.array_equal(one, other) for one, other in zip(before, arrays(sampler), strict=True))
    broken = states.SamplerState(np.full((22, 3), np.nan) * unit.nanometer)
    with pytest.raises(StateError):
        move.apply(state, broken, context_cache=new_contexts())


@pytest.mark.parametrize(("shadow", "u_end"), [(1e7, 0.0), (-1e7, 0.0), (0.0, 1e13), (0.0, 0.0)])
def test_propagations_that_burst_have_no_weight(shadow: float, u_end: float, alanine: Any) -> None:
    """Where rounding decides the shadow work a protocol is invalid, whatever its sign; the control is not."""

    def burst(context: Any, positions: np.ndarray, beta: float, rng: np.random.Generator) -> Propagation:
        return Propagation(positions, 0.0, u_end, shadow)

    context, _ = new_contexts().get_context(states.ThermodynamicState(alanine.system, TEMPERATURE))
    torsions = BackboneTorsions(alanine.topology, ("phi", "psi"))
    delta = np.array([0.1, -0.1])
    end = drive(context, torsions, alanine.positions, 0.0, delta, 2, burst, 0.4, np.random.default_rng(0))
    assert end.finite == (shadow == u_end == 0.0)


def test_records_hold_every_term(alanine: Any) -> None:
    """log alpha follows from the terms of the record; GHMC does no shadow work and reports its acceptance."""
    state = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin)
    sampler, contexts = start(alanine.system, alanine.positions), new_contexts()
    for kind in ("GHMC", "langevin"):
        move = move_for(alanine, n_rotations=5, propagator=kind)
        for _ in range(3):
            move.apply(state, sampler, context_cache=contexts)
            last = move.last
            assert isinstance(last, NCMCRecord) and last.n_rotations == 5 and last.n_candidates == 1
            log_ratio = -last.work - last.shadow_work + last.log_q_present - last.log_q_candidate
            assert last.log_alpha == pytest.approx(min(0.0, log_ratio), abs=1e-6 * max(1.0, abs(log_ratio)))
            assert last.seconds_propagation > 0 and last.seconds_network > 0
        assert (last.propagator_acceptance is None) == (kind == "langevin")
        assert (last.shadow_work == 0.0) == (kind == "GHMC")


def test_constraints_hold_through_many_moves(alanine: Any) -> None:
    """Bonds to hydrogen are kept to 1e-6 over rotations, propagations and acceptances."""
    state = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin)
    sampler, contexts = start(alanine.system, alanine.positions), new_contexts()
    move = move_for(alanine, n_rotations=6, n_propagation_steps=2, timestep=1 * unit.femtosecond)
    while move.n_accepted == 0 or move.n_proposed < 40:
        assert move.n_proposed < 1000
        move.apply(state, sampler, context_cache=contexts)
    x = np.array(sampler.positions._value)
    rows = [alanine.system.getConstraintParameters(k) for k in range(alanine.system.getNumConstraints())]
    errors = [abs(np.linalg.norm(x[i] - x[j]) / length._value - 1) for i, j, length in rows]
    assert max(errors) < 1e-6


def test_serialised_moves_keep_their_protocol(alanine: Any) -> None:
    """Pickled, copied and serialised, a move keeps settings and counters in plain values below 5 kB, and works."""
    state = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin)
    contexts = new_contexts()
    options = {"n_rotations": 4, "n_propagation_steps": 2, "propagator": "langevin", "collision_rate": 5.0}
    move = move_for(alanine, timestep=0.5 * unit.femtosecond, torsions=("phi",), **options)
    move.apply(state, start(alanine.system, alanine.positions), context_cache=contexts)
    plain = move.__getstate__()
    assert {type(value) for value in plain.values()} <= {str, int, float, dict} and len(pickle.dumps(plain)) < 5000
    assert plain["timestep_ps"] == 0.0005 and plain["collision_rate_per_ps"] == 5.0
    for again in (
        pickle.loads(pickle.dumps(move)),
        copy.deepcopy(move),
        utils.deserialize(utils.serialize(move)),
    ):
        assert again.__getstate__() == plain and type(again) is NCMCDiffusionMove
        again.apply(state, start(alanine.system, alanine.positions), context_cache=contexts)
        assert again.n_proposed == 2
    assert not hasattr(move, "n_steps")  # a host takes moves with timestep and n_steps for dynamics


def test_phi_alone_is_scored_with_auxiliary_torsions(alanine: Any) -> None:
    """A move of some of the model's torsions draws the others afresh on both sides, and stays finite."""
    state = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin)
    sampler, contexts = start(alanine.system, alanine.positions), new_contexts()
    move = move_for(alanine, n_rotations=3, torsions=("phi",))
    for _ in range(5):
        move.apply(state, sampler, context_cache=contexts)
        assert math.isfinite(move.last.log_q_present) and math.isfinite(move.last.log_q_candidate)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("n_rotations", 0),
        ("n_rotations", 1.5),
        ("n_propagation_steps", True),
        ("propagator", "verlet"),
        ("timestep", -1.0),
        ("timestep", 1.0 * unit.kelvin),
        ("collision_rate", math.nan),
        ("n_candidates", 8),
        ("t_star", 0.1),
    ],
)
def test_wrong_settings_are_refused(setting: str, value: Any, alanine: Any) -> None:
    """Settings out of range raise SettingError, which names them."""
    with pytest.raises(SettingError, match=setting):
        move_for(alanine, **{setting: value})


def test_path_densities_are_scored_afresh(alanine: Any) -> None:
    """A frame model's density of paths, exact for n = 1, drives as well: both q terms are finite."""
    embed = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True}
    conf = {**TINY, "embed": {**embed, "relative_frames": True}}
    noise = SE3Config.acceptance(1 / 2.2).model_dump()
    model = models.create("se3", alanine.topology, 1, model_conf=conf, se3_conf=noise)
    state = states.ThermodynamicState(alanine.system, 3000 * unit.kelvin)
    move = NCMCDiffusionMove(model, alanine.topology, 3, seed=2, device="cpu", n_diffusion_steps=5, pool_size=8)
    sampler, contexts = start(alanine.system, alanine.positions), new_contexts()
    for _ in range(3):
        move.apply(state, sampler, context_cache=contexts)
        assert isinstance(move.last, NCMCRecord) and math.isfinite(move.last.log_q_present)
        assert math.isfinite(move.last.work)


def test_molecules_satisfy_the_protocol(alanine: Any) -> None:
    """TorsionProposal has what a nonequilibrium move asks for."""
    proposal: TurningProposal = move_for(alanine).proposal
    assert callable(proposal.propose) and callable(proposal.torsions.turn)
