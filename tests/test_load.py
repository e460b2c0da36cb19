"""The loader: every format gives the same molecule, what is missing is added, bad input is one clear sentence."""

import importlib.resources
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm
import pytest
from numpy.typing import NDArray
from openmm import app, unit
from peptides import ALANINE, bridge, build, charmm_alanine, relaxed, villin, write_backbone

from openmm_diffusion.errors import InputFileError, MoleculeError, OutputError, SettingError
from openmm_diffusion.molecule import BackboneTorsions, LoadedMolecule, describe, load, write_pdb

DATA = Path(app.__file__).parent / "data"
TESTSYSTEMS = Path(str(importlib.resources.files("openmmtools"))) / "data"
AMBER = TESTSYSTEMS / "alanine-dipeptide-gbsa" / "alanine-dipeptide.prmtop"


def energy(system: openmm.System, positions: NDArray) -> float:
    """Potential energy in kJ/mol on the Reference platform."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def heavy_names(molecule: LoadedMolecule) -> list[tuple[int, str]]:
    return [(a.residue.index, a.name) for a in molecule.topology.atoms() if a.element != app.element.hydrogen]


def in_nm(positions: unit.Quantity) -> NDArray:
    return np.array(positions.value_in_unit(unit.nanometer))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alanine dipeptide from openmmtools' Amber files, as parmed writes it in every format."""
    import parmed

    folder = tmp_path_factory.mktemp("formats")
    shutil.copy(AMBER, folder / "amber.prmtop")
    structure = parmed.load_file(str(AMBER), xyz=load(ALANINE).positions * 10.0)
    for name in ("a.rst7", "a.ncrst", "a.top", "a.gro", "a.psf", "a.crd", "a.pdb", "a.cif"):
        structure.save(str(folder / name))
    shutil.copy(folder / "amber.prmtop", folder / "amber.parm7")
    shutil.copy(folder / "amber.prmtop", folder / "amber.top")
    shutil.copy(folder / "a.rst7", folder / "a.inpcrd")
    shutil.copy(folder / "a.rst7", folder / "amber.crd")
    parameters = parmed.charmm.CharmmParameterSet.from_structure(structure)
    parameters.write(top=str(folder / "a.rtf"), par=str(folder / "a.prm"))
    return folder


PAIRS = [
    ("amber.prmtop", "a.rst7"),
    ("amber.parm7", "a.inpcrd"),
    ("amber.top", "amber.crd"),
    ("amber.prmtop", "a.ncrst"),
    ("amber.prmtop", "a.gro"),
    ("a.top", "a.gro"),
    ("a.top", "a.pdb"),
    ("a.psf", "a.crd"),
    ("a.psf", "a.pdb"),
    ("a.psf", "a.cif"),
]


@pytest.mark.parametrize(("topology", "coordinates"), PAIRS)
def test_formats_with_a_force_field(files: Path, topology: str, coordinates: str) -> None:
    """Amber, Gromacs and CHARMM files give the same molecule, positions, and energy as the prmtop they came from."""
    original = load(ALANINE)
    parameters = [files / "a.rtf", files / "a.prm"] if topology.endswith("psf") else ()
    molecule = load(files / topology, str(files / coordinates), parameters=parameters)
    assert describe(molecule.topology) == describe(original.topology)
    assert molecule.positions.dtype == np.float64
    np.testing.assert_allclose(molecule.positions, original.positions, atol=6e-4)
    assert molecule.topology.getNumBonds() == 21
    assert molecule.system_source is not None
    assert molecule.system_source.file.name == topology
    system = molecule.system_source.create_system(nonbondedMethod=app.NoCutoff, constraints=None)
    expected = energy(app.AmberPrmtopFile(str(AMBER)).createSystem(constraints=None), original.positions)
    assert energy(system, original.positions) == pytest.approx(expected, abs=1e-3)
    constrained = molecule.system_source.create_system(constraints=app.HBonds)
    assert constrained.getNumConstraints() == 12


@pytest.mark.parametrize("name", ["a.pdb", "a.cif"])
def test_structures_alone(files: Path, name: str) -> None:
    """PDB and mmCIF come alone and carry no force field; a complete file is taken exactly as it is."""
    molecule = load(files / name)
    original = load(ALANINE)
    assert molecule.system_source is None
    assert describe(molecule.topology) == describe(original.topology)
    reader = app.PDBFile if name.endswith("pdb") else app.PDBxFile
    expected = reader(str(files / name)).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    assert (molecule.positions == expected).all()
    system = app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(molecule.topology)
    assert energy(system, molecule.positions) < -100.0


