"""Backbone torsions: reading, setting, and the geometry and the volume that setting them keeps."""

import time
from dataclasses import dataclass
from pathlib import Path

import networkx
import numpy as np
import openmm
import pytest
from numpy.typing import NDArray
from openmm import app, unit
from peptides import ALANINE, bridge, build, charmm_alanine, relaxed, villin

from openmm_diffusion.errors import MoleculeError, SettingError
from openmm_diffusion.molecule import BackboneTorsions, MoleculeDescription, describe, load
from openmm_diffusion.peptide import bond_graph, rotatable_torsions


@dataclass(frozen=True)
class Case:
    topology: app.Topology
    positions: NDArray

    @property
    def torsions(self) -> BackboneTorsions:
        return BackboneTorsions(self.topology)


SEQUENCES = {
    "zwitterion": ("ALA-SER-VAL-ALA",),
    "proline": ("ACE-GLY-PRO-ALA-NME",),
    "amide": ("ACE-ALA-GLY-NH2",),
    "two chains": ("ACE-ALA-NME", "GLY-SER-ALA"),
    "disulfide": ("ACE-CYS-GLY-ALA-CYS-NME",),
    "joined chains": ("ALA-CYS-GLY", "GLY-CYS-ALA-ALA"),
}
NAMES = ("alanine", "villin", *SEQUENCES)
SMALL = tuple(name for name in NAMES if name != "villin")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    alanine = load(ALANINE)
    found = {"alanine": Case(alanine.topology, alanine.positions), "villin": Case(*villin())}
    for name, sequences in SEQUENCES.items():
        molecule = build(tmp_path_factory.mktemp("peptide"), *sequences)
        topology, positions = molecule.topology, molecule.positions
        if name in ("disulfide", "joined chains"):
            topology, positions = bridge(molecule)
        found[name] = Case(topology, relaxed(topology, positions))
    return found


def wrapped(angle: NDArray) -> NDArray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def dihedrals(x: NDArray, quads: NDArray) -> NDArray:
    """Dihedral angles by projection on the plane across the middle bond, unlike the package's own formula."""
    a, b, c, d = (x[quads[:, k]] for k in range(4))
    axis = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
    u = (a - b) - ((a - b) * axis).sum(-1, keepdims=True) * axis
    v = (d - c) - ((d - c) * axis).sum(-1, keepdims=True) * axis
    return np.arctan2((np.cross(axis, u) * v).sum(-1), (u * v).sum(-1))


def angles(x: NDArray, triples: NDArray) -> NDArray:
    u, v = x[triples[:, 0]] - x[triples[:, 1]], x[triples[:, 2]] - x[triples[:, 1]]
    return np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), (u * v).sum(-1))


def internal_coordinates(topology: app.Topology) -> tuple[NDArray, NDArray, NDArray]:
    """Every bond, bond angle and proper dihedral of a topology."""
    graph = bond_graph(topology)
    triples = [(a, b, c) for b in graph for a in graph[b] for c in graph[b] if a < c]
    quads = [(a, b, c, d) for b, c in graph.edges for a in graph[b] for d in graph[c] if len({a, b, c, d}) == 4]
    return np.array(graph.edges), np.array(triples), np.array(quads)


