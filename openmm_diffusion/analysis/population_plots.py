"""Figures of populations and of rates, several ways side by side, with errors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SettingError
from ._figures import axes_or_new, colour
from .plots import ramachandran

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HATCHES = ("", "//", "..", "xx")


def population_bars(
    names: Sequence[str],
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ax: "Axes | None" = None,
    ylabel: str = "population",
) -> "Axes":
    """Shares of states on a logarithmic axis: of each label (values [states], errors [states]), bars side by side.

    Empty states have no bar. A bar of error that reaches zero ends at the bottom of the figure.
    """
    ax = axes_or_new(ax, (max(6.0, 1.5 + 0.7 * len(names)), 3.6))
    for i, (label, (values, errors)) in enumerate(series.items()):
        value, error = _pair(names, values, errors)
        shown = np.where(value > 0.0, value, np.nan)
        _bars(ax, i, len(series), label, shown, np.stack([np.minimum(error, 0.999 * value), error]))
    ax.set(ylabel=ylabel, yscale="log")
    return _finish(ax, names, series)


def rate_bars(
    names: Sequence[str],
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ax: "Axes | None" = None,
    ylabel: str = "effective draws a second",
) -> "Axes":
    """Rates on a logarithmic axis, as `population_bars`; a value with the error NaN is an upper bound, an arrow."""
    ax = axes_or_new(ax, (max(6.0, 2.5 + 1.2 * len(names)), 3.6))
    for i, (label, (values, errors)) in enumerate(series.items()):
        value, error = _pair(names, values, errors)
        is_bound = np.isnan(error) & ~np.isnan(value)
        spread = np.where(is_bound, 0.0, np.nan_to_num(error))
        places = _bars(ax, i, len(series), label, value, np.stack([np.minimum(spread, 0.999 * value), spread]))
        for x, y in zip(places[is_bound], value[is_bound], strict=True):
            ax.annotate("", (x, y / 3.0), (x, y), arrowprops={"arrowstyle": "->", "color": "black"})
    ax.set(ylabel=ylabel, yscale="log")
    return _finish(ax, names, series)


def _pair(names: Sequence[str], values: ArrayLike, errors: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    value, error = np.asarray(values, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if value.shape != (len(names),) or error.shape != value.shape:
        raise SettingError(f"values {value.shape} and errors {error.shape}; expected one each for {len(names)} names")
    return value, error


def _bars(ax: "Axes", i: int, n: int, label: str, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    width = 0.8 / n
    places = np.arange(len(values)) + (i - (n - 1) / 2) * width
    ax.bar(
        places,
        values,
        width,
        yerr=errors,
        capsize=2,
        label=label,
        color=colour(i),
        hatch=_HATCHES[i % len(_HATCHES)],
        edgecolor="white",
        error_kw={"linewidth": 1.0},
    )
    return places


def _finish(ax: "Axes", names: Sequence[str], series: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> "Axes":
    ax.set_xticks(np.arange(len(names)), names, rotation=90 if max(map(len, names)) * len(names) > 40 else 0)
    values = np.concatenate([np.asarray(value, dtype=np.float64) for value, _ in series.values()])
    values = values[values > 0.0]
    if values.size:
        ax.set_ylim(values.min() / 5.0, values.max() * 3.0)
    # Outside the axes, where it can hide no bar.
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2)
    return ax


def ramachandran_grid(
    ensembles: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]], labels: Sequence[str]
) -> "Figure":
    """Free energies over (phi, psi) of every residue that has both, an ensemble a row.

    `ensembles` maps a name to torsions [draws, T] (rad) and weights [draws] or None; `labels` [T] are such as
    "phi:ALA2" and "psi:ALA2". Raises SettingError where no residue has both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = {label: k for k, label in enumerate(labels)}
    residues = [label.removeprefix("phi:") for label in labels if label.startswith("phi:")]
    residues = [name for name in residues if f"psi:{name}" in places]
    if not residues:
        raise SettingError(f"the torsions are {', '.join(labels)}; expected phi and psi of one residue or more")
    figure = Figure(figsize=(4.2 * len(residues), 3.6 * len(ensembles)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ensembles), len(residues), squeeze=False)
    for row, (name, (tau, weights)) in zip(axes, ensembles.items(), strict=True):
        for ax, residue in zip(row, residues, strict=True):
            phi, psi = (tau[:, places[f"{kind}:{residue}"]] for kind in ("phi", "psi"))
            ramachandran(phi, psi, weights, ax, title=f"{name}, {residue}", borders=True)
    return figure
