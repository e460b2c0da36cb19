"""Small peptides for the tests, built from ideal backbones and completed by the package's own loader."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from openmm_diffusion.molecule import LoadedMolecule, load

ALANINE = Path(__file__).parents[1] / "examples" / "alanine.pdb"
CAP_ATOMS = {"ACE": {"CA": "CH3", "C": "C", "O": "O"}, "NME": {"N": "N", "CA": "CH3"}, "NH2": {"N": "N"}}


def place(a: NDArray, b: NDArray, c: NDArray, length: float, angle: float, torsion: float) -> NDArray:
    """The point d at this distance from c, with these angles (degrees) b-c-d and a-b-c-d."""
    angle, torsion = np.radians([angle, torsion])
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    frame = np.stack([axis, np.cross(normal, axis), normal], -1)
    local = [-np.cos(angle), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)]
    return c + length * frame @ np.array(local)


def backbone_lines(sequence: Sequence[str], chain: str, shift: float, phi: float, psi: float) -> list[str]:
    """PDB records of an ideal backbone N, CA, C, O, with caps, moved by `shift` Angstrom along x."""
    lines: list[str] = []
    n, ca, c = np.array([0.0, 1.4, 0.3]), np.array([1.0, 0.4, 0.1]), np.array([2.5, 0.7, -0.2])
    for number, name in enumerate(sequence, 1):
        oxygen = place(n, ca, c, 1.231, 120.1, psi + 180.0)
        names = CAP_ATOMS.get(name, {"N": "N", "CA": "CA", "C": "C", "O": "O"})
        for role, x in (("N", n), ("CA", ca), ("C", c), ("O", oxygen)):
            if role in names:
                x, y, z = x + np.array([shift, 0.0, 0.0])
                lines.append(
                    f"ATOM  {len(lines) + 1:5d}  {names[role]:<3s} {name:3s} {chain}{number:4d}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {role[0]:s}"
                )
        n_next = place(n, ca, c, 1.329, 116.6, psi)
        ca_next = place(ca, c, n_next, 1.458, 121.7, 180.0)
        n, ca, c = n_next, ca_next, place(c, n_next, ca_next, 1.525, 111.0, phi)
    return [*lines, "TER"]


def write_backbone(path: Path, *sequences: str, phi: float = -75.0, psi: float = 140.0) -> Path:
    """A PDB file of backbones such as "ACE-GLY-PRO-NME", one chain each, 20 Angstrom apart."""
    lines: list[str] = []
    for k, sequence in enumerate(sequences):
        lines += backbone_lines(sequence.split("-"), "ABCD"[k], 20.0 * k, phi, psi)
    path.write_text("\n".join([*lines, "END", ""]))
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
