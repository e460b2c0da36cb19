"""Files of a chain that grow: frames and rows are appended, synced, and cut back to what a checkpoint knows of."""

import errno
import io
import math
import os
import struct
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..errors import InputFileError, OpenMMDiffusionError, OutputError

Array = NDArray[np.float64]


class FrameFormat(Protocol):
    """A trajectory format whose frames are bytes that can be appended."""

    def header(self, n_frames: int) -> bytes:
        """What stands before the first frame."""
        ...

    def frame(self, iteration: int, positions_nm: Array, box_nm: Array | None) -> bytes:
        """One frame."""
        ...


class DCDFormat:
    """DCD as CHARMM writes it: Angstrom, single precision; without dates, so that equal chains make equal files.

    Parameters
    ----------
    topology
        Of every atom.
    interval, picoseconds
        Iterations between frames, and time of dynamics in an iteration.
    """

    def __init__(self, topology: app.Topology, interval: int, picoseconds: float) -> None:
        self._n_atoms = topology.getNumAtoms()
        self._periodic = topology.getPeriodicBoxVectors() is not None
        self._interval, self._delta = interval, picoseconds / 0.04888821  # CHARMM's unit of time

    def header(self, n_frames: int) -> bytes:
        titles = b"openmm-diffusion sample".ljust(80) + b"time is in iterations".ljust(80)
        numbers = (n_frames, self._interval, self._interval, 0, 0, 0, 0, 0, 0)
        control = b"CORD" + struct.pack("<9if", *numbers, self._delta)
        control += struct.pack("<10i", int(self._periodic), 0, 0, 0, 0, 0, 0, 0, 0, 24)
        return b"".join(_record(part) for part in (control, struct.pack("<i", 2) + titles, _int(self._n_atoms)))

    def frame(self, iteration: int, positions_nm: Array, box_nm: Array | None) -> bytes:
        parts = [(10.0 * positions_nm[:, axis]).astype("<f4").tobytes() for axis in range(3)]
        if self._periodic:
            a, b, c, alpha, beta, gamma = _cell(box_nm)
            parts.insert(0, struct.pack("<6d", 10 * a, gamma, 10 * b, beta, alpha, 10 * c))
        return b"".join(map(_record, parts))


class XTCFormat:
    """XTC by OpenMM's writer: compressed, rounded to 1e-3 nm."""

    def __init__(self, topology: app.Topology, interval: int, picoseconds: float) -> None:
        self._topology, self._picoseconds = topology, picoseconds

    def header(self, n_frames: int) -> bytes:
        return b""

    def frame(self, iteration: int, positions_nm: Array, box_nm: Array | None) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frame.xtc"
            writer = app.XTCFile(str(path), self._topology, self._picoseconds, firstStep=iteration)
            writer.writeModel(positions_nm, periodicBoxVectors=box_nm if box_nm is None else _vectors(box_nm))
            return path.read_bytes()


FORMATS: dict[str, Any] = {"dcd": DCDFormat, "xtc": XTCFormat}


class GrowingFile:
    """A file that bytes are appended to, without a buffer: what a killed program wrote is there, and can be cut off.

    Parameters
    ----------
    path
        The file.
    length
        Bytes to keep; None to begin anew.

    Raises
    ------
    InputFileError
        The file is missing, or shorter than `length`.
    OutputError
        It cannot be written.
    """

    def __init__(self, path: Path, length: int | None) -> None:
        self.path = path
        if length is not None and (not path.is_file() or path.stat().st_size < length):
            raise InputFileError(
                f"{path} is missing or shorter than the {length} bytes that the checkpoint knows of; bring the file "
                "back, or start again with --overwrite"
            )
        with said(path):
            self._file = io.FileIO(path, "w" if length is None else "r+")
            self._file.truncate(length or 0)
            self._file.seek(0, os.SEEK_END)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        with said(self.path):
            write_all(self._file, data)

    def rewrite_start(self, data: bytes) -> None:
        """Replace the first bytes by as many others."""
        with said(self.path):
            self._file.seek(0)
            write_all(self._file, data)
            self._file.seek(0, os.SEEK_END)

    def sync(self) -> int:
        """Wait until the bytes are on the disk; returns how many there are."""
        with said(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class Trajectory(GrowingFile):
    """A trajectory; its header tells at any time how many frames there are."""

    def __init__(self, path: Path, form: FrameFormat, length: int | None, n_frames: int) -> None:
        super().__init__(path, length)
        self._form, self.n_frames = form, n_frames
        self.rewrite_start(form.header(n_frames))

    def add(self, iteration: int, positions_nm: Array, box_nm: Array | None) -> None:
        """Append a frame."""
        self.append(self._form.frame(iteration, positions_nm, box_nm))
        self.n_frames += 1
        self.rewrite_start(self._form.header(self.n_frames))


class Table(GrowingFile):
    """A CSV file of numbers, exact to the last bit; what is not there is nan."""

    def __init__(self, path: Path, columns: Sequence[str], length: int | None) -> None:
        super().__init__(path, length)
        if length is None:
            self.append((",".join(columns) + "\n").encode())

    def add(self, values: Sequence[float | None]) -> None:
        """Append a row."""
        self.append((",".join(map(_text, values)) + "\n").encode())


def read_table(path: Path) -> dict[str, Array]:
    """The columns of a CSV file; raises InputFileError where it is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            names = file.readline().rstrip("\n").split(",")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that there are no rows yet
                rows = np.loadtxt(file, delimiter=",", ndmin=2).reshape(-1, len(names))
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path} is not the table of a chain ({error}); start again with --overwrite") from error
    return dict(zip(names, rows.T, strict=True))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with said(path), open(path, "wb", buffering=0) as file:
        write_all(file, data)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # Windows cannot open folders
        return
    with said(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(file: Any, data: bytes) -> None:
    """Write all of the bytes: a nearly full disk takes a part of them first, and then refuses."""
    rest = memoryview(data)
    while len(rest):
        rest = rest[file.write(rest) :]


@contextmanager
def said(path: Path) -> Iterator[None]:
    """Make one sentence of a disk that is full, read-only or broken."""
    try:
        yield
    except OpenMMDiffusionError:
        raise
    except OSError as error:
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the rights and the disk"
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); {remedy}, then give --resume: the chain is kept up "
            "to its last checkpoint"
        ) from error


def _record(data: bytes) -> bytes:
    return _int(len(data)) + data + _int(len(data))


def _int(value: int) -> bytes:
    return struct.pack("<i", value)


def _text(value: float | None) -> str:
    if value is None:
        return "nan"
    return str(value) if isinstance(value, int) else repr(float(value))


def _cell(box_nm: Array | None) -> list[float]:
    """Lengths (nm) and angles (degrees) of box vectors."""
    if box_nm is None:
        raise ValueError("a periodic molecule has no box vectors")
    lengths = np.linalg.norm(box_nm, axis=1)
    axes = box_nm / lengths[:, None]
    angles = [math.degrees(math.acos(float(np.clip(axes[i] @ axes[j], -1, 1)))) for i, j in ((1, 2), (0, 2), (0, 1))]
    return [*lengths.tolist(), *angles]


def _vectors(box_nm: Array) -> Any:
    return [openmm.Vec3(*row) for row in box_nm.tolist()] * unit.nanometer
