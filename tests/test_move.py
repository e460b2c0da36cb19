"""The openmmtools adapter: what a host does with a move, and what a move may do to a sampler state."""

import copy
import math
import pickle
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import openmm
import pytest
from openmm import unit
from openmmtools import cache, mcmc, states, testsystems, utils

from openmm_diffusion import models
from openmm_diffusion.errors import (
    IncompatibleSystemError,
    ModelError,
    OpenMMDiffusionError,
    SettingError,
    StateError,
)
from openmm_diffusion.mcmc import DiffusionMove, ProposalMove, streams
from openmm_diffusion.peptide import MoleculeDescription
from openmm_diffusion.proposals import Candidates

KELVIN = unit.kelvin
BUILTINS = (str, int, float, bool, bytes, type(None))
QUICK: dict[str, Any] = {"n_diffusion_steps": 8, "pool_size": 256, "device": "cpu"}


@dataclass(frozen=True)
class Shift:
    """Moves some atoms by `step` nm along x; `verdict` decides about the move whatever the energy says."""

    verdict: str = "accept"
    step: float = 0.01
    atoms: tuple[int, ...] | None = None
    spoil: str = ""

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        candidates = np.repeat(positions[None], n, 0)
        candidates[:, list(self.atoms) if self.atoms is not None else slice(None), 0] += self.step * (1 + rng.random())
        if self.spoil == "nan":
            candidates[:, 3] = np.nan
        elif self.spoil == "infinite":
            candidates[:, 3, 0] = np.inf
        elif self.spoil == "overlap":
            candidates[:] = 0.1
        log_q = np.full(n, 1e4 if self.verdict == "reject" else -1e4)
        return Candidates(candidates, log_q, np.zeros(n), np.full(n, self.spoil == "invalid"))

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(**state)


class Nameless:
    """A proposal without to_state: it lives in the memory of this process only."""

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        return Shift().propose(positions, n, rng)


@pytest.fixture(scope="module")
def alanine() -> Any:
    return testsystems.AlanineDipeptideVacuum()


@pytest.fixture(scope="module")
def contexts() -> cache.ContextCache:
    return cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))


@pytest.fixture
def thermodynamic_state(alanine: Any) -> states.ThermodynamicState:
    return states.ThermodynamicState(alanine.system, 300 * KELVIN)


def start(system: Any, velocity: float | None = None) -> states.SamplerState:
    state = states.SamplerState(system.positions, box_vectors=system.system.getDefaultPeriodicBoxVectors())
    if velocity is not None:
        state.velocities = np.full(system.positions.shape, velocity) * unit.nanometer / unit.picosecond
    return state


def diffusion_move(alanine: Any, seed: int | None = 5, n_candidates: int = 8, **options: Any) -> DiffusionMove:
    model = models.create("torsion", alanine.topology, 1, hidden_size=16, n_layers=2)
    return DiffusionMove(model, alanine.topology, n_candidates, seed, **{**QUICK, **options})


def nm(quantity: Any) -> np.ndarray:
    return np.array(quantity.value_in_unit(unit.nanometer))