def random_torsions(torsions: BackboneTorsions, rng: np.random.Generator, *shape: int) -> NDArray:
    return rng.uniform(-np.pi, np.pi, (*shape, len(torsions)))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(cases: dict[str, Case], name: str) -> None:
    """What is set is read back to 1e-9, for a batch and for a Quantity, and setting what is there changes nothing."""
    case, rng = cases[name], np.random.default_rng(1)
    torsions = case.torsions
    tau = random_torsions(torsions, rng, 5)
    x = torsions.set(case.positions, tau)
    assert x.shape == (5, *case.positions.shape)
    np.testing.assert_allclose(wrapped(torsions.get(x) - tau), 0.0, atol=1e-9)
    quantity = torsions.set(case.positions * 10 * unit.angstrom, tau[0])
    np.testing.assert_allclose(quantity.value_in_unit(unit.nanometer), x[0], atol=1e-12)
    np.testing.assert_allclose(torsions.set(x[0], torsions.get(x[0])), x[0], atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_involution(cases: dict[str, Case], name: str) -> None:
    """(x, tau') -> (set(x, tau'), get(x)) done twice is the identity."""
    case, rng = cases[name], np.random.default_rng(2)
    torsions = case.torsions
    tau = random_torsions(torsions, rng)
    x1, tau1 = torsions.set(case.positions, tau), torsions.get(case.positions)
    x2, tau2 = torsions.set(x1, tau1), torsions.get(x1)
    np.testing.assert_allclose(x2, case.positions, atol=1e-9)
    np.testing.assert_allclose(wrapped(tau2 - tau), 0.0, atol=1e-9)


def log_volume(map_batch, x: NDArray, step: float = 1e-6) -> float:
    """log|det| of a map of positions by central differences over all Cartesian coordinates; -inf where singular."""
    n = x.size
    shifts = step * np.eye(n).reshape(n, *x.shape)
    columns = (map_batch(x + shifts) - map_batch(x - shifts)).reshape(n, n) / (2 * step)
    return float(np.linalg.slogdet(columns)[1])


@pytest.mark.parametrize("name", SMALL)
def test_constant_shift_has_unit_jacobian(cases: dict[str, Case], name: str) -> None:
    """x -> set(x, get(x) + Delta) keeps Cartesian volume to 1e-7, also where omega is the mean of four dihedrals."""
    case, rng = cases[name], np.random.default_rng(3)
    torsions = case.torsions
    x = torsions.set(case.positions, random_torsions(torsions, rng))
    delta = random_torsions(torsions, rng)
    assert abs(log_volume(lambda y: torsions.set(y, torsions.get(y) + delta), x)) < 1e-7


def test_jacobian_test_sees_maps_that_change_volume(cases: dict[str, Case]) -> None:
    """Negative control: doubling n torsions has determinant 2^n, a scaling its own, setting fixed values zero."""
    x, torsions = cases["alanine"].positions, cases["alanine"].torsions
    doubled = log_volume(lambda y: torsions.set(y, 2 * torsions.get(y)), x)
    assert doubled == pytest.approx(len(torsions) * np.log(2.0), abs=1e-7)
    assert log_volume(lambda y: 1.001 * y, x) == pytest.approx(66 * np.log(1.001), abs=1e-7)
    assert log_volume(lambda y: torsions.set(y, np.ones(len(torsions))), x) < -20.0


@pytest.mark.parametrize("name", NAMES)
def test_everything_else_stays(cases: dict[str, Case], name: str) -> None:
    """Bond lengths, angles, chirality, and all dihedrals about other bonds stay to 1e-9; the others shift as asked."""
    case, rng = cases[name], np.random.default_rng(4)
    torsions = case.torsions
    delta = random_torsions(torsions, rng)
    before, after = case.positions, torsions.turn(case.positions, delta)
    bonds, triples, quads = internal_coordinates(case.topology)
    lengths = [np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=-1) for x in (before, after)]
    np.testing.assert_allclose(lengths[1], lengths[0], atol=1e-9)
    np.testing.assert_allclose(angles(after, triples), angles(before, triples), atol=1e-9)
    turned = {frozenset(axis): delta[k] for k, axis in enumerate(torsions.axes.tolist())}
    expected = np.array([turned.get(frozenset(quad[1:3]), 0.0) for quad in quads.tolist()])
    change = wrapped(dihedrals(after, quads) - dihedrals(before, quads) - expected)
    np.testing.assert_allclose(change, 0.0, atol=1e-9)
    np.testing.assert_allclose(chiral_volumes(case.topology, after), chiral_volumes(case.topology, before), atol=1e-9)


