"""What the chains of `openmm-diffusion sample` are worth: acceptance, effective sample size, R-hat between walkers."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import effective_sample_size, r_hat
from ..errors import TrajectoryError

Array = NDArray[np.float64]


def slowest_ess(tau: Array) -> float:
    """Effective sample size of torsions [chains, draws, T] (rad): the smallest of all their cosines and sines."""
    return min(effective_sample_size(feature) for feature in _features(tau))


def summary(tables: list[dict[str, Array]], torsions: tuple[str, ...]) -> dict[str, Any]:
    """Acceptance, and for each torsion and the energy the effective sample size and R-hat between chains.

    Parameters
    ----------
    tables
        Columns of each chain, see `SampledChain`.
    torsions
        Labels of those among the columns that are torsions (rad).

    Returns
    -------
    Plain values, None where a number is not defined (a few draws, nothing changed).
    """
    lengths = {len(table["iteration"]) for table in tables}
    if len(lengths) != 1:
        raise TrajectoryError(f"chains have {sorted(lengths)} iterations; expected as many in each, give --resume")
    series = {"potential_energy": [np.stack([table["potential_energy"] for table in tables])]}
    for label in torsions:
        series[label] = _features(np.stack([table[label] for table in tables])[..., None])
    accepted = [float(table["accepted"].mean()) for table in tables]
    log_alpha = np.concatenate([table["log_alpha"] for table in tables])
    return {
        "iterations": lengths.pop(),
        "accepted": float(np.mean(accepted)),
        "accepted_by_chain": accepted,
        "mean_acceptance_probability": float(np.exp(np.minimum(log_alpha, 0.0)).mean()),
        "ess": {name: _plain(min(map(effective_sample_size, rows))) for name, rows in series.items()},
        "r_hat": {name: _plain(max(map(r_hat, rows))) for name, rows in series.items()},
        "seconds_by_chain": [float(table["seconds"].sum()) for table in tables],
    }


def summary_text(values: dict[str, Any]) -> str:
    """The summary in a few lines."""
    between = "walkers" if values["walkers"] > 1 else "the two halves of the chain"
    lines = [
        f"{values['walkers']} x {values['iterations']} iterations, {values['accepted']:.1%} of the moves accepted",
        f"effective sample size: {_least(values['ess'], min)}",
        f"R-hat between {between}: {_least(values['r_hat'], max)} (above 1.01: run longer)",
    ]
    return "\n".join(lines)


def _least(numbers: dict[str, float | None], choose: Any) -> str:
    known = {name: value for name, value in numbers.items() if value is not None}
    if not known:
        return "not known from so few iterations"
    name = choose(known, key=lambda key: known[key])
    return f"{known[name]:.4g} ({name})"


def _features(tau: Array) -> list[Array]:
    return [function(tau[..., k]) for k in range(tau.shape[-1]) for function in (np.cos, np.sin)]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
