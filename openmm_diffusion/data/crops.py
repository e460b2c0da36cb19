"""Spatial crops of a chain, and weights with which every residue is in the crop equally often.

Nearest-k balls alone cannot do it: a residue in the middle is in almost every ball (at a ratio of 0.95 in all of
them), one at the end in few. With half-spaces and holes (all but the residues nearest to a seed) among the crops a
solution exists; a linear program certifies that, and of all solutions the one of maximum entropy is taken, so that
many crops are in use. All of it is computed on one reference structure, whose crops are then used for every frame:
equality is exact.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import logsumexp

from ..errors import SettingError, TrajectoryError

INCLUSIONS = ("equal", "horvitz-thompson")
_MAX_NEWTON_STEPS = 200


@dataclass(frozen=True)
class InclusionReport:
    """How equally residues are included: extremes of pi / tau, its largest deviation from 1, and the crops in use.

    `lp_deviation` is the smallest deviation that any weights of these crops have; `ess` is 1 / sum(weights^2).
    """

    min_ratio: float
    max_ratio: float
    deviation: float
    lp_deviation: float
    ess: float
    n_crops: int

    def __str__(self) -> str:
        return (
            f"inclusion {self.min_ratio:.4f} to {self.max_ratio:.4f} of the mean, {self.n_crops} crops "
            f"(effectively {self.ess:.0f})"
        )


@dataclass(frozen=True)
class CropSet:
    """Crops [n, L] (bool, k residues each), their probabilities [n], and weights [L] of residues in the loss.

    `residue_weights` are one where inclusion is equal, tau / pi (Horvitz-Thompson) otherwise.
    """

    masks: NDArray[np.bool_]
    weights: NDArray[np.float64]
    residue_weights: NDArray[np.float64]
    report: InclusionReport

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Masks [n, L] for uniform random numbers [n] in [0, 1)."""
        rows = np.searchsorted(np.cumsum(self.weights), uniform, side="right")
        return self.masks[np.minimum(rows, len(self.masks) - 1)]

    @property
    def inclusion(self) -> NDArray[np.float64]:
        """The probability pi [L] of each residue to be in the crop."""
        return self.weights @ self.masks


def crop_size(n_residues: int, ratio: float) -> int:
    """Residues in a crop: int(L * ratio), at least one."""
    if not 0.0 < ratio <= 1.0:
        raise SettingError(f"crop_ratio is {ratio}; expected a number in (0, 1]")
    return max(1, int(n_residues * ratio))


def make_crops(ca: NDArray[np.floating], ratio: float, inclusion: str = "equal", tolerance: float = 1e-3) -> CropSet:
    """Crops of k = int(L * ratio) residues around a structure of CA positions [L, 3].

    Parameters
    ----------
    inclusion
        "equal": weights for equal inclusion; "horvitz-thompson": balls around every residue with equal probability, and
        weights tau / pi in the loss, which keep its expectation.
    tolerance
        Largest deviation of pi / tau from 1 with "equal".

    Raises
    ------
    SettingError
        A ratio outside (0, 1], another `inclusion`.
    TrajectoryError
        Equal inclusion is missed by more than the tolerance.
    """
    if inclusion not in INCLUSIONS:
        raise SettingError(f"inclusion is {inclusion!r}; expected one of {', '.join(INCLUSIONS)}")
    points = np.asarray(ca, np.float64)
    n, k = len(points), crop_size(len(points), ratio)
    if inclusion == "horvitz-thompson":
        masks = balls(points, k)
        weights = np.full(n, 1.0 / n)
        return CropSet(masks, weights, k / n / (weights @ masks), report_of(masks, weights))
    best = np.inf
    for neighbours in (0, 8, 32):
        masks = dictionary(points, k, neighbours)
        certificate, lp_weights = equal_inclusion_lp(masks)
        if certificate <= tolerance:
            weights = maximum_entropy(masks, lp_weights @ masks if certificate > 1e-9 else np.full(n, k / n))
            # On the border of the feasible set the maximum lies at infinity; the program's own solution serves.
            candidates = [report_of(masks, w, certificate) for w in (weights, lp_weights)]
            chosen = 0 if candidates[0].deviation <= max(candidates[1].deviation, 0.1 * tolerance) else 1
            return CropSet(masks, (weights, lp_weights)[chosen], np.ones(n), candidates[chosen])
        best = min(best, certificate)
    raise TrajectoryError(
        f"no weights of crops of {k} of {n} residues include all equally: the best deviation is {best:.2g}, the "
        f"tolerance {tolerance:g}; raise crop_tolerance, change crop_ratio, or take inclusion 'horvitz-thompson'"
    )