def fresh_energy(system: openmm.System, positions: Any, box: Any = None) -> float:
    """Potential energy (kJ/mol) in a Context that no move has touched."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    if box is not None:
        context.setPeriodicBoxVectors(*box)
    context.setPositions(positions)
    context.computeVirtualSites()
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def run(move: Any, state: Any, sampler: Any, contexts: Any, n: int = 1) -> None:
    for _ in range(n):
        move.apply(state, sampler, context_cache=contexts)


def copies(move: Any) -> dict[str, Any]:
    """The move after everything that openmmtools does to it between iterations and restarts."""
    return {
        "pickle": pickle.loads(pickle.dumps(move)),
        "deepcopy": copy.deepcopy(move),
        "copy": copy.copy(move),
        "serialize": utils.deserialize(utils.serialize(move)),
        "sequence": copy.deepcopy(mcmc.SequenceMove([move])).move_list[0],
    }


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for pair in value.items() for part in pair for leaf in leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


@pytest.mark.parametrize("kind", ["diffusion", "proposal"])
def test_round_trips_keep_the_move(kind: str, alanine: Any, thermodynamic_state: Any, contexts: Any) -> None:
    """Pickled, copied, serialised and nested in a SequenceMove, a move keeps settings and counters and still works."""
    move = diffusion_move(alanine) if kind == "diffusion" else ProposalMove(Shift(), 2, seed=3)
    run(move, thermodynamic_state, start(alanine), contexts, 3)
    for name, again in copies(move).items():
        assert type(again) is type(move), name
        assert again.__getstate__() == move.__getstate__(), name
        assert again.n_proposed == 3 and again.last is None, name
        run(again, thermodynamic_state, start(alanine), contexts)
        assert again.n_proposed == 4 and move.n_proposed == 3, name


@pytest.mark.parametrize("kind", ["diffusion", "proposal"])
def test_state_is_small_and_plain(kind: str, alanine: Any, thermodynamic_state: Any, contexts: Any) -> None:
    """The state holds builtins only, no weights, no pool: below 5 kB before and after use, fresh each time."""
    move: Any = diffusion_move(alanine) if kind == "diffusion" else ProposalMove(Shift())
    sizes = []
    for _ in range(2):
        state = move.__getstate__()
        assert all(type(leaf) in BUILTINS for leaf in leaves(state)), [type(x) for x in leaves(state)]
        assert state is not move.__getstate__()
        sizes.append(len(pickle.dumps(state)))
        run(move, thermodynamic_state, start(alanine), contexts)
    assert max(sizes) < 5000 and abs(sizes[0] - sizes[1]) < 50
    before = move.__getstate__()
    utils.serialize(move)["n_candidates"] = 99
    assert move.__getstate__() == before


def test_restoring_loads_nothing(alanine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deserialising touches no model: it is made at the first draw, since hosts copy moves in every iteration."""
    text = pickle.dumps(diffusion_move(alanine))

    def fail(*_: Any) -> None:
        raise AssertionError("a model was resolved while a move was only copied")

    monkeypatch.setattr("openmm_diffusion.models.store.resolve", fail)
    move = pickle.loads(text)
    assert copy.deepcopy(pickle.loads(pickle.dumps(move))).n_candidates == 8


def test_copies_share_one_network(alanine: Any) -> None:
    """Copies evaluate the very same network object: memory does not grow with the number of moves."""
    move = diffusion_move(alanine)
    networks = {id(again.proposal._flow._model) for again in copies(move).values()}
    assert networks == {id(move.proposal._flow._model)}


def test_states_of_other_versions(alanine: Any) -> None:
    """A newer version is refused, unknown keys are tolerated, and a state without a proposal fails at its first use."""
    state = diffusion_move(alanine).__getstate__()
    with pytest.raises(ModelError, match="newer"):
        DiffusionMove.__new__(DiffusionMove).__setstate__({**state, "version": 99})
    move = DiffusionMove.__new__(DiffusionMove)
    move.__setstate__({**state, "unheard_of": 1})
    assert move.n_candidates == 8
    empty = DiffusionMove.__new__(DiffusionMove)
    empty.__setstate__({})
    with pytest.raises(OpenMMDiffusionError):
        empty.proposal


def test_proposals_without_a_state_live_in_their_process_only() -> None:
    """Copies in this process share such a proposal; a state from elsewhere is refused with the remedy."""
    proposal = Nameless()
    move = ProposalMove(proposal)
    assert pickle.loads(pickle.dumps(move)).proposal is proposal
    state = move.__getstate__()
    state["proposal"] = {**state["proposal"], "identity": 1}
    with pytest.raises(ModelError, match="to_state"):
        foreign = ProposalMove.__new__(ProposalMove)
        foreign.__setstate__(state)
        foreign.proposal


