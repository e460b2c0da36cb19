"""Candidates at frames of the target, with their weights: drawn, scored and timed, for `acceptance`."""

import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..analysis.acceptance import Trials
from ..errors import TrajectoryError
from ..mcmc import DiffusionMove
from ..mcmc.kernel import metropolis_step
from ..models import Model
from ..molecule import load
from ..proposals import BackboneProposal, LocalProposal, TorsionProposal
from ..units import wrap
from .energies import ReducedPotential
from .hybrid import HybridChain
from .prepare import read_frames, read_weights
from .systems import TEMPERATURE, MolecularSystem

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]
Independent = BackboneProposal | TorsionProposal
MOVE = 8  # candidates of the move whose cost and chain are measured: the default of `DiffusionMove`
_ROWS = 512  # structures scored at once
_LOCAL_ROWS = 4  # frames that share the mask of a local move


def simulated_frames(folder: Path, molecule: MolecularSystem, n: int, rng: np.random.Generator) -> Array:
    """n frames of a trajectory as `simulate` writes it, drawn by their weights with replacement.

    Raises TrajectoryError where the folder is of another molecule.
    """
    topology = load(folder / "topology.pdb", fix=False).topology
    names, expected = ([atom.name for atom in top.atoms()] for top in (topology, molecule.topology))
    if names != expected:
        raise TrajectoryError(
            f"{folder} holds a molecule of {len(names)} atoms, {molecule.name} has {len(expected)} or others; give the "
            "trajectory of the same system"
        )
    weights = read_weights(folder / "weights.npz")
    rows = np.sort(rng.choice(len(weights), n, p=weights / weights.sum()))
    found, start = [], 0
    for chunk in read_frames([folder / "trajectory.dcd"], topology):
        here = rows[(rows >= start) & (rows < start + len(chunk))] - start
        found.append(chunk[here])
        start += len(chunk)
    if start != len(weights):
        raise TrajectoryError(f"{folder} holds {start} frames and {len(weights)} weights; expected as many of both")
    return np.concatenate(found)


def chain_frames(model: Model, molecule: MolecularSystem, platform: openmm.Platform, n: int, seed: int) -> Array:
    """n frames of a short hybrid chain with the model: every fifth of the last 5 n iterations out of 6 n."""
    move = DiffusionMove(model, molecule.topology, n_candidates=MOVE, seed=seed)
    chain = HybridChain(molecule, move, platform, seed=seed)
    chain.equilibrate()
    positions = chain.run(6 * n).arrays()["positions"].astype(np.float64)
    if move.fraction_accepted < 0.02:
        logger.warning(
            "the chain accepted %.1f %% of its moves; its frames are no equilibrium", 100 * move.fraction_accepted
        )
    return np.asarray(positions[n + 4 :: 5])


def reduced_potential(molecule: MolecularSystem, platform: openmm.Platform) -> ReducedPotential:
    """The target at 300 K."""
    return ReducedPotential(molecule.system, platform, TEMPERATURE.value_in_unit(unit.kelvin))


def independent_trials(
    proposal: Independent, potential: ReducedPotential, frames: Array, m: int, n_scorings: int, rng: np.random.Generator
) -> Trials:
    """m candidates at each of the frames [F, atoms, 3] (nm), and n_scorings of each present state."""
    present = proposal.torsions.get(frames)
    u_present = potential(frames)
    tau, log_q = _draws(proposal, len(frames) * m, rng)
    tau, log_q = tau.reshape(len(frames), m, -1), log_q.reshape(len(frames), m)
    log_q_present = scorings(proposal, present, n_scorings, rng)
    log_w = np.array([_log_weights(proposal, potential, *row) for row in zip(frames, present, tau, log_q, strict=True)])
    log_w_present = np.where(np.isfinite(log_q_present), -u_present[:, None] - log_q_present, np.inf)
    return Trials(tau, present, log_w, log_w_present, u_present)


