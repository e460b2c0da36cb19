"""One row of the table of acceptance: a model on frames of the target, against what the true marginal reaches.

Acceptance, its limit, the spread of log w and where it comes from, the cost of a move and a hybrid chain, all with the
same model, density, number of steps and dtype. The reversal check of flows, which rejects one move in thousands, is
part of the cost and of the chain, not of the expected acceptance.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from ..analysis import acceptance as numbers
from ..analysis.acceptance import GridDensities, Trials
from ..analysis.mixing import change_efficiency, count_changes, in_basin_r
from ..mcmc import DiffusionMove
from ..models import Model
from ..molecule import BackboneTorsions
from ..proposals import BackboneProposal, LocalProposal, TorsionProposal
from .baseline import MarginalLimits, grid_energies, limits_of_grid
from .hybrid import HybridChain
from .systems import MolecularSystem
from .trials import MOVE, Independent, cost_of_a_move, independent_trials, local_trials, reduced_potential, scorings

Array = NDArray[np.float64]
_LOCAL_MOVES = 32  # that are timed


@dataclass(frozen=True)
class AcceptanceOptions:
    """How much is measured.

    Attributes
    ----------
    n_candidates
        Numbers of candidates a move.
    n_drawn
        Candidates drawn at each frame, cut into groups.
    n_scorings
        Scorings of each present state for the acceptance.
    n_repeats
        Scorings of each frame for the origins of the spread; 0 leaves them out.
    chain_iterations, chain_candidates
        Moves of the hybrid chain, 0 for none, and candidates of each.
    density, n_diffusion_steps
        Of SE(3) models; those of `DiffusionMove` by default.
    seed
        Of everything.
    """

    n_candidates: tuple[int, ...] = (1, 8, 32)
    n_drawn: int = 64
    n_scorings: int = 8
    n_repeats: int = 32
    chain_iterations: int = 2000
    chain_candidates: int = MOVE
    density: str | None = None
    n_diffusion_steps: int | None = None
    seed: int = 0

    def of_proposal(self, kind: str) -> dict[str, Any]:
        """Options of the proposal of an independent move."""
        given = {"n_diffusion_steps": self.n_diffusion_steps, "density": self.density if kind == "se3" else None}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Target:
    """A molecule at 300 K, equilibrium frames [F, atoms, 3] (nm) of it, and what a (phi, psi) grid at each tells.

    `grid_u` [F, G], `grid` [G, 2] and `limits` are None where the molecule has other torsions than one phi and one psi.
    """

    molecule: MolecularSystem
    platform: openmm.Platform
    frames: Array
    grid_u: Array | None = None
    grid: Array | None = None
    limits: MarginalLimits | None = None

    @classmethod
    def of(
        cls, molecule: MolecularSystem, platform: openmm.Platform, frames: Array, options: AcceptanceOptions
    ) -> "Target":
        """With the grid, where there can be one: 1296 energies a frame."""
        if BackboneTorsions(molecule.topology, ("phi", "psi")).kinds != ("phi", "psi") or len(frames) < 2:
            return cls(molecule, platform, frames)
        u, grid = grid_energies(molecule, frames, platform)
        return cls(
            molecule, platform, frames, u, grid, limits_of_grid(u, grid, options.n_candidates, seed=options.seed)
        )

    def densities(self, u_present: Array) -> GridDensities | None:
        """p(tau | rho) and the marginal at the frames."""
        if self.grid_u is None:
            return None
        tau = BackboneTorsions(self.molecule.topology, ("phi", "psi")).get(self.frames)
        return GridDensities.of(self.grid_u, tau, u_present)


@dataclass(frozen=True)
class Row:
    """What was measured as plain values, and normalised log w of all candidates and of all present states."""

    values: dict[str, Any]
    log_w: Array
    log_w_present: Array


def independent_row(model: Model, target: Target, options: AcceptanceOptions) -> Row:
    """Independent moves with a model."""
    rng = np.random.default_rng(options.seed)
    settings = options.of_proposal(model.kind)
    proposal = _independent(model, target.molecule, settings)
    potential = reduced_potential(target.molecule, target.platform)
    trials = independent_trials(proposal, potential, target.frames, options.n_drawn, options.n_scorings, rng)
    densities = target.densities(trials.u_present)
    row = _row(trials, target, densities, options)
    density = settings.get("density", "path") if model.kind == "se3" else "flow"
    row.values.update(
        model=_name(model),
        proposal="independent",
        density=density,
        n_diffusion_steps=proposal.n_diffusion_steps,
        dtype="float32" if density == "path" else "float64",
    )
    if options.n_repeats:
        row.values["origins"] = _origins(proposal, trials, densities, options, rng)
        steps = 2 * proposal.n_diffusion_steps
        doubled = _independent(model, target.molecule, settings | {"n_diffusion_steps": steps})
        row.values["origins_doubled_steps"] = _origins(doubled, trials, densities, options, rng)
    row.values["cost"] = cost_of_a_move(proposal, potential, target.frames, MOVE, proposal.pool_size // MOVE, rng)
    if options.chain_iterations and target.grid is not None:
        row.values["chain"] = _chain(model, target, settings, options)
    return row


def local_row(model: Model, target: Target, t_star: float, window: int | None, options: AcceptanceOptions) -> Row:
    """Local moves with a model."""
    rng = np.random.default_rng(options.seed)
    proposal = LocalProposal(
        model, target.molecule.topology, t_star=t_star, window=window, n_diffusion_steps=options.n_diffusion_steps
    )
    potential = reduced_potential(target.molecule, target.platform)
    trials = local_trials(proposal, potential, target.frames, options.n_drawn, rng)
    row = _row(trials, target, None, options)
    row.values.update(
        model=_name(model),
        proposal=f"local, t* = {t_star:g}" + ("" if window is None else f", window {window}"),
        density="path",
        n_diffusion_steps=proposal.n_diffusion_steps,
        dtype="float32",
        displacement={n: numbers.displacements(trials, n) for n in options.n_candidates},
    )
    row.values["cost"] = cost_of_a_move(proposal, potential, target.frames, MOVE, _LOCAL_MOVES, rng)
    return row


def _row(trials: Trials, target: Target, densities: GridDensities | None, options: AcceptanceOptions) -> Row:
    """Acceptance, its limit and the spread of log w."""
    n_frames = len(target.frames)
    # Without a grid the normalisation of a frame's weights comes from its candidates.
    log_z = numbers.log_mean_exp(trials.log_w) if densities is None else densities.log_z
    log_z = np.where(np.isfinite(log_z), log_z, 0.0)[:, None]
    log_w, log_w_present = trials.log_w - log_z, trials.log_w_present - log_z
    with np.errstate(invalid="ignore"):
        at_frames = np.array([row[np.isfinite(row)].std() for row in log_w if np.isfinite(row).sum() > 1])
    values: dict[str, Any] = {
        "system": target.molecule.name,
        "platform": target.platform.getName(),
        "n_frames": n_frames,
        "acceptance": {},
        "limit": None if target.limits is None else target.limits.acceptance,
        "invalid_candidates": float(1.0 - np.isfinite(trials.log_w).mean()),
        "log_w_candidates": numbers.spread(log_w) | {"median_sd_at_a_frame": float(np.median(at_frames))},
        "log_w_present": numbers.spread(log_w_present),
    }
    for n in options.n_candidates:
        chance = numbers.acceptance(trials, n)
        values["acceptance"][n] = {"mean": float(chance.mean()), "error": numbers.standard_error(chance)}
    if target.grid is not None and target.grid_u is not None:
        pi_r = numbers.population(target.grid_u, in_basin_r(target.grid[:, 0]))
        ceiling = 2.0 * pi_r * (1.0 - pi_r)
        values["pi_R"] = pi_r
        values["eta"] = {n: numbers.flux_into_r(trials, n) / ceiling for n in options.n_candidates}
        values["eta_limit"] = None if target.limits is None else target.limits.eta
    return Row(values, log_w.ravel(), log_w_present.ravel())


def _origins(
    proposal: Independent,
    trials: Trials,
    densities: GridDensities | None,
    options: AcceptanceOptions,
    rng: np.random.Generator,
) -> dict[str, Any]:
    repeats = 1 if isinstance(proposal, TorsionProposal) else options.n_repeats
    result = numbers.origins(densities, scorings(proposal, trials.tau_present, repeats, rng))
    return {"n_diffusion_steps": proposal.n_diffusion_steps, **result}


def _chain(model: Model, target: Target, settings: dict[str, Any], options: AcceptanceOptions) -> dict[str, Any]:
    """A hybrid chain with the move's defaults; phi is its first torsion."""
    n = options.chain_candidates
    move = DiffusionMove(model, target.molecule.topology, n_candidates=n, seed=options.seed, **settings)
    chain = HybridChain(target.molecule, move, target.platform, seed=options.seed)
    chain.equilibrate()
    arrays = chain.run(options.chain_iterations, progress=False).arrays()
    before, after, end = (in_basin_r(arrays[f"tau_{name}"][:, 0]) for name in ("before", "after", "end"))
    changes, iterations = count_changes(before, after), len(end)
    return {
        "iterations": iterations,
        "n_candidates": n,
        "acceptance": move.fraction_accepted,
        "basin_changes": changes,
        "basin_changes_per_s": changes / chain.seconds,
        "eta": change_efficiency(changes, iterations, float(end.mean())),
        "pi_R": float(end.mean()),
        **{f"ms_{name}": 1e3 * float(arrays[f"seconds_{name}"].mean()) for name in ("network", "energy", "md")},
        "ms_iteration": 1e3 * chain.seconds / iterations,
    }


def _independent(model: Model, molecule: MolecularSystem, settings: dict[str, Any]) -> Independent:
    if model.kind == "torsion":
        return TorsionProposal(model, molecule.topology, **settings)
    return BackboneProposal(model, molecule.topology, background=False, **settings)


def _name(model: Model) -> str:
    return str(model.source.get("name") or model.source.get("path") or f"untrained {model.kind} model")
