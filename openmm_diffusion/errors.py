"""Exceptions of the package; each is also the built-in exception that a caller would expect."""


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
