"""Rigid bodies: a molecule cut at its rotatable bonds, as a tree that grows outwards from an anchor."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx
import numpy as np
from numpy.typing import NDArray

from ..peptide import Chain, TorsionDefinition


@dataclass(frozen=True)
class BodyTree:
    """Which torsion carries which atoms. Index T (the number of torsions) stands for "no torsion".

    Attributes
    ----------
    body
        [atoms] the outermost torsion that turns each atom.
    axes
        [T, 2] atoms of each torsion's bond, the one nearer to the anchor first.
    parent
        [T + 1] the next torsion on the way to the anchor.
    anchor
        Atoms of the bodies that stay.
    bonds
        [B, 2] bonds that hold the molecules of the anchors together: one for each atom but the first of a molecule.
    """

    body: NDArray[np.int64]
    axes: NDArray[np.int64]
    parent: NDArray[np.int64]
    anchor: NDArray[np.int64]
    bonds: NDArray[np.int64]

    def jumps(self) -> list[NDArray[np.int64]]:
        """Parent pointers of each round of pointer jumping: after log2(depth) rounds all point to the anchor."""
        jumps, pointer = [], self.parent.copy()
        while (pointer != len(self.axes)).any():
            jumps.append(pointer.copy())
            pointer = pointer[pointer]
        return jumps

    def turned(self) -> NDArray[np.bool_]:
        """[T, atoms] which atoms each torsion turns: those of its own body and of all bodies beyond."""
        n = len(self.axes)
        turned = np.zeros((n, len(self.body)), dtype=bool)
        for k in range(n):
            path, outer = [], k
            while outer != n:
                path.append(outer)
                outer = int(self.parent[outer])
            turned[path] |= self.body == k
        return turned

    def to_dict(self) -> dict[str, Any]:
        """Plain values; atoms as ranges, which keeps large solvated systems short."""
        n = len(self.axes)
        return {
            "atoms": len(self.body),
            "bodies": [_to_ranges(np.flatnonzero(self.body == k)) for k in range(n)],
            "axes": self.axes.tolist(),
            "parent": self.parent.tolist(),
            "anchor": _to_ranges(self.anchor),
            "bonded": _to_ranges(self.bonds[:, 1]),
            "bond_offsets": (self.bonds[:, 0] - self.bonds[:, 1]).tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "BodyTree":
        """The tree that gave `to_dict`."""
        body = np.full(data["atoms"], len(data["axes"]))
        for k, ranges in enumerate(data["bodies"]):
            body[_from_ranges(ranges)] = k
        bonded = _from_ranges(data["bonded"])
        bonds = np.stack([bonded + np.array(data["bond_offsets"], dtype=np.int64), bonded], -1)
        return cls(body, np.array(data["axes"]), np.array(data["parent"]), _from_ranges(data["anchor"]), bonds)


def cut_at(definitions: list[TorsionDefinition], graph: networkx.Graph, chains: list[Chain]) -> BodyTree:
    """Cut the molecules of a bond graph at the torsions' bonds and walk the bodies outwards from their anchors.

    The anchor of a molecule is the body with the CA in the middle of its longest chain: it depends on bonds alone.
    """
    n = len(definitions)
    cut = graph.copy()
    cut.remove_edges_from([t.bond for t in definitions])
    pieces = [sorted(piece) for piece in networkx.connected_components(cut)]
    piece_of = {atom: i for i, piece in enumerate(pieces) for atom in piece}
    tree = networkx.Graph()
    for k, torsion in enumerate(definitions):
        first, second = torsion.bond
        tree.add_edge(piece_of[first], piece_of[second], torsion=k)
    axes = np.zeros((n, 2), dtype=np.int64)
    parent = np.full(n + 1, n)
    body = np.full(graph.number_of_nodes(), n)
    anchor: list[int] = []
    bonds: list[tuple[int, int]] = []
    for root in _roots(graph, chains, piece_of):
        anchor += pieces[root]
        bonds += networkx.bfs_edges(graph, pieces[root][0])
        incoming = {root: n}
        for inner, outer in networkx.bfs_edges(tree, root) if root in tree else ():
            k = tree.edges[inner, outer]["torsion"]
            first, second = definitions[k].bond
            axes[k] = (first, second) if piece_of[first] == inner else (second, first)
            parent[k] = incoming[inner]
            incoming[outer] = k
            body[pieces[outer]] = k
    bonds.sort(key=lambda bond: bond[1])
    return BodyTree(body, axes, parent, np.array(sorted(anchor)), np.array(bonds))


def _roots(graph: networkx.Graph, chains: list[Chain], piece_of: dict[int, int]) -> list[int]:
    component = {atom: i for i, atoms in enumerate(networkx.connected_components(graph)) for atom in atoms}
    roots: dict[int, int] = {}
    for chain in sorted(chains, key=lambda chain: -len(chain.residues)):
        alphas = [residue.atoms["CA"] for residue in chain.residues if not residue.is_cap]
        middle = alphas[len(alphas) // 2] if alphas else chain.residues[0].atoms["C"]
        roots.setdefault(component[middle], piece_of[middle])
    return list(roots.values())


def _to_ranges(atoms: NDArray[np.int64]) -> list[list[int]]:
    """Sorted indices as [first, last] pairs."""
    if not len(atoms):
        return []
    breaks = [0, *(np.flatnonzero(np.diff(atoms) > 1) + 1).tolist(), len(atoms)]
    return [[int(atoms[a]), int(atoms[b - 1])] for a, b in pairwise(breaks)]


def _from_ranges(ranges: Iterable[list[int]]) -> NDArray[np.int64]:
    pieces = [np.arange(first, last + 1) for first, last in ranges]
    return np.concatenate(pieces) if pieces else np.array([], dtype=np.int64)
