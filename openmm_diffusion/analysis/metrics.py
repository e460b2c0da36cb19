"""Reading the table of metrics that Lightning's CSVLogger writes beside a training run."""

import csv
import os

import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError, TrajectoryError


def read_metrics(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float64]]:
    """The columns [rows] of a metrics.csv by name; blank cells, where a row belongs to another metric, are NaN.

    Raises InputFileError for a file that cannot be opened, TrajectoryError for one that is no table of numbers.
    """
    name = os.fspath(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        table = [[float(cell) if cell else np.nan for cell in row] for row in rows]
        columns = np.array(table, dtype=np.float64).reshape(len(table), len(header))
    except OSError as error:
        raise InputFileError(f"cannot read the metrics {name}: {error}; expected Lightning's metrics.csv") from error
    except ValueError as error:
        raise TrajectoryError(
            f"the metrics {name} are no table of numbers ({error}); expected Lightning's metrics.csv"
        ) from error
    return dict(zip(header, columns.T, strict=True))
