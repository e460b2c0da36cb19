"""Checkpoints of a chain: portable files (XML State, npz, JSON) that appear whole, with the one before kept.

A checkpoint is a folder `checkpoints/iteration_<n>`. It is written under another name, every file of it synced, and
renamed; its card holds the sha256 of the other files and of itself. So a program killed at any instant leaves the
checkpoint before, the new one, or both, and a file damaged later is noticed.
"""

import hashlib
import io
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from ..errors import InputFileError, first_line
from .chain_files import said, sync_folder, write_synced

logger = logging.getLogger(__name__)
FORMAT = "openmm_diffusion chain 1"
FOLDER = "checkpoints"
_KEPT = 2
_ASIDE = "unfinished"
_CARD, _STATE, _POOL = "chain.json", "state.xml", "pool.npz"


@dataclass(frozen=True)
class Checkpoint:
    """A chain after some iterations.

    Attributes
    ----------
    iteration
        How many it has made.
    state
        Positions, velocities and box, as an OpenMM State.
    card
        Plain values: the random generator, counters, lengths of the growing files, fingerprints.
    pool
        Candidates drawn ahead.
    """

    iteration: int
    state: openmm.State
    card: dict[str, Any]
    pool: dict[str, NDArray[Any]]


class Checkpoints:
    """The checkpoints of one chain.

    Parameters
    ----------
    folder
        Where they are; made at the first `save`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, point: Checkpoint) -> None:
        """Write a checkpoint and remove those before the one before it."""
        files = {_STATE: openmm.XmlSerializer.serialize(point.state).encode(), _POOL: _packed(point.pool)}
        card = {
            "format": FORMAT,
            "iteration": point.iteration,
            **point.card,
            "sha256": {name: _sha256(data) for name, data in files.items()},
        }
        files[_CARD] = json.dumps({**card, "sha256_card": _digest(card)}, indent=1).encode()
        aside = self.folder / _ASIDE
        with said(self.folder):
            self.folder.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
        for name, data in files.items():
            write_synced(aside / name, data)
        sync_folder(aside)
        with said(self.folder):
            aside.rename(self.folder / f"iteration_{point.iteration:09d}")
        sync_folder(self.folder)
        self._prune()

    @property
    def iterations(self) -> int:
        """How many iterations the newest checkpoint is said to have, damaged or not."""
        return max((int(path.name.removeprefix("iteration_")) for path in self._all()), default=0)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there never was one. Newer and unfinished ones are removed.

        Raises InputFileError where there are some and all are damaged.
        """
        shutil.rmtree(self.folder / _ASIDE, ignore_errors=True)
        problems: list[str] = []
        for path in self._all():
            try:
                point = _read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, openmm.OpenMMException) as error:
                problems.append(f"{path.name}: {first_line(error)}")
                continue
            for problem in problems:
                logger.warning("a checkpoint is damaged (%s); going on from the one before", problem)
            for newer in self._all()[: len(problems)]:
                _remove(newer)
            self._prune()
            return point
        if problems:
            raise InputFileError(
                f"no checkpoint in {self.folder} can be read ({problems[0]}); bring the files back, or start again "
                "with --overwrite"
            )
        return None

    def _prune(self) -> None:
        for old in self._all()[_KEPT:]:
            _remove(old)

    def _all(self) -> list[Path]:
        """From the newest to the oldest."""
        return sorted(self.folder.glob("iteration_" + 9 * "[0-9]"), reverse=True)


def _read(path: Path) -> Checkpoint:
    card = json.loads((path / _CARD).read_text(encoding="utf-8"))
    own = card.pop("sha256_card", None)
    if card.get("format") != FORMAT:
        raise ValueError(f"format {card.get('format')!r}, expected {FORMAT!r}")
    if own != _digest(card):
        raise ValueError(f"{_CARD} was altered")
    files = {name: (path / name).read_bytes() for name in card["sha256"]}
    for name, data in files.items():
        if _sha256(data) != card["sha256"][name]:
            raise ValueError(f"{name} was altered or truncated")
    with np.load(io.BytesIO(files[_POOL]), allow_pickle=False) as pool:
        arrays = {name: pool[name] for name in pool.files}
    state = openmm.XmlSerializer.deserialize(files[_STATE].decode())
    return Checkpoint(card["iteration"], state, card, arrays)


def _remove(path: Path) -> None:
    """Remove a checkpoint; its card goes first, so that what is left of it is never taken for one."""
    (path / _CARD).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _digest(card: dict[str, Any]) -> str:
    return _sha256(json.dumps(card, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