def test_statistics_are_settable_and_idempotent(thermodynamic_state: Any, alanine: Any, contexts: Any) -> None:
    """Counters count moves and candidates; setting them to what they say changes nothing; extra keys are tolerated."""
    move = ProposalMove(Shift("reject"), n_candidates=3)
    assert math.isnan(move.fraction_accepted)
    run(move, thermodynamic_state, start(alanine), contexts, 4)
    assert move.statistics == {"n_proposed": 4, "n_accepted": 0, "n_invalid": 0}
    for _ in range(2):
        move.statistics = move.statistics
    move.statistics = {**move.__getstate__(), "n_accepted": 2, "other": "thing"}
    assert move.statistics == {"n_proposed": 4, "n_accepted": 2, "n_invalid": 0}
    assert move.fraction_accepted == 0.5
    taken = move.statistics
    taken["n_proposed"] = 1000
    assert move.n_proposed == 4
    move.statistics = {}
    assert move.statistics == {"n_proposed": 0, "n_accepted": 0, "n_invalid": 0}
    sequence = mcmc.SequenceMove([move, mcmc.LangevinDynamicsMove(n_steps=1)])
    sequence.statistics = [{"n_proposed": 7, "n_accepted": 3}, {}]
    assert sequence.move_list[0].n_proposed == 7


def candidates_of(move: Any) -> set[tuple[float, ...]]:
    return {tuple(row) for row in move.proposal.export_pool()["tau"].tolist()}


def test_copies_never_repeat_a_candidate(alanine: Any, thermodynamic_state: Any, contexts: Any) -> None:
    """Every copy, also of the same seed and also after a restart, draws candidates of its own."""
    move = diffusion_move(alanine, seed=5)
    run(move, thermodynamic_state, start(alanine), contexts)
    everything = {"original": move, "same seed": diffusion_move(alanine, seed=5), **copies(move)}
    everything["unseeded"], everything["unseeded too"] = (diffusion_move(alanine, seed=None) for _ in range(2))
    seen: set[tuple[float, ...]] = set()
    for name, one in everything.items():
        if one is not move:
            run(one, thermodynamic_state, start(alanine), contexts)
        pool = candidates_of(one)
        assert len(pool) == 256, name
        assert not pool & seen, f"{name} repeats candidates"
        seen |= pool


def test_streams_differ_by_rank_copy_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds on two ranks, for two copies, or at two counts give different numbers; unseeded ones always."""
    drawn = [streams.new_stream(123456, n).random() for n in (0, 0, 5)]
    monkeypatch.setattr(streams, "rank", lambda: 1)
    monkeypatch.setattr(streams, "_copies", copy.deepcopy(streams._copies))
    streams._copies.pop(123456)
    drawn += [streams.new_stream(123456, n).random() for n in (0, 0, 5)]
    drawn += [streams.new_stream(None, 0).random() for _ in range(3)]
    assert len(set(drawn)) == len(drawn)


CHAIN = """
import openmm
from openmm import unit
from openmmtools import cache, states, testsystems
from openmm_diffusion import DiffusionMove, models
t = testsystems.AlanineDipeptideVacuum()
state = states.ThermodynamicState(t.system, 3000 * unit.kelvin)
sampler = states.SamplerState(t.positions)
contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))
model = models.create("torsion", t.topology, 1, hidden_size=16, n_layers=2)
for seed in (5, 6):
    move = DiffusionMove(model, t.topology, 32, seed, device="cpu", n_diffusion_steps=8, pool_size=64)
    for _ in range(60):
        move.apply(state, sampler, context_cache=contexts)
        print(move.last.accepted, move.last.log_alpha, move.last.u_present, sampler.positions.sum())