def test_the_example_is_c7eq() -> None:
    """examples/alanine.pdb is ACE-ALA-NME with 22 atoms near C7eq, a minimum in amber99sb-ildn."""
    molecule = load(ALANINE)
    torsions = BackboneTorsions(molecule.topology)
    assert str(describe(molecule.topology)) == "ACE-ALA-NME"
    assert torsions.n_atoms == 22
    assert molecule.box_vectors is None
    phi, psi = np.degrees(torsions.get(molecule.positions))[1:3]
    assert (phi, psi) == (pytest.approx(-80, abs=15), pytest.approx(65, abs=15))


def test_solvated_amber_system() -> None:
    """A box of the coordinates file reaches the topology, the molecule, and the System (PME)."""
    folder = TESTSYSTEMS / "alanine-dipeptide-explicit"
    molecule = load(folder / "alanine-dipeptide.prmtop", folder / "alanine-dipeptide.crd")
    assert molecule.positions.shape == (2269, 3)
    assert molecule.box_vectors is not None
    box = molecule.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)
    np.testing.assert_allclose(molecule.box_vectors, np.array(box), atol=1e-12)
    assert 2.0 < molecule.box_vectors[0, 0] < 4.0
    assert molecule.system_source is not None
    system = molecule.system_source.create_system(nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer)
    assert system.usesPeriodicBoundaryConditions()
    default = [vector.value_in_unit(unit.nanometer) for vector in system.getDefaultPeriodicBoxVectors()]
    np.testing.assert_allclose(np.array(default), molecule.box_vectors, atol=1e-6)


def test_box_reaches_a_psf(tmp_path: Path, files: Path) -> None:
    """The cell of the coordinates file is that of a System made from a psf."""
    pdb = tmp_path / "cell.pdb"
    pdb.write_text(f"CRYST1   30.000   31.000   32.000  90.00  90.00  90.00 P 1           1\n{ALANINE.read_text()}")
    molecule = load(files / "a.psf", pdb, parameters=[files / "a.rtf", files / "a.prm"])
    assert molecule.system_source is not None
    system = molecule.system_source.create_system(nonbondedMethod=app.PME)
    default = [vector.value_in_unit(unit.nanometer) for vector in system.getDefaultPeriodicBoxVectors()]
    np.testing.assert_allclose(np.array(default), np.diag([3.0, 3.1, 3.2]), atol=1e-6)
    np.testing.assert_allclose(molecule.box_vectors, np.diag([3.0, 3.1, 3.2]), atol=1e-6)


def test_unit_cells_that_are_none(tmp_path: Path, files: Path) -> None:
    """The 1 Angstrom cell of NMR structures and the zero cell of a gro file in vacuum mean: no box."""
    pdb = tmp_path / "nmr.pdb"
    cell = "CRYST1    {0:5.3f}    {0:5.3f}    {0:5.3f}  90.00  90.00  90.00 P 1           1\n"
    pdb.write_text(cell.format(1.0) + ALANINE.read_text())
    assert load(pdb).box_vectors is None
    assert load(pdb).topology.getPeriodicBoxVectors() is None
    pdb.write_text(f"CRYST1   30.000   31.000   32.000  90.00  90.00  90.00 P 1           1\n{ALANINE.read_text()}")
    np.testing.assert_allclose(load(pdb).box_vectors, np.diag([3.0, 3.1, 3.2]), atol=1e-9)
    lines = (files / "a.gro").read_text().splitlines()
    gro = tmp_path / "vacuum.gro"
    gro.write_text("\n".join([*lines[:-1], "   0.00000   0.00000   0.00000", ""]))
    assert load(files / "a.top", gro).box_vectors is None