def chiral_volumes(topology: app.Topology, x: NDArray) -> NDArray:
    found = []
    for residue in topology.residues():
        atoms = {a.name: a.index for a in residue.atoms()}
        if {"N", "CA", "C", "CB"} <= set(atoms):
            n, c, cb = (x[atoms[name]] - x[atoms["CA"]] for name in ("N", "C", "CB"))
            found.append(np.dot(np.cross(n, c), cb))
    assert found
    return np.array(found)


def test_amino_acids_are_left_handed(cases: dict[str, Case]) -> None:
    """The test molecules are L peptides, so the chirality test above looks at real centres."""
    for case in cases.values():
        assert (chiral_volumes(case.topology, case.positions) > 0).all()


@pytest.mark.parametrize("kind", ["phi", "psi", "omega"])
def test_one_kind_leaves_the_others(cases: dict[str, Case], kind: str) -> None:
    """Setting torsions of one kind changes no backbone torsion of another kind."""
    case, rng = cases["villin"], np.random.default_rng(5)
    every, some = case.torsions, BackboneTorsions(case.topology, (kind,))
    x = some.set(case.positions, random_torsions(some, rng))
    kept = np.array([k != kind for k in every.kinds])
    change = wrapped(every.get(x) - every.get(case.positions))
    np.testing.assert_allclose(change[kept], 0.0, atol=1e-9)
    assert np.abs(change[~kept]).min() > 1e-3


def test_labels_choose_and_order(cases: dict[str, Case]) -> None:
    """`labels` takes the named torsions in the order given; unknown labels and kinds are refused."""
    case = cases["alanine"]
    assert case.torsions.labels == ("omega:ACE1", "phi:ALA2", "psi:ALA2", "omega:ALA2")
    chosen = BackboneTorsions(case.topology, labels=["psi:ALA2", "phi:ALA2"])
    np.testing.assert_allclose(chosen.get(case.positions), case.torsions.get(case.positions)[[2, 1]], atol=1e-12)
    with pytest.raises(MoleculeError, match="psi:ALA9"):
        BackboneTorsions(case.topology, labels=["psi:ALA9"])
    with pytest.raises(SettingError, match="chi1"):
        BackboneTorsions(case.topology, ("phi", "chi1"))


@pytest.mark.parametrize("constraints", ["HBonds", "AllBonds", "HAngles"])
@pytest.mark.parametrize("name", ["alanine", "villin", "proline"])
def test_constraints_stay_satisfied(cases: dict[str, Case], name: str, constraints: str) -> None:
    """After a random setting there is nothing left for applyConstraints to do; after a scaling by 1e-4 there is."""
    case, rng = cases[name], np.random.default_rng(6)
    force_field = app.ForceField("amber14/protein.ff14SB.xml")
    system = force_field.createSystem(case.topology, constraints=getattr(app, constraints))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))

    def constrained(x: NDArray) -> NDArray:
        context.setPositions(x)
        context.applyConstraints(1e-9)
        return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)

    assert system.getNumConstraints() > 0
    x = case.torsions.set(constrained(case.positions), random_torsions(case.torsions, rng))
    assert np.abs(constrained(x) - x).max() < 1e-6
    assert np.abs(constrained(x * 1.0001) - x * 1.0001).max() > 1e-6


@pytest.mark.parametrize("name", ["alanine", "villin", "zwitterion"])
def test_agrees_with_mdtraj(cases: dict[str, Case], name: str) -> None:
    """phi, psi and the plain omega are mdtraj's to 1e-5 (its precision), and every one that mdtraj finds is found."""
    import mdtraj

    case = cases[name]
    definitions, _ = rotatable_torsions(case.topology)
    trajectory = mdtraj.Trajectory(case.positions[None], mdtraj.Topology.from_openmm(case.topology))
    ours = {d.dihedrals[0]: d for d in definitions}
    measured = dict(zip(case.torsions.labels, case.torsions.get(case.positions), strict=True))
    for kind, least in (("phi", 1), ("psi", 1), ("omega", 0)):
        quads, values = getattr(mdtraj, f"compute_{kind}")(trajectory, periodic=False)
        found = [(ours[tuple(q)], q, v) for q, v in zip(quads.tolist(), values[0], strict=True) if tuple(q) in ours]
        assert len(found) == len(quads) - sum(kind in label for label, _ in case.torsions.excluded)
        assert len(found) >= least
        for definition, quad, value in found:
            assert definition.kind == kind
            assert abs(wrapped(dihedrals(case.positions, np.array([quad]))[0] - value)) < 1e-5
            if kind != "omega":
                assert abs(wrapped(measured[definition.label] - value)) < 1e-5


