"""Caps of a chain as residues of the array: which three atoms of each stand in the roles of N, CA and C."""

from collections.abc import Mapping
from typing import Any

from ..errors import TrajectoryError
from ..peptide import CAPS, SAME_RESIDUE

FIRST, LAST = ("ACE",), ("NME", "NH2")
OTHER_CAPS = ("FOR", "NAC")  # caps that have no frame here
CAP_NAMES = {*CAPS, *(name for name, same in SAME_RESIDUE.items() if same in CAPS), *OTHER_CAPS}
# The atoms in the roles of N, CA and C of geometry/links.py, each with the names that files give it.
_ROLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "ACE": (("O",), ("CH3",), ("C",)),
    "NME": (("N",), ("CH3", "C"), ("H", "HN", "HN1")),
    "NH2": (("N",), ("H1", "HN1", "HT1"), ("H2", "HN2", "HT2")),
}


def cap_name(name: str) -> str | None:
    """The canonical name of a cap that has a frame; None for every other residue."""
    name = name.strip().upper()
    name = SAME_RESIDUE.get(name, name)
    return name if name in CAPS else None


def role_atoms(cap: str, residue: Any, chosen: set[int], path: Any) -> list[int]:
    """Indices of a cap's three atoms in the roles of (N, CA, C).

    Raises TrajectoryError where one is missing.
    """
    found = {atom.name: atom.index for atom in residue.atoms if atom.index in chosen}
    atoms = [next((found[name] for name in names if name in found), None) for names in _ROLES[cap]]
    missing = [names[0] for names, atom in zip(_ROLES[cap], atoms, strict=True) if atom is None]
    if missing:
        raise TrajectoryError(
            f"{path}: the cap {residue} lacks {', '.join(missing)}; expected {', '.join(n[0] for n in _ROLES[cap])}, "
            "complete the structure (the amide hydrogens included) or leave --caps out"
        )
    return [atom for atom in atoms if atom is not None]


def check_caps(names: list[str], topology: Any, residues: list[Any], path: Any) -> None:
    """Raise TrajectoryError where a chain asked for with its caps has none, a misplaced one, or one that is not known.

    `names` are the canonical names of the chain's `residues`, caps included.
    """
    own = {residue.index for residue in residues}
    for residue in topology.residues:
        if residue.index not in own and (residue.name.strip().upper() in OTHER_CAPS or _bonded(topology, residue, own)):
            raise TrajectoryError(
                f"{path}: {residue} is a cap of an unknown kind; expected {', '.join(CAPS)}, rename it in the topology "
                "or leave --caps out"
            )
    if not set(names) & set(CAPS):
        raise TrajectoryError(f"{path} has none of the caps {', '.join(CAPS)} at its chain; leave --caps out")
    for number, name in enumerate(names):
        if (name in FIRST and number > 0) or (name in LAST and number < len(names) - 1):
            raise TrajectoryError(
                f"{path}: the cap {residues[number]} is residue {number + 1} of {len(names)}; expected {FIRST[0]} to "
                f"begin and {' or '.join(LAST)} to end the chain, select one chain with --selection"
            )


def _bonded(topology: Any, residue: Any, own: set[int]) -> bool:
    """Whether a residue that is no amino acid is bonded to N or C of the chain."""
    if any(atom.name == "CA" for atom in residue.atoms):
        return False  # left out by the selection
    atoms = {atom.index for atom in residue.atoms}
    return any(
        inner.residue.index in own and inner.name in ("N", "C")
        for first, second in topology.bonds
        for outer, inner in ((first, second), (second, first))
        if outer.index in atoms
    )
