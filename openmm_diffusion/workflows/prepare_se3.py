"""Trajectories of any format that mdtraj reads, turned into atom14 arrays and the two tables beside them.

Read a chunk at a time, so memory does not grow with the length of a trajectory (multi-model PDB files are the
exception: mdtraj reads them whole).
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.frame_splits import FrameSplit, Row, merged_table, read_table
from ..data.md_arrays import ArrayWriter
from ..errors import InputFileError, OutputError, SettingError, TrajectoryError, first_line
from .output import refuse_existing, replacing, write_text
from .prepare_se3_settings import PrepareSE3Settings
from .protein_atoms import ProteinAtoms, select_protein
from .trajectories import FORMAT_ERRORS, read_chunks

MAX_PEPTIDE_BOND = 2.0  # Angstrom; MD keeps C-N at 1.33


@dataclass(frozen=True)
class PreparedSE3:
    """What `prepare_se3` wrote: the arrays' files with their frames, the tables, and the sequence."""

    files: dict[Path, int]
    atlas_csv: Path
    train_split: Path
    sequence: str


def prepare_se3(settings: PrepareSE3Settings, *, overwrite: bool = False, progress: bool = True) -> PreparedSE3:
    """Write atom14 arrays [F, L, 14, 3] (Angstrom) of trajectories, and their rows of the two tables.

    Solvent, hydrogens and caps are left out; every frame is superposed on the first, whose centre is the origin.
    Nothing is written unless all trajectories are good. The borders in the table of splits count stored frames, so
    that data sets read it with frame_interval 1.

    Raises
    ------
    TrajectoryError
        Broken or several chains, unknown residues, atoms that do not match the topology, NaN coordinates.
    OutputError
        Files or rows exist already and `overwrite` is not set.
    """
    targets = _targets(settings, overwrite=overwrite)
    topology = read_topology(settings.topology)
    protein = select_protein(topology, settings.selection, settings.topology)
    protein.report_skipped(settings.topology)
    tables = _Tables.read(settings, overwrite=overwrite)
    tables.check(settings, protein.sequence, list(targets), overwrite=overwrite)
    n_frames: dict[str, int] = {}
    with ExitStack() as files:
        for (name, target), file in zip(targets.items(), settings.trajectory, strict=True):
            aside = files.enter_context(replacing(target))
            n_frames[name] = _write_array(aside, file, topology, protein, settings, progress=progress)
        shares = settings.train_share, settings.val_share
        splits = [
            FrameSplit.of(name, n, shares, settings.early_frames, settings.gap_frames) for name, n in n_frames.items()
        ]
    tables.write(settings, protein.sequence, splits)
    settings.write(next(iter(targets.values())).with_suffix(".yaml"))
    files_frames = {target: n_frames[name] for name, target in targets.items()}
    return PreparedSE3(files_frames, tables.atlas_csv, tables.train_split, protein.sequence)


def read_topology(path: Path) -> Any:
    """The mdtraj topology of a file; raises InputFileError where it cannot be read."""
    import mdtraj

    if not path.is_file():
        raise InputFileError(f"there is no topology {path}; check the path")
    try:
        return mdtraj.load_topology(str(path))
    except Exception as error:  # mdtraj's parsers raise whatever they run into
        raise InputFileError(
            f"{path} cannot be read as a topology ({first_line(error)}); expected a format of mdtraj: PDB, mmCIF, "
            "prmtop, psf, gro, h5"
        ) from error


def _write_array(
    path: Path, file: Path, topology: Any, protein: ProteinAtoms, settings: PrepareSE3Settings, *, progress: bool
) -> int:
    """Stream one trajectory into one array; returns its number of frames."""
    fitted = protein.local_indices("CA") if settings.superpose == "ca" else np.arange(len(protein.atoms))
    reference = None
    chunks = read_chunks(file, topology, protein.atoms, settings.stride, settings.chunk)
    with (
        ArrayWriter(path, (len(protein.sequence), 14, 3), settings.dtype) as writer,
        tqdm(desc=file.name, unit=" frames", disable=not progress, total=_frame_count(file, settings.stride)) as bar,
    ):
        for frames in chunks:
            _check_chunk(frames.xyz, protein, file, writer.n_rows, settings.stride)
            if reference is None:
                reference = frames[0]
                # Small coordinates keep more digits in float16.
                reference.xyz = reference.xyz - reference.xyz[:, fitted].mean(1, keepdims=True)
            frames.superpose(reference, atom_indices=fitted, ref_atom_indices=fitted)
            writer.append(protein.atom14(10.0 * frames.xyz))
            bar.update(len(frames))
    return writer.n_rows