@pytest.mark.parametrize("name", ["alanine", "proline", "amide"])
def test_mean_omega_shifts_by_the_turn(cases: dict[str, Case], name: str) -> None:
    """Turning about C-N by Delta shifts the mean omega, and each dihedral in it, by exactly Delta."""
    case, rng = cases[name], np.random.default_rng(7)
    torsions = BackboneTorsions(case.topology, ("omega",))
    definitions, _ = rotatable_torsions(case.topology, ("omega",))
    delta = random_torsions(torsions, rng)
    x = torsions.turn(case.positions, delta)
    np.testing.assert_allclose(wrapped(torsions.get(x) - torsions.get(case.positions) - delta), 0.0, atol=1e-10)
    for definition, angle in zip(definitions, delta, strict=True):
        quads = np.array(definition.dihedrals)
        assert len(quads) >= 2
        change = dihedrals(x, quads) - dihedrals(case.positions, quads)
        np.testing.assert_allclose(wrapped(change - angle), 0.0, atol=1e-10)


def test_mean_omega_lies_among_its_dihedrals(cases: dict[str, Case]) -> None:
    """Near planarity the mean omega is the mean of four dihedrals unfolded by 0 or pi: 180 degrees for trans."""
    case = cases["villin"]
    torsions = BackboneTorsions(case.topology, ("omega",))
    definitions, _ = rotatable_torsions(case.topology, ("omega",))
    for definition, value in zip(definitions, torsions.get(case.positions), strict=True):
        assert len(definition.dihedrals) == 4
        unfolded = dihedrals(case.positions, np.array(definition.dihedrals)) - np.pi * np.array(definition.flipped)
        deviations = wrapped(unfolded - np.pi)
        assert np.abs(deviations).max() < 0.7
        assert abs(wrapped(value - np.pi) - deviations.mean()) < 1e-10


def test_rings_and_crosslinks_are_left_out(cases: dict[str, Case]) -> None:
    """Proline's phi, and every torsion that a disulfide within a chain closes, are excluded with a reason."""
    excluded = {name: {label for label, _ in case.torsions.excluded} for name, case in cases.items()}
    assert excluded["proline"] == {"phi:PRO3"}
    assert "omega:PRO3" in cases["proline"].torsions.labels
    closed = {f"{kind}:{residue}" for residue in ("GLY3", "ALA4") for kind in ("phi", "psi", "omega")}
    assert excluded["disulfide"] == closed | {"psi:CYS2", "omega:CYS2", "phi:CYS5"}
    assert cases["disulfide"].torsions.labels == ("omega:ACE1", "phi:CYS2", "psi:CYS5", "omega:CYS5")
    assert all("ring" in reason for case in cases.values() for _, reason in case.torsions.excluded)


def test_one_disulfide_between_chains_closes_no_ring(cases: dict[str, Case]) -> None:
    """Chains joined once form one molecule with one anchor; two separate chains have one each and turn alone."""
    joined, apart = cases["joined chains"].torsions, cases["two chains"].torsions
    assert joined.excluded == apart.excluded == ()
    chain_of = {a.index: a.residue.chain.index for a in cases["joined chains"].topology.atoms()}
    assert networkx.is_connected(bond_graph(cases["joined chains"].topology).subgraph(joined.anchor.tolist()))
    across = [k for k in range(len(joined)) if {chain_of[a] for a in joined.turned_atoms(k).tolist()} == {0, 1}]
    assert across
    chain_of = {a.index: a.residue.chain.index for a in cases["two chains"].topology.atoms()}
    assert {chain_of[atom] for atom in apart.anchor.tolist()} == {0, 1}
    for k, label in enumerate(apart.labels):
        assert {chain_of[a] for a in apart.turned_atoms(k).tolist()} == {int(label[0]) - 1}


