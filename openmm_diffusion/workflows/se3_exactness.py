"""The main test of SE(3) moves: chains that start from exact draws stay distributed as exp(-u), whatever the network.

Alanine dipeptide with everything frozen but its torsions, a trained network and the same one with every weight
perturbed; and an untrained network on a torsion density that is known without a molecule. The control, the density of
the present state replaced by a constant, must be seen in as many moves.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from .. import models
from ..models import Model
from ..molecule import peptide
from ..proposals import BackboneProposal, LocalProposal
from .console import use_one_thread
from .exactness import ExactnessResult, FrozenTarget, GridTarget, compare, frozen_energies, von_mises
from .exactness_grid import Entry, Network
from .many_chains import Ends, IndependentMoves, LocalMoves, Moves, SharedCandidates, run_many
from .sampled_target import SampledTarget
from .systems import alanine_dipeptide

Array = NDArray[np.float64]

PERTURBATION = 0.1  # of every weight, relative
_PERTURBATION_SEED = 4  # such that the flow, the dearest, is accepted in one move of twenty
CONTROL_SIGMA = 6.0
_N_REFERENCE = 8192
_COUNTS = ("moves", "accepted", "invalid")
_SHARD = {"path": 640, "local": 640, "flow": 160}  # chains that one task takes

# An untrained network knows no bond: its candidates come near those of a(s) only for few frames and a wide a(s).
_RANDOM_SEQUENCE, _RANDOM_SEED, _RANDOM_WIDTH, _RANDOM_MAX_T = "ALA-ALA", 4, 0.5, 0.1
_RANDOM: dict[str, Any] = {
    "model_conf": {
        "node_embed_size": 16,
        "edge_embed_size": 8,
        "embed": {
            "index_embed_size": 8,
            "embed_self_conditioning": False,
            "embed_residue_type": True,
            "relative_frames": True,
        },
        "ipa": {
            "num_blocks": 1,
            "no_heads": 2,
            "c_hidden": 4,
            "no_qk_points": 2,
            "no_v_points": 2,
            "c_skip": 8,
            "seq_tfmr_num_heads": 2,
            "seq_tfmr_num_layers": 1,
        },
    },
    "se3_conf": {"min_t": 0.02, "so3": {"min_sigma": 0.1, "max_sigma": 2.5, "base": "haar"}},
    "coordinate_scaling": 0.7,
}


@dataclass(frozen=True)
class Row:
    """What an entry showed, with and without the density of the present state."""

    entry: Entry
    exact: ExactnessResult
    control: ExactnessResult
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the run says something, agrees with the target, and the control does not."""
        return self.exact.is_informative and self.exact.is_exact() and self.control.sigma > CONTROL_SIGMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        numbers = {"p_chi_squared": self.exact.p_chi_squared, "worst_z": self.exact.worst_z, "z": self.exact.z}
        counts = {key: getattr(self.exact, key) for key in ("n_accepted", "n_invalid", "sd_log_q")}
        rest = {"control_sigma": self.control.sigma, "seconds": self.seconds, "passed": self.passed}
        return {**asdict(self.entry), **counts, **numbers, **rest}


def run_grid(
    entries: Sequence[Entry],
    model: str = "alanine-dipeptide",
    *,
    seed: int = 0,
    n_processes: int = 2,
    progress: Callable[[Any, int], Any] = lambda tasks, total: tasks,
) -> list[Row]:
    """Run entries, each with its control.

    Parameters
    ----------
    entries
        Of `grid`, or others.
    model
        Name or path of the trained SE(3) model of ACE-ALA-NME; not read where all entries are "random".
    seed
        Of every random number.
    n_processes
        Processes of one thread each; 1 runs in this one.
    progress
        Wraps an iterator over tasks that are done, given their number, such as tqdm.
    """
    tasks = [task for index, entry in enumerate(entries) for task in _tasks(index, entry)]
    # The longest first, so that none is left over at the end.
    tasks.sort(key=lambda task: -_cost(entries[task[0]]))
    parts: dict[int, dict[int, Part]] = {}
    with _executor(n_processes) as pool:
        futures = {pool.submit(_run, entries[task[0]], model, task, seed): task for task in tasks}
        for future in progress(as_completed(futures), len(tasks)):
            index, shard, _ = futures[future]
            parts.setdefault(index, {})[shard] = future.result()
        rows = [pool.submit(_row, entry, parts[index]) for index, entry in enumerate(entries)]
        return [row.result() for row in rows]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| entry | moves / chains | accepted | sd(log q) | p, worst z | without log q of the present state | passed |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        r = row.exact
        lines.append(
            f"| {row.entry} | {r.n_moves} / {r.n_chains} | {r.n_accepted} ({r.n_accepted / r.n_moves:.1%}) | "
            f"{r.sd_log_q:.1f} | {r.p_chi_squared:.2g}, {r.worst_z:.1f} | {row.control.sigma:.1f} sigma | "
            f"{'yes' if row.passed else 'NO'} |"
        )
    return "\n".join(lines)


