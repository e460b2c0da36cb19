"""Peptides as names and bonds: chains, caps, backbone torsions. Imports neither OpenMM nor torch."""

from .chains import CAPS, SAME_RESIDUE, Chain, Residue, find_chains
from .torsions import TORSION_KINDS, MoleculeDescription, TorsionDefinition, bond_graph, describe, rotatable_torsions

__all__ = [
    "CAPS",
    "SAME_RESIDUE",
    "TORSION_KINDS",
    "Chain",
    "MoleculeDescription",
    "Residue",
    "TorsionDefinition",
    "bond_graph",
    "describe",
    "find_chains",
    "rotatable_torsions",
]
