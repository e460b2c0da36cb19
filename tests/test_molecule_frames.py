"""Chains of a topology as frames: which links are torsions of the move, and links measured on real positions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from openmm import app, unit
from peptides import ALANINE, bridge, build, charmm_alanine, relaxed, villin

from openmm_diffusion.diffusion.stiff_links import StiffLinks, link_labels, soft_by_nature
from openmm_diffusion.errors import MoleculeError
from openmm_diffusion.geometry.links import LinkGeometry, links_from_frames
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.molecule import (
    BackboneTorsions,
    ChainLinks,
    chain_links,
    frames_from_positions,
    load,
    torsions_from_links,
)
from openmm_diffusion.peptide import TORSION_KINDS, rotatable_torsions

PSI, OMEGA, PHI = 0, 3, 5
Case = tuple[app.Topology, NDArray]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Topologies and positions (nm), those of built peptides relaxed, so that bonds and angles are strained."""
    found: dict[str, Case] = {"villin": villin()}
    alanine = load(ALANINE)
    found["alanine"] = alanine.topology, alanine.positions
    sequences = {
        "proline": ["ACE-ALA-PRO-GLY-NME"],
        "two chains": ["ACE-ALA-NME", "GLY-SER-PRO"],
        "amide": ["ACE-ALA-NH2"],
        "disulfide": ["ACE-CYS-ALA-GLY-CYS-NME"],
    }
    for name, chains in sequences.items():
        molecule = build(tmp_path_factory.mktemp("peptide"), *chains)
        topology, positions = bridge(molecule) if name == "disulfide" else (molecule.topology, molecule.positions)
        # amber14 has no NH2 cap, and the disulfide's atoms stand far apart.
        found[name] = (
            topology,
            (positions if name in ("amide", "disulfide") else relaxed(topology, positions, steps=50)),
        )
    return found


def angle_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((torch.remainder(a - b + math.pi, 2 * math.pi) - math.pi).abs().max())


def without(topology: app.Topology, residue: int, *names: str) -> app.Topology:
    """The topology without some atoms of one residue."""
    modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
    chosen = list(topology.residues())[residue]
    modeller.delete([atom for atom in chosen.atoms() if atom.name in names])
    return modeller.topology


def labels_at(topology: app.Topology, places: tuple[str, ...]) -> list[str]:
    """Labels of the topology at the kinds and residue numbers of the labels given, whatever residues stand there."""
    numbers = [(label.split(":")[0], label.rsplit(":", 1)[1][3:]) for label in places]
    known = {(t.kind, t.label.rsplit(":", 1)[1][3:]): t.label for t in rotatable_torsions(topology)[0]}
    return [known[number] for number in numbers]


def dihedrals(points: torch.Tensor) -> torch.Tensor:
    """Dihedrals [T] of points [T, 4, 3], by projection onto the plane across the bond."""
    p0, p1, p2, p3 = points.unbind(1)
    axis = torch.nn.functional.normalize(p2 - p1, dim=-1)
    u, v = ((x - (x * axis).sum(-1, keepdim=True) * axis) for x in (p0 - p1, p3 - p2))
    return torch.atan2((torch.linalg.cross(axis, u) * v).sum(-1), (u * v).sum(-1))


def test_alanine_dipeptide(cases: dict[str, Case]) -> None:
    """Three frames of the roles' atoms; phi and psi soft, the omegas not asked for, caps' impropers at chain ends."""
    topology, _ = cases["alanine"]
    torsions = BackboneTorsions(topology, ("phi", "psi"))
    (chain,) = chain_links(topology, torsions)
    assert chain.names == ("ACE", "ALA", "NME") and chain.prefix == ""
    soft = [[False] * 5 + [True], [True] + [False] * 5]
    assert chain.soft.tolist() == soft
    assert (chain.torsion_index[0, PHI], chain.torsion_index[1, PSI]) == (0, 1)
    assert (chain.torsion_index[~chain.soft] == -1).all()
    atoms = list(topology.atoms())
    names = [[atoms[i].name for i in row] for row in chain.frame_atoms.tolist()]
    assert names == [["O", "CH3", "C"], ["N", "CA", "C"], ["N", "C", "H"]]  # the file calls NME's methyl C
    assert [[atoms[i].residue.index for i in row] for row in chain.frame_atoms.tolist()] == [[k] * 3 for k in range(3)]
    assert chain.reasons["psi:ACE1"] == "chain end: it is an improper of the cap ACE"
    assert chain.reasons["phi:NME3"] == "chain end: it is an improper of the cap NME"
    assert chain.reasons["omega:ACE1"] == chain.reasons["omega:ALA2"] == "not asked for"
    assert len(chain.reasons) == 4