"""


def test_same_seed_gives_the_same_chain_in_fresh_processes() -> None:
    """Two fresh processes with equal seeds print the same chain digit by digit; other seeds do not."""
    first, second = (
        subprocess.run([sys.executable, "-c", CHAIN], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    lines = first.splitlines()
    assert first == second and len(lines) == 120
    assert lines[:60] != lines[60:]
    assert any(line.startswith("True") for line in lines)


def constraint_errors(system: openmm.System, positions: np.ndarray, velocities: np.ndarray) -> tuple[float, float]:
    """Largest relative violation of a constraint, and largest velocity along one (nm/ps)."""
    rows = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    i, j = np.array([row[:2] for row in rows]).T
    length = np.array([row[2].value_in_unit(unit.nanometer) for row in rows])
    between = positions[i] - positions[j]
    distance = np.linalg.norm(between, axis=-1)
    along = ((velocities[i] - velocities[j]) * between).sum(-1) / distance
    return float(np.abs(distance / length - 1).max()), float(np.abs(along).max())


def test_accepted_moves_keep_constraints(alanine: Any, contexts: Any) -> None:
    """Over 200 accepted moves constraints drift by less than 1e-9; new velocities obey them and the temperature."""
    state = states.ThermodynamicState(alanine.system, 3000 * KELVIN)
    sampler, move = start(alanine), diffusion_move(alanine, n_candidates=32)
    first, _ = constraint_errors(alanine.system, nm(sampler.positions), np.zeros((22, 3)))
    kinetic = []
    while move.n_accepted < 200:
        run(move, state, sampler, contexts)
        assert move.n_proposed < 3000, "the untrained model accepts too little for this test"
        if move.last is not None and move.last.accepted:
            speeds = sampler.velocities.value_in_unit(unit.nanometer / unit.picosecond)
            stretched, along = constraint_errors(alanine.system, nm(sampler.positions), speeds)
            assert stretched < first + 1e-9 and along < 1e-4
            kinetic.append(sampler.kinetic_energy / (state.kT / 2))
    # 66 coordinates less 12 constraints: mean 54, standard deviation sqrt(108) for each draw.
    assert abs(np.mean(kinetic) - 54) < 5 * math.sqrt(108 / 200)
    energy = fresh_energy(alanine.system, sampler.positions)
    assert sampler.potential_energy.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(energy, abs=1e-6)


def snapshot(sampler: Any) -> list[Any]:
    return [
        nm(sampler.positions).tolist(),
        None if sampler.velocities is None else np.array(sampler.velocities._value).tolist(),
        sampler.potential_energy,
        sampler.kinetic_energy,
        None if sampler.box_vectors is None else np.array(nm(sampler.box_vectors)).tolist(),
    ]


@pytest.mark.parametrize("spoil", ["", "nan", "infinite", "invalid", "overlap"])
def test_rejection_leaves_the_sampler_state_alone(
    spoil: str, alanine: Any, thermodynamic_state: Any, contexts: Any
) -> None:
    """On rejection positions, velocities, energies and box are what they were, whatever the candidate was."""
    sampler = start(alanine)
    mcmc.LangevinDynamicsMove(n_steps=2).apply(thermodynamic_state, sampler, context_cache=contexts)
    before = snapshot(sampler)
    assert before[1] is not None and before[2] is not None
    move = ProposalMove(Shift("reject" if not spoil else "accept", spoil=spoil), 2, seed=1)
    run(move, thermodynamic_state, sampler, contexts, 3)
    assert snapshot(sampler) == before
    assert move.n_accepted == 0 and move.n_invalid == (6 if spoil else 0)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("spoil", ["nan", "infinite", "overlap", "invalid"])
def test_invalid_candidates_are_counted_on_every_platform(
    platform: str, spoil: str, alanine: Any, thermodynamic_state: Any
) -> None:
    """NaN positions and NaN energies are counted and rejected; the CPU platform's exception stays inside."""
    contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName(platform))
    move, sampler = ProposalMove(Shift(spoil=spoil), 3), start(alanine)
    run(move, thermodynamic_state, sampler, contexts)
    assert move.statistics == {"n_proposed": 1, "n_accepted": 0, "n_invalid": 3}
    assert move.last is not None and not move.last.accepted and move.last.log_alpha == -math.inf
    context, _ = contexts.get_context(thermodynamic_state)
    held = nm(context.getState(positions=True).getPositions(asNumpy=True))
    assert np.allclose(held, nm(sampler.positions), atol=1e-6), "the Context has to hold the present state again"


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("kind", ["diffusion", "proposal"])
@pytest.mark.parametrize("broken", ["nan", "infinite", "clash"])
def test_impossible_starts_raise(platform: str, kind: str, broken: str, alanine: Any, thermodynamic_state: Any) -> None:
    """A present state with NaN or infinite positions, or all atoms in one place, raises StateError, uncounted."""
    contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName(platform))
    move: Any = diffusion_move(alanine) if kind == "diffusion" else ProposalMove(Shift())
    positions = nm(alanine.positions)
    if broken == "clash":
        positions[:] = 0.0
    else:
        positions[4, 1] = np.nan if broken == "nan" else np.inf
    with pytest.raises(StateError):
        run(move, thermodynamic_state, states.SamplerState(positions * unit.nanometer), contexts)
    assert move.n_proposed == 0