def test_missing_atoms_are_added_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Side chains, terminal oxygens, and hydrogens are added; the atoms present stay to the last bit."""
    path = write_backbone(tmp_path / "backbone.pdb", "ALA-THR-ILE-SER")
    bare = load(path, fix=False)
    assert bare.topology.getNumAtoms() == 16
    with caplog.at_level(logging.INFO, "openmm_diffusion"):
        full = load(path)
    assert "added 11 heavy atoms and" in caplog.text
    assert "ALA1, THR2, ILE3, SER4" in caplog.text
    index = {(a.residue.index, a.name): a.index for a in full.topology.atoms()}
    kept = [index[a.residue.index, a.name] for a in bare.topology.atoms()]
    assert (full.positions[kept] == bare.positions).all()
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(full.topology)
    assert system.getNumParticles() == full.topology.getNumAtoms() == 57


CENTRES = (("THR", "CA N C CB"), ("ILE", "CA N C CB"), ("THR", "CB CA OG1 CG2"), ("ILE", "CB CA CG1 CG2"))


def handedness(topology: app.Topology, x: NDArray) -> list[float]:
    """The volumes, over their size in a regular centre, that three neighbours span about the chiral centres."""
    atoms = {(a.residue.name, a.name): a.index for a in topology.atoms()}
    found = []
    for residue, names in CENTRES:
        if (residue, "CB") in atoms:
            centre, *others = (x[atoms[residue, name]] for name in names.split())
            found.append(float(np.linalg.det(np.array(others) - centre)) / 2.6e-3)
    return found


@pytest.mark.parametrize("psi", [140.0, -45.0, 60.0])
def test_side_chains_are_l_amino_acids(tmp_path: Path, psi: float) -> None:
    """Side chains built on a bare backbone are L, with the right second centres in threonine and isoleucine."""
    from pdbfixer import PDBFixer

    molecule = load(write_backbone(tmp_path / "backbone.pdb", "ACE-THR-ILE-NME", psi=psi))
    templates = PDBFixer(filename=str(tmp_path / "backbone.pdb")).templates
    ideal = [handedness(t.topology, in_nm(t.positions)) for t in (templates["THR"], templates["ILE"])]
    expected = [ideal[0][0], ideal[1][0], ideal[0][1], ideal[1][1]]
    assert expected[0] > 0.5
    np.testing.assert_allclose(handedness(molecule.topology, molecule.positions), expected, atol=0.25)


def test_handedness_test_sees_mirror_images(tmp_path: Path) -> None:
    """Negative control: pdbfixer alone, on the same bare backbone, gives flat or mirrored centres."""
    from pdbfixer import PDBFixer

    fixer = PDBFixer(filename=str(write_backbone(tmp_path / "backbone.pdb", "ACE-THR-ILE-NME", psi=140.0)))
    fixer.missingResidues = {}
    fixer.findMissingAtoms()
    fixer.addMissingAtoms(seed=0)
    assert min(handedness(fixer.topology, in_nm(fixer.positions))) < 0.5


def test_heavy_atoms_are_those_of_pdbfixer(tmp_path: Path) -> None:
    """Where the CB is there, the heavy atoms added are pdbfixer's own to the last bit, with sound bond lengths."""
    from pdbfixer import PDBFixer

    whole = build(tmp_path, "ACE-LYS-PHE-NME")
    modeller = app.Modeller(whole.topology, whole.positions * unit.nanometer)
    kept = ("N", "CA", "C", "O", "CB", "CH3")
    modeller.delete([a for a in modeller.topology.atoms() if a.name not in kept and a.residue.name in ("LYS", "PHE")])
    path = write_pdb(tmp_path / "cut.pdb", modeller.topology, in_nm(modeller.positions))
    molecule = load(path)
    reference = openmm.Platform.getPlatformByName("Reference")
    fixer = PDBFixer(filename=str(path), platform=reference)
    fixer.missingResidues = {}
    fixer.findMissingAtoms()
    fixer.addMissingAtoms(seed=0)
    theirs, x = in_nm(fixer.positions), molecule.positions
    expected = {(a.residue.index, a.name): theirs[a.index] for a in fixer.topology.atoms()}
    heavy = [a for a in molecule.topology.atoms() if a.element != app.element.hydrogen]
    assert all((x[a.index] == expected[a.residue.index, a.name]).all() for a in heavy)
    lengths = [np.linalg.norm(x[a.index] - x[b.index]) for a, b in molecule.topology.bonds() if {a, b} <= set(heavy)]
    assert 0.11 < min(lengths) < max(lengths) < 0.17


