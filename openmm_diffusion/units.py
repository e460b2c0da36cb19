"""Unit conventions: nm on the OpenMM side, Angstrom inside models; angles in radians throughout."""

import math
from typing import Any

import numpy as np

ANGSTROM_PER_NM = 10.0
TWO_PI = 2.0 * math.pi


def wrap(angle: Any) -> Any:
    """Map angles (array or tensor, rad) to [-pi, pi)."""
    return (angle + math.pi) % TWO_PI - math.pi


def degrees(angle: Any) -> np.ndarray:
    """Radians to degrees in [-180, 180), for plots and tables."""
    return np.degrees(wrap(np.asarray(angle)))
