"""Output folders and files: nothing is overwritten by accident, nothing is left half written."""

import logging
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import replacing, write_json, write_text

__all__ = [
    "prepare_folder",
    "refuse_existing",
    "refuse_to_lose",
    "replacing",
    "write_json",
    "write_text",
    "write_trajectory",
]

logger = logging.getLogger(__name__)


def prepare_folder(
    path: str | Path,
    *,
    overwrite: bool = False,
    resume: bool | None = None,
    inputs: Iterable[Path] = (),
    ignore: Collection[str] = (),
) -> Path:
    """Make an output folder, or refuse one that holds results already.

    `overwrite` empties it, `resume` keeps what is there (None where a job cannot be resumed); files named in `ignore`,
    such as a lock, stay and do not count. Raises OutputError otherwise, where it cannot be made, or where emptying it
    would delete one of the `inputs` of the job.
    """
    folder = Path(path)
    if overwrite and resume:
        raise OutputError("--overwrite and --resume exclude each other; give one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output {folder} is a file; expected a folder, choose another name")
    if folder.is_dir() and any(item.name not in ignore for item in folder.iterdir()):
        if overwrite:
            refuse_to_lose(folder, inputs)
            _empty(folder, ignore)
        elif not resume:
            ways = "--overwrite or" if resume is None else "--overwrite, --resume or"
            raise OutputError(f"the output folder {folder} holds results already; give {ways} another name")
    elif resume:
        logger.warning("there is nothing in %s to go on with; a new run begins", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the output folder {folder}: {error}; choose another place") from error
    return folder


def refuse_to_lose(folder: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError where one of the inputs of a job lies in a folder that is about to be emptied."""
    for item in inputs:
        if item.resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                f"{item} is read by this job and lies in the output folder {folder}, which --overwrite would empty; "
                "give another output folder"
            )


def _empty(folder: Path, ignore: Collection[str]) -> None:
    for item in (item for item in folder.iterdir() if item.name not in ignore):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def refuse_existing(path: str | Path, *, overwrite: bool = False) -> Path:
    """A file path that may be written: raises OutputError if the file exists and `overwrite` is not set."""
    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; give --overwrite or another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_trajectory(path: str | Path, topology: Any, frames_nm: Any) -> None:
    """Write frames [n, atoms, 3] (nm) of an OpenMM topology, in the format of the suffix, in one piece."""
    import mdtraj

    with replacing(path) as aside:
        mdtraj.Trajectory(frames_nm, mdtraj.Topology.from_openmm(topology)).save(str(aside))
