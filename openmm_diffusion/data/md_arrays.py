"""Files `{name}_R{k}{suffix}.npy`: atom14 coordinates [F, L, 14, 3] in Angstrom, one file for each trajectory.

The layout of ATLAS and MDGen data (Jing et al. 2024, "Generative modeling of molecular dynamics trajectories"): flat,
`{data_dir}/{name}_R{k}{suffix}.npy`, or nested, `{data_dir}/{name}/{name}_R{k}{suffix}.npy`. float16 keeps 0.008
Angstrom at 16 Angstrom from the origin: good enough to learn from, never to compute an energy from.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError, TrajectoryError

BACKBONE = ("N", "CA", "C", "O")  # the first four of every residue's 14 atoms
DTYPES = ("float16", "float32", "float64")
MAX_LINK = 2.5  # Angstrom; MD keeps C-N at 1.33
MIN_AREA = 0.3  # Angstrom^2, |CA-N x CA-C|; 2.1 in a backbone
_CHECKED_AT_ONCE = 256  # frames


def sequence_name(name: str) -> str:
    """The protein of a trajectory: what stands before the last "_R" ("2_R_A_R1" -> "2_R_A")."""
    return name.rsplit("_R", 1)[0]


def strip_suffix(name: str, suffix: str) -> str:
    """A trajectory's name without the suffix of the files, however often a table has it baked in."""
    while suffix and name.endswith(suffix):
        name = name.removesuffix(suffix)
    return name


def find_array(data_dir: str | Path, name: str, suffix: str = "") -> Path | None:
    """The file of a trajectory, flat or nested; None where there is none.

    Raises InputFileError where the only file there carries the suffix twice.
    """
    folder = Path(data_dir)
    name = strip_suffix(name, suffix)
    places = [folder, folder / sequence_name(name), folder / name]
    for place in places:
        if (place / f"{name}{suffix}.npy").is_file():
            return place / f"{name}{suffix}.npy"
    for place in places if suffix else []:
        twice = place / f"{name}{suffix}{suffix}.npy"
        if twice.is_file():
            raise InputFileError(
                f"{twice} carries the suffix {suffix!r} twice; expected {name}{suffix}.npy, rename the file"
            )
    return None


def weights_path(array: Path) -> Path:
    """Where the weights of an array's frames stand, {name}_R{k}{suffix}_weights.npy, if it has any."""
    return array.with_name(f"{array.stem}_weights.npy")


def list_arrays(data_dir: str | Path, suffix: str = "") -> list[str]:
    """The names, without suffix, of all trajectories `{name}_R{k}{suffix}.npy` in a folder, flat or nested."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputFileError(f"the data folder {folder} does not exist; make it with 'openmm-diffusion prepare se3'")
    stems = {path.stem for pattern in ("*.npy", "*/*.npy") for path in folder.glob(pattern)}
    names = {stem.removesuffix(suffix) for stem in stems if stem.endswith(suffix)}
    return sorted(name for name in names if name.rpartition("_R")[2].isdigit() and "_R" in name)


def open_array(path: str | Path) -> NDArray[np.floating]:
    """The array of a file, memory-mapped and read-only.

    Raises InputFileError where it is no .npy file, TrajectoryError where it is of another shape or type.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputFileError(f"there is no {path}; make it with 'openmm-diffusion prepare se3'") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputFileError(f"{path} cannot be read as a .npy array ({error}); prepare it again") from error
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.shape[2:] != (14, 3):
        shape = getattr(array, "shape", "no array")
        raise TrajectoryError(
            f"{path} has the shape {shape}; expected [frames, residues, 14, 3] in Angstrom, as 'prepare se3' writes it"
        )
    if array.dtype.name not in DTYPES:
        raise TrajectoryError(f"{path} is of type {array.dtype}; expected {', '.join(DTYPES)}, prepare it again")
    if not array.shape[0] or not array.shape[1]:
        raise TrajectoryError(f"{path} has the shape {array.shape}; expected at least one frame and one residue")
    return array


