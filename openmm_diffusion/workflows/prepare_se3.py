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
from ..data.md_arrays import ArrayWriter, weights_path
from ..errors import InputFileError, OutputError, SettingError, TrajectoryError, first_line
from ..geometry.residue_constants import UNKNOWN_LETTER
from .output import refuse_existing, replacing, write_text
from .prepare_se3_settings import PrepareSE3Settings
from .protein_atoms import ProteinAtoms, select_protein
from .trajectories import FORMAT_ERRORS, read_chunks
from .weighted_frames import check_settings, dealt_order, read_weights, reorder

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
    With `caps`, ACE, NME and NH2 are residues of their own, letter X: the atoms in the roles of N, CA and C stand in
    slots 0 to 2, nothing else, and atlas.csv gets a column `residues` with all names ("ACE-ALA-NME"). With `weights`
    those of the stored frames stand beside each array, {name}_R{k}{suffix}_weights.npy (float64), and the frames are
    in another order than in the trajectory, in which every split has its share of every block of frames.
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
    protein = select_protein(topology, settings.selection, settings.topology, caps=settings.caps)
    protein.report_skipped(settings.topology)
    tables = _Tables.read(settings, overwrite=overwrite)
    tables.check(settings, protein, list(targets), overwrite=overwrite)
    n_frames: dict[str, int] = {}
    with ExitStack() as files:
        for k, ((name, target), file) in enumerate(zip(targets.items(), settings.trajectory, strict=True)):
            aside = files.enter_context(replacing(target))
            n_frames[name] = _write_array(aside, file, topology, protein, settings, progress=progress)
            order = dealt_order(n_frames[name], settings)
            if order is not None:
                reorder(aside, order)
            if settings.weights:
                weights = read_weights(settings.weights[k], file, n_frames[name], settings.stride)
                beside = files.enter_context(replacing(weights_path(target)))
                np.save(beside, weights if order is None else weights[order])
        shares = settings.train_share, settings.val_share
        splits = [
            FrameSplit.of(name, n, shares, settings.early_frames, settings.gap_frames) for name, n in n_frames.items()
        ]
    for target in () if settings.weights else targets.values():
        weights_path(target).unlink(missing_ok=True)  # of a preparation that is overwritten
    tables.write(settings, protein, splits)
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
    check_settings(settings)
    folder = settings.output / settings.name if settings.nested else settings.output
    if settings.output.is_file():
        raise OutputError(f"the output {settings.output} is a file; expected a folder, choose another name")
    names = [f"{settings.name}_R{settings.replica + k}" for k in range(len(settings.trajectory))]
    targets = {n: refuse_existing(folder / f"{n}{settings.suffix}.npy", overwrite=overwrite) for n in names}
    for target in targets.values():
        refuse_existing(weights_path(target), overwrite=overwrite)
    return targets


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

    def check(self, settings: PrepareSE3Settings, protein: ProteinAtoms, names: list[str], *, overwrite: bool) -> None:
        if overwrite:
            return
        new = _described(settings.name, protein)
        for row in self.proteins:
            for key in ("seqres", "residues"):
                known = row.get(key, "").strip()
                if row["name"] == settings.name and known != new.get(key, ""):
                    raise OutputError(
                        f"{self.atlas_csv} has {settings.name} with another sequence ({known or 'no caps'} instead of "
                        f"{new.get(key, 'no caps')}); give --overwrite or another name"
                    )
        present = sorted({row["name"] for row in self.splits} & set(names))
        if present:
            raise OutputError(f"{self.train_split} has rows {', '.join(present)} already; give --overwrite")

    def write(self, settings: PrepareSE3Settings, protein: ProteinAtoms, splits: list[FrameSplit]) -> None:
        known = {row["name"]: row for row in self.proteins}.get(settings.name, {})
        known = {key: value for key, value in known.items() if key != "residues"}
        row = known | _described(settings.name, protein)
        for path in (self.atlas_csv, self.train_split):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.atlas_csv, merged_table(self.proteins, [row]))
        write_text(self.train_split, merged_table(self.splits, [split.to_row() for split in splits]))


def _described(name: str, protein: ProteinAtoms) -> Row:
    """A protein's row of atlas.csv; the residues are named where their letters do not tell them."""
    row = {"name": name, "seqres": protein.sequence}
    return row | {"residues": "-".join(protein.residues)} if UNKNOWN_LETTER in protein.sequence else row
