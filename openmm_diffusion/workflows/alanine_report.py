"""What hybrid chains of alanine dipeptide show: numbers, a table of two models and plain MD, and figures."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import free_energy, mixing, plots
from .baseline import MarginalLimits


def summarise(
    arrays: dict[str, NDArray[Any]], seconds_total: float, ns_per_s: float, reference: dict[str, Any]
) -> dict[str, Any]:
    """The numbers of a run; None where one is not known.

    Parameters
    ----------
    arrays
        `Series.arrays()` of the chain.
    seconds_total
        Wall time of the chain.
    ns_per_s
        Simulated ns a second of plain MD on all cores, measured in the same run.
    reference
        Escape time of plain MD out of R, see `baseline.reference`.
    """
    before, after = (mixing.in_basin_r(arrays[name][:, 0]) for name in ("tau_before", "tau_after"))
    in_r = mixing.in_basin_r(arrays["tau_end"][:, 0])
    n = len(in_r)
    changes = mixing.count_changes(before, after)
    pi_r = float(in_r.mean())
    delta_f = free_energy.basin_free_energy(in_r)
    rate = rate_error = None
    times_md: tuple[float | None, float | None] = (None, None)
    if 0.0 < pi_r < 1.0:
        pi_r_error = 0.0 if delta_f.error is None else pi_r * (1 - pi_r) * delta_f.error
        tau_rl, tau_error = reference["tau_rl_ns"], reference["tau_rl_error_ns"]
        rate, rate_error = free_energy.md_rate_bound(ns_per_s, tau_rl, tau_error, pi_r, pi_r_error)
        times_md = _ratio(changes, seconds_total, rate, rate_error)
    seconds = {name: float(arrays[f"seconds_{name}"].sum()) for name in ("network", "energy", "md")}
    return {
        "iterations": n,
        "acceptance": float(arrays["accepted"].mean()),
        "basin_changes": changes,
        "basin_changes_per_s": changes / seconds_total,
        "md_basin_changes_per_s": rate,
        "md_basin_changes_per_s_error": rate_error,
        "md_ns_per_s": ns_per_s,
        "times_md": times_md[0],
        "times_md_error": times_md[1],
        "eta": mixing.change_efficiency(changes, n, pi_r),
        "pi_R": pi_r,
        "delta_f_kT": delta_f.value if np.isfinite(delta_f.value) else None,
        "delta_f_error_kT": delta_f.error,
        "delta_f_reference_kT": reference["delta_f_kT"],
        "delta_f_reference_error_kT": reference["delta_f_error_kT"],
        "ess_R": float(mixing.effective_sample_size(in_r.astype(float))) if in_r.any() else None,
        "invalid_candidates": int(np.nansum(arrays["n_invalid"])),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "seconds_total": seconds_total,
        **{f"ms_{name}": 1e3 * value / n for name, value in seconds.items()},
    }


def _ratio(changes: int, seconds: float, rate: float, rate_error: float) -> tuple[float, float | None]:
    """Basin changes a second over those of plain MD, and its error; None where no change was seen."""
    ratio = changes / seconds / rate
    return ratio, ratio * float(np.hypot(rate_error / rate, changes**-0.5)) if changes else None


def add_limits(summary: dict[str, Any], limits: MarginalLimits | None, n_candidates: int) -> None:
    """Add what the true marginal reaches on frames of this run (None where it was not measured)."""
    acceptance = None if limits is None else limits.acceptance[n_candidates]
    summary["acceptance_limit"] = acceptance
    summary["acceptance_of_limit"] = None if acceptance is None else summary["acceptance"] / acceptance
    summary["eta_marginal"] = None if limits is None else limits.eta[n_candidates]
    summary["eta_oracle"] = None if limits is None else limits.eta_oracle
    summary["kish_limit"] = None if limits is None else limits.kish


def table(summary: dict[str, Any]) -> str:
    """The summary as text, for people: a column for each chain, and one for plain MD."""
    chains = [summary, *([summary["comparison"]] if summary.get("comparison") else [])]
    head = [_KINDS.get(str(chain.get("kind")), str(chain["model"])) for chain in chains]
    reference = _with_error(summary, "delta_f_reference_kT", "delta_f_reference_error_kT")
    plain = {
        "basin changes a second": _with_error(
            summary, "md_basin_changes_per_s", "md_basin_changes_per_s_error", "{:.2g}"
        ),
        "times plain MD": "1",
        "Delta F(R - L) / kT": f"{reference} (reference)",
    }
    columns = [_column(chain) for chain in chains]
    rows = [["", *head, "plain MD"]]
    rows += [[name, *(column[name] for column in columns), plain.get(name, "-")] for name in columns[0]]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text = "\n".join(f"  {line}" for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
    return f"{text}\n\n  ms a move: time that the chain waits; platform {summary['platform']}, plain MD on all cores"


_KINDS = {"se3": "SE(3)", "torsion": "torsion"}


def _column(chain: dict[str, Any]) -> dict[str, str]:
    """The rows of one chain."""
    network, energies, md = (_number(chain, f"ms_{name}", "{:.1f}") for name in ("network", "energy", "md"))
    oracle = _number(chain, "eta_oracle", "{:.2f}")
    times = _number(chain, "times_md", "{:.0f}")
    if chain.get("times_md_error") is not None:
        times += f" +- {chain['times_md_error']:.0f}"
    return {
        "model": str(chain["model"]),
        "moves": f"{chain['iterations']} of {chain['n_candidates']} candidates",
        "accepted": _number(chain, "acceptance", "{:.1%}"),
        "limit of the true marginal": _number(chain, "acceptance_limit", "{:.1%}"),
        "eta (exact conditional)": f"{_number(chain, 'eta', '{:.2f}')} ({oracle})",
        "basin changes": _number(chain, "basin_changes", "{:d}"),
        "basin changes a second": _number(chain, "basin_changes_per_s", "{:.2f}"),
        "times plain MD": times,
        "ms a move: network / energies": f"{network} / {energies}",
        "ms of MD after a move": md,
        "Delta F(R - L) / kT": _with_error(chain, "delta_f_kT", "delta_f_error_kT"),
        "effective samples of R": _number(chain, "ess_R", "{:.0f}"),
        "seconds": _number(chain, "seconds_total", "{:.0f}"),
    }


def _number(summary: dict[str, Any], key: str, pattern: str = "{:.3g}") -> str:
    value = summary.get(key)
    return "-" if value is None else pattern.format(value)


def _with_error(summary: dict[str, Any], key: str, error: str, pattern: str = "{:.2f}") -> str:
    value = _number(summary, key, pattern)
    return value if summary.get(error) is None else f"{value} +- {_number(summary, error, pattern)}"


FILES = {
    "ramachandran.png": "free energy over phi and psi",
    "phi.png": "phi along the chain, with the basins",
    "acceptance.png": "the terms of log alpha",
    "autocorrelation.png": "of the torsions, and of being in R",
    "trajectory.dcd": "one frame an iteration",
    "topology.pdb": "its topology",
    "summary.json": "all numbers",
    "checkpoint.npz": "for --resume",
    "comparison": "the same pictures of the chain with the other model",
}


def draw(arrays: dict[str, NDArray[Any]], folder: Path) -> None:
    """Write the figures."""
    phi, psi = arrays["tau_end"].T[:2]
    plots.save(plots.ramachandran(phi, psi, title="Hybrid chain", borders=True), folder / "ramachandran.png")
    plots.save(plots.trace(phi, xlabel="iteration"), folder / "phi.png")
    terms = {
        "-(u' - u)": arrays["u_present"] - arrays["u_candidate"],
        "log q - log q'": arrays["log_q_present"] - arrays["log_q_candidate"],
        "log alpha": arrays["log_alpha"],
    }
    finite = {name: values[np.isfinite(values)] for name, values in terms.items()}
    plots.save(plots.log_alpha_terms(finite), folder / "acceptance.png")
    n_lags = min(25, len(phi) // 4)
    curves = {
        "cos phi": mixing.autocorrelation(np.cos(phi), n_lags),
        "cos psi": mixing.autocorrelation(np.cos(psi), n_lags),
    }
    in_r = mixing.in_basin_r(phi)
    if in_r.any() and not in_r.all():
        curves["in R"] = mixing.autocorrelation(in_r.astype(float), n_lags)
    plots.save(plots.autocorrelation_plot(curves, xlabel="iterations"), folder / "autocorrelation.png")
