"""OpenMM topologies and positions: backbone torsions, peptide chains, one loader for every file format."""

from ..peptide import MoleculeDescription, describe
from .conditions import check_system, check_unbroken
from .load import LoadedMolecule, load, write_pdb
from .torsions import BackboneTorsions

__all__ = [
    "BackboneTorsions",
    "LoadedMolecule",
    "MoleculeDescription",
    "check_system",
    "check_unbroken",
    "describe",
    "load",
    "write_pdb",
]
