"""What must hold before torsions are turned: nothing frozen, no constraint stretched, no molecule torn."""

from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from ..errors import IncompatibleSystemError, MoleculeError, StateError
from .quantities import in_nanometers
from .torsions import BackboneTorsions

LONGEST_BOND_NM = 0.4


def check_system(system: openmm.System, torsions: BackboneTorsions) -> None:
    """Check that turning the torsions moves no frozen particle and keeps every constraint satisfied.

    Turning about a bond keeps all distances within the turned side, within the side that stays, and to the two atoms of
    the bond itself. A constraint is kept if it is one of these for every torsion.

    Raises
    ------
    IncompatibleSystemError
        The system has another number of particles than the topology, a massless particle that is no virtual site on a
        turned side, or a constraint that a torsion would stretch.
    """
    n_particles = system.getNumParticles()
    if n_particles != torsions.n_atoms:
        raise IncompatibleSystemError(
            f"the system has {n_particles} particles, the topology of the torsions {torsions.n_atoms} atoms; "
            "make the torsions from the topology that made the system, extra particles included"
        )
    turned, on_axis = _sides(torsions)
    _refuse_frozen(system, torsions, turned & ~on_axis)
    _refuse_stretched(system, torsions, turned, on_axis)


def check_unbroken(torsions: BackboneTorsions, positions: Any) -> None:
    """Check positions [..., atoms, 3] (nm or a Quantity): finite, and the molecules of the torsions in one piece.

    Raises
    ------
    StateError
        Coordinates are NaN or infinite, or a bond is longer than 0.4 nm: torsions of a molecule that is torn over the
        periodic boundary have no meaning.
    MoleculeError
        Positions of another number of atoms.
    """
    x = in_nanometers(positions)
    if x.shape[-2:] != (torsions.n_atoms, 3):
        raise MoleculeError(f"positions have shape {x.shape}; expected [..., {torsions.n_atoms}, 3]")
    finite = np.isfinite(x).all(-1)
    if not finite.all():
        n_bad = int((~finite).sum())
        raise StateError(
            f"positions of {n_bad} atoms are NaN or infinite; go back to an earlier state, minimise it, "
            "and use a shorter time step"
        )
    first, second = torsions.bonds.T
    lengths = np.linalg.norm(x[..., first, :] - x[..., second, :], axis=-1).reshape(-1, len(first)).max(0)
    worst = int(lengths.argmax())
    if lengths[worst] > LONGEST_BOND_NM:
        raise StateError(
            f"the bond between atoms {first[worst]} and {second[worst]} is {lengths[worst]:.2f} nm long, expected less "
            f"than {LONGEST_BOND_NM} nm: the molecule is torn over the periodic boundary or lacks residues; "
            "make molecules whole (mdtraj's make_molecules_whole) or build the missing residues"
        )


def _sides(torsions: BackboneTorsions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which atoms [T, atoms] each torsion turns, and which lie on its axis."""
    turned = np.zeros((len(torsions), torsions.n_atoms), dtype=bool)
    on_axis = np.zeros_like(turned)
    for k, axis in enumerate(torsions.axes):
        turned[k, torsions.turned_atoms(k)] = True
        on_axis[k, axis] = True
    return turned, on_axis


def _refuse_frozen(system: openmm.System, torsions: BackboneTorsions, displaced: NDArray[np.bool_]) -> None:
    massless = [
        i
        for i in np.flatnonzero(displaced.any(0)).tolist()
        if system.getParticleMass(i)._value == 0.0 and not system.isVirtualSite(i)
    ]
    if massless:
        label = torsions.labels[int(displaced[:, massless[0]].argmax())]
        raise IncompatibleSystemError(
            f"{len(massless)} massless (frozen) particles would be moved, such as {massless[0]} by {label}; "
            "give them their masses back or leave those torsions out"
        )


def _refuse_stretched(
    system: openmm.System, torsions: BackboneTorsions, turned: NDArray[np.bool_], on_axis: NDArray[np.bool_]
) -> None:
    parameters = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    first, second = np.array([p[:2] for p in parameters], dtype=np.int64).reshape(-1, 2).T
    # Only constraints with an atom on some turned side matter: the water of a solvated system drops out here.
    ever_turned = np.logical_or.reduce(turned, axis=0)
    relevant = ever_turned[first] | ever_turned[second]
    first, second = first[relevant], second[relevant]
    stretched = (turned[:, first] ^ turned[:, second]) & ~on_axis[:, first] & ~on_axis[:, second]
    if stretched.any():
        k, c = np.argwhere(stretched)[0]
        n_bad = int(stretched.any(0).sum())
        raise IncompatibleSystemError(
            f"{n_bad} constraints would be stretched, such as that of particles {first[c]} and {second[c]} by "
            f"{torsions.labels[k]}; remove constraints that span more than one angle or leave those torsions out"
        )
