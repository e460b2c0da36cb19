"""Trajectory files of any format that mdtraj reads, a chunk of frames at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError, TrajectoryError, first_line

_CHUNK_BYTES = 32e6  # of coordinates, all atoms of the file
FORMAT_ERRORS = (ValueError, OSError, RuntimeError, TypeError, KeyError, IndexError, EOFError)


def read_chunks(
    file: Path, topology: Any, atoms: NDArray[np.int64] | None = None, stride: int = 1, chunk: int | None = None
) -> Iterator[Any]:
    """mdtraj trajectories of some atoms (None: all) of a file, a chunk of frames at a time; every stride-th frame.

    Raises TrajectoryError where the file does not match the topology or breaks off in a way that mdtraj sees.
    """
    import mdtraj

    if not file.is_file():
        raise InputFileError(f"there is no trajectory {file}; check the path")
    # The selection of atoms would hide a file of another molecule, so one frame is read whole.
    own = file.suffix in (".pdb", ".h5", ".hdf5", ".lh5", ".gro", ".cif", ".mmcif", ".pdbx")
    options: dict[str, Any] = {} if own else {"top": topology}
    size = chunk or int(np.clip(_CHUNK_BYTES / (12 * topology.n_atoms), 1, 1000))
    try:
        first = next(mdtraj.iterload(str(file), chunk=1, **options), None)
        if first is None:
            raise ValueError("it has no frames")
        if first.n_atoms != topology.n_atoms:
            raise ValueError(f"it has {first.n_atoms} atoms")
        offset = 0
        for frames in mdtraj.iterload(str(file), chunk=size, atom_indices=atoms, **options):
            # mdtraj's own stride ends early or is refused in some formats where it does not divide the chunk.
            kept = frames[-offset % stride :: stride]
            offset += len(frames)
            if len(kept):
                yield kept
    except FORMAT_ERRORS as error:
        raise TrajectoryError(
            f"{file} does not match the topology or cannot be read ({first_line(error)}); expected frames of "
            f"{topology.n_atoms} atoms in the order of the topology"
        ) from error
