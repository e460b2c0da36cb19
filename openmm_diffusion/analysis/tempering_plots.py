"""Figures of replica exchange: a torsion at every temperature, and the walk of replicas between them."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import TrajectoryError
from ..units import wrap
from ._figures import COLOURS, axes_or_new, colour, line
from .mixing import BASIN_R

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def phi_densities(phi: ArrayLike, kelvin: ArrayLike, ax: "Axes | None" = None, bins: int = 72) -> "Axes":
    """Densities of phi [iterations, states] (rad) at each temperature [states] (K), on a logarithmic axis."""
    values, temperatures = np.asarray(wrap(np.asarray(phi, dtype=np.float64))), np.asarray(kelvin, dtype=np.float64)
    if values.ndim != 2 or values.shape[1:] != temperatures.shape or not len(values):
        raise TrajectoryError(
            f"phi has shape {values.shape} and kelvin {temperatures.shape}; expected [iterations, states] and [states]"
        )
    ax = axes_or_new(ax, (6.0, 4.0))
    edges = np.linspace(-180.0, 180.0, bins + 1)
    ax.axvspan(*np.degrees(BASIN_R), color=COLOURS[4], alpha=0.2, linewidth=0, label="basin R")
    for k, temperature in enumerate(temperatures):
        density, _ = np.histogram(np.degrees(values[:, k]), edges, density=True)
        shown = np.where(density > 0.0, density, np.nan)
        ax.stairs(shown, edges, baseline=None, color=colour(k), linestyle=line(k), label=f"{temperature:.0f} K")
    ax.set(xlabel="φ (degrees)", ylabel="density (1/degree)", yscale="log", xlim=(-180, 180))
    ax.set_xticks((-180, -90, 0, 90, 180))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def replica_walk(state_of: ArrayLike, kelvin: ArrayLike, ax: "Axes | None" = None, n_shown: int = 400) -> "Axes":
    """The states of replicas [iterations, replicas] over the last `n_shown` iterations; temperatures [states] in K."""
    states, temperatures = np.asarray(state_of), np.asarray(kelvin, dtype=np.float64)
    if states.ndim != 2 or not len(states):
        raise TrajectoryError(f"state_of has shape {states.shape}; expected [iterations, replicas]")
    ax = axes_or_new(ax, (7.0, 3.0))
    first = max(0, len(states) - n_shown)
    iterations = np.arange(first, len(states)) + 1
    for replica, walk in enumerate(states[first:].T):
        ax.plot(iterations, walk, color=colour(replica), linewidth=0.8, drawstyle="steps-mid", label=f"{replica}")
    ax.set(xlabel="iteration", ylabel="temperature", xlim=(iterations[0], max(iterations[-1], iterations[0] + 1)))
    ax.set_yticks(range(len(temperatures)), [f"{value:.0f} K" for value in temperatures])
    ax.legend(title="replica", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax
