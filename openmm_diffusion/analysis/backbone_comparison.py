"""An ensemble of generated backbones against MD of the same chain: geometry, torsions, fluctuations.

Backbones as in `backbone_quality`: [n, L, 4, 3] of N, CA, C, O in Angstrom.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import TrajectoryError
from ..units import TWO_PI, wrap
from .backbone_quality import bonds_and_angles, check_backbones, phi_psi, rmsf

Array = NDArray[np.float64]
TORSION_BINS = 12
"""Bins an axis (30 degrees). Finer ones are dominated by chance: with 24, 100 frames of one ensemble differ by .08 bit,
and a set of 20 frames drawn again and again passes for one of 1000."""
ENOUGH_SAMPLES = 200
"""Samples from which on the divergences of (phi, psi) are more than chance."""
_CHANCE_REPEATS = 4


def compare(
    generated: ArrayLike,
    md: ArrayLike,
    held_out: ArrayLike | None = None,
    *,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Generated backbones against MD of the same chain.

    Torsion divergences are all of the same number of samples n and the same bins: generated and held-out MD frames
    (all of the MD where none are given), and the first and the second half of the MD in time. The aim is a `ratio` of
    these two below 2. `by_chance` is what two sets of n independent frames of the MD differ by; `excess_ratio` is the
    ratio with it taken off both, None where the halves differ by no more than chance. `notes` say what the numbers
    cannot tell.

    Parameters
    ----------
    lengths
        Frames of each trajectory in `md`, one after another, each of which has its halves; one trajectory by default.
    seed
        Of the frames for `by_chance`.
    """
    generated, md = check_backbones(generated, "generated backbones"), check_backbones(md, "MD backbones")
    held_out = md if held_out is None else check_backbones(held_out, "held-out backbones")
    _same_length(generated, md)
    return {
        "geometry": geometry_errors(generated, md),
        **fluctuations(generated, md),
        "torsion_divergence": _divergences(generated, md, held_out, lengths or [len(md)], np.random.default_rng(seed)),
    }


def fluctuations(generated: ArrayLike, md: ArrayLike) -> dict[str, Any]:
    """RMSF profiles compared: their correlation, and the ratio generated / MD of their means and residue by residue.

    The correlation does not see the amplitude: an ensemble collapsed to a tenth has the same.
    """
    found, expected = rmsf(generated), rmsf(md)
    tiny = np.finfo(np.float64).tiny
    return {
        "rmsf_correlation": correlation(found, expected),
        "rmsf_ratio": float(found.mean() / max(expected.mean(), tiny)),
        "rmsf_ratio_per_residue": [round(float(r), 4) for r in found / np.maximum(expected, tiny)],
    }


def _divergences(
    generated: Array, md: Array, held_out: Array, lengths: Sequence[int], rng: np.random.Generator
) -> dict[str, Any]:
    first, second = _halves(md, lengths)
    n = min(len(generated), len(held_out), len(first), len(second))
    if n < 1:
        raise TrajectoryError(f"the MD has {len(md)} frames; expected at least 2 of a trajectory for a comparison")
    drawn = rng.integers(len(md), size=(_CHANCE_REPEATS, 2, n))
    chance = [torsion_divergence(md[one], md[other], n) for one, other in drawn]
    found, limit = torsion_divergence(generated, held_out, n), torsion_divergence(first, second, n)
    by_chance = {key: float(np.mean([one[key] for one in chance])) for key in found}
    above = {key: (found[key] - by_chance[key], limit[key] - by_chance[key]) for key in found}
    notes = []
    if n < ENOUGH_SAMPLES:
        notes.append(
            f"the criterion of torsions (ratio below 2) cannot be judged with {n} frames of each: chance dominates; "
            f"draw {ENOUGH_SAMPLES} backbones or more, and give as many held-out frames"
        )
    return {
        "generated_and_held_out": found,
        "halves_of_md": limit,
        "by_chance": by_chance,
        "ratio": {key: found[key] / limit[key] if limit[key] else None for key in found},
        "excess_ratio": {key: a / b if b > 0 else None for key, (a, b) in above.items()},
        "samples": n,
        "bins": TORSION_BINS,
        "notes": notes,
    }