def report_of(masks: NDArray[np.bool_], weights: NDArray[np.float64], lp_deviation: float = np.nan) -> InclusionReport:
    """What weights [n] of crops [n, L] achieve."""
    ratio = (weights @ masks) / masks.mean()
    low, high = float(ratio.min()), float(ratio.max())
    return InclusionReport(low, high, max(1 - low, high - 1), lp_deviation, float(1 / (weights**2).sum()), len(masks))


def balls(ca: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """The k residues nearest to each residue, [L, L]; ties go to the lower number."""
    return _lowest(_distances(ca, ca), k)


def dictionary(ca: NDArray[np.float64], k: int, neighbours: int = 0) -> NDArray[np.bool_]:
    """Different crops [n, L] of k residues: nearest-k balls, all but the nearest L - k, k lowest along directions.

    Centres are the residues and, with `neighbours`, the points half-way to that many of the nearest residues. The
    directions are spread evenly over the sphere (Fibonacci lattice), both ways, so nothing here is random.
    """
    n = len(ca)
    if k == n:
        return np.ones((1, n), bool)
    near = np.argsort(_distances(ca, ca), axis=-1, kind="stable")[:, 1 : neighbours + 1]
    centres = np.concatenate([ca, 0.5 * (ca[:, None] + ca[near]).reshape(-1, 3)])
    distances = _distances(centres, ca)
    n_directions = 4 * (1 + neighbours // 8) * n
    turn = np.pi * (1 + 5**0.5) * np.arange(n_directions)
    z = 1 - (2 * np.arange(n_directions) + 1) / n_directions
    r = np.sqrt(1 - z**2)
    heights = np.stack([r * np.cos(turn), r * np.sin(turn), z], -1) @ (ca - ca.mean(0)).T
    kinds = [_lowest(distances, k), ~_lowest(distances, n - k), _lowest(heights, k), ~_lowest(heights, n - k)]
    return np.unique(np.concatenate(kinds), axis=0)


def equal_inclusion_lp(masks: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """The smallest possible largest deviation of pi / tau from 1, and weights [n] that reach it (HiGHS)."""
    n, length = masks.shape
    ratio = masks.T / masks.mean()
    slack = np.ones((length, 1))
    solution = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.block([[ratio, -slack], [-ratio, -slack]]),
        b_ub=np.append(np.ones(length), -np.ones(length)),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
        method="highs",
    )
    if solution.x is None:
        raise TrajectoryError(f"the linear program of equal inclusion failed ({solution.message}); check the structure")
    weights = np.maximum(solution.x[:-1], 0.0)
    weights /= weights.sum()
    return report_of(masks, weights).deviation, weights


def maximum_entropy(
    masks: NDArray[np.bool_], target: NDArray[np.float64], tolerance: float = 1e-9
) -> NDArray[np.float64]:
    """Weights [n] of crops [n, L] of largest entropy with inclusion probabilities `target` [L].

    They are proportional to exp(sum of lambda over the crop's residues); lambda minimises the convex dual
    logsumexp(M lambda) - target . lambda, by Newton steps with a line search.
    """
    m = masks.astype(np.float64)
    lam = np.zeros(m.shape[1])
    value = logsumexp(m @ lam) - target @ lam
    weights = np.full(len(m), 1.0 / len(m))
    for _ in range(_MAX_NEWTON_STEPS):
        pi = weights @ m
        gradient = pi - target
        if np.abs(gradient).max() < tolerance * target.max():
            break
        hessian = (m * weights[:, None]).T @ m - np.outer(pi, pi)
        # All crops are of one size, so a constant added to lambda changes nothing: the ridge holds it still.
        ridge = 1e-9 * max(np.trace(hessian) / len(lam), 1e-12)
        step = -np.linalg.solve(hessian + ridge * np.eye(len(lam)), gradient)
        scale = min(1.0, 20.0 / np.abs(step).max())
        while True:
            trial = lam + scale * step
            new = logsumexp(m @ trial) - target @ trial
            if new <= value + 1e-4 * scale * (gradient @ step) or scale < 1e-8:
                break
            scale *= 0.5
        if scale < 1e-8:
            break
        lam, value = trial, new
        weights = np.exp(m @ lam - logsumexp(m @ lam))
    return weights / weights.sum()


def _distances(points: NDArray[np.float64], ca: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(points[:, None] - ca, axis=-1)


def _lowest(values: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """Masks of the k lowest of each row; equal values, but for rounding, go by their index."""
    order = np.argsort(np.round(values, 6), axis=-1, kind="stable")
    masks = np.zeros(values.shape, bool)
    np.put_along_axis(masks, order[:, :k], True, axis=-1)
    return masks