def test_no_velocities_of_another_replica(alanine: Any, thermodynamic_state: Any, contexts: Any) -> None:
    """Two replicas in one shared Context: rejection keeps each one's velocities, acceptance draws new ones for one."""
    one, two = start(alanine, 1.0), start(alanine, 2.0)
    for sampler in (one, two, one):
        run(ProposalMove(Shift("reject")), thermodynamic_state, sampler, contexts)
    assert (np.array(one.velocities._value) == 1.0).all() and (np.array(two.velocities._value) == 2.0).all()
    run(ProposalMove(Shift("accept")), thermodynamic_state, one, contexts)
    drawn = np.array(one.velocities._value)
    assert (np.array(two.velocities._value) == 2.0).all()
    assert not np.isin(drawn, (1.0, 2.0)).any() and len(np.unique(drawn)) == drawn.size
    run(ProposalMove(Shift("accept")), thermodynamic_state, two, contexts)
    assert not np.isin(np.array(two.velocities._value), drawn).any()


def test_velocities_that_were_never_set_stay_unset_on_rejection(
    alanine: Any, thermodynamic_state: Any, contexts: Any
) -> None:
    """A sampler state without velocities has none after a rejection, though the Context holds another replica's."""
    run(ProposalMove(Shift("accept")), thermodynamic_state, start(alanine, 1.0), contexts)
    sampler = start(alanine)
    run(ProposalMove(Shift("reject")), thermodynamic_state, sampler, contexts)
    assert sampler.velocities is None


def test_virtual_sites_are_recomputed(contexts: Any) -> None:
    """Moving O, H, H of a four-site water moves its M site along, in energies and in the accepted positions."""
    water = testsystems.FourSiteWaterBox(box_edge=1.9 * unit.nanometer, cutoff=0.9 * unit.nanometer)
    state = states.ThermodynamicState(water.system, 300 * KELVIN)
    site = next(i for i in range(water.system.getNumParticles()) if water.system.isVirtualSite(i))
    parents = tuple(water.system.getVirtualSite(site).getParticle(k) for k in range(3))
    sampler, move = start(water), ProposalMove(Shift("accept", 0.003, parents), seed=2)
    before = nm(sampler.positions)[[site, *parents]]
    run(move, state, sampler, contexts)
    after = nm(sampler.positions)[[site, *parents]]
    assert move.n_accepted == 1 and move.last is not None
    assert np.abs(after[1:, 0] - before[1:, 0]).min() > 0.002
    # Compared within the water, since the host images whole molecules; the coordinates of the file are rounded.
    assert np.allclose(after[0] - after[1], before[0] - before[1], atol=5e-5)
    energy = fresh_energy(water.system, sampler.positions, sampler.box_vectors) * unit.kilojoule_per_mole
    assert move.last.u_candidate == pytest.approx(energy / state.kT, abs=1e-4)


@pytest.mark.parametrize("verdict", ["accept", "reject"])
def test_pressure_belongs_to_the_reduced_potential(verdict: str, contexts: Any) -> None:
    """With a barostat, u of the record is the thermodynamic state's own reduced potential, p V included."""
    fluid = testsystems.LennardJonesFluid(nparticles=60)
    pressure = 200 * unit.atmosphere
    state = states.ThermodynamicState(fluid.system, 300 * KELVIN, pressure)
    sampler, move = start(fluid), ProposalMove(Shift(verdict, 0.004, (0, 1)), seed=2)
    expected_present = state.reduced_potential(applied(sampler, state, contexts))
    run(move, state, sampler, contexts)
    assert move.last is not None and move.last.accepted == (verdict == "accept")
    assert move.last.u_present == pytest.approx(expected_present, abs=1e-9)
    volume_term = (pressure * sampler.volume * unit.AVOGADRO_CONSTANT_NA) / state.kT
    energy = fresh_energy(fluid.system, fluid.positions) * unit.kilojoule_per_mole
    assert move.last.u_present == pytest.approx(energy / state.kT + volume_term, abs=1e-5)
    if verdict == "accept":
        after = state.reduced_potential(applied(sampler, state, contexts))
        assert move.last.u_candidate == pytest.approx(after, abs=1e-9)


