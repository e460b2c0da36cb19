"""Peptides as names and bonds: chains, caps, backbone torsions. Imports neither OpenMM nor torch."""

from .chains import Chain, Residue, find_chains
from .torsions import TORSION_KINDS, MoleculeDescription, TorsionDefinition, bond_graph, describe, rotatable_torsions

__all__ = [
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
