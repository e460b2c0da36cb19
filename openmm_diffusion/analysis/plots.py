"""Figures from arrays. Each function draws on `ax`, or on a figure of its own where it is None, and returns the Axes.

Figures of their own need no display and no state of matplotlib.pyplot. Angles go in as radians and come out as
degrees; colours are told apart by colour-blind readers (viridis; Okabe and Ito's palette for lines).
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError, TrajectoryError
from ..units import degrees
from ._checks import finite_array
from ._figures import COLOURS, axes_or_new, colour, line, save
from .free_energy import free_energy_surface
from .metrics import read_metrics
from .mixing import BASIN_R

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "autocorrelation_plot",
    "energy_histograms",
    "log_alpha_terms",
    "loss_curve",
    "ramachandran",
    "save",
    "trace",
]

_MULTIPLES_OF_90 = (-180, -90, 0, 90, 180)


def ramachandran(
    phi: ArrayLike,
    psi: ArrayLike,
    weights: ArrayLike | None = None,
    ax: "Axes | None" = None,
    title: str | None = None,
    bins: int = 72,
    vmax: float = 8.0,
    borders: bool = False,
) -> "Axes":
    """Free energy over (phi, psi) in kT, from torsions [draws] in rad; empty bins stay white.

    `vmax` (kT) is the top of the colour scale, the same in every figure by default, so that a reference and a sample
    can be put side by side. `borders` draws the borders of basin R.
    """
    edges, surface = free_energy_surface(phi, psi, bins, weights)
    ax = axes_or_new(ax, (5.2, 4.2))
    shown = np.ma.masked_invalid(surface.T)  # pcolormesh wants the vertical axis first
    mesh = ax.pcolormesh(
        np.degrees(edges), np.degrees(edges), shown, cmap="viridis", vmin=0.0, vmax=vmax, rasterized=True
    )
    extend = "max" if shown.max() > vmax else "neither"
    ax.figure.colorbar(mesh, ax=ax, label="free energy (kT)", extend=extend)
    if borders:
        for border in np.degrees(BASIN_R):
            ax.axvline(border, color="#D55E00", linewidth=1.0, linestyle="--")
    ax.set(xlabel="φ (degrees)", ylabel="ψ (degrees)", xlim=(-180, 180), ylim=(-180, 180))
    ax.set(xticks=_MULTIPLES_OF_90, yticks=_MULTIPLES_OF_90, aspect="equal", title=title or "")
    return ax


def energy_histograms(
    energies: Mapping[str, ArrayLike],
    ax: "Axes | None" = None,
    bins: int = 60,
    xlabel: str = "potential energy (kT)",
) -> "Axes":
    """Densities of energies, one curve a label, over common bins.

    NaN and infinite energies are left out and counted in the legend. The bins reach four interquartile ranges beyond
    the quartiles of each curve, because a single clash would otherwise squeeze everything else into one bin; what lies
    outside goes into the outermost bins.
    """
    finite = {label: _finite(values) for label, values in _series(energies, "energies").items()}
    spans = [_span(values) for values, _ in finite.values() if values.size]
    if not spans:
        raise TrajectoryError("no energy is finite; expected at least one to draw")
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, high + 0.5, bins + 1)
    ax = axes_or_new(ax)
    for i, (label, (values, left_out)) in enumerate(finite.items()):
        if values.size == 0:
            ax.plot([], [], color=colour(i), label=f"{label} (none finite)")
            continue
        density, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges, density=True)
        ax.stairs(density, edges, fill=True, alpha=0.2, color=colour(i))
        ax.stairs(density, edges, color=colour(i), linestyle=line(i), linewidth=1.5, label=_counted(label, left_out))
    # Room for the legend above the highest bar.
    ax.set(xlabel=xlabel, ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0.0, 1.3 * ax.get_ylim()[1]))
    ax.legend(frameon=False, loc="upper right")
    return ax


def loss_curve(metrics: str | os.PathLike[str] | Mapping[str, ArrayLike], ax: "Axes | None" = None) -> "Axes":
    """Training and validation loss against the optimiser step (or epoch) from Lightning's metrics.csv or its columns.

    Columns: step or epoch, and any of train_loss, train_loss_step, train_loss_epoch, val_loss; blanks and NaN are rows
    of the other curve. The horizontal axis is logarithmic where the steps span more than a factor of 20. Raises
    InputFileError for a missing file, TrajectoryError where a column is missing.
    """
    columns = read_metrics(metrics) if isinstance(metrics, str | os.PathLike) else _series(metrics, "metrics")
    x_name = next((name for name in ("step", "epoch") if name in columns), None)
    curves = {
        "training": _first(columns, "train_loss", "train_loss_epoch", "train_loss_step"),
        "validation": _first(columns, "val_loss"),
    }
    if x_name is None or all(values is None for values in curves.values()):
        raise TrajectoryError(
            f"the metrics have columns {', '.join(columns) or 'none'}; "
            "expected step or epoch, and train_loss or val_loss"
        )
    # Counted from 1, because a logarithmic axis has no place for the first step, which Lightning calls 0.
    x = np.asarray(columns[x_name]) + 1.0
    ax = axes_or_new(ax)
    for i, (label, values) in enumerate(curves.items()):
        if values is not None:
            keep = np.isfinite(values) & np.isfinite(x)
            marker = "o" if keep.sum() < 30 else ""
            ax.plot(x[keep], values[keep], line(i), color=colour(i), marker=marker, markersize=3, label=label)
    drawn = x[np.isfinite(x)]
    if drawn.size and drawn.max() > 20.0 * drawn.min():
        ax.set_xscale("log")
    ax.set(xlabel="optimiser step" if x_name == "step" else "epoch", ylabel="loss")
    ax.legend(frameon=False)
    return ax


def log_alpha_terms(terms: Mapping[str, ArrayLike], ax: "Axes | None" = None) -> "Axes":
    """Spread of the terms of log alpha over moves: median, quartiles and 5-95 % range of each, in kT.

    `terms` maps a label, such as "-Δu" or "log q(τ) - log q(τ')", to values [moves]. NaN and infinite values are left
    out and counted in the label.
    """
    finite = {label: _finite(values) for label, values in _series(terms, "terms").items()}
    ax = axes_or_new(ax, (6.0, 0.9 + 0.55 * len(finite)))
    boxes = ax.boxplot(
        [values for values, _ in finite.values()],
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.55,
        medianprops={"color": "black", "linewidth": 1.5},
        tick_labels=[_counted(label, left_out) for label, (_, left_out) in finite.items()],
    )
    for i, box in enumerate(boxes["boxes"]):
        box.set(facecolor=colour(i), alpha=0.6)
    ax.axvline(0.0, color="0.4", linewidth=0.8, linestyle=":")
    ax.invert_yaxis()
    ax.set_xlabel("log α and its terms (kT): median, quartiles, 5-95 %")
    return ax


def autocorrelation_plot(
    curves: ArrayLike | Mapping[str, ArrayLike],
    ax: "Axes | None" = None,
    spacing: float = 1.0,
    xlabel: str = "lag (iterations)",
) -> "Axes":
    """Autocorrelations [lags + 1] against the lag, one curve a label; a bare array is one curve without a legend.

    `spacing` is the distance of two lags in the unit that `xlabel` names.
    """
    if spacing <= 0.0:
        raise SettingError(f"spacing is {spacing}; expected a distance of two lags above 0")
    series = _series(curves if isinstance(curves, Mapping) else {"": curves}, "curves")
    ax = axes_or_new(ax)
    for i, (label, values) in enumerate(series.items()):
        ax.plot(np.arange(len(values)) * spacing, values, color=colour(i), linestyle=line(i), label=label or None)
    ax.axhline(0.0, color="0.4", linewidth=0.8)
    longest = max(len(values) for values in series.values())
    ax.set(xlabel=xlabel, ylabel="autocorrelation", xlim=(0.0, max(longest - 1, 1) * spacing), ylim=(None, 1.02))
    if any(series):
        ax.legend(frameon=False)
    return ax


def trace(
    phi: ArrayLike, ax: "Axes | None" = None, title: str | None = None, xlabel: str = "iteration", label: str = "φ"
) -> "Axes":
    """A torsion [draws] in rad against the iteration, with basin R shaded. Points, since an angle has no path."""
    angle = degrees(finite_array(phi, "phi"))
    ax = axes_or_new(ax, (7.0, 3.0))
    ax.axhspan(*np.degrees(BASIN_R), color=COLOURS[4], alpha=0.2, linewidth=0, label="basin R")
    size = float(np.clip(8e3 / len(angle), 1.0, 8.0))
    ax.scatter(np.arange(len(angle)), angle, s=size, color=COLOURS[0], linewidths=0, rasterized=True)
    ax.set(xlabel=xlabel, ylabel=f"{label} (degrees)", ylim=(-180, 180), yticks=_MULTIPLES_OF_90, title=title or "")
    ax.set_xlim(-0.5, len(angle) - 0.5)
    # Outside the axes, where it can hide no point.
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    return ax


def _series(values: Mapping[str, ArrayLike], name: str) -> dict[str, NDArray[np.float64]]:
    series = {str(label): np.asarray(array, dtype=np.float64) for label, array in values.items()}
    if not series:
        raise TrajectoryError(f"{name} is empty; expected at least one label with an array")
    for label, array in series.items():
        if array.ndim != 1 or array.size == 0:
            raise TrajectoryError(
                f"{name}[{label!r}] has shape {array.shape}; expected one axis and at least one value"
            )
    return series


def _first(columns: Mapping[str, NDArray[np.float64]], *names: str) -> NDArray[np.float64] | None:
    return next((columns[name] for name in names if name in columns), None)


def _finite(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The finite values and the fraction that is not."""
    kept = values[np.isfinite(values)]
    return kept, 1.0 - kept.size / values.size


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    """The range of the values without far outliers."""
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 4.0 * (third - first)
    return max(float(values.min()), float(first - reach)), min(float(values.max()), float(third + reach))


def _counted(label: str, left_out: float) -> str:
    return f"{label} ({100 * left_out:.2g} % not finite)" if left_out > 0.0 else label
