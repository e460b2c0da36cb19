"""Boltzmann correction of generated torsions, one structure at a time: sampling-importance resampling, iterated.

For a structure with torsions tau and everything else rho, M candidates tau' are drawn from a density q that sees
neither, weighed by w = exp(-u(tau', rho)) / q(tau'), and one of the M + 1 (the structure's own tau among them) is
picked in proportion. This leaves exp(-u) invariant for any M and any q (Andrieu, Lee & Vihola, Bernoulli 24, 842
(2018)). Weights are compared within one rho only, because the normalising constant depends on rho.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..analysis import kish_ess, kish_limit, pareto_k
from ..errors import SettingError, TrajectoryError
from ..molecule import BackboneTorsions
from .energies import ReducedPotential

Array = NDArray[np.float64]
BATCH = 512  # draws of the network at a time
STRUCTURES = 2048  # in memory at a time
K_LIMIT = 0.7  # Pareto k-hat above which averages with the weights cannot be trusted


class TorsionSource(Protocol):
    """Draws torsions of a density that it can also evaluate; `TorsionProposal` is one."""

    torsions: BackboneTorsions

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array, NDArray[np.bool_]]: ...

    def log_density(self, tau: Array) -> Array: ...


@dataclass(frozen=True)
class Correction:
    """What was drawn for F frames with M candidates each, and what was picked.

    The last column of every [F, M + 1] array is the frame's own torsions.

    Attributes
    ----------
    tau
        [F, M + 1, T] torsions, rad.
    u
        [F, M + 1] reduced potentials; NaN for a candidate without a density.
    log_w
        [F, M + 1] log weights, -inf for candidates without density or finite energy; +inf for a frame whose own
        torsions have no density, which it then keeps.
    picked
        [F] columns that were picked.
    """

    tau: Array
    u: Array
    log_w: Array
    picked: NDArray[np.int64]

    @property
    def tau_picked(self) -> Array:
        """[F, T] torsions picked."""
        return np.asarray(self.tau[np.arange(len(self.picked)), self.picked])


def correct(
    frames: Array,
    source: TorsionSource,
    potential: ReducedPotential,
    n_candidates: int,
    rng: np.random.Generator,
    *,
    progress: bool = False,
) -> Correction:
    """Draw, weigh and pick for frames [F, atoms, 3] (nm).

    Raises TrajectoryError where a frame's own energy is NaN or infinite: Boltzmann's distribution does not reach it.
    """
    n_frames = len(frames)
    own = source.torsions.get(frames)
    drawn, log_q, valid = _draw(source, n_frames * n_candidates, rng, progress)
    tau = np.concatenate([drawn.reshape(n_frames, n_candidates, -1), own[:, None]], axis=1)
    log_q = np.where(valid, log_q, np.nan).reshape(n_frames, n_candidates)
    log_q = np.concatenate([log_q, source.log_density(own)[:, None]], axis=1)
    u = np.full(log_q.shape, np.nan)
    together = max(1, STRUCTURES // (n_candidates + 1))  # setting torsions is cheap only for many structures at once
    for start in tqdm(range(0, n_frames, together), "energies", disable=not progress):
        rows = slice(start, start + together)
        structures = source.torsions.set(frames[rows, None], tau[rows])
        usable = ~np.isnan(log_q[rows])
        u[rows][usable] = potential(structures[usable])
    bad = np.flatnonzero(~np.isfinite(u[:, -1]))
    if len(bad):
        raise TrajectoryError(
            f"frame {bad[0]} of those taken has the potential energy {u[bad[0], -1]} kT; expected a finite one, give "
            "frames of this very system"
        )
    log_w = log_weights(u, log_q)
    return Correction(tau, u, log_w, pick(log_w, rng))


def log_weights(u: Array, log_q: Array) -> Array:
    """log w [F, M + 1] of reduced potentials and log densities; the last column is the frames' own."""
    usable = np.isfinite(u) & np.isfinite(log_q)
    log_w = np.where(usable, -np.where(usable, u, 0.0) - np.where(usable, log_q, 0.0), -np.inf)
    log_w[~np.isfinite(log_q[:, -1]), -1] = np.inf
    return log_w