def _halves(md: Array, lengths: Sequence[int]) -> tuple[Array, Array]:
    """The first halves in time of all trajectories, and the second ones."""
    if sum(lengths) != len(md):
        raise TrajectoryError(
            f"the trajectories have {sum(lengths)} frames together, the MD {len(md)}; expected the same"
        )
    parts = np.split(md, np.cumsum(lengths)[:-1])
    first, second = ([x[: len(x) // 2] for x in parts], [x[len(x) // 2 : len(x) // 2 * 2] for x in parts])
    return np.concatenate(first), np.concatenate(second)


def geometry_errors(backbones: ArrayLike, reference: ArrayLike) -> dict[str, dict[str, float]]:
    """Of every bond length and angle: mean and spread in both ensembles, and the root mean square error.

    `rms_error` is about the reference's mean of each bond or angle (residue by residue), so it holds the error of the
    mean and the spread; `reference_rms` is the same of the reference itself.
    """
    found, expected = bonds_and_angles(backbones), bonds_and_angles(reference)
    _same_length(backbones, reference)
    return {
        name: {
            "mean": float(found[name].mean()),
            "std": float(found[name].std()),
            "reference_mean": float(expected[name].mean()),
            "reference_std": float(expected[name].std()),
            "rms_error": float(np.sqrt(np.mean((found[name] - expected[name].mean(0)) ** 2))),
            "reference_rms": float(np.sqrt(np.mean((expected[name] - expected[name].mean(0)) ** 2))),
        }
        for name in found
    }


def jensen_shannon(p: Array, q: Array) -> Array:
    """Jensen-Shannon divergence (bits, 0 to 1) of histograms along the last axis, normalised here."""
    p, q = (h / h.sum(-1, keepdims=True) for h in (p, q))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(h > 0, h * np.log2(h / middle), 0.0).sum(-1) for h in (p, q)]
    return np.asarray((terms[0] + terms[1]) / 2)


def torsion_divergence(
    first: ArrayLike, second: ArrayLike, n: int | None = None, bins: int = TORSION_BINS
) -> dict[str, float]:
    """Jensen-Shannon divergence (bits) of (phi, psi) of two ensembles of one chain.

    `per_residue` is the mean over residues of the divergence of 2-D histograms, `pooled` that of all residues in one.
    Histograms of few samples differ by chance, the more the fewer: compare only divergences of equal n and bins.

    Parameters
    ----------
    n
        Samples of each ensemble to use, evenly spaced; by default as many as the smaller has.
    bins
        Bins an axis over the full circle.
    """
    a, b = check_backbones(first), check_backbones(second)
    _same_length(a, b)
    n = min(len(a), len(b)) if n is None else n
    if not 0 < n <= min(len(a), len(b)):
        raise TrajectoryError(
            f"{n} samples asked for of ensembles of {len(a)} and {len(b)}; expected no more than both"
        )
    p, q = (_histograms(*phi_psi(evenly(x, n)), bins) for x in (a, b))
    return {
        "per_residue": float(jensen_shannon(p, q).mean()),
        "pooled": float(jensen_shannon(p.sum(0), q.sum(0))),
    }


def evenly(values: Array, n: int) -> Array:
    """n of the rows, evenly spaced from the first to the last."""
    return values[np.linspace(0, len(values) - 1, n).round().astype(np.int64)]


def correlation(first: Array, second: Array) -> float | None:
    """Pearson's correlation of two profiles [L]; None where one of them is constant."""
    if min(np.ptp(first), np.ptp(second)) == 0.0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _histograms(phi: Array, psi: Array, bins: int) -> Array:
    """Counts [residues, bins * bins] of angles [n, residues]."""
    width = TWO_PI / bins
    columns = [np.clip((wrap(angle) + np.pi) // width, 0, bins - 1).astype(np.int64) for angle in (phi, psi)]
    residues = phi.shape[1]
    cell = (np.arange(residues) * bins + columns[0]) * bins + columns[1]
    return np.bincount(cell.ravel(), minlength=residues * bins**2).reshape(residues, -1).astype(np.float64)


def _same_length(first: ArrayLike, second: ArrayLike) -> None:
    lengths = np.shape(first)[1], np.shape(second)[1]
    if lengths[0] != lengths[1]:
        raise TrajectoryError(f"the chains have {lengths[0]} and {lengths[1]} residues; expected the same protein")
