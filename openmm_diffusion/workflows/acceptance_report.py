"""The table and the figure of measured acceptance."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.free_energy import md_rate_bound
from ..analysis.plots import save
from .acceptance import Row
from .baseline import reference
from .trials import MOVE

_PARTS = ("total", "rho", "systematic", "noise", "divergence", "path_divergence")


def add_times_md(values: dict[str, Any], system: str, md_ns_per_s: float | None) -> None:
    """Add to the chain of a row its basin changes a second over those of plain MD on all cores."""
    if "chain" not in values or md_ns_per_s is None or not system.startswith("alanine-dipeptide-"):
        return
    known = reference(system.rsplit("-", 1)[1])
    # The reference's population of R, which neither a short chain nor a few hundred frames know well.
    pi_r = 1.0 / (1.0 + math.exp(known["delta_f_kT"]))
    pi_r_error = pi_r * (1.0 - pi_r) * (known["delta_f_error_kT"] or 0.0)
    rate, error = md_rate_bound(md_ns_per_s, known["tau_rl_ns"], known["tau_rl_error_ns"], pi_r, pi_r_error)
    chain = values["chain"]
    chain["md_basin_changes_per_s"], chain["md_basin_changes_per_s_error"] = rate, error
    chain["times_md"] = chain["basin_changes_per_s"] / rate


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, for people."""
    sizes = list(rows[0]["acceptance"])
    head = [
        "model",
        "proposal",
        "density, K, dtype",
        *(f"accepted, {n}" for n in sizes),
        "limits",
        "eta",
        "ms (network)",
    ]
    lines = [[*head, "changes/s", "times MD"]]
    for row in rows:
        accepted = [row["acceptance"][n] for n in sizes]
        chain, cost = row.get("chain", {}), row["cost"]
        lines.append(
            [
                row["model"],
                row["proposal"],
                f"{row['density']}, {row['n_diffusion_steps']}, {row['dtype']}",
                *(f"{100 * value['mean']:.1f} +- {100 * (value['error'] or 0.0):.1f} %" for value in accepted),
                " / ".join(f"{100 * row['limit'][n]:.0f}" for n in sizes) + " %" if row["limit"] else "-",
                f"{row['eta'][MOVE]:.2f}" if MOVE in row.get("eta", {}) else "-",
                f"{cost['ms']:.1f} ({cost['ms_network']:.1f})",
                f"{chain['basin_changes_per_s']:.2f}" if chain else "-",
                f"{chain['times_md']:.0f}" if "times_md" in chain else "-",
            ]
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([text, "", *(_notes(row) for row in rows)])


def _notes(row: dict[str, Any]) -> str:
    """Where the spread comes from, or how far local moves go, in lines."""
    spread = row["log_w_candidates"]
    lines = [f"{row['model']}, {row['proposal']}, {row['n_frames']} frames of {row['system']}:"]
    lines.append(f"  log w over candidates at a frame: sd {spread['median_sd_at_a_frame']:.2f}, median over frames")
    if chain := row.get("chain"):
        lines.append(
            f"  chain of {chain['iterations']} moves of {chain['n_candidates']} candidates: {chain['acceptance']:.1%} "
            f"accepted, eta {chain['eta']:.2f}, {chain['ms_iteration']:.1f} ms an iteration with its dynamics"
        )
    for key in ("origins", "origins_doubled_steps"):
        parts = row.get(key, {})
        shown = [f"{name} {parts[name]:.2f}" for name in _PARTS if parts.get(name) is not None]
        if shown:
            lines.append(f"  at frames, K = {parts['n_diffusion_steps']}: {', '.join(shown)}")
    for n, moved in row.get("displacement", {}).items():
        median, changed = moved["median_displacement_deg"], moved["median_displacement_of_changed_deg"]
        if median is not None:
            lines.append(
                f"  {n} candidates: accepted moves turn phi and psi by {median:.0f} degrees ({changed:.0f} where moved)"
            )
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of acceptance against the limits, and histograms of the normalised log w."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    bars, histogram = figure.subplots(1, 2)
    sizes = list(rows[0].values["acceptance"])
    width = 0.8 / len(rows)
    for k, row in enumerate(rows):
        values = row.values
        place = np.arange(len(sizes)) + (k - (len(rows) - 1) / 2) * width
        heights = [values["acceptance"][n]["mean"] for n in sizes]
        name = f"{Path(values['model']).stem}, {values['proposal']}, {values['density']}"
        drawn = bars.bar(place, heights, width, yerr=[values["acceptance"][n]["error"] for n in sizes], label=name)
        bars.bar_label(drawn, [f"{height:.0%}" for height in heights], padding=2, fontsize=8)
        colour = drawn.patches[0].get_facecolor()
        shown = row.log_w[np.isfinite(row.log_w)]
        edges = np.linspace(-12.0, 6.0, 73)
        histogram.hist(np.clip(shown, -12.0, 6.0), edges, density=True, histtype="step", color=colour, label=name)
    limit = rows[0].values["limit"]
    for k, n in enumerate(sizes if limit else ()):
        bars.hlines(limit[n], k - 0.45, k + 0.45, "black", "--", label="limit of the true marginal" if k == 0 else None)
    bars.set(xticks=range(len(sizes)), xticklabels=sizes, xlabel="candidates a move", ylabel="accepted", ylim=(0, 1.08))
    histogram.set(xlabel="log w of candidates, normalised at each frame", ylabel="density")
    bars.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    histogram.legend(frameon=False, fontsize=7, loc="upper left")
    save(figure, path)
