"""How good an ensemble of backbones is by itself: bonds and angles, breaks, clashes, torsions, fluctuations.

Backbones are arrays [n, L, 4, 3] of N, CA, C, O in Angstrom: the first four of atom14, or `BACKBONE_OF_ATOM37` of
atom37.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import TrajectoryError
from ._checks import finite_array

Array = NDArray[np.float64]

BACKBONE_OF_ATOM37 = (0, 1, 2, 4)
CA_BREAK = 4.5
"""CA-CA distance (Angstrom) above which a link counts as broken (bioemu's filter)."""
CA_LOOSE = 3.902
"""CA-CA distance (Angstrom) above which a link counts as invalid: 3.802 + 0.1, one-sided (FrameDiff's metric)."""
CN_BREAK = 2.0
"""C-N distance (Angstrom) above which a peptide bond counts as broken (bioemu's filter)."""
CA_CLASH = 1.5
"""CA-CA distance (Angstrom) below which two residues clash (FrameDiff's metric)."""
HEAVY_CLASH = 1.0
"""Distance (Angstrom) of backbone heavy atoms of two residues below which they clash (bioemu's filter)."""
_N, _CA, _C, _O = range(4)
_CHUNK_BYTES = 64e6  # of one array of pair distances


def check_backbones(values: ArrayLike, name: str = "backbones") -> Array:
    """`values` as float64 [n, L, 4, 3]; raises TrajectoryError for another shape, L below 3, NaN or infinities."""
    array = finite_array(values, name, (4,))
    if array.shape[2:] != (4, 3) or array.shape[1] < 3:
        raise TrajectoryError(
            f"{name} have the shape {array.shape}; expected [n, residues, 4, 3] (N, CA, C, O) with at least 3 residues"
        )
    return array


def bonds_and_angles(backbones: ArrayLike) -> dict[str, Array]:
    """Bond lengths (Angstrom) and angles (degrees) by name: [n, L] within residues, [n, L - 1] across links."""
    x = check_backbones(backbones)
    n, ca, c, o = (x[:, :, k] for k in range(4))
    following_n, following_ca = n[:, 1:], ca[:, 1:]
    return {
        "N-CA": _length(n, ca),
        "CA-C": _length(ca, c),
        "C-O": _length(c, o),
        "C-N": _length(c[:, :-1], following_n),
        "N-CA-C": _angle(n, ca, c),
        "CA-C-O": _angle(ca, c, o),
        "CA-C-N": _angle(ca[:, :-1], c[:, :-1], following_n),
        "O-C-N": _angle(o[:, :-1], c[:, :-1], following_n),
        "C-N-CA": _angle(c[:, :-1], following_n, following_ca),
    }


def ca_links(backbones: ArrayLike) -> Array:
    """Distances [n, L - 1] (Angstrom) of consecutive CA."""
    x = check_backbones(backbones)
    return _length(x[:, :-1, _CA], x[:, 1:, _CA])


def breaks(backbones: ArrayLike) -> dict[str, float]:
    """Shares of links with CA-CA above 4.5 and 3.902 Angstrom and C-N above 2, and of chains with any broken link.

    `cis_peptides` is the share of |omega| below 90 degrees.
    """
    x = check_backbones(backbones)
    links, peptide = ca_links(x), _length(x[:, :-1, _C], x[:, 1:, _N])
    broken = (links > CA_BREAK) | (peptide > CN_BREAK)
    omega = dihedral(x[:, :-1, _CA], x[:, :-1, _C], x[:, 1:, _N], x[:, 1:, _CA])
    return {
        "ca_links_above_4.5": float(np.mean(links > CA_BREAK)),
        "ca_links_above_3.902": float(np.mean(links > CA_LOOSE)),
        "c_n_above_2.0": float(np.mean(peptide > CN_BREAK)),
        "chains_broken": float(np.mean(broken.any(1))),
        "cis_peptides": float(np.mean(np.abs(omega) < np.pi / 2)),
        "ca_ca_mean": float(links.mean()),
        "ca_ca_std": float(links.std()),
    }


def clashes(backbones: ArrayLike) -> dict[str, float]:
    """Shares of chains with a CA-CA pair below 1.5 Angstrom, and with heavy atoms of different residues below 1.

    `closest` is the smallest distance (Angstrom) of heavy atoms of residues that are not neighbours, the median over
    chains.
    """
    x = check_backbones(backbones)
    n, length = x.shape[:2]
    residue = np.repeat(np.arange(length), 4)
    apart = residue[:, None] - residue[None, :]
    ca = np.zeros(n, dtype=np.bool_)
    heavy, closest = np.zeros(n, dtype=np.bool_), np.full(n, np.inf)
    size = max(1, int(_CHUNK_BYTES / (8 * (4 * length) ** 2)))
    for first in range(0, n, size):
        rows = slice(first, first + size)
        distance = _pair_distances(x[rows].reshape(-1, 4 * length, 3))
        between_ca = distance[:, _CA::4, _CA::4] + np.diag(np.full(length, np.inf))
        ca[rows] = between_ca.min((1, 2)) < CA_CLASH
        heavy[rows] = np.where(apart > 0, distance, np.inf).min((1, 2)) < HEAVY_CLASH
        closest[rows] = np.where(apart > 1, distance, np.inf).min((1, 2))
    return {
        "chains_with_ca_clash": float(ca.mean()),
        "chains_with_heavy_clash": float(heavy.mean()),
        "closest": float(np.median(closest)),
    }


def dihedral(p0: Array, p1: Array, p2: Array, p3: Array) -> Array:
    """Dihedral angles (rad, in [-pi, pi]) of points [..., 3], in the IUPAC sign (Blondel & Karplus 1996, eq. 4)."""
    b1, b2, b3 = p1 - p0, p2 - p1, p3 - p2
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    sine = (b1 * n2).sum(-1) * np.linalg.norm(b2, axis=-1)
    return np.asarray(np.arctan2(sine, (n1 * n2).sum(-1)))


def phi_psi(backbones: ArrayLike) -> tuple[Array, Array]:
    """phi and psi (rad) [n, L - 2] of the residues that have both: all but the first and the last."""
    x = check_backbones(backbones)
    n, ca, c = (x[:, 1:-1, k] for k in (_N, _CA, _C))
    return dihedral(x[:, :-2, _C], n, ca, c), dihedral(n, ca, c, x[:, 2:, _N])


def superpose(points: Array, target: Array) -> Array:
    """Points [n, A, 3] moved rigidly onto the target [A, 3], zero-centred, with the least squared distance (Kabsch)."""
    points, target = points - points.mean(1, keepdims=True), target - target.mean(0)
    u, _, v = np.linalg.svd(np.swapaxes(points, 1, 2) @ target)
    handed = np.sign(np.linalg.det(u @ v))
    u[:, :, 2] *= handed[:, None]
    return np.asarray(points @ (u @ v))


def mean_structure(points: Array, n_iterations: int = 20, tolerance: float = 1e-6) -> tuple[Array, Array]:
    """The mean [A, 3] of structures [n, A, 3] superposed on it, and the structures so superposed."""
    mean = points[0] - points[0].mean(0)
    for _ in range(n_iterations):
        moved = superpose(points, mean)
        before, mean = mean, moved.mean(0)
        if float(np.abs(mean - before).max()) < tolerance:
            break
    return mean, superpose(points, mean)


def rmsf(backbones: ArrayLike) -> Array:
    """Root mean square fluctuation [L] (Angstrom) of each CA about the mean structure, superposed on CA."""
    mean, moved = mean_structure(check_backbones(backbones)[:, :, _CA])
    return np.asarray(np.sqrt(((moved - mean) ** 2).sum(-1).mean(0)))


def radius_of_gyration(backbones: ArrayLike) -> Array:
    """Radii of gyration [n] (Angstrom) of the CA."""
    ca = check_backbones(backbones)[:, :, _CA]
    return np.asarray(np.sqrt(((ca - ca.mean(1, keepdims=True)) ** 2).sum(-1).mean(1)))


def ensemble_summary(backbones: ArrayLike) -> dict[str, Any]:
    """Everything that needs no reference: breaks, clashes, radius of gyration, mean RMSF, number of chains."""
    x = check_backbones(backbones)
    gyration, fluctuation = radius_of_gyration(x), rmsf(x)
    return {
        "chains": len(x),
        **breaks(x),
        **clashes(x),
        "radius_of_gyration_mean": float(gyration.mean()),
        "radius_of_gyration_std": float(gyration.std()),
        "rmsf_mean": float(fluctuation.mean()),
        "rmsf": [round(float(value), 4) for value in fluctuation],
    }


def _length(a: Array, b: Array) -> Array:
    return np.asarray(np.linalg.norm(a - b, axis=-1))


def _angle(a: Array, b: Array, c: Array) -> Array:
    """Angle (degrees) at b; through atan2, which is accurate at 0 and 180 too."""
    u, v = a - b, c - b
    return np.asarray(np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), (u * v).sum(-1))))


def _pair_distances(x: Array) -> Array:
    """[n, A, A] of [n, A, 3], clipped at zero against rounding."""
    centred = x - x.mean(1, keepdims=True)
    square = (centred**2).sum(-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * centred @ np.swapaxes(centred, 1, 2)
    return np.asarray(np.sqrt(np.maximum(distance, 0.0)))