@pytest.mark.parametrize("name", NAMES)
def test_anchor_stays(cases: dict[str, Case], name: str) -> None:
    """The anchor follows from bonds alone, no setting moves it by a bit, and it is in the middle of the chain."""
    case, rng = cases[name], np.random.default_rng(8)
    torsions = case.torsions
    x = torsions.set(case.positions, random_torsions(torsions, rng, 3))
    assert (x[:, torsions.anchor] == case.positions[torsions.anchor]).all()
    assert not np.intersect1d(torsions.anchor, torsions.moved_atoms).size
    still = np.setdiff1d(np.arange(torsions.n_atoms), torsions.moved_atoms)
    assert (x[:, still] == case.positions[still]).all()
    if name == "villin":
        residues = {a.residue.index for a in case.topology.atoms() if a.index in set(torsions.anchor.tolist())}
        assert 35 // 2 in residues


def slow_set(case: Case, torsions: BackboneTorsions, tau: NDArray) -> NDArray:
    """`set` by turning one bond after another with Rodrigues' formula, the sides found by a walk over the bonds."""
    definitions, _ = rotatable_torsions(case.topology)
    graph, x = bond_graph(case.topology), case.positions.copy()
    assert networkx.is_connected(graph)
    for definition, target in zip(definitions, tau, strict=True):
        values = dihedrals(case.positions, np.array(definition.dihedrals)) - np.pi * np.array(definition.flipped)
        present = values[0] + np.mean(wrapped(values - values[0]))
        j, k = definition.bond
        graph.remove_edge(j, k)
        side = networkx.node_connected_component(graph, k)
        graph.add_edge(j, k)
        if torsions.anchor[0] in side:
            side, (j, k) = set(graph) - side, (k, j)
        moved = np.array(sorted(side))
        axis = (x[k] - x[j]) / np.linalg.norm(x[k] - x[j])
        angle, v = target - present, x[moved] - x[j]
        along = np.outer(v @ axis, axis)
        x[moved] = x[j] + along + np.cos(angle) * (v - along) + np.sin(angle) * np.cross(axis, v)
    return x


@pytest.mark.parametrize("name", ["alanine", "proline", "amide", "disulfide", "villin"])
def test_agrees_with_slow_twin(cases: dict[str, Case], name: str) -> None:
    """Setting all torsions at once by pointer jumping is setting them one after another, to 1e-10 nm."""
    case, rng = cases[name], np.random.default_rng(9)
    tau = random_torsions(case.torsions, rng)
    np.testing.assert_allclose(case.torsions.set(case.positions, tau), slow_set(case, case.torsions, tau), atol=1e-10)


def test_batches_are_fast(cases: dict[str, Case]) -> None:
    """10^4 frames of 22 atoms are set and read within a second."""
    case, rng = cases["alanine"], np.random.default_rng(10)
    torsions = case.torsions
    tau = random_torsions(torsions, rng, 10_000)

    def seconds() -> float:
        start = time.perf_counter()
        torsions.get(torsions.set(case.positions, tau))
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1.0


def test_charmm_caps_inside_the_residue(cases: dict[str, Case]) -> None:
    """CHARMM writes CAY, CY, OY and NT, HNT, CAT into the residue ALA: the same molecule, torsions and values."""
    case = cases["alanine"]
    topology = charmm_alanine(load(ALANINE))
    assert describe(topology) == describe(case.topology)
    assert str(describe(topology)) == "ACE-ALA-NME"
    np.testing.assert_allclose(
        BackboneTorsions(topology).get(case.positions), case.torsions.get(case.positions), atol=1e-12
    )


