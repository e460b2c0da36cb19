"""Exceptions of the package; each is also the built-in exception that a caller would expect."""

from typing import Any


class OpenMMDiffusionError(Exception):
    """Base of every error that this package raises on purpose."""


class MoleculeError(OpenMMDiffusionError, ValueError):
    """A topology, its bonds or its positions are not what the operation needs."""


class IncompatibleSystemError(OpenMMDiffusionError, ValueError):
    """An OpenMM System has a constraint or a frozen atom that forbids the move."""


class StateError(OpenMMDiffusionError, RuntimeError):
    """The present state cannot be used: NaN positions, an infinite energy, a broken molecule."""


class ModelError(OpenMMDiffusionError, ValueError):
    """A model does not fit the molecule or the request."""


class ModelFileError(OpenMMDiffusionError, OSError):
    """A model file is missing, truncated, altered, or of a format that is never loaded."""


class TrajectoryError(OpenMMDiffusionError, ValueError):
    """A trajectory or data set does not match what it is used with."""


class TrainingError(OpenMMDiffusionError, RuntimeError):
    """A training cannot go on: its loss is NaN, or it was interrupted."""


class SettingError(OpenMMDiffusionError, ValueError):
    """A setting is outside its range or unknown."""


class InputFileError(OpenMMDiffusionError, FileNotFoundError):
    """An input file is missing or cannot be read."""


class OutputError(OpenMMDiffusionError, FileExistsError):
    """An output location cannot be used."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the kind of error where it has none: what one sentence can quote."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def first_problem(error: Any) -> tuple[Any, str]:
    """What to tell of a pydantic ValidationError, and its reason: an unknown key, which may explain a missing one."""
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    return first, first["msg"].removeprefix("Value error, ")


def validation_sentence(error: Any, model: Any, prefix: str = "") -> str:
    """What a pydantic ValidationError of a model says, in one sentence with the keys' full names.

    Parameters
    ----------
    error
        The error; `first_problem` of it is told.
    model
        The model's class, for the names of the keys that there are.
    prefix
        Name of the mapping that holds the keys, for models inside others.
    """
    first, reason = first_problem(error)
    if first["type"] == "value_error":  # a model's own check is a whole sentence
        return reason
    names, owner = _walk(model, first["loc"])
    place = ".".join([*([prefix] if prefix else []), *names])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}; expected one of {', '.join(owner.model_fields)}"
    if first["type"] == "missing":
        return f"{place} is missing; give it"
    return f"{place} is {first['input']!r}: {reason[0].lower() + reason[1:]}; correct it"


def _walk(model: Any, location: tuple[Any, ...]) -> tuple[list[str], Any]:
    """The keys of a location in a model, without the tags of unions, and the model that its last key belongs to."""
    names: list[str] = []
    owner, inside = model, model
    for part in location:
        fields = getattr(inside, "model_fields", None)
        if fields is not None:
            owner, inside = inside, getattr(fields.get(part), "annotation", None)
            names.append(str(part))
        elif isinstance(part, int):
            names.append(str(part))
    return names, owner
