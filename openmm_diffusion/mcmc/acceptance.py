"""The acceptance ratio: floats in, floats out. Knows neither networks nor force fields.

Multiple-try independence sampling (Liu, Liang & Wong, J. Am. Stat. Assoc. 95, 121 (2000), section 2, with independent
trials): with weights w = exp(-u) / q, candidate j is chosen with probability w_j / W, W the sum over the n candidates,
and accepted with min(1, W / (W - w_j + w_present)). One candidate is Metropolis-Hastings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The candidate chosen (None where all have weight zero) and the log of its acceptance probability."""

    index: int | None
    log_alpha: float


def log_weight(u: float, log_q: float) -> float:
    """log of exp(-u) / q for a candidate; -inf (weight zero) for a NaN or infinite energy or a missing density."""
    if not (math.isfinite(u) and math.isfinite(log_q)):
        return -math.inf
    return -u - log_q


def present_log_weight(u: float, log_q: float) -> float:
    """log of exp(-u) / q for the present state; +inf, which rejects, where it has no density.

    Raises ValueError for a NaN or infinite energy: a chain cannot be there.
    """
    if not math.isfinite(u):
        raise ValueError(f"the present reduced potential is {u}; expected a finite number")
    return -u - log_q if math.isfinite(log_q) else math.inf


def choose(log_weights: Sequence[float], log_weight_present: float | Sequence[float], uniform: float) -> Choice:
    """Choose among candidates in proportion to their weights, and give log alpha.

    Parameters
    ----------
    log_weights
        Those of the n candidates.
    log_weight_present
        That of the present state; n values where it depends on the candidate, which only n = 1 allows.
    uniform
        A random number in [0, 1).
    """
    present = list(log_weight_present) if isinstance(log_weight_present, Sequence) else [log_weight_present]
    if any(value != present[0] for value in present):
        raise ValueError("the weight of the present state depends on the candidate; expected n_candidates = 1 then")
    total = log_sum_exp(log_weights)
    if total == -math.inf:
        return Choice(None, -math.inf)
    index, cumulative = 0, 0.0
    for i, value in enumerate(log_weights):
        share = math.exp(value - total)
        if share > 0.0:
            index = i  # also the last possible one, should rounding leave the sum below `uniform`
            cumulative += share
            if uniform < cumulative:
                break
    others = [value for i, value in enumerate(log_weights) if i != index]
    return Choice(index, min(0.0, total - log_sum_exp([*others, present[0]])))


def accepts(log_alpha: float, uniform: float) -> bool:
    """Whether a random number in [0, 1) accepts at log alpha."""
    return log_alpha >= 0.0 or uniform < math.exp(log_alpha)


def log_acceptance(u_present: float, u_candidate: float, log_q_present: float, log_q_candidate: float) -> float:
    """log alpha of one candidate: min(0, -[u' - u] + log q(present) - log q(candidate))."""
    present = present_log_weight(u_present, log_q_present)
    candidate = log_weight(u_candidate, log_q_candidate)
    return min(0.0, candidate - present) if candidate > -math.inf else -math.inf


def log_sum_exp(values: Sequence[float]) -> float:
    """log of the sum of exponentials; -inf for none, +inf where one is."""
    top = max(values, default=-math.inf)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