def test_completion_is_reproducible(tmp_path: Path) -> None:
    """One seed gives one structure, another seed another one, and Python's own generator is left alone."""
    path = write_backbone(tmp_path / "backbone.pdb", "ACE-LYS-NME")
    random.seed(5)
    expected = random.random()
    random.seed(5)
    first, again, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    assert random.random() == expected
    assert (first.positions == again.positions).all()
    assert not (first.positions == other.positions).all()


@pytest.mark.parametrize(("ph", "expected"), [(3.0, True), (7.0, False)])
def test_ph(tmp_path: Path, ph: float, expected: bool) -> None:
    """Glutamate is protonated at pH 3 and not at pH 7."""
    molecule = load(write_backbone(tmp_path / "backbone.pdb", "ACE-GLU-NME"), ph=ph)
    assert ("HE2" in {a.name for a in molecule.topology.atoms()}) is expected


def test_caps_survive(tmp_path: Path) -> None:
    """ACE, NME and NH2 stay as they are and get their hydrogens, bound to the chain."""
    for sequence, n_atoms in (("ACE-ALA-NME", 22), ("ACE-ALA-NH2", 19)):
        molecule = build(tmp_path, sequence)
        assert molecule.topology.getNumAtoms() == n_atoms
        assert str(describe(molecule.topology)) == sequence
        assert "omega:ALA2" in describe(molecule.topology).torsions


def test_solvated_protein_is_taken_as_it_is() -> None:
    """A complete solvated structure is not touched: no atom is added to villin in its box."""
    molecule = load(DATA / "test.pdb")
    assert molecule.topology.getNumAtoms() == 8867
    assert molecule.box_vectors is not None
    water = load(DATA / "test.pdb", fix=False)
    assert (molecule.positions == water.positions).all()


def test_crosslinks_survive_completion(tmp_path: Path) -> None:
    """A lactam given by CONECT is still there after another residue was completed: torsions inside stay excluded."""
    molecule = build(tmp_path, "ACE-LYS-ALA-ASP-NME")
    path = write_pdb(tmp_path / "whole.pdb", molecule.topology, molecule.positions)
    serial = {}
    lines = []
    for line in path.read_text().splitlines():
        name, residue = line[12:16].strip(), line[17:20]
        if (residue, name) == ("ALA", "CB") or (residue, name[:2]) == ("ALA", "HB"):
            continue
        serial[residue, name] = line[6:11]
        lines.append(line)
    lines.insert(-1, f"CONECT{serial['LYS', 'NZ']}{serial['ASP', 'CG']}")
    path.write_text("\n".join([*lines, ""]))
    loaded = load(path)
    assert heavy_names(loaded).count((2, "CB")) == 1
    assert "phi:ALA3" in {label for label, _ in BackboneTorsions(loaded.topology).excluded}


def test_disulfides_of_mmcif(tmp_path: Path) -> None:
    """A disulfide of an mmCIF file without struct_conn records is found by its length, as in a PDB file."""
    topology, positions = bridge(build(tmp_path, "ACE-CYS-GLY-GLY-CYS-NME"))
    positions = relaxed(topology, positions, 3000)
    path = tmp_path / "bridge.cif"
    app.PDBxFile.writeFile(topology, positions * unit.nanometer, str(path))
    blocks = path.read_text().split("loop_\n")
    path.write_text("loop_\n".join(block for block in blocks if "_struct_conn" not in block))
    assert len(blocks) > path.read_text().count("loop_") + 1
    for fix in (False, True):
        loaded = load(path, fix=fix)
        assert loaded.topology.getNumAtoms() == topology.getNumAtoms()
        assert "phi:GLY3" in {label for label, _ in BackboneTorsions(loaded.topology).excluded}


def test_closed_chains_are_not_completed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A ring of residues, or CHARMM's caps inside a residue, would get charged ends: left alone, with a warning."""
    path = write_backbone(tmp_path / "ring.pdb", "ALA-GLY-ALA-GLY")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "CONECT    1   15", "END", ""]))
    assert load(path).topology.getNumAtoms() == 16
    assert "is not completed" in caplog.text
    caplog.clear()
    write_pdb(tmp_path / "charmm.pdb", charmm_alanine(load(ALANINE)), load(ALANINE).positions)
    assert load(tmp_path / "charmm.pdb").topology.getNumAtoms() == 22
    assert "is not completed" in caplog.text


