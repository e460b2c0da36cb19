"""What a run of `generate torsion` shows: populations, energies, figures, and a summary for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import in_basin_r, plots, resample
from ..models import Model
from .boltzmann import Correction, shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
ENERGY_MARGIN = 40.0  # kT above the corrected and the MD energies where the figure ends
BINS = 48

FILES = {
    "generated.pdb": "one structure for each frame, after the correction; models of one file",
    "generated.dcd": "the same as a trajectory",
    "uncorrected.dcd": "the first candidate of each frame, as the model drew it",
    "md.pdb": "the end of the MD from each structure",
    "md.dcd": "frames of these trajectories, one after another",
    "energy_before_after.png": "energies before and after the correction, and in MD",
    "ramachandran.png": "phi and psi: model, corrected, MD",
    "ramachandran_generated.png": "the first of these alone",
    "ramachandran_corrected.png": "the second",
    "ramachandran_md.png": "the third",
    "loss_curve.png": "the training of the model",
    "summary.json": "all numbers",
    "settings.yaml": "the resolved settings",
}


@dataclass(frozen=True)
class Drawing:
    """What is drawn: the torsions' kinds and labels, the correction, and torsions [n, T] and energies [n] of MD."""

    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    correction: Correction
    tau_md: Array
    u_md: Array
    rng: np.random.Generator

    def sets(self) -> dict[str, tuple[Array, Array]]:
        """Torsions [n, T] with weights [n] (sum one) of the frames, the model, the corrected ensemble and MD."""
        tau = self.correction.tau
        n_torsions = tau.shape[-1]
        # Every candidate with its share at its own rho: the same ensemble as what was picked, with less noise.
        weights = shares(self.correction.log_w).ravel()
        sets = {
            "frames": (tau[:, -1], np.ones(len(tau))),
            "model": (tau[:, :-1].reshape(-1, n_torsions), np.ones(tau[:, :-1, 0].size)),
            "corrected": (tau.reshape(-1, n_torsions), weights),
            "MD": (self.tau_md, np.ones(len(self.tau_md))),
        }
        finite = {name: (points, w, np.isfinite(points).all(axis=1)) for name, (points, w) in sets.items()}
        return {
            name: (points[keep], w[keep] / w[keep].sum()) for name, (points, w, keep) in finite.items() if keep.any()
        }

    def pairs(self) -> list[tuple[int, int]]:
        """Columns of the (phi, psi) of the residues that have both."""
        place = {label: column for column, label in enumerate(self.labels)}
        residues = [label.removeprefix("phi:") for label in self.labels if label.startswith("phi:")]
        return [(place[f"phi:{r}"], place[f"psi:{r}"]) for r in residues if f"psi:{r}" in place]

    def energies(self) -> dict[str, Array]:
        """Energies (kT) before the correction, after it (picked afresh at each rho), and in MD."""
        with np.errstate(divide="ignore"):
            log_shares = np.log(shares(self.correction.log_w))
        rows = zip(self.correction.u, log_shares, strict=True)
        after = [u[resample(share, len(u), self.rng, "systematic")] for u, share in rows]
        found = {"model": self.correction.u[:, :-1].ravel(), "corrected": np.concatenate(after), "MD": self.u_md}
        return {name: u for name, u in found.items() if len(u)}


def populations_and_energies(drawing: Drawing) -> dict[str, Any]:
    """Share of basin R over all phi, and quantiles of the energies; None where there is nothing to say."""
    columns = [column for column, kind in enumerate(drawing.kinds) if kind == "phi"]
    in_r: dict[str, float | None] = dict.fromkeys(("frames", "model", "corrected", "MD"))
    for name, (tau, weights) in drawing.sets().items():
        if columns:
            in_r[name] = float(weights @ in_basin_r(tau[:, columns]).mean(axis=1))
    energies: dict[str, dict[str, float] | None] = dict.fromkeys(("model", "corrected", "MD"))
    for name, u in drawing.energies().items():
        finite = u[np.isfinite(u)]
        if len(finite):
            low, median, high = np.quantile(finite, (0.05, 0.5, 0.95))
            energies[name] = {"5%": float(low), "median": float(median), "95%": float(high)}
    return {"share_of_basin_R": in_r, "energies_kT": energies}