def check_frames(
    atom14: NDArray[np.floating],
    path: str | Path,
    frames: Sequence[int] | NDArray[np.int64],
    caps: NDArray[np.bool_] | None = None,
) -> None:
    """Raise TrajectoryError where a frame [n, L, 14, 3] (Angstrom) is no unbroken chain of residues with frames.

    That is: NaN, a backbone atom at the origin (= absent), C-N of consecutive residues apart, or N, CA and C on a
    line. `frames` are the numbers of the frames in the file `path`, for the sentence; `caps` [L] says which residues
    are caps, which have no O.
    """
    for first in range(0, len(atom14), _CHECKED_AT_ONCE):
        rows = slice(first, first + _CHECKED_AT_ONCE)
        _check_present(atom14[rows], path, frames[rows], caps)
        _check_chain(atom14[rows, :, :3].astype(np.float32), path, frames[rows])


def _check_present(
    atom14: NDArray[np.floating],
    path: str | Path,
    frames: Sequence[int] | NDArray[np.int64],
    caps: NDArray[np.bool_] | None,
) -> None:
    finite = np.isfinite(atom14).all((1, 2, 3))
    if not finite.all():
        frame = frames[int(np.argmin(finite))]
        raise TrajectoryError(f"{path}: frame {frame} has NaN or infinite coordinates; prepare the trajectory again")
    absent = ~np.asarray(atom14[:, :, : len(BACKBONE)].any(-1))
    if caps is not None:
        absent &= ~(caps[:, None] & (np.array(BACKBONE) == "O"))
    if absent.any():
        row, residue, atom = np.argwhere(absent)[0]
        raise TrajectoryError(
            f"{path}: frame {frames[int(row)]} has no {BACKBONE[atom]} in residue {residue + 1} (all zero); expected "
            "every backbone atom in every frame, prepare the trajectory again from a complete structure"
        )


def _check_chain(ncac: NDArray[np.float32], path: str | Path, frames: Sequence[int] | NDArray[np.int64]) -> None:
    n, ca, c = (ncac[:, :, k] for k in range(3))
    area = np.linalg.norm(np.cross(n - ca, c - ca), axis=-1)
    if (area < MIN_AREA).any():
        row, residue = np.unravel_index(np.argmin(area), area.shape)
        raise TrajectoryError(
            f"{path}: in frame {frames[int(row)]} N, CA and C of residue {residue + 1} lie on a line or on one point "
            f"(|CA-N x CA-C| is {area[row, residue]:.2g} Angstrom^2, expected about 2); give coordinates in Angstrom "
            "of a whole backbone, prepare the trajectory again"
        )
    bonds = np.linalg.norm(c[:, :-1] - n[:, 1:], axis=-1)
    if (bonds > MAX_LINK).any():
        row, link = np.unravel_index(np.argmax(bonds), bonds.shape)
        raise TrajectoryError(
            f"{path}: in frame {frames[int(row)]} the chain is broken between residues {link + 1} and {link + 2} "
            f"(C-N {bonds[row, link]:.1f} Angstrom, expected below {MAX_LINK}); make molecules whole across the "
            "periodic box and prepare the trajectory again"
        )


class ArrayWriter:
    """Writes an .npy file of [F, *row_shape] a chunk at a time, F not known before the end.

    numpy leaves room in the header for the first axis to grow. Plain writes rather than a writable memory map: the
    pages of a map count as memory of the process until they are flushed.
    """

    def __init__(self, path: str | Path, row_shape: tuple[int, ...], dtype: str) -> None:
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._path = Path(path)
        self.n_rows = 0

    def __enter__(self) -> Self:
        self._file = open(self._path, "wb")
        self._write_header()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.seek(0)
                self._write_header()
        finally:
            self._file.close()

    def append(self, rows: NDArray[np.floating]) -> None:
        """Write rows [n, *row_shape]; raises TrajectoryError where a number does not fit the file's type."""
        if rows.shape[1:] != self._row_shape:
            raise ValueError(f"rows of shape {rows.shape[1:]}; expected {self._row_shape}")
        if len(rows) and np.abs(rows).max() > np.finfo(self._dtype).max:
            raise TrajectoryError(f"a coordinate is too large for {self._dtype.name}; check the trajectory")
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.n_rows += len(rows)

    def _write_header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.n_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, description)