@pytest.mark.parametrize("name", ["villin", "alanine", "proline", "two chains", "amide", "disulfide"])
@pytest.mark.parametrize("kinds", [("phi", "psi"), TORSION_KINDS])
def test_soft_links_are_the_torsions(cases: dict[str, Case], name: str, kinds: tuple[str, ...]) -> None:
    """Every torsion stands at the link entry of its own label, once; every other psi, omega, phi has a reason."""
    topology, _ = cases[name]
    torsions = BackboneTorsions(topology, kinds)
    chains = chain_links(topology, torsions)
    columns = [k for chain in chains for k in chain.columns.tolist()]
    assert sorted(columns) == list(range(len(torsions)))
    for chain in chains:
        labels = np.array(link_labels(chain.names))
        placed = [chain.prefix + str(label) for label in labels[chain.soft.numpy()]]
        assert placed == [torsions.labels[k] for k in chain.columns]
        others = labels[:, [PSI, OMEGA, PHI]][~chain.soft[:, [PSI, OMEGA, PHI]].numpy()]
        assert set(chain.reasons) == {chain.prefix + str(label) for label in others}
        # Without a crosslink, what turns freely by nature is what can be turned.
        if name != "disulfide" and kinds == ("phi", "psi"):
            assert torch.equal(chain.soft, soft_by_nature(chain.names))


def test_proline_and_disulfides_are_stiff(cases: dict[str, Case]) -> None:
    """phi of proline is in its ring; what a disulfide's ring runs through is stiff, outside of it soft."""
    topology, _ = cases["proline"]
    (chain,) = chain_links(topology, BackboneTorsions(topology))
    assert chain.reasons["phi:PRO3"] == "its bond is in the ring of proline"
    topology, _ = cases["disulfide"]
    (chain,) = chain_links(topology, BackboneTorsions(topology, ("phi", "psi")))
    crosslink = "a disulfide or another crosslink closes a ring through its bond"
    closed = {label for label, reason in chain.reasons.items() if reason == crosslink}
    assert {"psi:CYS2", "phi:ALA3", "psi:ALA3", "phi:GLY4", "psi:GLY4", "phi:CYS5"} <= closed
    assert {label.split(":")[0] for label in closed} == {"phi", "psi", "omega"}
    soft = np.array(link_labels(chain.names))[chain.soft.numpy()]
    assert soft.tolist() == ["phi:CYS2", "psi:CYS5"]
    assert torch.isinf(StiffLinks.of(chain.names, chain.soft).widths[1, PSI])  # and a(s) has it uniform


def test_labels_choose_what_is_soft(cases: dict[str, Case]) -> None:
    """Torsions chosen by label, in any order, keep their places on the axis; the rest is not asked for."""
    topology, _ = cases["villin"]
    labels = ("psi:LYS7", "omega:GLU4", "phi:ALA8")
    (chain,) = chain_links(topology, BackboneTorsions(topology, labels=labels_at(topology, labels)))
    assert int(chain.soft.sum()) == 3 and sorted(chain.columns.tolist()) == [0, 1, 2]
    values = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    links = chain.links(values)
    assert (links[6, PSI], links[3, OMEGA], links[6, PHI]) == (0.1, 0.2, 0.3)
    others = {label: reason for label, reason in chain.reasons.items() if ":PRO" not in label}
    assert set(others.values()) == {"not asked for"}


