"""Small peptides for the tests, built from ideal backbones and completed by the package's own loader."""

from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from openmm_diffusion.molecule import LoadedMolecule, load
from openmm_diffusion.molecule.peptide import backbone_pdb

ALANINE = Path(__file__).parents[1] / "examples" / "alanine.pdb"


def write_backbone(path: Path, *sequences: str, phi: float = -75.0, psi: float = 140.0) -> Path:
    """A PDB file of backbones such as "ACE-GLY-PRO-NME", one chain each, 20 Angstrom apart."""
    path.write_text(backbone_pdb([sequence.split("-") for sequence in sequences], phi, psi, 20.0))
    return path


def build(folder: Path, *sequences: str) -> LoadedMolecule:
    """A complete peptide of one or more chains."""
    return load(write_backbone(folder / "backbone.pdb", *sequences))


def bridge(molecule: LoadedMolecule) -> tuple[app.Topology, NDArray]:
    """The molecule with a disulfide between its two cysteines, wherever they are."""
    modeller = app.Modeller(molecule.topology, molecule.positions * unit.nanometer)
    sulfurs = [a for a in modeller.topology.atoms() if a.name == "SG"]
    modeller.topology.addBond(*sulfurs)
    modeller.delete([a for a in modeller.topology.atoms() if a.name == "HG" and a.residue.name == "CYS"])
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def relaxed(topology: app.Topology, positions: NDArray, steps: int = 500) -> NDArray:
    """Positions (nm) minimised in amber14 without solvent."""
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=steps)
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def villin() -> tuple[app.Topology, NDArray]:
    """HP35 from OpenMM's own data, without water and ions."""
    pdb = app.PDBFile(str(Path(app.__file__).parent / "data" / "test.pdb"))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([r for r in modeller.topology.residues() if r.name in ("HOH", "Cl")])
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def charmm_alanine(molecule: LoadedMolecule, amide: bool = False) -> app.Topology:
    """Alanine dipeptide as CHARMM writes it: the atoms of the caps stand in the residue ALA (patches ACE, CT3, CT2)."""
    first = {"CH3": "CAY", "C": "CY", "O": "OY", "H1": "HY1", "H2": "HY2", "H3": "HY3"}
    last = {"N": "NT", "H": "HNT", "C": "CAT", "H1": "HT1", "H2": "HT2", "H3": "HT3"}
    if amide:
        last = {"N": "NT", "HN1": "HT1", "HN2": "HT2"}
    renamed = {"ACE": first, "ALA": {"H": "HN"}, "NME": last, "NH2": last}
    topology = app.Topology()
    residue = topology.addResidue("ALA", topology.addChain())
    atoms = [
        topology.addAtom(renamed[a.residue.name].get(a.name, a.name), a.element, residue)
        for a in molecule.topology.atoms()
    ]
    for bond in molecule.topology.bonds():
        topology.addBond(atoms[bond[0].index], atoms[bond[1].index])
    return topology
