"""Draw the figures of the documentation.

python examples/figures.py                     # examples/diagram.png
python examples/figures.py --output somewhere
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from openmm_diffusion.analysis import save

LEARNED, EXACT, PLAIN = "#56B4E9", "#009E73", "#E69F00"

# name: (centre x, centre y, colour, title, what happens there)
BOXES = {
    "data": (1.35, 3.0, PLAIN, "Training data", "parallel tempering\nφ, ψ and MBAR weights"),
    "model": (4.95, 3.0, LEARNED, "Torsion diffusion", "in: noisy torsions τ$_t$, t\nout: score; samples, density q"),
    "correction": (8.75, 4.1, EXACT, "Boltzmann correction", "exp(-u) / q in each frame\npick one of M + 1 torsions"),
    "chain": (8.75, 1.9, EXACT, "Metropolis-Hastings", "DiffusionMove in openmmtools\naccept with min(1, w′ / w)"),
    "pdb": (12.35, 4.1, PLAIN, "Structures", "PDB and DCD\none for each frame"),
    "md": (12.35, 1.9, PLAIN, "MD", "OpenMM, from each structure\nor between two moves"),
}  # fmt: skip
WIDTH, HEIGHT = 2.95, 1.3
# from, to, label, shift upwards
ARROWS = (
    ("data", "model", "train", 0.0),
    ("model", "correction", "", 0.0),
    ("model", "chain", "", 0.0),
    ("correction", "pdb", "", 0.0),
    ("pdb", "md", "start", 0.0),
    ("chain", "md", "", 0.2),
    ("md", "chain", "", -0.2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write")
    folder = parser.parse_args().output
    print(save(diagram(), folder / "diagram.png", dpi=110))


def diagram() -> Figure:
    """The workflow: what is learned, what is exact, what is plain MD."""
    figure = Figure(figsize=(11.0, 3.9))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set(xlim=(-0.25, 13.95), ylim=(0.35, 5.4))
    ax.axis("off")
    for source, target, label, shift in ARROWS:
        _arrow(ax, source, target, label, shift)
    for x, y, colour, title, text in BOXES.values():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        ax.add_patch(
            FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.15", fc=colour, alpha=0.25, lw=0)
        )
        ax.add_patch(
            FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.15", fc="none", ec=colour, lw=1.6)
        )
        ax.text(x, y + 0.34, title, ha="center", va="center", fontsize=11, weight="bold")
        ax.text(x, y - 0.2, text, ha="center", va="center", fontsize=8.5)
    for x, colour, text in (
        (0.2, LEARNED, "learned"),
        (1.5, EXACT, "exact, whatever was learned"),
        (4.6, PLAIN, "physics as usual"),
    ):
        ax.add_patch(FancyBboxPatch((x - 0.1, 0.6), 0.2, 0.2, "round,pad=0,rounding_size=0.05", fc=colour, lw=0))
        ax.text(x + 0.25, 0.7, text, va="center", fontsize=9)
    return figure


def _arrow(ax: Any, source: str, target: str, label: str, shift: float) -> None:
    (x0, y0), (x1, y1) = BOXES[source][:2], BOXES[target][:2]
    upright = x0 == x1
    if upright:
        start, end = (x0, y0 - HEIGHT / 2), (x1, y1 + HEIGHT / 2)
    else:
        side = 1.0 if x1 > x0 else -1.0
        start, end = (x0 + side * WIDTH / 2, y0 + shift), (x1 - side * WIDTH / 2, y1 + shift)
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="0.3", lw=1.3, shrinkA=2, shrinkB=2)
    )
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if upright:
        ax.text(x + 0.1, y, label, ha="left", va="center", fontsize=9, color="0.3")
    else:
        ax.text(x, y + 0.12, label, ha="center", va="bottom", fontsize=9, color="0.3")


if __name__ == "__main__":
    main()
