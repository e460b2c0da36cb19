"""Independent exact draws of exp(-u) with all but some torsions frozen, made without any proposal."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import StateError
from ..molecule import BackboneTorsions
from ..units import wrap
from .energies import ReducedPotential
from .exactness import FrozenTarget
from .systems import MolecularSystem

Array = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], tuple[Array, Array]]
_BINS, _DRAW_STEPS, _N_ANNEALED = 96, 25, 300


@dataclass(frozen=True)
class Starts:
    """Where chains start: a function that draws n with weights, the energies that each takes, known averages."""

    name: str
    draw: Draw
    n_energies: int
    expected: Array | None


def exact_starts(
    molecule: MolecularSystem,
    torsions: BackboneTorsions,
    energies: ReducedPotential,
    platform: str,
    seconds: float,
    second_each: float,
) -> Starts:
    """Starts on a grid where the torsions are phi and psi of one residue, annealed ones elsewhere.

    Parameters
    ----------
    molecule
        System, topology, and the positions that hold what is frozen.
    torsions, energies, platform
        The torsions that move, and the reduced potential with its platform.
    seconds, second_each
        Time for the starts, and that of one energy.
    """
    n_grid = 0.5 * seconds / second_each
    whole = BackboneTorsions(molecule.topology, ("phi", "psi"))
    if torsions.labels == whole.labels and len(whole) == 2 and n_grid >= _BINS**2:
        target = FrozenTarget(molecule, _BINS, platform)
        occupied = target.probabilities > 0
        probabilities, points = target.probabilities[occupied], target.points[occupied]
        values = observables(points, target.reduced_potential(points))
        return Starts(
            "exact draws on a grid",
            lambda n, rng: (target.draw(n, rng, _DRAW_STEPS), np.ones(n)),
            _DRAW_STEPS,
            probabilities @ values,
        )

    def reduced_potential(tau: Array) -> Array:
        return energies(torsions.set(molecule.positions, tau))

    n_levels = int(np.clip(seconds / second_each / (_N_ANNEALED * len(torsions)), 20, 400))
    return Starts(
        "annealed draws",
        lambda n, rng: annealed(reduced_potential, len(torsions), n, rng, n_levels),
        n_levels * len(torsions),
        None,
    )


def annealed(
    reduced_potential: Callable[[Array], Array], n_torsions: int, n: int, rng: np.random.Generator, n_levels: int
) -> tuple[Array, Array]:
    """n independent weighted draws of exp(-u) on the torus: torsions [n, T] and weights [n].

    Annealed importance sampling from the uniform distribution: the weights are right whatever the number of levels,
    which only sets how even they are. At each level every torsion is turned once, by steps of all sizes.
    """
    betas = (np.arange(n_levels + 1) / n_levels) ** 4  # clashes of uniform torsions are worth 1e8 kT and more
    tau = rng.uniform(-np.pi, np.pi, (n, n_torsions))
    u = reduced_potential(tau)
    log_w = np.zeros(n)
    for before, beta in itertools.pairwise(betas):
        log_w -= (beta - before) * np.where(np.isfinite(u), u, np.inf)
        for k in range(n_torsions):
            size = np.pi * np.exp(-3.0 * rng.random(n))
            trial = tau.copy()
            trial[:, k] = wrap(tau[:, k] + size * rng.standard_normal(n))
            u_trial = reduced_potential(trial)
            with np.errstate(invalid="ignore"):
                accept = np.log(rng.random(n)) < beta * (u - u_trial)
            accept |= ~np.isfinite(u) & np.isfinite(u_trial)
            tau[accept], u[accept] = trial[accept], u_trial[accept]
    if not np.isfinite(log_w).any():
        raise StateError("no torsions without a clash were found; start from another structure")
    return tau, np.exp(log_w - log_w.max())


def observables(tau: Array, u: Array) -> Array:
    """Values [n, k] whose averages are compared: cos and sin of torsions [n, t], and u [n]."""
    return np.column_stack([np.cos(tau), np.sin(tau), u])
