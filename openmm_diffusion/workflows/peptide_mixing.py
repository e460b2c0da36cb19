"""A hybrid chain of a peptide, with independent and local SE(3) moves in turn, for a given time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import openmm
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..errors import SettingError
from ..mcmc import DiffusionMove
from ..mcmc.kernel import StepRecord
from ..mcmc.move_state import proposal_state
from ..models import Model
from .hybrid import BLOCK, HybridChain
from .peptide_settings import PeptideSettings
from .systems import MolecularSystem


class MoveCycle:
    """Several moves, one an application, in a fixed order over and over: what a `HybridChain` takes for one move.

    Which move is next depends on the number of applications alone, so that each leaves the ensemble unchanged, and so
    does the cycle.

    Parameters
    ----------
    moves
        Moves by name.
    order
        Names of the moves of one cycle.
    """

    def __init__(self, moves: dict[str, DiffusionMove], order: Sequence[str]) -> None:
        if not order or set(order) != set(moves):
            raise SettingError(
                f"the cycle {list(order)} and the moves {list(moves)} differ; expected each at least once"
            )
        self.moves, self.order = moves, tuple(order)
        self.last: StepRecord | None = None

    def apply(self, thermodynamic_state: Any, sampler_state: Any, context_cache: Any = None) -> None:
        """Apply the move whose turn it is."""
        move = self.moves[self.kind_at(self.statistics["n_proposed"])]
        move.apply(thermodynamic_state, sampler_state, context_cache)
        self.last = move.last

    def kind_at(self, iteration: int) -> str:
        """The name of the move of an iteration."""
        return self.order[iteration % len(self.order)]

    @property
    def proposal(self) -> Any:
        """The proposal of the first move."""
        return next(iter(self.moves.values())).proposal

    @property
    def fraction_accepted(self) -> float:
        counts = self.statistics
        return counts["n_accepted"] / counts["n_proposed"] if counts["n_proposed"] else math.nan

    @property
    def statistics(self) -> dict[str, Any]:
        """The counters of all moves together, and of each under its name; settable."""
        each = {name: move.statistics for name, move in self.moves.items()}
        keys = ("n_proposed", "n_accepted", "n_invalid")
        return {key: sum(counts[key] for counts in each.values()) for key in keys} | {"moves": each}

    @statistics.setter
    def statistics(self, value: dict[str, Any]) -> None:
        for name, move in self.moves.items():
            move.statistics = value["moves"][name]

    def export_stream(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Generator states and pools of all moves; see `ProposalMove.export_stream`."""
        exported = {name: move.export_stream() for name, move in self.moves.items()}
        pools = {f"{name}.{key}": value for name, (_, pool) in exported.items() for key, value in pool.items()}
        return {name: stream for name, (stream, _) in exported.items()}, pools

    def import_stream(self, stream: dict[str, Any], pool: dict[str, NDArray[Any]]) -> None:
        """Go on with what `export_stream` gave."""
        for name, move in self.moves.items():
            own = {key.removeprefix(f"{name}."): value for key, value in pool.items() if key.startswith(f"{name}.")}
            move.import_stream(stream[name], own)

    def __getstate__(self) -> dict[str, Any]:
        """The state of the first move with the order and the settings of all: what checkpoints compare."""
        states = {name: move.__getstate__() for name, move in self.moves.items()}
        first = next(iter(states.values()))
        settings: dict[str, Any] = {"order": list(self.order)}
        for name, state in states.items():
            own = proposal_state(state)
            own = own.get("settings", {"n_diffusion_steps": own.get("n_diffusion_steps")})
            # These two change no number that is proposed.
            settings |= {f"{name}.{key}": own[key] for key in own if key not in ("background", "device")}
        candidates = [states[name]["n_candidates"] for name in self.order]
        described = {**first["proposal"], "state": {**proposal_state(first), "settings": settings}}
        return {**first, "n_candidates": candidates, "proposal": described}


def make_moves(model: Model, topology: Any, settings: PeptideSettings) -> MoveCycle:
    """The independent and local moves of the settings, spread evenly over a cycle."""
    counts = {"independent": settings.independent_moves, "local": settings.local_moves}
    if not any(counts.values()):
        raise SettingError("independent_moves and local_moves are 0; expected at least one move in a cycle")
    options: dict[str, dict[str, Any]] = {
        "independent": {"n_candidates": settings.n_candidates, "seed": settings.seed},
        "local": {
            "n_candidates": settings.local_candidates,
            "seed": settings.seed + 1,
            "t_star": settings.t_star,
            "window": settings.window,
        },
    }
    moves = {
        name: DiffusionMove(model, topology, device=settings.device, **options[name])
        for name, count in counts.items()
        if count
    }
    places = [((k + 0.5) / counts[name], name) for name in moves for k in range(counts[name])]
    return MoveCycle(moves, [name for _, name in sorted(places)])


def hybrid_chain(
    molecule: MolecularSystem, moves: MoveCycle, platform: openmm.Platform, settings: PeptideSettings
) -> HybridChain:
    """The chain that alternates the moves and dynamics."""
    return HybridChain(molecule, cast(DiffusionMove, moves), platform, md_steps=settings.md_steps, seed=settings.seed)


def run_for(chain: HybridChain, minutes: float, folder: Path, *, progress: bool = True) -> None:
    """Run the chain until its wall time, that of earlier runs included, is `minutes`; checkpoints go to `folder`."""
    budget = 60.0 * minutes
    bar = tqdm(total=round(budget), initial=round(chain.seconds), unit="s", desc="hybrid chain", disable=not progress)
    with bar:
        while chain.seconds < budget:
            done = len(chain.series)
            pace = chain.seconds / done if done else 0.0
            left = math.ceil((budget - chain.seconds) / pace) if pace else 20
            chain.run(done + min(left, BLOCK, max(20, done)), folder, progress=False)
            bar.n = min(round(chain.seconds), bar.total)
            bar.set_postfix(moves=len(chain.series), accepted=f"{chain.move.fraction_accepted:.3f}")