def _write(text: str) -> Callable[[Path, Path], tuple[Path, ...]]:
    def make(folder: Path, _: Path) -> tuple[Path, ...]:
        path = folder / "bad.pdb"
        path.write_text(text)
        return (path,)

    return make


def _truncated_prmtop(folder: Path, files: Path, share: float = 0.1) -> tuple[Path, ...]:
    text = (files / "amber.prmtop").read_text()
    (folder / "cut.prmtop").write_text(text[: int(share * len(text))])
    return folder / "cut.prmtop", files / "a.rst7"


def _gromacs_include(folder: Path, _: Path) -> tuple[Path, ...]:
    (folder / "include.top").write_text('#include "nowhere.ff/forcefield.itp"\n')
    return folder / "include.top", ALANINE


def _binary(folder: Path, _: Path) -> tuple[Path, ...]:
    (folder / "binary.cif").write_bytes(bytes(range(256)))
    return (folder / "binary.cif",)


def _named(name: str) -> Callable[[Path, Path], tuple[Path, ...]]:
    def make(folder: Path, _: Path) -> tuple[Path, ...]:
        (folder / name).write_text("text\n")
        return (folder / name,)

    return make


def _not_finite(folder: Path, files: Path) -> tuple[Path, ...]:
    (folder / "nan.pdb").write_text(ALANINE.read_text().replace("  -2.866", "     nan"))
    return (folder / "nan.pdb",)


