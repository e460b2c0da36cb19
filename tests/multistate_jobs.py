"""Multistate samplers with our moves on vacuum alanine dipeptide: what the tests of one process and of MPI share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from openmm import unit
from openmmtools import mcmc, multistate, states, testsystems
from tiny_network import TINY

from openmm_diffusion import DiffusionMove, models
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.mcmc import ProposalMove
from openmm_diffusion.models import Model
from openmm_diffusion.proposals import Candidates

QUICK: dict[str, Any] = {"n_diffusion_steps": 4, "pool_size": 16, "device": "cpu"}
READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}
TEMPERATURES = (300.0, 400.0, 500.0)
SAMPLERS = {
    "multistate": multistate.MultiStateSampler,
    "replica-exchange": multistate.ReplicaExchangeSampler,
    "parallel-tempering": multistate.ParallelTemperingSampler,
    "sams": multistate.SAMSSampler,
}
ALANINE = testsystems.AlanineDipeptideVacuum()


def untrained(kind: str, seed: int = 1) -> Model:
    """A small model with random weights."""
    if kind == "torsion":
        return models.create("torsion", ALANINE.topology, seed, hidden_size=16, n_layers=1)
    noise = SE3Config.acceptance(1 / 2.2).model_dump()
    return models.create("se3", ALANINE.topology, seed, model_conf={**TINY, "embed": READING}, se3_conf=noise)


def diffusion_move(model: Model | Path, seed: int | None = 5, n_candidates: int = 2, **options: Any) -> DiffusionMove:
    return DiffusionMove(model, ALANINE.topology, n_candidates, seed, **{**QUICK, **options})


def with_dynamics(move: Any) -> mcmc.SequenceMove:
    """The move, then one step of Langevin dynamics."""
    return mcmc.SequenceMove([move, mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=1)])


def ours(move: Any) -> Any:
    """Our move inside a container, or the move itself."""
    return move.move_list[0] if hasattr(move, "move_list") else move


def thermodynamic_states(n: int = len(TEMPERATURES)) -> list[states.ThermodynamicState]:
    kelvin = [300.0 + 100.0 * k for k in range(n)]
    return [states.ThermodynamicState(ALANINE.system, value * unit.kelvin) for value in kelvin]


def sampler_state() -> states.SamplerState:
    return states.SamplerState(ALANINE.positions)


def create(
    name: str, moves: Any, storage: Path, n_states: int = 3, n_replicas: int = 3, checkpoint_interval: int = 1
) -> Any:
    """A sampler of this name, made and ready to run."""
    sampler = SAMPLERS[name](mcmc_moves=moves, number_of_iterations=1000, online_analysis_interval=None)
    reporter = multistate.MultiStateReporter(str(storage), checkpoint_interval=checkpoint_interval)
    starts = [sampler_state() for _ in range(n_replicas)]
    if name == "parallel-tempering":
        kelvin = [state.temperature for state in thermodynamic_states(n_states)]
        first = thermodynamic_states()[0]
        sampler.create(first, starts, reporter, temperatures=kelvin, n_temperatures=n_states)
    else:
        sampler.create(thermodynamic_states(n_states), starts, reporter)
    return sampler


def from_storage(name: str, storage: Path, checkpoint_interval: int = 1) -> Any:
    reporter = multistate.MultiStateReporter(str(storage), checkpoint_interval=checkpoint_interval)
    return SAMPLERS[name].from_storage(reporter)


def counts(sampler: Any) -> list[int]:
    """Moves proposed in each state."""
    return [ours(move).n_proposed for move in sampler._mcmc_moves]


class Draws:
    """Records the torsions of every candidate that proposals of class `kind` hand to moves."""

    def __init__(self, kind: type, replace: Callable[[Any, str, Any], None]) -> None:
        self.tau: list[tuple[float, ...]] = []
        original = kind.propose  # type: ignore[attr-defined]

        def propose(proposal: Any, positions: Any, n: int, rng: np.random.Generator) -> Candidates:
            candidates: Candidates = original(proposal, positions, n, rng)
            for row in proposal.torsions.get(candidates.positions).tolist():
                # Rounded: the structure that torsions are set on differs between replicas.
                self.tau.append(tuple(round(float(np.cos(angle)), 9) for angle in row))
            return candidates

        replace(kind, "propose", propose)

    def repeats(self) -> int:
        """How many candidates were handed out before."""
        return len(self.tau) - len(set(self.tau))


class Unmerged(ProposalMove):
    """The control: a move with plain counters, as openmmtools' own have them."""

    @property
    def statistics(self) -> dict[str, Any]:
        return {"n_proposed": self.n_proposed}

    @statistics.setter
    def statistics(self, value: dict[str, Any]) -> None:
        self.n_proposed = int(value.get("n_proposed", 0))
        self.n_accepted = self.n_invalid = 0


class Nudge:
    """Moves everything by a hair; the density makes half of the moves accepted."""

    def propose(self, positions: Any, n: int, rng: np.random.Generator) -> Candidates:
        candidates = np.repeat(positions[None], n, 0) + 1e-3
        log_q = np.full(n, 1e4 if rng.random() < 0.5 else -1e4)
        return Candidates(candidates, log_q, np.zeros(n), np.zeros(n, dtype=bool))

    def to_state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Nudge":
        return cls()
