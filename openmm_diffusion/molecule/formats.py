"""File formats of molecules: which one a file is of, and its reader.

OpenMM's own readers serve Amber and Gromacs: converted files keep the energy of alanine dipeptide to 1e-4 kJ/mol, and a
Gromacs topology needs no GROMACS installation unless it #includes its files. CHARMM's psf goes through parmed, because
OpenMM's reader takes periodic impropers (Amber force fields in CHARMM's format) for harmonic ones without a word.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from openmm import app

from ..errors import InputFileError
from .quantities import in_nanometers

FORMATS = {
    **dict.fromkeys((".pdb", ".ent"), "PDB"),
    **dict.fromkeys((".cif", ".mmcif", ".pdbx"), "mmCIF"),
    **dict.fromkeys((".prmtop", ".parm7"), "Amber topology"),
    ".top": "Gromacs topology",
    ".psf": "CHARMM psf",
    **dict.fromkeys((".inpcrd", ".rst7", ".rst", ".restrt", ".ncrst"), "Amber coordinates"),
    ".gro": "Gromacs gro",
    **dict.fromkeys((".crd", ".cor"), "CHARMM coordinates"),
}
STRUCTURES = ("PDB", "mmCIF")
TOPOLOGIES = (*STRUCTURES, "Amber topology", "Gromacs topology", "CHARMM psf")
COORDINATES = (*STRUCTURES, "Amber coordinates", "Gromacs gro", "CHARMM coordinates")
MALFORMED = (KeyError, IndexError, AttributeError)  # what readers run into where a part of a file is absent
_NO_CELL_NM = 0.2  # NMR and cryo-EM structures carry a 1 Angstrom unit cell, gro files of a vacuum one of zero


def known(formats: Iterable[str]) -> str:
    """The suffixes of some formats, for error sentences."""
    return ", ".join(suffix for suffix, name in FORMATS.items() if name in formats)


def identify(file: str | Path, allowed: Sequence[str], role: str) -> tuple[Path, str]:
    """The path and its format; two suffixes have two owners, told apart by how the file begins."""
    path = Path(file)
    if not path.is_file():
        raise InputFileError(f"{path} does not exist or is no file; give the path of a {role} file ({known(allowed)})")
    name = FORMATS.get(path.suffix.lower(), "")
    with open(path, "rb") as stream:
        start = stream.read(512).lstrip()
    if name == "Gromacs topology" and start.startswith(b"%VERSION"):
        name = "Amber topology"
    if name == "CHARMM coordinates" and path.suffix.lower() == ".crd" and not start.startswith(b"*"):
        name = "Amber coordinates"
    if name not in allowed:
        raise InputFileError(f"{path} is of no known {role} format; expected one of {known(allowed)}")
    return path, name


def read(path: Path, name: str, reader: Callable[..., Any], *args: Any) -> Any:
    """Call a reader; whatever it raises becomes an InputFileError."""
    try:
        return reader(path, *args)
    except Exception as error:  # the readers raise whatever their parsing runs into
        lines = [] if isinstance(error, MALFORMED) else str(error).strip().splitlines()
        reason = lines[0] if lines else "parts of this format are absent"
        raise InputFileError(f"{path} cannot be read as {name}: {reason}; check that the file is whole") from error


def read_structure(path: Path, name: str) -> Any:
    """OpenMM's reader object of a PDB or mmCIF file, with disulfides."""
    structure = (app.PDBFile if name == "PDB" else app.PDBxFile)(str(path))
    if not structure.topology.getNumAtoms():
        raise ValueError("it holds no atoms")
    if name == "PDB":
        _check_unlike_atoms(path, structure.topology.getNumAtoms())
    if name == "mmCIF":  # PDBFile looks for disulfides by distance, PDBxFile only at the file's own records
        structure.topology.createDisulfideBonds(structure.positions)
    return structure


def _check_unlike_atoms(path: Path, n_atoms: int) -> None:
    """Raise ValueError where OpenMM left out records: those of an atom that its residue has already."""
    n_records = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("ENDMDL"):
                break
            # Alternate locations are left out with good reason.
            n_records += line.startswith(("ATOM  ", "HETATM")) and line[16:17] in ("", " ")
    if n_records > n_atoms:
        raise ValueError(f"{n_records - n_atoms} atoms have a name that another atom of their residue has")


def read_coordinates(path: Path, name: str) -> Any:
    """A reader object with `positions`."""
    if name in STRUCTURES:
        return read_structure(path, name)
    readers = {
        "Amber coordinates": app.AmberInpcrdFile,
        "Gromacs gro": app.GromacsGroFile,
        "CHARMM coordinates": app.CharmmCrdFile,
    }
    return readers[name](str(path))


def read_topology(path: Path, name: str, box: Any) -> Any:
    """A reader object with `topology` and, where the format carries a force field, `createSystem`."""
    if name in STRUCTURES:
        return read_structure(path, name)
    if name == "CHARMM psf":
        return _read_psf(path, box)
    try:
        reader = app.AmberPrmtopFile if name == "Amber topology" else app.GromacsTopFile
        return reader(str(path), periodicBoxVectors=box)
    except ValueError as error:
        if "#include" in str(error):
            remedy = "set GMXDATA to GROMACS' share folder or write a topology with all parameters in it"
            raise ValueError(f"{error}; {remedy}") from error
        raise


def _read_psf(path: Path, box: Any) -> Any:
    from parmed.charmm import CharmmPsfFile

    psf = CharmmPsfFile(str(path))
    if box is not None:
        psf.box_vectors = box
    return psf


def box_of(source: Any) -> Any:
    """Box vectors of any reader as a Quantity, None where there is no real cell."""
    if hasattr(source, "getPeriodicBoxVectors"):
        box = source.getPeriodicBoxVectors()
    elif hasattr(source, "topology"):
        box = source.topology.getPeriodicBoxVectors()
    else:
        box = getattr(source, "boxVectors", None)
    return None if box is None or np.min(np.diag(in_nanometers(box))) < _NO_CELL_NM else box