def draw(drawing: Drawing, model: Model, folder: Path) -> list[str]:
    """Write the figures; returns a sentence for each that could not be drawn."""
    notes = []
    labels = {"model": "model, before correction", "corrected": "after correction", "MD": "MD from each structure"}
    energies = {labels[name]: u for name, u in _clipped(drawing.energies()).items()}
    plots.save(plots.energy_histograms(energies), folder / "energy_before_after.png")
    titles = {"model": "Model, uncorrected", "corrected": "Boltzmann-corrected", "MD": "MD from each structure"}
    names = {"model": "generated", "corrected": "corrected", "MD": "md"}
    if drawing.pairs():
        sets = {name: values for name, values in drawing.sets().items() if name in titles}
        for name, (tau, weights) in sets.items():
            axes = _surface(drawing, tau, weights, titles[name])
            plots.save(axes, folder / f"ramachandran_{names[name]}.png")
        titled = {titles[name]: values for name, values in sets.items()}
        plots.save(_panel(drawing, titled), folder / "ramachandran.png")
    else:
        notes.append("no Ramachandran figures: the model has no residue with both phi and psi")
    curve = _loss_curve(model)
    if curve is None:
        notes.append("no loss curve: neither the card of the model nor its folder holds one")
    else:
        plots.save(plots.loss_curve(curve), folder / "loss_curve.png")
    return notes


def _surface(drawing: Drawing, tau: Array, weights: Array, title: str, ax: Any = None) -> Any:
    pairs = drawing.pairs()
    phi, psi = (np.concatenate([tau[:, pair[side]] for pair in pairs]) for side in (0, 1))
    return plots.ramachandran(phi, psi, np.tile(weights, len(pairs)), ax=ax, title=title, bins=BINS)


def _panel(drawing: Drawing, sets: Mapping[str, tuple[Array, Array]]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9 * len(sets), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (title, (tau, weights)) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        _surface(drawing, tau, weights, title, ax)
    return figure


def _clipped(energies: dict[str, Array]) -> dict[str, Array]:
    """Energies with clashes moved to the edge of the figure, which is set by what is Boltzmann's."""
    settled = np.concatenate([u[np.isfinite(u)] for name, u in energies.items() if name != "model"])
    edge = np.quantile(settled, 0.999) + ENERGY_MARGIN
    return {name: np.where(np.isfinite(u), np.minimum(u, edge), np.nan) for name, u in energies.items()}


def _loss_curve(model: Model) -> Any:
    """What `plots.loss_curve` takes: from the card, or metrics.csv beside the model's file."""
    columns = model.card.get("loss_curve")
    if columns:
        return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    beside = Path(model.source["path"]).parent / "metrics.csv" if "path" in model.source else None
    return beside if beside is not None and beside.is_file() else None


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary as text, for people."""

    def number(value: float | None, pattern: str = "{:.3f}") -> str:
        return "-" if value is None else pattern.format(value)

    kish, k_hat, in_r = summary["kish"], summary["pareto_k"], summary["share_of_basin_R"]
    medians = {name: None if u is None else u["median"] for name, u in summary["energies_kT"].items()}
    drawn, summed = (number(summary[key], "{:.1%}") for key in ("kish_of_limit", "kish_on_grid_of_limit"))
    above = number(summary["pareto_k_above_0.7"], "{:.0%}")
    candidates = f"{summary['candidates_a_frame']} candidates each"
    rows = [
        ("structures", f"{summary['frames']}, one for each frame of {summary['frames_from']}; {candidates}"),
        ("Kish ESS / n", f"{number(kish['mean'])} as drawn ({number(kish['min'])} to {number(kish['max'])})"),
        ("", f"{number(summary['kish_on_grid'])} for many candidates (sum over a grid)"),
        ("true marginal", f"{number(summary['kish_limit'])} by the same sum on the same frames"),
        ("ratio to it", f"{drawn} as drawn, {summed} by the sum"),
        ("Pareto k-hat", f"{number(k_hat['mean'], '{:.2f}')} on average, above 0.7 in {above} of the frames"),
        ("torsions kept", number(summary["frames_that_kept_their_own_torsions"], "in {:.1%} of the frames")),
        ("in basin R", ", ".join(f"{name} {number(share, '{:.2%}')}" for name, share in in_r.items())),
        ("median energy", ", ".join(f"{name} {number(u, '{:.1f}')}" for name, u in medians.items()) + " kT"),
        ("invalid", f"{summary['invalid_candidates']} candidates; MD failed from {summary['md_failed']} structures"),
        ("computed on", f"{summary['platform']} (energies, MD), {summary['device']} (network)"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    return "\n".join([*lines, *(f"  note: {note}" for note in summary["notes"])])
