"""Backbones as files: an OpenMM topology of N, CA, C, O and CB, PDB files that say what they are, side chains."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openmm import app
from tqdm.auto import tqdm

from ..errors import MoleculeError
from ..geometry import residue_constants as rc
from ..molecule import load, write_pdb
from ..units import ANGSTROM_PER_NM
from .output import write_text, write_trajectory

logger = logging.getLogger(__name__)
Array = NDArray[np.float64]
REMARKS = (
    "BACKBONES DRAWN FROM A GENERATIVE MODEL BY OPENMM_DIFFUSION.",
    "THESE ARE PICTURES OF WHAT THE MODEL LEARNED, NOT SAMPLES OF A BOLTZMANN",
    "DISTRIBUTION: NO ENERGY WAS COMPUTED AND NOTHING WAS REWEIGHTED.",
)
_ATOMS = ("N", "CA", "C", "O", "CB")
_BONDS = (("N", "CA"), ("CA", "C"), ("C", "O"), ("CA", "CB"))


def backbone_topology(sequence: str) -> app.Topology:
    """One chain of the backbone atoms of a one-letter sequence, with bonds; no CB in glycine and unknown residues."""
    topology = app.Topology()
    chain = topology.addChain("A")
    carbonyl = None
    for number, aatype in enumerate(rc.aatype(sequence).tolist(), 1):
        residue = topology.addResidue(rc.RESTYPES_3[aatype], chain, str(number))
        atoms = {
            name: topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
            for name in _ATOMS
            if name != "CB" or rc.ATOM37_MASK[aatype, rc.ATOM37_INDEX["CB"]]
        }
        for first, second in _BONDS:
            if second in atoms:
                topology.addBond(atoms[first], atoms[second])
        if carbonyl is not None:
            topology.addBond(carbonyl, atoms["N"])
        carbonyl = atoms["C"]
    return topology


def atoms_of(atom37: Array, topology: app.Topology) -> Array:
    """Coordinates [n, atoms, 3] of the topology's atoms from atom37 [n, L, 37, 3], in its unit."""
    rows = [(atom.residue.index, rc.ATOM37_INDEX[atom.name]) for atom in topology.atoms()]
    residues, columns = zip(*rows, strict=True)
    return np.ascontiguousarray(atom37[:, residues, columns])


def write_backbones(folder: Path, topology: app.Topology, atoms: Array, formats: list[str]) -> None:
    """Write backbones [n, atoms, 3] (Angstrom) as `samples.pdb`, `pdb/sample_0001.pdb` ..., `samples.dcd`."""
    frames_nm = atoms / ANGSTROM_PER_NM
    if "models" in formats:
        _write_remarked(folder / "samples.pdb", topology, frames_nm)
    if "dcd" in formats:
        _write_remarked(folder / "topology.pdb", topology, frames_nm[:1])
        write_trajectory(folder / "samples.dcd", topology, frames_nm)
    if "pdb" in formats:
        (folder / "pdb").mkdir(exist_ok=True)
        for name, frame in zip(_names(len(frames_nm)), frames_nm, strict=True):
            _write_remarked(folder / "pdb" / name, topology, frame[None])


def write_all_atom(
    folder: Path, topology: app.Topology, atoms: Array, seed: int, *, progress: bool
) -> tuple[int, list[str]]:
    """Add side chains, ends and hydrogens to backbones [n, atoms, 3] (Angstrom); write `all_atom/sample_0001.pdb` ...

    Returns how many could be completed, and a sentence for each that could not.
    """
    target = folder / "all_atom"
    target.mkdir(exist_ok=True)
    failures = []
    names = _names(len(atoms))
    for name, frame in zip(tqdm(names, desc="side chains", disable=not progress), atoms, strict=True):
        bare = target / f".bare_{name}"
        try:
            write_pdb(bare, topology, frame[None] / ANGSTROM_PER_NM)
            whole = load(bare, seed=seed)
            _write_remarked(target / name, whole.topology, whole.positions[None])
        except MoleculeError as error:
            logger.warning("no side chains for %s: %s", name, error)
            failures.append(f"no side chains for {name}: {error}")
        finally:
            bare.unlink(missing_ok=True)
    return len(names) - len(failures), failures


def _names(n: int) -> list[str]:
    width = max(4, len(str(n)))
    return [f"sample_{number:0{width}d}.pdb" for number in range(1, n + 1)]


def _write_remarked(path: Path, topology: app.Topology, frames_nm: Array) -> None:
    write_pdb(path, topology, frames_nm)
    remarks = "".join(f"REMARK   1 {line}\n" for line in REMARKS)
    write_text(path, remarks + path.read_text(encoding="utf-8"))
