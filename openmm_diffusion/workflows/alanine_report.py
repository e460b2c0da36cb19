"""What a hybrid chain of alanine dipeptide shows: numbers, a table, and figures."""

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
    if 0.0 < pi_r < 1.0:
        pi_r_error = 0.0 if delta_f.error is None else pi_r * (1 - pi_r) * delta_f.error
        tau_rl, tau_error = reference["tau_rl_ns"], reference["tau_rl_error_ns"]
        rate, rate_error = free_energy.md_rate_bound(ns_per_s, tau_rl, tau_error, pi_r, pi_r_error)
    return {
        "iterations": n,
        "acceptance": float(arrays["accepted"].mean()),
        "basin_changes": changes,
        "basin_changes_per_s": changes / seconds_total,
        "md_basin_changes_per_s": rate,
        "md_basin_changes_per_s_error": rate_error,
        "md_ns_per_s": ns_per_s,
        "eta": mixing.change_efficiency(changes, n, pi_r),
        "pi_R": pi_r,
        "delta_f_kT": delta_f.value if np.isfinite(delta_f.value) else None,
        "delta_f_error_kT": delta_f.error,
        "delta_f_reference_kT": reference["delta_f_kT"],
        "delta_f_reference_error_kT": reference["delta_f_error_kT"],
        "ess_R": float(mixing.effective_sample_size(in_r.astype(float))) if in_r.any() else None,
        "invalid_candidates": int(np.nansum(arrays["n_invalid"])),
        "seconds_network": float(arrays["seconds_network"].sum()),
        "seconds_energy": float(arrays["seconds_energy"].sum()),
        "seconds_md": float(arrays["seconds_md"].sum()),
        "seconds_total": seconds_total,
    }


def add_limits(summary: dict[str, Any], limits: MarginalLimits | None, n_candidates: int) -> None:
    """Add what the true marginal reaches on frames of this run (None where it was not measured)."""
    acceptance = None if limits is None else limits.acceptance[n_candidates]
    summary["acceptance_limit"] = acceptance
    summary["acceptance_of_limit"] = None if acceptance is None else summary["acceptance"] / acceptance
    summary["eta_marginal"] = None if limits is None else limits.eta[n_candidates]
    summary["eta_oracle"] = None if limits is None else limits.eta_oracle
    summary["kish_limit"] = None if limits is None else limits.kish


def table(summary: dict[str, Any]) -> str:
    """The summary as text, for people."""

    def number(key: str, pattern: str = "{:.3g}") -> str:
        value = summary.get(key)
        return "-" if value is None else pattern.format(value)

    def with_error(key: str, error: str, pattern: str = "{:.2f}") -> str:
        return f"{number(key, pattern)} +- {number(error, pattern)}"

    speed_up = "-"
    if summary.get("md_basin_changes_per_s"):
        ratio = summary["basin_changes_per_s"] / summary["md_basin_changes_per_s"]
        relative = summary["md_basin_changes_per_s_error"] / summary["md_basin_changes_per_s"]
        speed_up = f"{ratio:.0f} +- {ratio * np.hypot(relative, 1 / np.sqrt(summary['basin_changes'])):.0f}"
    share = summary["seconds_network"] / summary["seconds_total"]
    reference = number("delta_f_reference_kT", "{:.2f}")
    if summary.get("delta_f_reference_error_kT") is not None:
        reference = with_error("delta_f_reference_kT", "delta_f_reference_error_kT")
    rows = [
        ("moves", f"{summary['iterations']} of {summary['n_candidates']} candidates, {summary['model']}"),
        (
            "accepted",
            f"{number('acceptance', '{:.1%}')}  (limit of the true marginal {number('acceptance_limit', '{:.1%}')})",
        ),
        ("basin changes", f"{summary['basin_changes']}, {number('basin_changes_per_s', '{:.2f}')} a second"),
        (
            "plain MD, all cores",
            f"{with_error('md_basin_changes_per_s', 'md_basin_changes_per_s_error', '{:.2g}')} a second",
        ),
        ("ratio", speed_up),
        ("eta", f"{number('eta', '{:.2f}')}  (exact conditional {number('eta_oracle', '{:.2f}')})"),
        ("Delta F(R - L) / kT", f"{with_error('delta_f_kT', 'delta_f_error_kT')}  (reference {reference})"),
        ("effective samples of R", number("ess_R", "{:.0f}")),
        (
            "seconds",
            f"{number('seconds_total', '{:.1f}')}: network {share:.0%}, "
            f"energies {summary['seconds_energy'] / summary['seconds_total']:.0%}, "
            f"MD {summary['seconds_md'] / summary['seconds_total']:.0%}",
        ),
        ("platform", str(summary["platform"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


FILES = {
    "ramachandran.png": "free energy over phi and psi",
    "phi.png": "phi along the chain, with the basins",
    "acceptance.png": "the terms of log alpha",
    "autocorrelation.png": "of the torsions, and of being in R",
    "trajectory.dcd": "one frame an iteration",
    "topology.pdb": "its topology",
    "summary.json": "all numbers",
    "checkpoint.npz": "for --resume",
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
