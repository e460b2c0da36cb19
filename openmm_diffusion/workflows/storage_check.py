"""Storage of openmmtools from elsewhere: read as data, never as code.

openmmtools keeps states, moves and options as YAML in a NetCDF file and reads them with a loader that builds any Python
object and calls any function that the text names. What it writes itself needs none of this.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import InputFileError

_PYTHON = "tag:yaml.org,2002:python/"
# Data that YAML has no tag for, and numpy's numbers; everything else of python/... makes objects or calls functions.
_HARMLESS = tuple(
    _PYTHON + name
    for name in (
        *("tuple", "none", "bool", "int", "float", "str", "unicode"),
        *(f"object/apply:numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
        "object/apply:numpy.dtype",
    )
)


def refuse_code(storage: Path) -> None:
    """Raise InputFileError where a NetCDF file holds YAML that would make objects or call functions when it is read.

    Raises OSError where it cannot be read as one.
    """
    import netCDF4

    with netCDF4.Dataset(storage) as file:
        for name, text in _texts(file):
            if (tag := _code(text)) is not None:
                raise InputFileError(
                    f"{storage} would run code as it is read: {name} holds the tag {tag}; expected data alone, do not "
                    "use a file from a source that you do not trust"
                )


def _texts(group: Any) -> Iterator[tuple[str, str]]:
    for name in group.ncattrs():
        if isinstance(value := group.getncattr(name), str):
            yield name, value
    for name, variable in group.variables.items():
        if variable.dtype is str:
            yield from ((name, str(value)) for value in np.ravel(np.asarray(variable[...], dtype=object)))
        elif variable.dtype.kind == "S":
            # Long texts are stored letter by letter.
            yield name, np.asarray(variable[...]).tobytes().decode("utf-8", "replace")
    for inner in group.groups.values():
        yield from _texts(inner)


def _code(text: str) -> str | None:
    """The first tag in a YAML text that is no data; None where there is none."""
    if "!" not in text:
        return None
    try:
        tags = [getattr(event, "tag", None) for event in yaml.parse(text, yaml.SafeLoader)]
    except yaml.YAMLError:
        # Not readable as YAML: nothing is built from it, unless what is in it looks like such a tag.
        return "python/" if "python/" in text else None
    return next((tag for tag in tags if tag and tag.startswith(_PYTHON) and tag not in _HARMLESS), None)
