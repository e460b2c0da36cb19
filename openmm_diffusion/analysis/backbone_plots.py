"""Figures of backbone ensembles from arrays; each draws on `ax`, or on a figure of its own, and returns the Axes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import TrajectoryError
from ._checks import finite_array
from ._figures import axes_or_new, colour, line
from .backbone_quality import CA_BREAK, CA_LOOSE, mean_structure, superpose

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["backbone_traces", "ca_link_histogram", "geometry_bars", "gyration_histogram", "rmsf_profile"]


def ca_link_histogram(links: Mapping[str, ArrayLike], ax: "Axes | None" = None, bins: int = 80) -> "Axes":
    """Densities of CA-CA distances (Angstrom, arrays of any shape), one curve a label, on a logarithmic scale.

    Lines mark 3.902 and 4.5 Angstrom; what lies outside 2.5 to 6 goes into the outermost bins.
    """
    ax = axes_or_new(ax)
    _histograms(links, np.linspace(2.5, 6.0, bins + 1), ax)
    for limit in (CA_LOOSE, CA_BREAK):
        ax.axvline(limit, color="0.4", linewidth=0.8, linestyle=":")
    ax.set(xlabel="CA-CA of consecutive residues (Å)", ylabel="density", yscale="log")
    return ax


def gyration_histogram(radii: Mapping[str, ArrayLike], ax: "Axes | None" = None, bins: int = 40) -> "Axes":
    """Densities of radii of gyration [n] (Angstrom), one curve a label."""
    values = np.concatenate([finite_array(r, label) for label, r in _labelled(radii).items()])
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    ax = axes_or_new(ax)
    _histograms(radii, np.linspace(low - margin, high + margin, bins + 1), ax)
    ax.set(xlabel="radius of gyration of CA (Å)", ylabel="density", ylim=(0.0, None))
    return ax


def rmsf_profile(profiles: Mapping[str, ArrayLike], ax: "Axes | None" = None, first_residue: int = 1) -> "Axes":
    """Fluctuations [L] (Angstrom) along the chain, one curve a label."""
    ax = axes_or_new(ax, (6.0, 3.6))
    for i, (label, values) in enumerate(_labelled(profiles).items()):
        profile = finite_array(values, label)
        residues = np.arange(first_residue, first_residue + len(profile))
        ax.plot(residues, profile, line(i), color=colour(i), marker="o", markersize=3, label=label)
    ax.set(xlabel="residue", ylabel="RMSF of CA (Å)", ylim=(0.0, None))
    ax.legend(frameon=False)
    return ax


def geometry_bars(errors: Mapping[str, Mapping[str, float]], ax: "Axes | None" = None) -> "Axes":
    """Errors of bonds (Angstrom) and angles (degrees) from `geometry_errors`, over the MD's own spread."""
    if not errors:
        raise TrajectoryError("there are no errors to draw; expected what geometry_errors returns")
    ax = axes_or_new(ax, (6.0, 3.6))
    names = list(errors)
    ratios = [errors[name]["rms_error"] / max(errors[name]["reference_rms"], 1e-6) for name in names]
    ax.bar(names, ratios, color=colour(0))
    for i, name in enumerate(names):
        unit = "°" if name.count("-") == 2 else " Å"
        ax.annotate(f"{errors[name]['rms_error']:.2g}{unit}", (i, ratios[i]), ha="center", va="bottom", fontsize=8)
    ax.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":")
    ax.tick_params(axis="x", rotation=45)
    ax.set(ylabel="rms error / spread in MD")
    return ax


def backbone_traces(
    ensembles: Mapping[str, ArrayLike], ax: "Axes | None" = None, n_chains: int = 20, seed: int = 0
) -> "Axes":
    """CA traces of a few chains of each ensemble, [n, L, 3] (Angstrom) each, superposed on the mean of the first.

    Projected on the plane of the mean's two longest axes; the first label lies on top.
    """
    arrays = {label: finite_array(ca, label, (3,)) for label, ca in _labelled(ensembles).items()}
    rng = np.random.default_rng(seed)
    mean, _ = mean_structure(next(iter(arrays.values())))
    axes = np.linalg.svd(mean - mean.mean(0), full_matrices=False)[2][:2]
    ax = axes_or_new(ax, (5.0, 5.0))
    for i, (label, ca) in reversed(list(enumerate(arrays.items()))):
        rows = rng.choice(len(ca), min(n_chains, len(ca)), replace=False)
        for k, chain in enumerate(superpose(ca[rows], mean) @ axes.T):
            ax.plot(*chain.T, color=colour(i), alpha=0.35, linewidth=1.0, label=label if k == 0 else None)
    ax.plot(*((mean - mean.mean(0)) @ axes.T).T, color="black", linewidth=1.5, label=f"mean, {next(iter(arrays))}")
    ax.set(xlabel="first axis (Å)", ylabel="second axis (Å)", aspect="equal")
    ax.legend(frameon=False)
    return ax


def _histograms(series: Mapping[str, ArrayLike], edges: Any, ax: "Axes") -> None:
    for i, (label, values) in enumerate(_labelled(series).items()):
        flat = finite_array(np.ravel(values), label)
        inside = np.clip(flat, edges[0], np.nextafter(edges[-1], edges[0]))
        density, _ = np.histogram(inside, bins=edges, density=True)
        ax.stairs(density, edges, fill=True, alpha=0.2, color=colour(i))
        ax.stairs(density, edges, color=colour(i), linestyle=line(i), linewidth=1.5, label=label)
    ax.legend(frameon=False)


def _labelled(series: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    if not series:
        raise TrajectoryError("there is nothing to draw; expected at least one label with an array")
    return {str(label): values for label, values in series.items()}
