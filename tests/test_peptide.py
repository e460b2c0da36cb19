"""Peptides from their sequence: every residue and cap, the torsions asked for, several chains, and what is refused."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import app
from peptides import write_backbone

from openmm_diffusion.errors import MoleculeError
from openmm_diffusion.geometry.residue_constants import RESTYPES_3, UNKNOWN
from openmm_diffusion.molecule import BackboneTorsions, peptide
from openmm_diffusion.molecule.peptide import backbone_pdb, is_sequence

CHIRAL = ("N", "CA", "C", "CB")


def positions_of(molecule: object, residue: int, names: tuple[str, ...]) -> np.ndarray:
    found = {a.name: a.index for a in molecule.topology.atoms() if a.residue.index == residue}  # type: ignore[attr-defined]
    return np.array([molecule.positions[found[name]] for name in names])  # type: ignore[attr-defined]


def handedness(corners: np.ndarray) -> float:
    """Sign of the volume of N, CA, C, CB about CA: one sign for L, the other for D."""
    n, ca, c, cb = corners
    return float(np.sign(np.dot(np.cross(n - ca, c - ca), cb - ca)))


@pytest.mark.parametrize(("phi", "psi"), [(-75.0, 140.0), (-60.0, -45.0), (55.0, 40.0)])
def test_torsions_are_those_asked_for(phi: float, psi: float) -> None:
    """Every phi and psi is as given, every omega is 180 degrees, to the three decimals of a PDB file."""
    molecule = peptide("ACE-ALA-ALA-NME", phi=phi, psi=psi)
    torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
    expected = [phi if kind == "phi" else psi for kind in torsions.kinds]
    np.testing.assert_allclose(np.degrees(torsions.get(molecule.positions)), expected, atol=0.2)
    trajectory = mdtraj.Trajectory(molecule.positions[None], mdtraj.Topology.from_openmm(molecule.topology))
    omega = np.degrees(mdtraj.compute_omega(trajectory)[1])
    assert omega.size == 1  # of the residues that are no caps
    np.testing.assert_allclose(np.abs(omega), 180.0, atol=0.2)


def test_caps_and_atoms_are_those_of_a_force_field() -> None:
    """The residues are as written, tri-alanine has 42 atoms with all hydrogens, and amber99sbildn knows them."""
    molecule = peptide("ACE-ALA-ALA-ALA-NME")
    assert [r.name for r in molecule.topology.residues()] == ["ACE", "ALA", "ALA", "ALA", "NME"]
    assert molecule.positions.shape == (42, 3)
    app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(molecule.topology)


def test_residues_are_left_handed() -> None:
    """Side chains are completed as L-amino acids; the control: the mirror image has the other sign."""
    molecule = peptide("ACE-ALA-LEU-SER-NME")
    corners = [positions_of(molecule, k, CHIRAL) for k in (1, 2, 3)]
    assert {handedness(x) for x in corners} == {1.0}
    assert {handedness(x * [1, 1, -1]) for x in corners} == {-1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTYPES_3[:UNKNOWN])
def test_every_residue_can_be_built(name: str) -> None:
    """All twenty residues get their side chains and hydrogens, and a force field takes them."""
    molecule = peptide(f"ACE-{name}-NH2")
    assert [r.name for r in molecule.topology.residues()] == ["ACE", name, "NH2"]
    app.ForceField("amber14/protein.ff14SB.xml").createSystem(peptide(f"ACE-{name}-NME").topology)


def test_chains_stand_side_by_side() -> None:
    """Two sequences are two chains without a bond between them, apart by the spacing."""
    molecule = peptide("ACE-GLY-NME", "ACE-ALA-NH2", spacing=25.0)
    chains = [[r.name for r in chain.residues()] for chain in molecule.topology.chains()]
    assert chains == [["ACE", "GLY", "NME"], ["ACE", "ALA", "NH2"]]
    assert all(a.residue.chain is b.residue.chain for a, b in molecule.topology.bonds())
    sizes = [sum(1 for _ in chain.atoms()) for chain in molecule.topology.chains()]
    centres = [x.mean(0) for x in np.split(molecule.positions, np.cumsum(sizes)[:-1])]
    assert 2.0 < centres[1][0] - centres[0][0] < 3.0


def test_bonds_and_angles_are_ideal(tmp_path: Path) -> None:
    """The backbone written to a file has Engh and Huber's lengths of C-N, N-CA and CA-C, in every residue."""
    frame = mdtraj.load(str(write_backbone(tmp_path / "b.pdb", "GLY-ALA-SER-GLY")))
    index = {(a.residue.index, a.name): a.index for a in frame.topology.atoms}
    for names, shift, length in ((("C", "N"), 1, 1.329), (("N", "CA"), 0, 1.458), (("CA", "C"), 0, 1.525)):
        pairs = [(index[k, names[0]], index[k + shift, names[1]]) for k in range(4 - shift)]
        # The very first residue stands anywhere.
        np.testing.assert_allclose(10 * mdtraj.compute_distances(frame, pairs)[0][1 - shift :], length, atol=2e-3)


def test_the_file_is_what_the_helper_writes(tmp_path: Path) -> None:
    """`write_backbone` of the tests writes the package's own text, so that both can be relied upon."""
    path = write_backbone(tmp_path / "backbone.pdb", "ACE-ALA-NME", "ACE-GLY-NH2", phi=-60.0, psi=30.0)
    assert path.read_text() == backbone_pdb([["ACE", "ALA", "NME"], ["ACE", "GLY", "NH2"]], -60.0, 30.0, 20.0)


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        (("ACE-XYZ-NME",), "'XYZ'"),
        (("ALA-ACE-NME",), "caps stand at the ends"),
        (("ACE-NME-ALA",), "caps stand at the ends"),
        (("ALA",), "expected at least two"),
        (("ace-ala-nme",), "three-letter codes"),
        ((), "0 sequences"),
    ],
)
def test_bad_sequences_are_refused(sequences: tuple[str, ...], words: str) -> None:
    """Unknown residues, misplaced caps, single residues and none at all are refused with one sentence each."""
    with pytest.raises(MoleculeError, match=words):
        peptide(*sequences)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ACE-ALA-NME", True),
        ("ALA-ALA", True),
        ("ALA", False),
        ("alanine-dipeptide-obc", False),
        ("protein.pdb", False),
        ("ACE-ALA-NME.pdb", False),
    ],
)
def test_sequences_are_told_from_files(text: str, expected: bool) -> None:
    """Three-letter codes joined by "-" are sequences; names of systems and files are not."""
    assert is_sequence(text) is expected
