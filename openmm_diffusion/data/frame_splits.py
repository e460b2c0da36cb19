"""The two tables beside trajectories: atlas.csv (name, seqres) and frame_splits.csv (which frames are for what).

Where a chain has caps as residues, seqres has the letter X for them, and a column `residues` names all of them:
"ACE-ALA-NME".

frame_splits.csv has the columns of MDGen's, `name,train_start,train_end,total_frames,train_early_end,val_end`, with
empty cells and numbers such as "500.0" allowed. Trajectories are contiguous in time, so neighbouring splits are
correlated across their border; the optional columns `val_start` and `test_start` leave a gap there.
"""

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputFileError, SettingError, TrajectoryError
from ..geometry.residue_constants import RESTYPES, RESTYPES_3, UNKNOWN_LETTER
from ..peptide import CAPS
from .md_arrays import sequence_name

logger = logging.getLogger(__name__)

MODES = ("train", "train_early", "val", "test", "all")
COLUMNS = ("name", "train_start", "train_end", "total_frames", "train_early_end", "val_end")
_GAP_COLUMNS = ("val_start", "test_start")
Row = dict[str, str]
_LETTERS = dict(zip(RESTYPES_3, RESTYPES, strict=False)) | dict.fromkeys(CAPS, UNKNOWN_LETTER)


@dataclass(frozen=True)
class FrameSplit:
    """Borders of one trajectory's splits, in frames of the trajectory before any thinning; None where not given.

    train_early is [train_start, train_end), train begins at train_early_end where that is given, val is
    [val_start, val_end), test [test_start, total_frames); val_start and test_start are train_end and val_end if not
    given.
    """

    name: str
    train_start: int | None = None
    train_end: int | None = None
    total_frames: int | None = None
    train_early_end: int | None = None
    val_end: int | None = None
    val_start: int | None = None
    test_start: int | None = None

    @classmethod
    def of(cls, name: str, n_frames: int, shares: tuple[float, float], early: int = 0, gap: int = 0) -> "FrameSplit":
        """Training, validation and test frames in this order, by the shares of the first two of what follows `early`.

        Raises TrajectoryError where one of the three would be empty.
        """
        rest = n_frames - early
        train_end = early + int(shares[0] * rest)
        val_end = early + int((shares[0] + shares[1]) * rest)
        starts = (train_end + gap, val_end + gap) if gap else (None, None)
        split = cls(name, None, train_end, n_frames, early, val_end, *starts)
        empty = [m for m in ("train", "val", "test") if split._raw(m)[0] >= split._raw(m)[1]]
        if empty:
            raise TrajectoryError(
                f"{name} has {n_frames} frames, which leaves none for {', '.join(empty)} (shares {shares[0]:g} and "
                f"{shares[1]:g}, {early} early frames, gap {gap}); give more frames, a smaller stride or a smaller gap"
            )
        return split

    @classmethod
    def from_row(cls, row: Mapping[str, str], path: Path) -> "FrameSplit":
        """A row of frame_splits.csv; cells may be empty or floats."""
        values = {key: _frame(row.get(key), row["name"], key, path) for key in (*COLUMNS[1:], *_GAP_COLUMNS)}
        return cls(row["name"], **values)

    def to_row(self) -> Row:
        """The row of frame_splits.csv; the columns of gaps only where there is a gap."""
        columns = [*COLUMNS, *(key for key in _GAP_COLUMNS if getattr(self, key) is not None)]
        return {key: "" if (value := getattr(self, key)) is None else str(value) for key in columns}

    def bounds(self, mode: str, n_frames: int, frame_interval: int = 1) -> tuple[int, int]:
        """First and last + 1 frame of a mode in a file of n_frames frames thinned to every frame_interval-th.

        Raises TrajectoryError where the table does not fit the file, or leaves the mode no frame.
        """
        if mode == "all":
            return 0, n_frames
        expected = None if self.total_frames is None else math.ceil(self.total_frames / frame_interval)
        start, stop = (_divide(border, frame_interval) for border in self._raw(mode, n_frames * frame_interval))
        # Thinning may keep one frame more or less than the quotient.
        if (expected is not None and abs(expected - n_frames) > 1) or not 0 <= start <= stop <= n_frames + 1:
            raise TrajectoryError(
                f"{self.name} has {n_frames} frames, but its row of the frame splits says {self.total_frames} frames "
                f"and [{start}, {stop}) for {mode} at frame_interval {frame_interval}; correct the table or "
                "frame_interval"
            )
        stop = min(stop, n_frames)
        if start >= stop:
            raise TrajectoryError(
                f"the split {mode} of {self.name} is empty: frames [{start}, {stop}) of {n_frames}; correct the "
                "table of frame splits or choose another mode"
            )
        return start, stop

    def _raw(self, mode: str, n_frames: int | None = None) -> tuple[int, int]:
        total = n_frames if self.total_frames is None else self.total_frames
        train_end, val_end = (0 if value is None else value for value in (self.train_end, self.val_end))
        first = self.train_start or 0
        return {
            "train_early": (first, train_end),
            "train": (max(first, self.train_early_end or 0), train_end),
            "val": (train_end if self.val_start is None else self.val_start, val_end),
            "test": (val_end if self.test_start is None else self.test_start, total or 0),
        }[mode]


