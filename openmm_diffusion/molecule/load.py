"""One loader for every file format of a molecule, and the PDB writer."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from ..errors import InputFileError, MoleculeError, OutputError, SettingError
from .complete import complete
from .formats import (
    COORDINATES,
    MALFORMED,
    STRUCTURES,
    TOPOLOGIES,
    box_of,
    identify,
    known,
    read,
    read_coordinates,
    read_structure,
    read_topology,
)
from .quantities import in_nanometers


@dataclass(frozen=True)
class SystemSource:
    """The force field that came with the files."""

    file: Path
    make: Callable[..., openmm.System]

    def create_system(self, **kwargs: Any) -> openmm.System:
        """The OpenMM System of the files; takes the keywords of OpenMM's `createSystem` (nonbondedMethod, ...).

        Raises InputFileError where the files lack a part of the force field.
        """
        try:
            return self.make(**kwargs)
        except MALFORMED as error:
            raise InputFileError(
                f"{self.file} lacks data of its force field ({error}); write the file again"
            ) from error


@dataclass(frozen=True)
class LoadedMolecule:
    """What the files held: OpenMM topology, positions [atoms, 3] (nm, float64), box vectors [3, 3] (nm) or None.

    `system_source` is None where the files carry no force field (PDB, mmCIF): use `openmm.app.ForceField` then.
    """

    topology: app.Topology
    positions: NDArray[np.float64]
    box_vectors: NDArray[np.float64] | None
    system_source: SystemSource | None = None


def load(
    topology_file: str | Path,
    coordinates_file: str | Path | None = None,
    *,
    parameters: Sequence[str | Path] = (),
    ph: float = 7.0,
    fix: bool = True,
    seed: int = 0,
) -> LoadedMolecule:
    """Read a molecule: PDB or mmCIF alone, Amber prmtop + inpcrd, Gromacs top + gro, CHARMM psf + crd.

    Parameters
    ----------
    topology_file, coordinates_file
        The format goes by the suffix. Any coordinates go with any topology; PDB and mmCIF bring their own (the first
        model is taken).
    parameters
        CHARMM parameter files (.rtf, .prm, .str) for a psf; without them its force field cannot be used.
    ph, fix, seed
        Missing heavy atoms and hydrogens of standard residues are added to a PDB or mmCIF file that comes alone, with
        the protonation usual at this pH, and logged; present atoms stay. Missing residues are never built. The seed
        places the new hydrogens.

    Raises
    ------
    InputFileError
        A file is missing, of an unknown format, or cannot be read.
    MoleculeError
        Coordinates of another number of atoms, or not finite.
    """
    topology_path, topology_format = identify(topology_file, TOPOLOGIES, "topology")
    if not 0.0 <= ph <= 14.0:
        raise SettingError(f"ph is {ph}; expected 0 to 14")
    if len(parameters) and topology_format != "CHARMM psf":
        raise SettingError(f"parameters were given for {topology_path.name}; only a CHARMM psf takes parameter files")
    if coordinates_file is None:
        if topology_format not in STRUCTURES:
            raise InputFileError(f"{topology_path} has no coordinates; give a file with them ({known(COORDINATES)})")
        structure = read(topology_path, topology_format, read_structure, topology_format)
        topology, box = structure.topology, box_of(structure)
        positions = _checked(structure, topology_path, topology.getNumAtoms())
        if fix:
            topology, positions = complete(topology_path, topology, positions, ph=ph, seed=seed)
        return _molecule(topology, positions, box)
    coordinates_path, coordinates_format = identify(coordinates_file, COORDINATES, "coordinates")
    coordinates = read(coordinates_path, coordinates_format, read_coordinates, coordinates_format)
    box = box_of(coordinates)
    source = read(topology_path, topology_format, read_topology, topology_format, box)
    topology = source.topology
    positions = _checked(coordinates, coordinates_path, topology.getNumAtoms())
    system_source = _system_source(source, topology_path, topology_format, parameters)
    return _molecule(topology, positions, box_of(topology) if box is None else box, system_source)


def write_pdb(path: str | Path, topology: app.Topology, frames_nm: Any) -> Path:
    """Write frames [n, atoms, 3] (or one frame [atoms, 3]; nm or a Quantity) as the models of a PDB file.

    The file appears whole or not at all. Raises MoleculeError for frames of another shape or not finite, OutputError
    where the folder cannot be written.
    """
    path = Path(path)
    frames = in_nanometers(frames_nm)
    frames = frames[None] if frames.ndim == 2 else frames
    if frames.ndim != 3 or frames.shape[1:] != (topology.getNumAtoms(), 3):
        raise MoleculeError(f"frames have shape {frames.shape}; expected [n, {topology.getNumAtoms()}, 3] (nm)")
    if not np.isfinite(frames).all():
        raise MoleculeError(f"frames for {path.name} hold NaN or infinite coordinates; leave those frames out")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w") as file:
            app.PDBFile.writeHeader(topology, file)
            for number, frame in enumerate(frames, 1):
                model = number if len(frames) > 1 else None
                app.PDBFile.writeModel(topology, frame * 10.0, file, modelIndex=model, keepIds=True)
            app.PDBFile.writeFooter(topology, file)
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose a folder to write in") from error
    except ValueError as error:
        raise MoleculeError(
            f"{path.name} cannot be written as PDB: {error}; bring the atoms near the origin"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def _checked(source: Any, path: Path, n_atoms: int) -> NDArray[np.float64]:
    positions = in_nanometers(source.positions)
    if positions.shape != (n_atoms, 3):
        raise MoleculeError(
            f"{path} has {len(positions)} atoms, the topology has {n_atoms}; give coordinates of the same molecule"
        )
    bad = np.flatnonzero(~np.isfinite(positions).all(-1))
    if len(bad):
        raise MoleculeError(
            f"{path} has NaN or infinite coordinates for {len(bad)} of {n_atoms} atoms (first: number {bad[0] + 1}); "
            "write the coordinates again from a state that is whole"
        )
    return positions


def _system_source(source: Any, path: Path, name: str, parameters: Sequence[str | Path]) -> SystemSource | None:
    if name in STRUCTURES:
        return None
    if name != "CHARMM psf":
        return SystemSource(path, source.createSystem)
    if not len(parameters):

        def refuse(**_: Any) -> openmm.System:
            raise MoleculeError(f"{path} carries no parameters; load it with parameters=[...] (.rtf, .prm, .str files)")

        return SystemSource(path, refuse)
    missing = [str(file) for file in parameters if not Path(file).is_file()]
    if missing:
        raise InputFileError(f"{', '.join(missing)} does not exist or is no file; give CHARMM .rtf, .prm or .str files")
    from parmed.charmm import CharmmParameterSet

    files = [str(file) for file in parameters]
    values = read(Path(files[0]), "CHARMM parameters", lambda _: CharmmParameterSet(*files))
    return SystemSource(path, lambda **kwargs: source.createSystem(values, **kwargs))


def _molecule(
    topology: app.Topology, positions: NDArray[np.float64], box: Any, source: SystemSource | None = None
) -> LoadedMolecule:
    topology.setPeriodicBoxVectors(box)
    return LoadedMolecule(topology, positions, None if box is None else in_nanometers(box), source)