Task = tuple[int, int, int]  # entry, shard, chains


@dataclass(frozen=True)
class Part:
    """The chains of one task, with and without the density of the present state, and the seconds that they took."""

    exact: Ends
    control: Ends
    seconds: float


def _tasks(index: int, entry: Entry) -> Iterator[Task]:
    size = _SHARD[entry.density]
    for shard, first in enumerate(range(0, entry.n_chains, size)):
        yield index, shard, min(size, entry.n_chains - first)


def _cost(entry: Entry) -> float:
    """Relative time of a chain of an entry."""
    work = 20 if entry.density == "flow" else 1
    return work * entry.n_diffusion_steps * entry.n_moves * (entry.n_candidates + 1) * _SHARD[entry.density]


def _executor(n_processes: int) -> Executor:
    if n_processes == 1:
        return ThreadPoolExecutor(1)
    # Threads of torch do not survive a fork.
    return ProcessPoolExecutor(n_processes, get_context("spawn"), use_one_thread)


def _run(entry: Entry, model: str, task: Task, seed: int) -> Part:
    index, shard, n_chains = task
    target, moves = _target(entry.network, entry.torsions), SharedCandidates(_moves(entry, model))
    rng = np.random.default_rng([seed, index, shard])
    start = target.draw(n_chains, rng)
    started = time.perf_counter()
    run = partial(run_many, target.reduced_potential, moves, start, entry.n_moves, entry.n_candidates, rng)
    exact = run()
    return Part(exact, run(float(np.median(exact.log_q))), time.perf_counter() - started)


def _row(entry: Entry, parts: dict[int, Part]) -> Row:
    target = _target(entry.network, entry.torsions)
    in_order = [parts[shard] for shard in sorted(parts)]

    def result(ends: list[Ends]) -> ExactnessResult:
        moves, accepted, invalid = (sum(getattr(e, f"n_{name}") for e in ends) for name in _COUNTS)
        sd = float(np.std(np.concatenate([e.log_q for e in ends])))
        return compare(target, np.concatenate([e.tau for e in ends]), moves, accepted, invalid, sd)

    exact, control = result([part.exact for part in in_order]), result([part.control for part in in_order])
    return Row(entry, exact, control, sum(part.seconds for part in in_order))


@cache
def _target(network: Network, torsions: tuple[str, ...]) -> GridTarget | SampledTarget:
    if network == "random":
        # In the order of the torsions psi:ALA1, phi:ALA2 of this chain.
        return von_mises([(-2.0, 1.0), (1.0, 1.5)], ("psi", "phi"))
    molecule = _molecule(network)
    if torsions == ("phi", "psi"):
        return FrozenTarget(molecule)
    return SampledTarget(molecule, torsions, _N_REFERENCE, np.random.default_rng(17), n_sweeps=25)


def _moves(entry: Entry, model: str) -> Moves:
    proposal = _proposal(replace(entry, n_candidates=0, n_chains=0, n_moves=0), model)
    if isinstance(proposal, LocalProposal):
        return LocalMoves(proposal)
    return IndependentMoves(proposal, _molecule(entry.network).positions)


@cache
def _molecule(network: Network) -> Any:
    if network == "random":
        return peptide(_RANDOM_SEQUENCE)
    molecule = alanine_dipeptide("obc")
    # What is frozen decides how much a marginal proposal can be accepted: half as much again at the minimum.
    context = frozen_energies(molecule, "Reference").context
    context.setPositions(molecule.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    return replace(molecule, positions=context.getState(positions=True).getPositions(asNumpy=True)._value)


@cache
def _proposal(entry: Entry, model: str) -> BackboneProposal | LocalProposal:
    molecule = _molecule(entry.network)
    options: dict[str, Any] = {
        "torsions": entry.torsions,
        "n_diffusion_steps": entry.n_diffusion_steps,
        "device": "cpu",
    }
    if entry.network == "random":
        network = models.create("se3", molecule.topology, _RANDOM_SEED, **_RANDOM)
        options["width"] = _RANDOM_WIDTH if entry.width is None else entry.width
    else:
        network = models.load(model)
        if entry.network == "perturbed":
            network = perturbed(network, PERTURBATION, np.random.default_rng(_PERTURBATION_SEED))
        options["width"] = entry.width
    if entry.density == "local":
        return LocalProposal(network, molecule.topology, t_star=entry.t_star, **options)
    if entry.network == "random":
        options["max_t"] = _RANDOM_MAX_T
    return BackboneProposal(network, molecule.topology, density=entry.density, pool_size=1, background=False, **options)


def perturbed(model: Model, share: float, rng: np.random.Generator) -> Model:
    """The model with every weight w replaced by w (1 + share z), z normal."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.0 + share * torch.randn(weight.shape, generator=generator))
    return replace(model, network=network, source={})
