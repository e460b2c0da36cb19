"""Peptide chains of a topology: residues in order, caps, backbone atoms.

A pure walk over atom names and bonds. It takes any object with OpenMM's `Topology` interface (`residues()`,
`bonds()`) and imports no OpenMM.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import MoleculeError

CAPS = ("ACE", "NME", "NH2")

# Protonation, disulfide and terminal variants of one residue share a backbone, so a model does not tell them apart.
SAME_RESIDUE = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM"), "CYS"),
    **dict.fromkeys(("ASH", "ASPP"), "ASP"),
    **dict.fromkeys(("GLH", "GLUP"), "GLU"),
    **dict.fromkeys(("LYN", "LSN"), "LYS"),
    **dict.fromkeys(("NMA", "CT3"), "NME"),
    "NHE": "NH2",
}

_CHARMM_CAPS = {
    "CAY": (-1, "CH3"),
    "CY": (-1, "C"),
    "OY": (-1, "O"),
    "NT": (1, "N"),
    "HNT": (1, "H"),
    "CAT": (1, "CH3"),
}
Key = tuple[int, int]  # residue index, and -1 / 0 / 1 for a cap before it, itself, a cap after it


@dataclass(frozen=True)
class Residue:
    """One residue of a chain: canonical name and the indices of its atoms by name."""

    name: str
    atoms: dict[str, int]

    @property
    def is_cap(self) -> bool:
        return self.name in CAPS

    @property
    def alpha(self) -> int | None:
        """The atom in the role of CA: CA itself, the methyl carbon of a cap, nothing in NH2."""
        for name in ("CA", "CH3") + (("C",) if self.name == "NME" else ()):
            if name in self.atoms:
                return self.atoms[name]
        return None

    @property
    def amide_substituents(self) -> tuple[int, ...]:
        """What N carries besides C(i-1) and CA: its H, CD in proline; both H in NH2."""
        names = ("H", "HN", "H1", "HN1", "H2", "HN2", "HT1", "HT2") if self.name == "NH2" else ("H", "HN")
        found = [self.atoms[name] for name in names if name in self.atoms]
        if not found and self.name == "PRO" and "CD" in self.atoms:
            found = [self.atoms["CD"]]
        return tuple(found)


@dataclass(frozen=True)
class Chain:
    """Residues in sequence, caps included, each bonded to the next through C-N."""

    residues: tuple[Residue, ...]
    prefix: str = ""

    @property
    def sequence(self) -> tuple[str, ...]:
        return tuple(residue.name for residue in self.residues)


def find_chains(topology: Any) -> list[Chain]:
    """The peptide chains of a topology, caps included, in the order of their first atoms.

    Raises MoleculeError where there is no residue with a peptide bond, or where the topology is something else.
    """
    if not (hasattr(topology, "residues") and hasattr(topology, "bonds")):
        raise MoleculeError(
            f"the topology is {topology!r:.80}; expected an openmm.app.Topology, such as PDBFile(...).topology, or "
            "openmm_diffusion.molecule.load(file).topology"
        )
    residues: dict[Key, Residue] = {}
    owner: dict[int, tuple[Key, str]] = {}
    for residue in topology.residues():
        for part, cap, atoms in _split_patches(residue):
            key = (residue.index, part)
            residues[key] = Residue(cap or _canonical(residue.name), atoms)
            owner.update({index: (key, name) for name, index in atoms.items()})
    following: dict[Key, Key] = {}
    for bond in topology.bonds():
        (first, name1), (second, name2) = owner[bond[0].index], owner[bond[1].index]
        if first != second and {name1, name2} == {"C", "N"}:
            giver, taker = (first, second) if name1 == "C" else (second, first)
            if _is_backbone(residues[giver]) and _is_backbone(residues[taker]):
                following[giver] = taker
    if not following:
        names = sorted({residue.name for residue in residues.values()})
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise MoleculeError(
            f"the topology has no peptide backbone (residues: {shown or 'none'}): expected at least two residues or "
            "caps with a C-N bond between them; add bonds (Topology.createStandardBonds) or choose another molecule"
        )
    starts = [i for i in sorted(residues) if i in following and i not in set(following.values())]
    rings = _rings(following, starts)
    paths = sorted((_follow(start, following) for start in starts + rings), key=lambda path: path[0])
    prefixes = [f"{index + 1}/" for index in range(len(paths))] if len(paths) > 1 else [""]
    return [Chain(tuple(residues[i] for i in path), prefix) for path, prefix in zip(paths, prefixes, strict=True)]


def _split_patches(residue: Any) -> list[tuple[int, str | None, dict[str, int]]]:
    """A residue's atoms by name, with caps that CHARMM writes into the residue itself (ACE, CT3, CT2) taken apart."""
    parts: dict[int, dict[str, int]] = {0: {}}
    names = {atom.name for atom in residue.atoms()}
    for atom in residue.atoms():
        part, name = _CHARMM_CAPS.get(atom.name, (0, atom.name)) if "CA" in names else (0, atom.name)
        if "NT" in names and "CAT" not in names and atom.name in ("HT1", "HT2"):
            part, name = 1, atom.name
        parts.setdefault(part, {})[name] = atom.index
    caps = {-1: "ACE", 0: None, 1: "NME" if "CAT" in names else "NH2"}
    return [(part, caps[part], parts[part]) for part in sorted(parts)]


def _canonical(name: str) -> str:
    name = name.upper()
    if len(name) == 4 and name[0] in "NC":  # Amber's names of terminal residues
        name = name[1:]
    return SAME_RESIDUE.get(name, name)


def _is_backbone(residue: Residue) -> bool:
    atoms = residue.atoms
    return (residue.is_cap and ("C" in atoms or "N" in atoms)) or all(name in atoms for name in ("N", "CA", "C"))


def _follow(start: Key, following: dict[Key, Key]) -> list[Key]:
    path = [start]
    while path[-1] in following and following[path[-1]] != start:
        path.append(following[path[-1]])
    return path


def _rings(following: dict[Key, Key], starts: list[Key]) -> list[Key]:
    """One start for every cyclic chain."""
    seen = {i for start in starts for i in _follow(start, following)}
    found = []
    for i in sorted(following):
        if i not in seen:
            found.append(i)
            seen.update(_follow(i, following))
    return found
