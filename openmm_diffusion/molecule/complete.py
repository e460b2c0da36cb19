"""Missing atoms of standard residues: heavy atoms by pdbfixer, hydrogens by OpenMM's Modeller."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from scipy.spatial.transform import Rotation

from ..errors import MoleculeError
from .quantities import in_nanometers

logger = logging.getLogger(__name__)


def complete(
    path: Path, topology: app.Topology, positions: NDArray[np.float64], *, ph: float, seed: int
) -> tuple[app.Topology, NDArray[np.float64]]:
    """Topology and positions (nm) with the atoms that standard residues lack; the same objects where nothing lacks.

    Caps (ACE, NME, NH2) and residues without a template stay as they are. pdbfixer's own `addMissingHydrogens` is not
    used: it looks unknown residues up on the internet.
    """
    if _has_closed_ends(topology):
        logger.warning("%s is not completed: a chain is closed to a ring or capped inside a residue; check it", path)
        return topology, positions
    try:
        with_heavy, x = _add_heavy_atoms(path, topology, positions, seed)
        modeller = app.Modeller(with_heavy, _vectors(x))
        with _python_random(seed):
            # On the Reference platform the same file and seed give the same hydrogens everywhere.
            modeller.addHydrogens(pH=ph, platform=openmm.Platform.getPlatformByName("Reference"))
    except Exception as error:  # pdbfixer and Modeller raise whatever they run into
        raise MoleculeError(
            f"{path} could not be completed ({error}); complete it with another program and load it with fix=False"
        ) from error
    n_hydrogens = modeller.topology.getNumAtoms() - with_heavy.getNumAtoms()
    if n_hydrogens:
        with_heavy, x = modeller.topology, in_nanometers(modeller.positions)
    n_heavy = with_heavy.getNumAtoms() - n_hydrogens - topology.getNumAtoms()
    if n_heavy or n_hydrogens:
        names = _changed_residues(topology, with_heavy)
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        logger.info("%s: added %d heavy atoms and %d hydrogens (pH %g) to %s", path, n_heavy, n_hydrogens, ph, shown)
    return with_heavy, x


def _add_heavy_atoms(
    path: Path, topology: app.Topology, positions: NDArray[np.float64], seed: int
) -> tuple[app.Topology, NDArray[np.float64]]:
    from pdbfixer import PDBFixer

    with open(path) as file:
        kind = "pdbfile" if path.suffix.lower() in (".pdb", ".ent") else "pdbxfile"
        fixer = PDBFixer(**{kind: file}, platform=openmm.Platform.getPlatformByName("Reference"))
    fixer.topology, fixer.positions = topology, _vectors(positions)
    fixer.missingResidues = {}
    fixer.findMissingAtoms()
    if not fixer.missingAtoms and not fixer.missingTerminals:
        return topology, positions
    fixer.addMissingAtoms(seed=1 + seed % (2**31 - 1))  # OpenMM takes a seed of 0 for "draw one"
    _restore_bonds(topology, fixer.topology)
    x = in_nanometers(fixer.positions).copy()
    for before, after in zip(topology.residues(), fixer.topology.residues(), strict=True):
        present = {a.name for a in before.atoms()}
        if "CB" not in present and after.name in fixer.templates:
            _lay_side_chain(fixer.templates[after.name], present, {a.name: a.index for a in after.atoms()}, x)
    return fixer.topology, x


def _vectors(x: NDArray[np.float64]) -> unit.Quantity:
    """Positions as Vec3: with rows of an array pdbfixer lays its templates elsewhere (its sums work in place)."""
    return [openmm.Vec3(*point) for point in x.tolist()] * unit.nanometer


def _lay_side_chain(template: Any, present: set[str], atoms: dict[str, int], x: NDArray[np.float64]) -> None:
    """Lay a side chain built without its CB over N, CA, C once more, in place.

    pdbfixer fits its template by a singular value decomposition that may reflect; over N, CA, C and O alone it often
    does, and leaves a D or a flat amino acid.
    """
    backbone = ["CA", "N", "C"]
    added = [name for name in atoms if name not in present and name not in ("O", "OXT")]
    if not added or not set(backbone) <= set(atoms):
        return
    ideal = dict(zip((a.name for a in template.topology.atoms()), in_nanometers(template.positions), strict=True))
    origin, target = x[atoms["CA"]].copy(), x[[atoms[name] for name in backbone]]
    fit, _ = Rotation.align_vectors(target - origin, [ideal[name] - ideal["CA"] for name in backbone])
    x[[atoms[name] for name in added]] = origin + fit.apply([ideal[name] - ideal["CA"] for name in added])


def _restore_bonds(old: app.Topology, new: app.Topology) -> None:
    """pdbfixer drops bonds between standard residues that are not in sequence; without them a ring would seem open."""
    atoms = {(a.residue.index, a.name): a for a in new.atoms()}
    present = {frozenset((b[0].index, b[1].index)) for b in new.bonds()}
    for bond in old.bonds():
        first, second = (atoms[a.residue.index, a.name] for a in (bond[0], bond[1]))
        if frozenset((first.index, second.index)) not in present:
            new.addBond(first, second)


def _has_closed_ends(topology: app.Topology) -> bool:
    """Whether a chain starts with a bond at N, or has CHARMM's caps inside a residue: both would get free ends."""
    first = {next(chain.residues()) for chain in topology.chains() if len(chain)}
    for bond in topology.bonds():
        for atom, other in ((bond[0], bond[1]), (bond[1], bond[0])):
            if atom.name == "N" and atom.residue in first and other.residue != atom.residue:
                return True
    names = [{atom.name for atom in residue.atoms()} for residue in topology.residues()]
    return any("CA" in present and present & {"CY", "NT"} for present in names)


def _changed_residues(old: app.Topology, new: app.Topology) -> list[str]:
    pairs = zip(old.residues(), new.residues(), strict=True)
    return [f"{after.name}{after.id}" for before, after in pairs if len(before) != len(after)]


@contextmanager
def _python_random(seed: int) -> Iterator[None]:
    """Modeller draws from Python's global generator: seed it and put it back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