def applied(sampler: Any, state: Any, contexts: Any) -> openmm.Context:
    context, _ = contexts.get_context(state)
    sampler.apply_to_context(context)
    return context


def test_subset_of_torsions_keeps_the_others(alanine: Any, contexts: Any) -> None:
    """torsions=("phi",) of a (phi, psi) model turns phi only: psi is kept to 1e-12 over many accepted moves."""
    from openmm_diffusion.molecule import BackboneTorsions

    torsions = BackboneTorsions(alanine.topology, labels=["phi:ALA2", "psi:ALA2"])
    state, sampler = states.ThermodynamicState(alanine.system, 1000 * KELVIN), start(alanine)
    move = diffusion_move(alanine, torsions=("phi",))
    phi, psi = torsions.get(nm(sampler.positions))
    run(move, state, sampler, contexts, 60)
    phi_now, psi_now = torsions.get(nm(sampler.positions))
    assert move.n_accepted > 3
    assert abs(psi_now - psi) < 1e-12 and abs(phi_now - phi) > 1e-3
    assert utils.deserialize(utils.serialize(move)).proposal.torsions.labels == ("phi:ALA2",)


def test_runs_inside_an_mcmc_sampler(alanine: Any, thermodynamic_state: Any) -> None:
    """MCMCSampler with SequenceMove([DiffusionMove, LangevinDynamicsMove]) runs and counts."""
    move = mcmc.SequenceMove([diffusion_move(alanine), mcmc.LangevinDynamicsMove(n_steps=5)])
    sampler = mcmc.MCMCSampler(thermodynamic_state, start(alanine), move=move)
    sampler.run(4)
    ours = sampler.move.move_list[0]
    assert ours.n_proposed == 4 and ours.last is not None
    assert np.isfinite(nm(sampler.sampler_state.positions)).all()


def test_export_and_import_go_on_bit_for_bit(alanine: Any, contexts: Any) -> None:
    """A move with the exported generator and pool goes on exactly as the original does."""
    state = states.ThermodynamicState(alanine.system, 1000 * KELVIN)
    move, sampler = diffusion_move(alanine), start(alanine)
    run(move, state, sampler, contexts, 5)
    again = utils.deserialize(utils.serialize(move))
    again.import_stream(*copy.deepcopy(move.export_stream()))
    other = copy.deepcopy(sampler)
    for _ in range(40):  # past the end of the pool
        run(move, state, sampler, contexts)
        run(again, state, other, contexts)
        assert again.last is not None and move.last is not None
        assert again.last.log_alpha == move.last.log_alpha and again.last.accepted == move.last.accepted
    assert np.array_equal(nm(sampler.positions), nm(other.positions))


@pytest.mark.parametrize("n_candidates", [0, -1, 1.5, True, "8"])
def test_impossible_numbers_of_candidates_are_refused(n_candidates: Any) -> None:
    """Numbers of candidates below one, or no whole numbers, raise SettingError."""
    with pytest.raises(SettingError, match="n_candidates"):
        ProposalMove(Shift(), n_candidates)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_impossible_seeds_are_refused(seed: Any) -> None:
    """Negative or fractional seeds raise SettingError."""
    with pytest.raises(SettingError, match="seed"):
        ProposalMove(Shift(), seed=seed)


def test_numpy_integers_are_numbers(alanine: Any) -> None:
    """NumPy integers pass as numbers and seeds, and do not reach the serialised state."""
    state = ProposalMove(Shift(), np.int64(3), seed=np.int32(4)).__getstate__()
    assert type(state["n_candidates"]) is int and type(state["seed"]) is int


def test_wrong_requests_are_refused(alanine: Any) -> None:
    """Models of other molecules, unknown torsions, unknown options, and unknown devices are refused by name."""
    glycine = models.create("torsion", MoleculeDescription((("ACE", "GLY", "NME"),), ("phi:GLY2", "psi:GLY2")))
    with pytest.raises(ModelError, match="ACE-GLY-NME"):
        DiffusionMove(glycine, alanine.topology)
    for torsions in (("omega",), ("chi",), (), ("phi", "chi")):
        with pytest.raises(OpenMMDiffusionError):
            diffusion_move(alanine, torsions=torsions)
    with pytest.raises(SettingError, match="n_steps"):
        diffusion_move(alanine, n_steps=3)
    with pytest.raises(SettingError, match="teapot"):
        diffusion_move(alanine, device="teapot")
    with pytest.raises(SettingError):
        diffusion_move(alanine, n_diffusion_steps=0)
    with pytest.raises(SettingError):
        diffusion_move(alanine, pool_size=0)


