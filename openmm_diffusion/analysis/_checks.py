"""What the functions of this package ask of their arrays, said in one place."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import TrajectoryError


def finite_array(values: ArrayLike, name: str, ndim: tuple[int, ...] = (1,)) -> NDArray[np.float64]:
    """`values` as float64. Raises TrajectoryError for another number of axes, no values, or NaN and infinities."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in ndim or array.size == 0:
        expected = " or ".join(f"{n}" for n in ndim)
        raise TrajectoryError(f"{name} has shape {array.shape}; expected {expected} axes and at least one value")
    bad = int(np.sum(~np.isfinite(array)))
    if bad:
        raise TrajectoryError(
            f"{name} holds {bad} NaN or infinite values; expected finite numbers, remove those frames"
        )
    return array


def weights_like(weights: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Weights of sum one: ones where None. Raises TrajectoryError for another shape, negative ones or a zero sum."""
    if weights is None:
        return np.full(shape, 1.0 / np.prod(shape))
    array = finite_array(weights, "weights", (len(shape),))
    if array.shape != shape:
        raise TrajectoryError(f"weights have shape {array.shape}; expected {shape}, one for each draw")
    if array.min() < 0.0 or array.max() == 0.0:
        raise TrajectoryError("weights are negative or all zero; expected values >= 0 with at least one above")
    array = array / array.max()
    return array / array.sum()


def log_weights(values: ArrayLike) -> NDArray[np.float64]:
    """`values` as float64 where -inf (weight zero) is allowed. Raises TrajectoryError for NaN or +inf, or no values."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise TrajectoryError(f"log weights have shape {array.shape}; expected at least one axis and one value")
    bad = int(np.sum(np.isnan(array) | (array == np.inf)))
    if bad:
        raise TrajectoryError(
            f"{bad} log weights are NaN or +inf; expected numbers or -inf, which stands for weight zero"
        )
    return array


def membership(values: Any, name: str, ndim: tuple[int, ...] = (1,)) -> NDArray[np.bool_]:
    """`values` as a boolean array. Raises TrajectoryError for anything but booleans or 0 and 1."""
    array = np.asarray(values)
    if array.ndim not in ndim or array.size == 0:
        expected = " or ".join(f"{n}" for n in ndim)
        raise TrajectoryError(f"{name} has shape {array.shape}; expected {expected} axes and at least one value")
    if array.dtype != np.bool_ and not np.all((array == 0) | (array == 1)):
        raise TrajectoryError(f"{name} is not boolean; expected True or False a draw, such as in_basin_r(phi)")
    return array.astype(np.bool_)