BAD = {
    "missing topology": (lambda f, _: (f / "none.pdb",), InputFileError, r"none\.pdb does not exist.*topology file"),
    "folder": (lambda f, _: (f,), InputFileError, "does not exist or is no file"),
    "missing coordinates": (
        lambda f, d: (ALANINE, f / "none.gro"),
        InputFileError,
        "none.gro does not exist.*coordinates",
    ),
    "unknown suffix": (_named("a.xyz"), InputFileError, r"a\.xyz is of no known topology format.*\.prmtop"),
    "coordinates as topology": (lambda _, d: (d / "a.gro",), InputFileError, "no known topology format"),
    "topology as coordinates": (lambda _, d: (d / "a.top", d / "a.psf"), InputFileError, "no known coordinates format"),
    "topology alone": (lambda _, d: (d / "a.top",), InputFileError, r"has no coordinates.*\.gro"),
    "empty": (_write(""), InputFileError, "cannot be read as PDB"),
    "no atoms": (
        _write("HEADER    NOTHING\nEND\n"),
        InputFileError,
        "cannot be read as PDB: parts of this format are absent",
    ),
    "letters for numbers": (
        _write("ATOM      1  N   ALA A   1      x.xxx   0.000   0.000\nEND\n"),
        InputFileError,
        "cannot be read as PDB",
    ),
    "binary": (_binary, InputFileError, "cannot be read as mmCIF"),
    "truncated": (_truncated_prmtop, InputFileError, "cut.prmtop cannot be read as Amber topology.*whole"),
    "include": (_gromacs_include, InputFileError, "nowhere.ff.*GMXDATA"),
    "other molecule": (
        lambda _, d: (d / "amber.prmtop", DATA / "test.pdb"),
        MoleculeError,
        "8867 atoms, the topology has 22.*same molecule",
    ),
    "not finite": (_not_finite, MoleculeError, r"NaN or infinite coordinates for 1 of 22 atoms \(first: number 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_sentence(tmp_path: Path, files: Path, case: str) -> None:
    """Every bad input raises one error of this package that says what, what was expected, and the remedy."""
    make, error, pattern = BAD[case]
    with pytest.raises(error, match=pattern) as caught:
        load(*make(tmp_path, files))
    assert "\n" not in str(caught.value)
    if "cannot be read" in str(caught.value):
        assert caught.value.__cause__ is not None


def test_files_cut_short_give_no_system(tmp_path: Path, files: Path) -> None:
    """A prmtop that ends within its force field still shows its atoms, but a System is refused with a sentence."""
    molecule = load(*_truncated_prmtop(tmp_path, files, share=0.5))
    assert molecule.system_source is not None
    with pytest.raises(InputFileError, match=r"cut\.prmtop lacks data of its force field.*ANGLES"):
        molecule.system_source.create_system()


def test_bad_settings(files: Path, tmp_path: Path) -> None:
    """pH out of range, parameters without a psf, and parameter files that are missing or none are refused."""
    with pytest.raises(SettingError, match="ph is 15"):
        load(ALANINE, ph=15)
    with pytest.raises(SettingError, match="only a CHARMM psf takes parameter"):
        load(ALANINE, parameters=["a.prm"])
    with pytest.raises(InputFileError, match=r"none\.prm does not exist"):
        load(files / "a.psf", files / "a.crd", parameters=[tmp_path / "none.prm"])
    (tmp_path / "bad.prm").write_text("BONDS\nnonsense line here\n")
    with pytest.raises(InputFileError, match="cannot be read as CHARMM parameters"):
        load(files / "a.psf", files / "a.crd", parameters=[tmp_path / "bad.prm"])


def test_psf_without_parameters(files: Path) -> None:
    """A psf alone gives topology and positions; asking for its System says which files to give."""
    molecule = load(files / "a.psf", files / "a.crd")
    assert str(describe(molecule.topology)) == "ACE-ALA-NME"
    assert molecule.system_source is not None
    with pytest.raises(MoleculeError, match=r"parameters=\[\.\.\.\]"):
        molecule.system_source.create_system()


def test_molecules_that_cannot_be_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pdbfixer or Modeller cannot do is said with its reason and the remedy fix=False."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("HIS residue (1) has the wrong set of atoms")

    monkeypatch.setattr(app.Modeller, "addHydrogens", refuse)
    with pytest.raises(MoleculeError, match=r"wrong set of atoms.*fix=False") as caught:
        load(ALANINE)
    assert isinstance(caught.value.__cause__, ValueError)
    assert load(ALANINE, fix=False).topology.getNumAtoms() == 22


def test_written_models_are_read_back(tmp_path: Path) -> None:
    """Frames come back as models to 1e-4 nm (PDB's precision) with residue names, numbers, and bonds of the caps."""
    import mdtraj

    molecule = load(ALANINE)
    torsions = BackboneTorsions(molecule.topology)
    frames = torsions.set(molecule.positions, np.random.default_rng(0).uniform(-3, 3, (4, 4)))
    path = write_pdb(tmp_path / "frames.pdb", molecule.topology, frames)
    trajectory = mdtraj.load(str(path))
    np.testing.assert_allclose(trajectory.xyz, frames, atol=1e-4)
    again = load(path)
    assert describe(again.topology) == describe(molecule.topology)
    np.testing.assert_allclose(again.positions, frames[0], atol=1e-4)
    assert [r.id for r in again.topology.residues()] == ["1", "2", "3"]


def test_one_frame_and_quantities(tmp_path: Path) -> None:
    """One frame gives a file without MODEL records; a Quantity gives the same file as nm."""
    molecule = load(ALANINE)
    one = write_pdb(tmp_path / "one.pdb", molecule.topology, molecule.positions).read_text()
    assert "MODEL" not in one
    assert one.count("ATOM") + one.count("HETATM") == 22
    same = write_pdb(str(tmp_path / "q.pdb"), molecule.topology, molecule.positions * 10 * unit.angstrom).read_text()
    assert same == one


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    """A frame that cannot be written leaves the old file as it was and nothing beside it."""
    molecule = load(ALANINE)
    path = write_pdb(tmp_path / "kept.pdb", molecule.topology, molecule.positions)
    before = path.read_text()
    for bad, pattern in ((np.nan, "NaN"), (1e9, "near the origin")):
        frames = np.stack([molecule.positions, np.full((22, 3), bad)])
        with pytest.raises(MoleculeError, match=pattern):
            write_pdb(path, molecule.topology, frames)
    with pytest.raises(MoleculeError, match=r"\(21, 3\)|\(1, 21, 3\)"):
        write_pdb(path, molecule.topology, molecule.positions[1:])
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept.pdb"]
    with pytest.raises(OutputError, match=r"cannot be written.*folder"):
        write_pdb(tmp_path / "no" / "folder.pdb", molecule.topology, molecule.positions)


def test_villin_round_trip(tmp_path: Path) -> None:
    """A protein with ring, disulfide-free termini and 35 residues survives writing and loading without additions."""
    topology, positions = villin()
    path = write_pdb(tmp_path / "villin.pdb", topology, positions)
    again = load(path)
    assert again.topology.getNumAtoms() == 582
    assert describe(again.topology) == describe(topology)