@pytest.mark.parametrize("name", ["villin", "two chains", "disulfide"])
def test_torsions_to_links_and_back(cases: dict[str, Case], name: str) -> None:
    """Batches of torsions come back from the links of all chains; stiff entries are zero or those given."""
    topology, _ = cases[name]
    torsions = BackboneTorsions(topology)
    chains = chain_links(topology, torsions)
    tau = torch.rand(4, 3, len(torsions), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    links = [chain.links(tau) for chain in chains]
    assert [x.shape for x in links] == [(4, 3, len(chain.names) - 1, 6) for chain in chains]
    assert torch.equal(torsions_from_links(links, chains), tau)
    for chain, plain in zip(chains, links, strict=True):
        assert torch.equal(chain.torsions(plain), tau[..., chain.columns])
        assert (plain[..., ~chain.soft] == 0).all()
        stiff = StiffLinks.of(chain.names, chain.soft)
        filled = chain.links(tau, stiff.centres)
        assert (filled[..., ~chain.soft] == stiff.centres[~chain.soft]).all()
        assert torch.equal(chain.torsions(filled), tau[..., chain.columns])
        assert torch.isfinite(stiff.log_density(filled)).all()
        one = chain.links(tau[0, 0], stiff.draw(filled, torch.Generator().manual_seed(2)))
        assert one.shape == filled.shape  # a batch of stiff entries for one set of torsions
        assert (one[..., chain.soft] == tau[0, 0, chain.columns]).all()


def measured_links(positions: NDArray, chain: ChainLinks) -> torch.Tensor:
    """Links of the frames, with N and C where the atoms stand in them."""
    rigids = frames_from_positions(positions, chain)
    atoms = 10.0 * torch.from_numpy(positions)[chain.frame_atoms]
    centred = atoms - atoms[:, 1].mean(0)
    frames = Rigid.from_tensor_7(rigids)
    n, c = frames.invert_apply(centred[:, 0]), frames.invert_apply(centred[:, 2])
    assert n[:, 2].abs().max() < 1e-10 and c[:, 1:].abs().max() < 1e-10  # N in the plane, C on the axis
    n[:, 2], c[:, 1:] = 0.0, 0.0
    return links_from_frames(frames, LinkGeometry(n, c))


@pytest.mark.parametrize("name", ["villin", "alanine", "proline", "two chains", "amide"])
def test_links_of_positions_are_the_torsions(cases: dict[str, Case], name: str) -> None:
    """phi, psi of the frames, N and C where the atoms are, are BackboneTorsions' to 1e-6; omega is the plain one."""
    topology, positions = cases[name]
    torsions = BackboneTorsions(topology, ("phi", "psi"))
    tau = torch.from_numpy(torsions.get(positions))
    chains = chain_links(topology, torsions)
    links = [measured_links(positions, chain) for chain in chains]
    assert angle_difference(torsions_from_links(links, chains), tau) < 1e-6
    omegas = BackboneTorsions(topology, ("omega",))
    plain = {t.label: t.dihedrals[0] for t in rotatable_torsions(topology, ("omega",))[0]}
    mean = torch.from_numpy(omegas.get(positions))
    turning = chain_links(topology, omegas)
    value = torsions_from_links(links, turning)
    quads = torch.from_numpy(positions)[torch.tensor([plain[label] for label in omegas.labels])]
    expected = dihedrals(quads)
    assert angle_difference(value, expected) < 1e-6
    assert 1e-6 < angle_difference(value, mean) < 0.5  # the mean differs by impropers


def test_ideal_atoms_read_strained_torsions(cases: dict[str, Case]) -> None:
    """Control: links of the ideal N and C in the frames are off by the strain, and by no more than that."""
    topology, positions = cases["villin"]
    torsions = BackboneTorsions(topology, ("phi", "psi"))
    (chain,) = chain_links(topology, torsions)
    links = StiffLinks.of(chain.names).links(frames_from_positions(positions, chain))
    difference = angle_difference(torsions_from_links([links], [chain]), torch.from_numpy(torsions.get(positions)))
    assert 0.02 < difference < 0.4


def test_frames_of_positions(cases: dict[str, Case]) -> None:
    """Batches and Quantities of positions give centred frames in Angstrom; turning a soft torsion turns its link."""
    topology, positions = cases["proline"]
    torsions = BackboneTorsions(topology, ("phi", "psi"))
    (chain,) = chain_links(topology, torsions)
    batch = torsions.set(positions, torsions.get(positions) + 0.7 * np.eye(len(torsions)))
    rigids = frames_from_positions(batch * unit.nanometer, chain)
    assert rigids.shape == (len(torsions), 5, 7) and rigids.dtype is torch.float64
    assert rigids[..., 4:].mean(-2).abs().max() < 1e-10
    assert float((rigids[0, 2, 4:] - rigids[0, 1, 4:]).norm()) == pytest.approx(3.8, abs=0.15)  # CA to CA
    turned = torch.stack([measured_links(one, chain) for one in batch])
    shift = turned - measured_links(positions, chain)
    shift = torch.remainder(shift + math.pi, 2 * math.pi) - math.pi
    expected = torch.zeros_like(shift)
    expected[:, chain.soft] = 0.7 * torch.eye(len(torsions), dtype=torch.float64)[:, chain.columns]
    torch.testing.assert_close(shift, expected, rtol=0, atol=1e-7)


def test_charmm_caps_have_frames(tmp_path: Path) -> None:
    """Caps that CHARMM writes into the residue itself give the same atoms as caps of their own."""
    for chain_text, amide in (("ACE-ALA-NME", False), ("ACE-ALA-NH2", True)):
        molecule = build(tmp_path, chain_text)
        inside = charmm_alanine(molecule, amide=amide)
        kinds = ("phi", "psi")
        (own,) = chain_links(molecule.topology, BackboneTorsions(molecule.topology, kinds))
        (patched,) = chain_links(inside, BackboneTorsions(inside, kinds))
        assert patched.names == own.names and torch.equal(patched.frame_atoms, own.frame_atoms)


@pytest.mark.parametrize(
    ("name", "residue", "atoms", "message"),
    [
        ("alanine", 0, ["O"], r"Residue ACE1 of the chain ACE-ALA-NME has no atom O; expected O, CH3, C"),
        ("alanine", 2, ["H"], r"Residue NME3 of the chain ACE-ALA-NME has no atom H; expected N, CH3, H"),
        ("alanine", 2, ["H", "C"], r"Residue NME3 .* has no atom CH3 and H"),
        ("alanine", 1, ["CA"], r"Residue ALA2 has no atom CA; expected N, CA and C.*molecule\.load"),
        ("villin", 10, ["CA", "C"], r"Residue \w+11 has no atom CA and C"),
        ("amide", 2, ["H1", "HN1"], r"Residue NH23 of the chain ACE-ALA-NH2 has no atom H2; expected N, H1, H2"),
    ],
)
def test_missing_atoms_are_named(
    cases: dict[str, Case], name: str, residue: int, atoms: list[str], message: str
) -> None:
    """A residue without an atom of its frame is named, with the atom and the remedy, also inside the chain."""
    topology, _ = cases[name]
    torsions = BackboneTorsions(topology, ("phi", "psi"))
    with pytest.raises(MoleculeError, match=message):
        chain_links(without(topology, residue, *atoms), torsions)


def test_other_chains_are_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    """A cyclic chain, a single residue, an unknown residue and torsions of another topology: one sentence each."""
    topology, _ = cases["alanine"]
    torsions = BackboneTorsions(topology)
    with pytest.raises(MoleculeError, match=r"torsions .* of a molecule of 22 atoms are not those of this topology"):
        chain_links(cases["proline"][0], torsions)
    single = app.Topology()
    residue = single.addResidue("ALA", single.addChain())
    for name in ("N", "CA", "C"):
        single.addAtom(name, app.element.carbon, residue)
    with pytest.raises(MoleculeError, match="at least two residues"):
        chain_links(single, torsions)
    with pytest.raises(MoleculeError, match="expected an openmm"):
        chain_links("alanine.pdb", torsions)
    ring = build(tmp_path, "GLY-ALA-GLY").topology
    residues = list(ring.residues())
    ends = [next(a for a in residues[k].atoms() if a.name == name) for k, name in ((-1, "C"), (0, "N"))]
    open_torsions = BackboneTorsions(ring)
    ring.addBond(*ends)
    with pytest.raises(MoleculeError, match="GLY-ALA-GLY is cyclic; expected an open one"):
        chain_links(ring, open_torsions)
    odd = build(tmp_path, "ACE-ALA-NME").topology
    list(odd.residues())[1].name = "MSE"
    with pytest.raises(MoleculeError, match="Residue 2 is 'MSE'; expected ACE"):
        chain_links(odd, BackboneTorsions(odd))
