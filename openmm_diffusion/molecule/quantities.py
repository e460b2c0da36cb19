"""Quantities at the public edges, bare numbers in MD units inside."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from ..errors import SettingError


def in_nanometers(positions: Any) -> NDArray[np.float64]:
    """Positions as a float64 array in nm; bare numbers are taken to be in nm already."""
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    return np.asarray(positions, dtype=np.float64)


def like(original: Any, positions_nm: NDArray[np.float64]) -> Any:
    """Give positions back in the manner of `original`: a Quantity for a Quantity, an array for an array."""
    return positions_nm * unit.nanometer if unit.is_quantity(original) else positions_nm


def value_in(quantity: Any, expected: unit.Unit, name: str) -> float:
    """A scalar setting in the unit expected; a bare number is taken to be in it."""
    try:
        return float(quantity.value_in_unit(expected) if unit.is_quantity(quantity) else quantity)
    except TypeError as error:
        raise SettingError(f"{name} is {quantity!r}; expected a number or a Quantity in {expected}") from error