def check_mode(mode: str) -> str:
    """The mode; raises SettingError where there is none of that name."""
    if mode not in MODES:
        raise SettingError(f"the mode is {mode!r}; expected one of {', '.join(MODES)}")
    return mode


def needed_columns(mode: str) -> tuple[str, ...]:
    """The columns without which a mode cannot be cut out."""
    needed = {"train": ("train_end",), "train_early": ("train_end",), "val": ("train_end", "val_end")}
    return {**needed, "test": ("val_end",), "all": ()}[mode]


def read_sequences(path: str | Path) -> dict[str, str]:
    """Name -> sequence in one-letter code, of atlas.csv."""
    rows = read_table(path, ("name", "seqres"))
    return {row["name"]: row["seqres"].strip() for row in rows}


def read_residues(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Name -> canonical residue names with caps, of those rows of atlas.csv that tell them.

    Raises TrajectoryError where they are not those of the sequence.
    """
    found = {}
    for row in read_table(path, ("name", "seqres")):
        if text := row.get("residues", "").strip():
            found[row["name"]] = names = tuple(text.split("-"))
            expected = "".join(_LETTERS.get(name, "?") for name in names)
            if expected != row["seqres"].strip():
                raise TrajectoryError(
                    f"{path}: the residues of {row['name']} are {text}, its sequence is {row['seqres']}; expected the "
                    f"same residues in both, X for each of {', '.join(CAPS)}, prepare the trajectory again"
                )
    return found


def read_frame_splits(path: str | Path, modes: Iterable[str]) -> tuple[list[FrameSplit], bool]:
    """The rows of frame_splits.csv, and whether its columns can tell the modes apart.

    A table without the columns that a mode needs gives all frames to it, with a warning.
    """
    rows = read_table(path, ("name",))
    columns = rows[0].keys()
    absent = {mode: [key for key in needed_columns(mode) if key not in columns] for mode in modes}
    for mode, missing in sorted(absent.items()):
        if missing:
            logger.warning("%s has no column %s: %s takes all frames", path, ", ".join(missing), mode)
    return [FrameSplit.from_row(row, Path(path)) for row in rows], not any(absent.values())


def read_table(path: str | Path, required: Iterable[str]) -> list[Row]:
    """The rows of a CSV file, each name once; raises InputFileError or TrajectoryError with what is wrong."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"cannot read the table {path}: {error}; check the path") from error
    absent = [column for column in required if column not in header]
    if absent:
        raise TrajectoryError(
            f"{path} has the columns {', '.join(header) or 'none'}; expected {', '.join(required)}, check that it is "
            "the right table"
        )
    if not rows:
        raise TrajectoryError(f"{path} has no rows; expected one for each protein or trajectory")
    seen: set[str] = set()
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values() or not row["name"]:
            raise TrajectoryError(f"{path}, line {number}: expected {len(header)} cells and a name; correct the line")
        if row["name"] in seen:
            raise TrajectoryError(f"{path} has {row['name']!r} twice; expected each name once, delete one of the rows")
        seen.add(row["name"])
    return rows


def merged_table(old: list[Row], new: list[Row]) -> str:
    """A CSV of the old rows and the new, which replace old ones of the same name; all columns of either are kept."""
    rows = {row["name"]: row for row in old} | {row["name"]: row for row in new}
    columns = list(dict.fromkeys(key for row in [*old, *new] for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return text.getvalue()


def sequence_of(name: str, sequences: Mapping[str, str], path: str | Path) -> str:
    """The sequence of a trajectory; raises TrajectoryError where the table does not have its protein."""
    protein = sequence_name(name)
    if protein not in sequences:
        raise TrajectoryError(
            f"{path} has no row {protein!r}, the protein of trajectory {name}; add it with its sequence"
        )
    return sequences[protein]


def _frame(cell: str | None, name: str, column: str, path: Path) -> int | None:
    if cell is None or not cell.strip():
        return None
    try:
        value = float(cell)
        if math.isnan(value):  # pandas writes an empty cell as nan
            return None
        if value < 0 or not value.is_integer():
            raise ValueError
    except ValueError as error:
        raise TrajectoryError(
            f"{path}: {column} of {name} is {cell!r}; expected a whole number of frames >= 0, or nothing"
        ) from error
    return int(value)


def _divide(border: int, interval: int) -> int:
    return border // interval