def shares(log_w: Array) -> Array:
    """Probabilities [F, M + 1] of being picked; 1 for a weight of +inf."""
    top = log_w.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        w = np.where(np.isposinf(top), np.isposinf(log_w), np.exp(log_w - np.where(np.isfinite(top), top, 0.0)))
    return np.asarray(w / w.sum(axis=1, keepdims=True))


def pick(log_w: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """One column [F] of each row, in proportion to the weights."""
    p = shares(log_w)
    cumulative = p.cumsum(axis=1)
    chosen = (cumulative <= rng.random((len(p), 1)) * cumulative[:, -1:]).sum(axis=1)
    # Rounding may carry the last point behind the last column of positive weight.
    last = p.shape[1] - 1 - (p[:, ::-1] > 0.0).argmax(axis=1)
    return np.minimum(chosen, last)


def diagnostics(correction: Correction) -> dict[str, Any]:
    """How good the generated candidates are at each frame's rho; the frames' own torsions are left out of it."""
    log_w = correction.log_w[:, :-1]
    n_candidates = log_w.shape[1]
    k_hat = np.array([pareto_k(row) for row in log_w])
    k_hat = k_hat[np.isfinite(k_hat)]
    own = log_w.shape[1]
    return {
        "kish": _spread(kish_ess(log_w) / n_candidates),
        "pareto_k": _spread(k_hat),
        "pareto_k_above_0.7": float((k_hat > K_LIMIT).mean()) if len(k_hat) else None,
        "frames_without_pareto_k": len(log_w) - len(k_hat),
        "invalid_candidates": int(np.isneginf(log_w).sum()),
        "frames_without_density": int(np.isposinf(correction.log_w[:, -1]).sum()),
        "frames_that_kept_their_own_torsions": float((correction.picked == own).mean()),
    }


def marginal_reference(
    frames: Array, source: TorsionSource, potential: ReducedPotential, n_grid: int, *, progress: bool = False
) -> dict[str, float]:
    """What the true marginal of two torsions reaches on frames [F, atoms, 3] (nm), and the model by the same sum.

    Both are the mean over frames of the Kish effective sample size, a candidate, for many candidates: p is the exact
    conditional of each frame on a grid of n_grid^2 points, q the leave-one-out mean of the p, or the model's density.
    """
    if len(source.torsions) != 2 or len(frames) < 2:
        raise SettingError(f"{len(source.torsions)} torsions, {len(frames)} frames; expected two torsions, two frames")
    centres = -math.pi + (np.arange(n_grid) + 0.5) * 2.0 * math.pi / n_grid
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    bar = tqdm(frames, "limit of the marginal", disable=not progress)
    u = np.array([potential(source.torsions.set(frame, grid)) for frame in bar])
    log_q = np.concatenate([source.log_density(part) for part in np.array_split(grid, math.ceil(len(grid) / BATCH))])
    q = np.exp(log_q) * (2.0 * math.pi / n_grid) ** 2
    return {"kish_limit": kish_limit(u), "kish_on_grid": kish_limit(u, q)}


def _draw(
    source: TorsionSource, n: int, rng: np.random.Generator, progress: bool
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """n draws, as many at a time as the processor's caches like."""
    parts = []
    with tqdm(total=n, desc="torsions", disable=not progress) as bar:
        for start in range(0, n, BATCH):
            parts.append(source.draw(min(BATCH, n - start), rng))
            bar.update(len(parts[-1][0]))
    tau, log_q, valid = zip(*parts, strict=True)
    return np.concatenate(tau), np.concatenate(log_q), np.concatenate(valid)


def _spread(values: Array) -> dict[str, float | None]:
    if not len(values):
        return {"mean": None, "min": None, "max": None}
    return {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
