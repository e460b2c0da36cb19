"""Figures without pyplot: fresh axes, colours of series, and files that are written whole or not at all."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours in the order in which series take them."""

_LINES = ("-", "--", "-.", ":")


def axes_or_new(ax: "Axes | None", size: tuple[float, float] = (5.0, 4.0)) -> "Axes":
    """`ax` itself, or the axes of a new figure of `size` (inches) that needs no display."""
    if ax is not None:
        return ax
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def colour(i: int) -> str:
    """The colour of series i."""
    return COLOURS[i % len(COLOURS)]


def line(i: int) -> str:
    """The line style of series i: with its colour it is unique for the first 28."""
    return _LINES[(i % len(COLOURS) + i // len(COLOURS)) % len(_LINES)]


def save(drawing: "Figure | Axes", path: str | os.PathLike[str], dpi: int = 150) -> Path:
    """Write a figure, or the figure of an Axes, to `path`; the suffix chooses the format. Closes the figure.

    Written under a temporary name and renamed, so that a reader never meets half a picture. Raises OutputError where
    the folder or the suffix does not allow it.
    """
    target = Path(path)
    figure: Any = drawing if hasattr(drawing, "savefig") else drawing.get_figure(root=True)  # type: ignore[call-arg]
    aside = target.with_name(f".{target.stem}.part{os.getpid()}{target.suffix or '.png'}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(aside, dpi=dpi)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot write the figure {target}: {error}; choose another folder or .png, .svg or .pdf"
        ) from error
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)
    return target
