"""What hybrid chain, parallel tempering and plain dynamics of a peptide show side by side: numbers and a table."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import populations as pop
from ..analysis import switching
from ..analysis.free_energy import Estimate
from ..analysis.mixing import in_basin_r
from ..units import wrap
from .escape_dynamics import DynamicsRecord
from .tempered_reference import TemperedReference

Array = NDArray[np.float64]
OBSERVABLES = ("cos phi", "sin phi", "in R")


def observables(phi: Array) -> Array:
    """cos, sin and membership of R [..., 3] of phi [...]."""
    return np.stack([np.cos(phi), np.sin(phi), in_basin_r(phi)], -1)


def moves_report(
    arrays: dict[str, NDArray[Any]], kinds: NDArray[np.str_], moved: NDArray[np.bool_]
) -> dict[str, dict[str, Any]]:
    """Acceptance, cost and size of the moves of each kind.

    Parameters
    ----------
    arrays
        `Series.arrays()` of the chain.
    kinds
        [iterations] names of the moves.
    moved
        [T] which torsions of the chain the moves set.
    """
    report = {}
    for kind in dict.fromkeys(kinds.tolist()):
        rows = kinds == kind
        accepted = rows & (arrays["accepted"] > 0)
        turned = np.abs(wrap(arrays["tau_after"] - arrays["tau_before"]))[accepted][:, moved]
        report[kind] = {
            "moves": int(rows.sum()),
            "acceptance": float(arrays["accepted"][rows].mean()),
            "acceptance_error": _binomial(int(accepted.sum()), int(rows.sum())),
            "ms_a_move": 1e3 * float(arrays["seconds_move"][rows].mean()),
            "invalid_candidates": int(np.nansum(arrays["n_invalid"][rows])),
            "median_turn_degrees": float(np.degrees(np.median(turned))) if accepted.any() else None,
        }
    return report


def mixing_report(
    phi: Array,
    seconds: float,
    reference: TemperedReference,
    tempering_steps_per_s: float,
    dynamics: DynamicsRecord,
    columns: list[int],
    labels: list[str],
) -> list[dict[str, Any]]:
    """Effective draws a second of every phi by the three ways.

    Parameters
    ----------
    phi
        [iterations, phis] of the hybrid chain, rad.
    seconds
        Its wall time.
    reference
        Frames of parallel tempering with weights.
    tempering_steps_per_s
        Its speed on this machine, all cores.
    dynamics
        Plain dynamics on this machine, all cores.
    columns
        Of phi among the torsions of reference and dynamics.
    labels
        Names of phi.

    Of each way the smaller of cos and sin is the value, None where R or L was never left; `in R` is beside it.
    """
    tempering_seconds = reference.md_steps / tempering_steps_per_s
    rows = []
    for k, (column, label) in enumerate(zip(columns, labels, strict=True)):
        target = observables(reference.tau[..., column])
        member = target[..., 2]
        row: dict[str, Any] = {"phi": label, "population_of_R": float(reference.mean(member))}
        ways: dict[str, dict[str, Any]] = {"hybrid": {}, "tempering": {}, "dynamics": {}}
        counts = switching.dwell(tau[:, column] for tau in dynamics.trajectories)
        in_r = max(counts.frames_r, 1) * dynamics.frame_ns
        rate = switching.escape_rate(counts.r_to_l, in_r)
        own = observables(phi[:, k])
        for i, name in enumerate(OBSERVABLES):
            x = target[..., i]
            mean = reference.mean(x)
            variance = float(reference.mean((x - mean) ** 2))
            chain = pop.effective_draws(own[None, :, i], np.ones((1, len(phi))), float(own[:, i].var()))
            ways["hybrid"][name] = _a_second(chain, seconds)
            ways["tempering"][name] = _a_second(pop.effective_draws(*reference.ratio(x), variance), tempering_seconds)
            share = switching.slow_share(x, member, reference.weights)
            bound = None
            if share > 0.0:
                bound = switching.dynamics_draws(rate, row["population_of_R"], min(share, 1.0))
            ways["dynamics"][name] = _a_second(bound, dynamics.seconds / dynamics.ns)
        for way, values in ways.items():
            row[way] = {**values, "phi": _smallest(values)}
        row["dynamics"] |= {"escapes": counts.r_to_l, "returns": counts.l_to_r, "ns_in_R": in_r}
        row["over_dynamics"] = _ratio(row["hybrid"]["phi"], row["dynamics"]["phi"])
        row["over_tempering"] = _ratio(row["hybrid"]["phi"], row["tempering"]["phi"])
        rows.append(row)
    return rows


def population_report(
    phi: Array, reference: TemperedReference, columns: list[int], labels: list[str], rng: np.random.Generator
) -> dict[str, Any]:
    """Populations of R of every phi [iterations, phis] and of their joint states, against the reference."""
    n = len(labels)
    sampled_r = in_basin_r(phi).astype(np.float64)[None]
    ones = np.ones(sampled_r.shape[:2])
    reference_phi = reference.tau[..., columns]
    weighted_r, sums = reference.ratio(in_basin_r(reference_phi).astype(np.float64))
    names = pop.state_names(n)
    sampled_states = pop.indicators(pop.joint_states(phi), len(names))[None]
    weighted_states, _ = reference.ratio(pop.indicators(pop.joint_states(reference_phi), len(names)))
    lengths = pop.block_length(sampled_r, ones), pop.block_length(weighted_r, sums)
    report: dict[str, Any] = {"block_lengths": {"hybrid": lengths[0], "tempering": lengths[1]}}
    pairs = {"phi": (labels, sampled_r, weighted_r), "joint": (names, sampled_states, weighted_states)}
    for key, (keys, own, weighted) in pairs.items():
        sampled = pop.block_populations(keys, own, ones, lengths[0], rng)
        target = pop.block_populations(keys, weighted, sums, lengths[1], rng)
        agreement = pop.compare_populations(sampled, target)
        columns_of = (sampled.names, sampled.values, sampled.errors, target.values, target.errors, agreement.z)
        report[key] = [
            dict(zip(("name", "sampled", "error", "reference", "reference_error", "z"), _plain(row), strict=True))
            for row in zip(*columns_of, strict=True)
        ]
        if key == "joint":
            report |= {"chi2": agreement.chi2, "dof": agreement.dof, "p_value": agreement.p_value}
            report["blocks"] = {"hybrid": sampled.n_blocks, "tempering": target.n_blocks}
    return report


def table(summary: dict[str, Any]) -> str:
    """The summary as text, for people."""
    lines = [f"{summary['sequence']}, {summary['model']}, {summary['platform']}", "", "Moves"]
    for kind, move in summary["moves"].items():
        turn = "-" if move["median_turn_degrees"] is None else f"{move['median_turn_degrees']:.0f}"
        lines.append(
            f"  {kind:<12} {move['moves']:>7} of {move['candidates']:>2} candidates  accepted "
            f"{move['acceptance']:.1%} +- {move['acceptance_error']:.1%}  {move['ms_a_move']:.1f} ms  "
            f"median turn when accepted {turn} degrees"
        )
    lines += ["", "Effective draws a second (smaller of cos phi and sin phi; in R)"]
    lines.append(f"  {'':<12} {'hybrid':>28} {'parallel tempering':>28} {'plain MD':>28} {'/ MD':>12} {'/ PT':>12}")
    for row in summary["mixing"]:
        ways = (row["hybrid"], row["tempering"], row["dynamics"])
        cells = [f"{_shown(way['phi'])}; {_shown(way['in R'])}" for way in ways]
        ratios = [_shown(row["over_dynamics"], "> "), _shown(row["over_tempering"], "> ")]
        lines.append(
            f"  {row['phi']:<12} " + " ".join(f"{cell:>28}" for cell in cells) + "".join(f" {r:>12}" for r in ratios)
        )
    shares = summary["populations"]
    for key, title in (("phi", "Population of R"), ("joint", "Joint states")):
        lines += ["", f"{title} / %", f"  {'':<12} {'hybrid':>18} {'parallel tempering':>20} {'z':>7}"]
        for row in shares[key]:
            sampled = f"{100 * row['sampled']:.3f} +- {100 * row['error']:.3f}"
            target = f"{100 * row['reference']:.3f} +- {100 * row['reference_error']:.3f}"
            lines.append(f"  {row['name']:<12} {sampled:>18} {target:>20} {row['z']:>7.2f}")
    p_value = "-" if shares["p_value"] is None else f"{shares['p_value']:.2f}"
    lines.append(f"  chi^2 = {shares['chi2']:.1f} of {shares['dof']} degrees of freedom, p = {p_value}")
    return "\n".join(lines)


def _a_second(draws: Estimate | None, seconds: float) -> dict[str, float | None] | None:
    """A value and its error as JSON; the error None means that the value is an upper bound."""
    if draws is None:
        return None
    return {"value": draws.value / seconds, "error": None if draws.error is None else draws.error / seconds}


def _smallest(values: dict[str, Any]) -> Any:
    """That of cos and sin; None where one of the observables, membership of R included, never changed."""
    if any(value is None for value in values.values()):
        return None
    return min(values["cos phi"], values["sin phi"], key=lambda x: x["value"])


def _ratio(over: Any, under: Any) -> Any:
    """A ratio and its error; where `under` is an upper bound the error is None, and the ratio a lower bound."""
    if over is None or under is None:
        return None
    value = over["value"] / under["value"]
    if under["error"] is None:
        return {"value": value, "error": None}
    relative = np.hypot(over["error"] / over["value"], under["error"] / under["value"])
    return {"value": value, "error": float(value * relative)}


def _shown(estimate: Any, bound: str = "< ") -> str:
    if estimate is None:
        return "-"
    if estimate["error"] is None:
        return f"{bound}{estimate['value']:.2g}"
    return f"{estimate['value']:.3g} +- {estimate['error']:.1g}"


def _binomial(successes: int, trials: int) -> float:
    share = successes / trials
    return float(np.sqrt(share * (1.0 - share) / trials))


def _plain(values: Any) -> list[Any]:
    return [value if isinstance(value, str) else float(value) for value in values]