def test_charmm_amide_inside_the_residue(tmp_path: Path) -> None:
    """CHARMM's CT2 cap (NT, HT1, HT2) is NH2."""
    molecule = build(tmp_path, "ACE-ALA-NH2")
    topology = charmm_alanine(molecule, amide=True)
    assert describe(topology) == describe(molecule.topology)
    torsions = BackboneTorsions(topology)
    np.testing.assert_allclose(
        torsions.get(molecule.positions), BackboneTorsions(molecule.topology).get(molecule.positions), atol=1e-12
    )


def test_names_of_force_fields_give_one_description(cases: dict[str, Case]) -> None:
    """Protonation and terminal names of Amber and CHARMM (HIE, CYX, NALA, HSD) do not change a description."""

    def described(sequence: str) -> MoleculeDescription:
        topology = app.Topology()
        chain = topology.addChain()
        carbon = None
        for name in sequence.split("-"):
            residue = topology.addResidue(name, chain)
            n, ca, c = (topology.addAtom(a, app.Element.getBySymbol(a[0]), residue) for a in ("N", "CA", "C"))
            for bond in [(n, ca), (ca, c)] + ([(carbon, n)] if carbon else []):
                topology.addBond(*bond)
            carbon = c
        return describe(topology, ("phi", "psi"))

    plain = described("ALA-HIS-CYS-GLY")
    assert plain.sequences == (("ALA", "HIS", "CYS", "GLY"),)
    assert described("NALA-HIE-CYX-CGLY") == described("ALA-HSD-CYM-GLY") == plain
    assert described("GLY-HIS-CYS-GLY") != plain


def test_torsions_travel_as_text(cases: dict[str, Case]) -> None:
    """Torsions made again from their text set and read alike and know the same atoms and bonds."""
    case, rng = cases["joined chains"], np.random.default_rng(11)
    torsions = case.torsions
    again = BackboneTorsions.from_text(torsions.to_text())
    tau = random_torsions(torsions, rng)
    assert (again.set(case.positions, tau) == torsions.set(case.positions, tau)).all()
    for name in ("labels", "kinds", "n_atoms"):
        assert getattr(again, name) == getattr(torsions, name)
    for name in ("anchor", "axes", "bonds", "moved_atoms"):
        assert (getattr(again, name) == getattr(torsions, name)).all()


def test_bonds_span_the_molecules(cases: dict[str, Case]) -> None:
    """`bonds` are bonds of the topology, and enough of them to connect each molecule of the chains."""
    for case in cases.values():
        torsions, graph = case.torsions, bond_graph(case.topology)
        spanning = networkx.Graph(torsions.bonds.tolist())
        assert all(graph.has_edge(*bond) for bond in torsions.bonds.tolist())
        parts = [part for part in networkx.connected_components(graph) if part & set(torsions.anchor.tolist())]
        assert sorted(map(sorted, networkx.connected_components(spanning))) == sorted(map(sorted, parts))


def test_wrong_shapes_are_refused(cases: dict[str, Case]) -> None:
    """Positions of another molecule and torsions of another number are refused with both numbers."""
    case = cases["alanine"]
    with pytest.raises(MoleculeError, match=r"\(21, 3\).*22"):
        case.torsions.get(case.positions[:-1])
    with pytest.raises(MoleculeError, match=r"\(3,\).*4"):
        case.torsions.set(case.positions, np.zeros(3))


def test_no_backbone_is_refused() -> None:
    """Water has no peptide backbone; the sentence says which residues there are."""
    water = app.PDBFile(str(Path(app.__file__).parent / "data" / "tip3p.pdb"))
    with pytest.raises(MoleculeError, match="HOH"):
        BackboneTorsions(water.topology)


@pytest.mark.parametrize("wrong", ["peptide.pdb", None, 3])
def test_what_is_no_topology_is_said(wrong: object) -> None:
    """A path or a number in place of a topology gets one sentence with the remedy."""
    with pytest.raises(MoleculeError, match=r"expected an openmm\.app\.Topology"):
        describe(wrong)