@pytest.mark.parametrize("kind", ["diffusion", "proposal"])
@pytest.mark.parametrize("warm", [False, True])
def test_wrong_numbers_of_positions_are_refused(
    kind: str, warm: bool, alanine: Any, thermodynamic_state: Any, contexts: Any
) -> None:
    """Positions of another number of atoms raise, at the first move and at a later one, and count nothing."""
    move: Any = diffusion_move(alanine) if kind == "diffusion" else ProposalMove(Shift())
    if warm:
        run(move, thermodynamic_state, start(alanine), contexts)
    short = states.SamplerState(alanine.positions[:21])
    with pytest.raises(OpenMMDiffusionError, match="21"):
        run(move, thermodynamic_state, short, contexts)
    assert move.n_proposed == int(warm)


def test_systems_of_another_size_are_refused(alanine: Any, contexts: Any) -> None:
    """A move made for one topology refuses the System of another."""
    fluid = testsystems.LennardJonesFluid(nparticles=22)
    fluid.system.addParticle(1.0)
    fluid.system.getForce(0).addParticle(0.0, 0.1, 0.0)
    positions = np.vstack([nm(fluid.positions), [[0.0, 0.0, 0.0]]]) * unit.nanometer
    with pytest.raises((IncompatibleSystemError, StateError)):
        run(
            diffusion_move(alanine),
            states.ThermodynamicState(fluid.system, 300 * KELVIN),
            states.SamplerState(positions, box_vectors=fluid.system.getDefaultPeriodicBoxVectors()),
            contexts,
        )


def test_a_saved_model_survives_a_restart(alanine: Any, tmp_path: Path) -> None:
    """A move from a model file is restored in a fresh process, which loads the file by its path."""
    path = models.save(models.create("torsion", alanine.topology, 3, hidden_size=8), tmp_path / "model")
    stored = tmp_path / "move.pickle"
    stored.write_bytes(pickle.dumps(DiffusionMove.from_pretrained(path, alanine.topology, **QUICK)))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).proposal.model.sha256())"
    done = subprocess.run([sys.executable, "-c", code, str(stored)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == models.load(path).sha256()


def test_runs_in_explicit_solvent() -> None:
    """Alanine dipeptide in water, with a barostat: moves run, u is the reduced potential, solvent stays put."""
    solvated = testsystems.AlanineDipeptideExplicit()
    state = states.ThermodynamicState(solvated.system, 300 * KELVIN, 1 * unit.atmosphere)
    contexts = cache.ContextCache(platform=openmm.Platform.getPlatformByName("CPU"))
    sampler, move = start(solvated), diffusion_move(solvated, n_candidates=4)
    before = nm(sampler.positions)
    expected = state.reduced_potential(applied(sampler, state, contexts))
    run(move, state, sampler, contexts)
    assert move.last is not None and move.last.u_present == pytest.approx(expected, abs=0.1)
    run(move, state, sampler, contexts, 3)
    after = nm(sampler.positions)
    assert np.isfinite(after).all() and move.n_proposed == 4
    if not move.n_accepted:
        assert np.array_equal(before, after)
    mcmc.LangevinDynamicsMove(n_steps=5).apply(state, sampler, context_cache=contexts)
    run(move, state, sampler, contexts)
    assert move.n_proposed == 5


def test_a_model_of_backbone_frames_without_a_density_is_refused_in_one_sentence() -> None:
    """An SE(3) model that reads its own earlier prediction has no fixed score; the sentence names the remedy."""
    topology = testsystems.AlanineDipeptideVacuum().topology
    frames = models.create("se3", topology, seed=0)
    with pytest.raises(SettingError, match=r"embed_self_conditioning.*preset acceptance"):
        DiffusionMove(frames, topology, device="cpu")
