"""What a training compares before it goes on: configurations of checkpoints, units of data sets."""

from collections.abc import Iterator, Mapping
from typing import Any


def diffused_units(data: Any) -> Iterator[float]:
    """The `coordinate_scaling` of a data set, of the one in a loader, or of several; nothing for other data."""
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, list | tuple):
        for each in data:
            yield from diffused_units(each)
    elif hasattr(data, "coordinate_scaling"):
        yield float(data.coordinate_scaling)
    elif hasattr(data, "dataset"):
        yield from diffused_units(data.dataset)


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key with another value, its two values; None where the nested mappings are equal."""
    for key in [*now, *(key for key in before if key not in now)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if inner := first_difference(old, new):
                return f"{key}.{inner[0]}", inner[1], inner[2]
        elif old != new:
            return key, old, new
    return None
