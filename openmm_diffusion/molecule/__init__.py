"""OpenMM topologies and positions: backbone torsions, peptide chains, one loader for every file format."""

from ..peptide import MoleculeDescription, describe
from .conditions import check_system, check_unbroken
from .frames import ChainLinks, chain_links, frames_from_positions, torsions_from_links
from .load import LoadedMolecule, load, write_pdb
from .peptide import peptide
from .torsions import BackboneTorsions

__all__ = [
    "BackboneTorsions",
    "ChainLinks",
    "LoadedMolecule",
    "MoleculeDescription",
    "chain_links",
    "check_system",
    "check_unbroken",
    "describe",
    "frames_from_positions",
    "load",
    "peptide",
    "torsions_from_links",
    "write_pdb",
]
