"""Backbone torsions by name: which a chain has, which of them can be turned, what a model is made for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx

from ..errors import MoleculeError, SettingError
from .chains import Chain, Residue, find_chains

TORSION_KINDS = ("phi", "psi", "omega")


@dataclass(frozen=True)
class TorsionDefinition:
    """A backbone torsion: its dihedrals (i, j, k, l) about one bond (j, k), the plain one first, and their shifts.

    phi and psi are one dihedral. omega is the mean of the dihedrals about C-N (CA-C-N-CA, CA-C-N-H, O-C-N-CA,
    O-C-N-H, each less its ideal shift of 0 or pi): the plain one alone would leave O and H behind.
    """

    label: str
    kind: str
    dihedrals: tuple[tuple[int, int, int, int], ...]
    flipped: tuple[bool, ...] = (False,)

    @property
    def bond(self) -> tuple[int, int]:
        return self.dihedrals[0][1], self.dihedrals[0][2]


@dataclass(frozen=True)
class MoleculeDescription:
    """What a model is made for: the peptide sequences with caps and the torsions it moves, in order.

    Neither atom order nor force field is part of it, so one model serves every topology of the same molecule.
    """

    sequences: tuple[tuple[str, ...], ...]
    torsions: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {"sequences": ["-".join(s) for s in self.sequences], "torsions": list(self.torsions)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MoleculeDescription":
        return cls(tuple(tuple(s.split("-")) for s in data["sequences"]), tuple(data["torsions"]))

    def __str__(self) -> str:
        return " + ".join("-".join(sequence) for sequence in self.sequences)


def describe(topology: Any, kinds: Sequence[str] = TORSION_KINDS) -> MoleculeDescription:
    """The peptide sequences of a topology and the labels of its rotatable torsions of the kinds given."""
    definitions, _ = rotatable_torsions(topology, kinds)
    sequences = tuple(chain.sequence for chain in find_chains(topology))
    return MoleculeDescription(sequences, tuple(t.label for t in definitions))


def rotatable_torsions(
    topology: Any, kinds: Sequence[str] = TORSION_KINDS
) -> tuple[list[TorsionDefinition], list[tuple[str, str]]]:
    """The torsions that can be turned, from the N to the C end, and (label, reason) of those that cannot.

    Raises SettingError for unknown kinds, MoleculeError where nothing can be turned.
    """
    unknown = sorted(set(kinds) - set(TORSION_KINDS))
    if unknown or not kinds:
        raise SettingError(f"torsions {unknown or list(kinds)} are not known; choose among {', '.join(TORSION_KINDS)}")
    chains = find_chains(topology)
    bridges = {frozenset(edge) for edge in networkx.bridges(bond_graph(topology))}
    wanted = [t for chain in chains for t in backbone_torsions(chain) if t.kind in kinds]
    rotatable = [t for t in wanted if frozenset(t.bond) in bridges]
    excluded = [(t.label, "its bond is in a ring or closed by a crosslink") for t in wanted if t not in rotatable]
    if not rotatable:
        raise MoleculeError(
            f"no rotatable {' / '.join(kinds)} torsion in {' + '.join('-'.join(c.sequence) for c in chains)}; "
            "expected at least one; cap the chain or choose other torsions"
        )
    return rotatable, excluded


def bond_graph(topology: Any) -> networkx.Graph:
    """Atoms (by index) and bonds of a topology."""
    graph = networkx.Graph()
    graph.add_nodes_from(range(topology.getNumAtoms()))
    graph.add_edges_from((bond[0].index, bond[1].index) for bond in topology.bonds())
    return graph


def backbone_torsions(chain: Chain) -> list[TorsionDefinition]:
    """Every phi, psi and omega that has its four atoms, from the N to the C end of the chain."""
    found: list[TorsionDefinition] = []
    for position, residue in enumerate(chain.residues):
        before = chain.residues[position - 1] if position else None
        after = chain.residues[position + 1] if position + 1 < len(chain.residues) else None
        name = f"{residue.name}{position + 1}"
        atoms = residue.atoms
        if not residue.is_cap and before is not None:
            quad = (before.atoms["C"], atoms["N"], atoms["CA"], atoms["C"])
            found.append(TorsionDefinition(f"{chain.prefix}phi:{name}", "phi", (quad,)))
        if not residue.is_cap and after is not None:
            quad = (atoms["N"], atoms["CA"], atoms["C"], after.atoms["N"])
            found.append(TorsionDefinition(f"{chain.prefix}psi:{name}", "psi", (quad,)))
        if after is not None:
            omega = _omega(f"{chain.prefix}omega:{name}", residue, after)
            found += [omega] if omega else []
    return found


def _omega(label: str, residue: Residue, after: Residue) -> TorsionDefinition | None:
    carbon, nitrogen = residue.atoms["C"], after.atoms["N"]
    left = [(residue.alpha, False)] if residue.alpha is not None else []
    left += [(residue.atoms[name], True) for name in ("O",) if name in residue.atoms]
    right = [(after.alpha, False)] if after.alpha is not None else []
    # NH2 has no alpha: its first hydrogen takes the place, which of the two is a convention of the labels.
    right += [(atom, bool(right) or order > 0) for order, atom in enumerate(after.amide_substituents)]
    if not left or not right:
        return None
    quads = tuple((i, carbon, nitrogen, j) for i, _ in left for j, _ in right)
    return TorsionDefinition(label, "omega", quads, tuple(a != b for _, a in left for _, b in right))