def local_trials(
    proposal: LocalProposal, potential: ReducedPotential, frames: Array, m: int, rng: np.random.Generator
) -> Trials:
    """m candidates of a local move at each of the frames [F, atoms, 3] (nm), which share their noised frames."""
    present = proposal.torsions.get(frames)
    u_present = potential(frames)
    moves = [proposal.move(present[i : i + _LOCAL_ROWS], m, rng) for i in range(0, len(frames), _LOCAL_ROWS)]
    tau, log_q, log_q_present = (np.concatenate(parts) for parts in zip(*moves, strict=True))
    log_w = np.array([_log_weights(proposal, potential, *row) for row in zip(frames, present, tau, log_q, strict=True)])
    log_w_present = np.where(np.isfinite(log_q_present), -u_present - log_q_present, np.inf)
    return Trials(tau, present, log_w, log_w_present[:, None], u_present)


def scorings(proposal: Independent, tau: Array, n: int, rng: np.random.Generator) -> Array:
    """log q [states, n] of torsions [states, T], with fresh auxiliary variables each time; -inf without a density.

    Normalised: the mean over auxiliary variables of q is a density of torsions (rad).
    """
    repeated = np.repeat(tau, n, axis=0)
    parts = [_score(proposal, repeated[i : i + _ROWS], rng) for i in range(0, len(repeated), _ROWS)]
    return np.concatenate(parts).reshape(len(tau), n) - _excess(proposal)


def cost_of_a_move(
    proposal: Any, potential: ReducedPotential, frames: Array, n_candidates: int, n_moves: int, rng: np.random.Generator
) -> dict[str, float]:
    """Milliseconds a move at the frames, one after the other: wall time, its parts, and time on all cores.

    Give a proposal that has been used, so that all is loaded, and draws its pool in this very thread; and as many moves
    as use up whole pools.
    """
    if hasattr(proposal, "import_pool"):
        proposal.import_pool({})
    network = energy = 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for k in range(n_moves):
        frame = frames[k % len(frames)]
        record, _ = metropolis_step(potential.context, proposal, frame, potential.beta, n_candidates, rng)
        network, energy = network + record.seconds_network, energy + record.seconds_energy
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    values = {"ms": wall, "ms_network": network, "ms_energy": energy, "ms_cpu": cpu}
    return {key: 1e3 * value / n_moves for key, value in values.items()}


def _draws(proposal: Independent, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    tau, log_q = [], []
    for start in range(0, n, _ROWS):
        size = min(_ROWS, n - start)
        if isinstance(proposal, TorsionProposal):
            drawn, density, valid = proposal.draw(size, rng)
            density = np.where(valid, density, -np.inf)
        else:
            drawn, density = proposal.draw(size, rng)
        tau.append(drawn)
        log_q.append(density)
    return np.concatenate(tau), np.concatenate(log_q) - _excess(proposal)


def log_measure(lengths: Iterable[int]) -> float:
    """By how much log (q / a * volume) of frames exceeds a normalised log density, for chains of N frames each.

    Frames have a density against normalised Haar measure, 1 / (8 pi^2) of what the links' volume counts, and against
    Lebesgue measure on the zero-centroid subspace, N^(-3/2) of that of the N - 1 differences of neighbours.
    """
    return sum((n - 1) * math.log(8 * math.pi**2) + 1.5 * math.log(n) for n in lengths)


def _excess(proposal: Independent) -> float:
    if isinstance(proposal, TorsionProposal):
        return 0.0
    return log_measure(len(chain["names"].split()) for chain in proposal.to_state()["chains"])


def _score(proposal: Independent, tau: Array, rng: np.random.Generator) -> Array:
    return proposal.log_density(tau) if isinstance(proposal, TorsionProposal) else proposal.log_density(tau, rng)


def _log_weights(
    proposal: Any, potential: ReducedPotential, frame: Array, present: Array, tau: Array, log_q: Array
) -> Array:
    """-u - log q [m] of candidates set on one frame."""
    usable = np.isfinite(log_q)
    result = np.full(len(log_q), -np.inf)
    u = potential(proposal.torsions.turn(frame, wrap(tau[usable] - present)))
    result[usable] = np.where(np.isfinite(u), -u - log_q[usable], -np.inf)
    return result