def _check_chunk(xyz_nm: NDArray[np.float32], protein: ProteinAtoms, file: Path, n_before: int, stride: int) -> None:
    finite = np.isfinite(xyz_nm).all((1, 2))
    if not finite.all():
        frame = (n_before + int(np.argmin(finite))) * stride
        raise TrajectoryError(f"{file}: frame {frame} has NaN or infinite coordinates; cut the trajectory before it")
    ends, starts = protein.local_indices("C")[:-1], protein.local_indices("N")[1:]
    bonds = 10.0 * np.linalg.norm(xyz_nm[:, ends] - xyz_nm[:, starts], axis=-1)
    if (bonds > MAX_PEPTIDE_BOND).any():
        row, link = np.unravel_index(np.argmax(bonds), bonds.shape)
        raise TrajectoryError(
            f"{file}: in frame {(n_before + int(row)) * stride} the chain is broken between {protein.labels[link]} and "
            f"{protein.labels[link + 1]} (C-N {bonds[row, link]:.1f} Angstrom, expected below {MAX_PEPTIDE_BOND}); "
            "make molecules whole across the periodic box, or give one unbroken chain with --selection"
        )


def _frame_count(file: Path, stride: int) -> int | None:
    """Frames that will be stored, for the progress bar; None where the format does not tell."""
    import mdtraj

    if file.suffix not in (".dcd", ".xtc", ".trr", ".nc", ".ncdf", ".h5"):
        return None
    try:
        with mdtraj.open(str(file)) as handle:
            return -(-len(handle) // stride)
    except FORMAT_ERRORS:
        return None


def _targets(settings: PrepareSE3Settings, *, overwrite: bool) -> dict[str, Path]:
    """Trajectory name -> file to write."""
    if settings.suffix and settings.name.endswith(settings.suffix):
        raise SettingError(
            f"the name {settings.name!r} ends with the suffix {settings.suffix!r}, which would be applied twice; "
            "give the name without it"
        )
    if settings.train_share + settings.val_share >= 1:
        raise SettingError(
            f"train_share + val_share is {settings.train_share + settings.val_share:g}; expected less than 1, the "
            "rest is for testing"
        )
    folder = settings.output / settings.name if settings.nested else settings.output
    if settings.output.is_file():
        raise OutputError(f"the output {settings.output} is a file; expected a folder, choose another name")
    names = [f"{settings.name}_R{settings.replica + k}" for k in range(len(settings.trajectory))]
    return {n: refuse_existing(folder / f"{n}{settings.suffix}.npy", overwrite=overwrite) for n in names}


@dataclass(frozen=True)
class _Tables:
    """The two tables as they were before."""

    atlas_csv: Path
    train_split: Path
    proteins: list[Row]
    splits: list[Row]

    @classmethod
    def read(cls, settings: PrepareSE3Settings, *, overwrite: bool) -> "_Tables":
        atlas = settings.atlas_csv or settings.output / "atlas.csv"
        split = settings.train_split or settings.output / "frame_splits.csv"
        proteins = read_table(atlas, ("name", "seqres")) if atlas.exists() else []
        return cls(atlas, split, proteins, read_table(split, ("name",)) if split.exists() else [])

    def check(self, settings: PrepareSE3Settings, sequence: str, names: list[str], *, overwrite: bool) -> None:
        if overwrite:
            return
        for row in self.proteins:
            if row["name"] == settings.name and row["seqres"].strip() != sequence:
                raise OutputError(
                    f"{self.atlas_csv} has {settings.name} with another sequence ({row['seqres']} instead of "
                    f"{sequence}); give --overwrite or another name"
                )
        present = sorted({row["name"] for row in self.splits} & set(names))
        if present:
            raise OutputError(f"{self.train_split} has rows {', '.join(present)} already; give --overwrite")

    def write(self, settings: PrepareSE3Settings, sequence: str, splits: list[FrameSplit]) -> None:
        known = {row["name"]: row for row in self.proteins}.get(settings.name, {})
        protein = known | {"name": settings.name, "seqres": sequence}
        for path in (self.atlas_csv, self.train_split):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.atlas_csv, merged_table(self.proteins, [protein]))
        write_text(self.train_split, merged_table(self.splits, [split.to_row() for split in splits]))
