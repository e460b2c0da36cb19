"""What parallel tempering shows: populations of basin R at every temperature, their errors, a comparison, figures."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import free_energy, mixing, plots
from ..analysis.tempering_plots import phi_densities, replica_walk
from .tempering_series import TemperingSeries

FILES = {
    "phi.png": "densities of phi at every temperature",
    "replica_walk.png": "temperatures of the replicas",
    "summary.json": "all numbers",
    "tempering.nc": "openmmtools' storage, for --resume",
    "single": "the chains at single temperatures",
}


def summarise(series: TemperingSeries, single: NDArray[np.float64] | None, reference: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a run; None where one is not known.

    Parameters
    ----------
    series
        What `read_series` gave.
    single
        phi [iterations, states] (rad) of chains at single temperatures, None without them.
    reference
        Free energy at 300 K, see `baseline.reference`.
    """
    states = []
    for k, kelvin in enumerate(series.kelvin):
        n = int(series.n_proposed[k])
        row = {
            "temperature_K": float(kelvin),
            "acceptance": float(series.n_accepted[k] / n) if n else None,
            **_population(series.phi[:, k]),
        }
        if single is not None:
            row["single"] = _population(single[:, k])
            row |= _compared(row, row["single"])
        states.append(row)
    first = states[0]
    known = abs(series.kelvin[0] - 300.0) < 0.01
    return {
        "iterations": len(series.phi),
        "iterations_single": None if single is None else len(single),
        "delta_f_kT": first["delta_f_kT"],
        "delta_f_error_kT": first["delta_f_error_kT"],
        "delta_f_reference_kT": reference["delta_f_kT"] if known else None,
        "delta_f_reference_error_kT": reference["delta_f_error_kT"] if known else None,
        "round_trips": round_trips(series.state_of, len(series.kelvin)),
        "states": states,
    }


def _population(phi: NDArray[np.float64]) -> dict[str, Any]:
    """Population of R with its error by autocorrelation, and the free energy R - L in kT of that temperature."""
    in_r = mixing.in_basin_r(phi)
    share = float(in_r.mean())
    delta = free_energy.basin_free_energy(in_r)
    return {
        "pi_R": share,
        "pi_R_error": None if delta.error is None else delta.error * share * (1.0 - share),
        "delta_f_kT": delta.value if np.isfinite(delta.value) else None,
        "delta_f_error_kT": delta.error,
    }


def _compared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Difference of two free energies and its error, None where one of them is not known."""
    if one["delta_f_error_kT"] is None or other["delta_f_error_kT"] is None:
        return {"difference_kT": None, "difference_error_kT": None}
    return {
        "difference_kT": one["delta_f_kT"] - other["delta_f_kT"],
        "difference_error_kT": float(np.hypot(one["delta_f_error_kT"], other["delta_f_error_kT"])),
    }


def round_trips(state_of: NDArray[np.int64], n_states: int) -> int:
    """How often replicas [iterations, replicas] went from the lowest state to the highest and back, all together."""
    total = 0
    for walk in state_of.T:
        ends = walk[(walk == 0) | (walk == n_states - 1)]
        turns = int(np.count_nonzero(np.diff(ends)))
        # A walk that begins at the top has its first half trip before it ever was at the bottom.
        total += (turns - int(len(ends) > 0 and ends[0] != 0)) // 2 if turns else 0
    return total


def table(summary: dict[str, Any]) -> str:
    """The summary as text, for people: a line for each temperature."""
    compared = summary["iterations_single"] is not None
    rows = [["T / K", "accepted", "pi_R", "Delta F / kT", *(["single chain", "difference"] if compared else [])]]
    for state in summary["states"]:
        row = [
            f"{state['temperature_K']:.1f}",
            "-" if state["acceptance"] is None else f"{state['acceptance']:.1%}",
            _with_error(state, "pi_R", "pi_R_error", "{:.4f}"),
            _with_error(state, "delta_f_kT", "delta_f_error_kT"),
        ]
        if compared:
            row += [
                _with_error(state["single"], "delta_f_kT", "delta_f_error_kT"),
                _with_error(state, "difference_kT", "difference_error_kT"),
            ]
        rows.append(row)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text = "\n".join(f"  {line}" for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
    end = f"{summary['iterations']} iterations, {summary['round_trips']} round trips of replicas"
    if summary["delta_f_reference_kT"] is not None:
        reference = _with_error(summary, "delta_f_reference_kT", "delta_f_reference_error_kT")
        end += f"; reference of Delta F at 300 K: {reference} kT"
    return f"{text}\n\n  {end}"


def _with_error(row: dict[str, Any], key: str, error: str, pattern: str = "{:.2f}") -> str:
    value = "-" if row[key] is None else pattern.format(row[key])
    return value if row[error] is None else f"{value} +- {pattern.format(row[error])}"


def draw(series: TemperingSeries, folder: Path) -> None:
    """Write the figures."""
    plots.save(phi_densities(series.phi, series.kelvin), folder / "phi.png")
    plots.save(replica_walk(series.state_of, series.kelvin), folder / "replica_walk.png")
