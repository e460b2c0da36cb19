"""The conditions under which torsions may be turned: constraints, frozen particles, whole molecules."""

import time
from itertools import combinations
from pathlib import Path

import numpy as np
import openmm
import pytest
from numpy.typing import NDArray
from openmm import app, unit
from peptides import ALANINE, build, villin, write_backbone

from openmm_diffusion.errors import IncompatibleSystemError, MoleculeError, StateError
from openmm_diffusion.molecule import BackboneTorsions, LoadedMolecule, check_system, check_unbroken, load

CARBON_MASS = 12.0


@pytest.fixture(scope="module")
def alanine() -> LoadedMolecule:
    return load(ALANINE)


@pytest.fixture(scope="module")
def torsions(alanine: LoadedMolecule) -> BackboneTorsions:
    return BackboneTorsions(alanine.topology)


def particles(n: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(CARBON_MASS)
    return system


@pytest.mark.parametrize("constraints", [None, "HBonds", "AllBonds", "HAngles"])
@pytest.mark.parametrize("name", ["alanine", "villin"])
def test_ordinary_systems_pass(name: str, constraints: str | None, alanine: LoadedMolecule) -> None:
    """Every constraint setting of OpenMM's force fields is kept by turning backbone torsions."""
    topology = alanine.topology if name == "alanine" else villin()[0]
    kind = None if constraints is None else getattr(app, constraints)
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(topology, constraints=kind)
    assert check_system(system, BackboneTorsions(topology)) is None


def changes_length(torsions: BackboneTorsions, x: NDArray, i: int, j: int) -> bool:
    """Whether some torsion, turned alone, changes the distance of two atoms."""
    turned = torsions.turn(x, np.diag(np.linspace(0.5, 1.5, len(torsions))))
    change = np.linalg.norm(turned[:, i] - turned[:, j], axis=-1) - np.linalg.norm(x[i] - x[j])
    return bool(np.abs(change).max() > 1e-9)


def test_constraints_are_judged_as_geometry_judges(alanine: LoadedMolecule, torsions: BackboneTorsions) -> None:
    """Of all 231 pairs of atoms exactly those are refused whose distance a torsion changes."""
    x = torsions.set(alanine.positions, [2.9, -1.3, 0.9, -3.0])  # no two atoms in line with an axis by accident
    refused = []
    for i, j in combinations(range(22), 2):
        system = particles(22)
        system.addConstraint(i, j, 0.1)
        stretched = changes_length(torsions, x, i, j)
        if stretched:
            with pytest.raises(IncompatibleSystemError, match=f"particles {i} and {j} by .*:A"):
                check_system(system, torsions)
        else:
            check_system(system, torsions)
        refused.append(stretched)
    assert 0.2 < np.mean(refused) < 0.9


def test_refusal_counts_and_names(torsions: BackboneTorsions) -> None:
    """The sentence counts the constraints that would be stretched, names the torsion, and says what to do."""
    system = particles(22)
    system.addConstraint(4, 6, 0.13)  # C-N, kept
    system.addConstraint(4, 14, 0.3)  # C(i-1) to C(i), across phi
    system.addConstraint(5, 15, 0.3)
    with pytest.raises(IncompatibleSystemError, match=r"2 constraints .* 5 and 15 by omega:ACE1; remove constraints"):
        check_system(system, torsions)


@pytest.mark.parametrize("virtual", [False, True])
def test_frozen_particles(torsions: BackboneTorsions, virtual: bool) -> None:
    """A massless particle on a turned side is refused, unless it is a virtual site."""
    system = particles(22)
    system.setParticleMass(21, 0.0)
    if virtual:
        system.setVirtualSite(21, openmm.TwoParticleAverageSite(18, 19, 0.5, 0.5))
        check_system(system, torsions)
    else:
        with pytest.raises(IncompatibleSystemError, match=r"1 massless .* 21 by .*masses back"):
            check_system(system, torsions)


def test_frozen_particles_that_no_torsion_moves(torsions: BackboneTorsions) -> None:
    """Frozen atoms of the anchor pass, so do waters; each single frozen atom is refused iff a torsion moves it."""
    x = np.random.default_rng(0).normal(size=(22, 3))
    turned = torsions.turn(x, np.diag(np.full(len(torsions), 0.7)))
    moves = np.abs(turned - x).max((0, 2)) > 1e-9
    assert 5 < moves.sum() < 22
    for atom in range(22):
        system = particles(22)
        system.setParticleMass(atom, 0.0)
        if moves[atom]:
            with pytest.raises(IncompatibleSystemError, match=f"such as {atom} "):
                check_system(system, torsions)
        else:
            check_system(system, torsions)


def test_particle_count(torsions: BackboneTorsions) -> None:
    """A system of another molecule, or with extra particles, is refused with both numbers."""
    with pytest.raises(IncompatibleSystemError, match=r"25 particles.* 22 atoms.*extra particles"):
        check_system(particles(25), torsions)


def test_large_systems_are_checked_fast(tmp_path: Path) -> None:
    """20 000 constraints against 300 torsions take less than 2 seconds."""
    sequence = "-".join(["ALA"] * 151)
    topology = load(write_backbone(tmp_path / "chain.pdb", sequence), fix=False).topology
    torsions = BackboneTorsions(topology, ("phi", "psi"))
    assert len(torsions) == 300
    system = particles(torsions.n_atoms)
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    for k in range(20_000):
        system.addConstraint(*bonds[k % len(bonds)], 0.1)
    start = time.perf_counter()
    check_system(system, torsions)
    assert time.perf_counter() - start < 2.0


def test_whole_molecules_pass(alanine: LoadedMolecule, torsions: BackboneTorsions) -> None:
    """Whole molecules pass as arrays, batches and Quantities, wherever they lie."""
    assert check_unbroken(torsions, alanine.positions) is None
    check_unbroken(torsions, np.stack([alanine.positions, alanine.positions + 50.0]))
    check_unbroken(torsions, alanine.positions * 10 * unit.angstrom)


@pytest.mark.parametrize("atom", range(22))
def test_torn_molecules(alanine: LoadedMolecule, torsions: BackboneTorsions, atom: int) -> None:
    """A molecule with any one atom in the next periodic image is refused, with the length and the remedy."""
    x = alanine.positions.copy()
    x[atom] += [0.0, 3.0, 0.0]
    with pytest.raises(StateError, match=r"bond between atoms \d+ and \d+ is [23]\.\d\d nm.*make_molecules_whole"):
        check_unbroken(torsions, x)


def test_only_the_peptides_have_to_be_whole(tmp_path: Path) -> None:
    """Bonds of other molecules are not looked at: water may be wrapped by atoms."""
    molecule = build(tmp_path, "ACE-ALA-NME")
    modeller = app.Modeller(molecule.topology, molecule.positions * unit.nanometer)
    modeller.addSolvent(app.ForceField("amber14-all.xml", "amber14/tip3p.xml"), numAdded=50)
    torsions = BackboneTorsions(modeller.topology)
    x = np.array(modeller.positions.value_in_unit(unit.nanometer))
    x[-1] += 5.0
    check_unbroken(torsions, x)
    x[0] += 5.0
    with pytest.raises(StateError):
        check_unbroken(torsions, x)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_that_are_not_finite(value: float, alanine: LoadedMolecule, torsions: BackboneTorsions) -> None:
    """NaN and infinite positions are refused, with how many atoms have them."""
    x = alanine.positions.copy()
    x[[3, 7], 0] = value
    with pytest.raises(StateError, match="2 atoms are NaN or infinite"):
        check_unbroken(torsions, x)


def test_positions_of_another_molecule(alanine: LoadedMolecule, torsions: BackboneTorsions) -> None:
    """Positions of another number of atoms are refused before anything else."""
    with pytest.raises(MoleculeError, match=r"\(21, 3\).*22"):
        check_unbroken(torsions, alanine.positions[1:])
