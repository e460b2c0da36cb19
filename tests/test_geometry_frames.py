"""Atoms <-> frames <-> torsions: orders, masks, mdtraj's dihedrals, an independent slow twin, and rebuilt backbones."""

import math
from pathlib import Path

import mdtraj
import numpy as np
import openmm.app
import pytest
import torch
from numpy.typing import NDArray

from openmm_diffusion.errors import TrajectoryError
from openmm_diffusion.geometry import residue_constants as rc
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.backbone import compute_backbone, place_oxygens
from openmm_diffusion.geometry.frames import (
    atom14_mask,
    atom14_to_atom37,
    atom14_to_frames,
    atom37_mask,
    atom37_to_atom14,
    atom37_to_torsions,
    present_atoms,
)
from openmm_diffusion.geometry.rigid import Rigid

EVERY_TYPE = torch.arange(rc.N_RESTYPES)
VILLIN = Path(openmm.app.__file__).parent / "data" / "test.pdb"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.fixture(scope="module")
def villin() -> mdtraj.Trajectory:
    trajectory = mdtraj.load(str(VILLIN))
    return trajectory.atom_slice(trajectory.topology.select("protein"))


def atoms_of(trajectory: mdtraj.Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
    """atom37 [L, 37, 3] (float64, Angstrom) of the first frame, and residue types [L]."""
    residues = list(trajectory.topology.residues)
    atom37 = torch.zeros(len(residues), 37, 3, dtype=torch.float64)
    for i, residue in enumerate(residues):
        for atom in residue.atoms:
            if atom.name in rc.ATOM37 and atom.name != "OXT":
                atom37[i, rc.ATOM37.index(atom.name)] = torch.from_numpy(10.0 * trajectory.xyz[0, atom.index])
    return atom37, torch.from_numpy(rc.aatype("".join(residue.code for residue in residues)))


def random_atom37(shape: tuple[int, ...], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Points at random for every atom of every residue type: [*shape, 21, 37, 3] and types [21]."""
    atom37 = 3 * torch.randn((*shape, 21, 37, 3), generator=generator, dtype=torch.float64)
    return atom37 * atom37_mask(EVERY_TYPE)[..., None], EVERY_TYPE


def angles_of(sin_cos: torch.Tensor) -> NDArray:
    return torch.atan2(sin_cos[..., 0], sin_cos[..., 1]).numpy()


def wrapped(difference: NDArray) -> NDArray:
    return np.abs((difference + np.pi) % (2 * np.pi) - np.pi)


# Residues and atoms


def test_sequences_round_trip() -> None:
    """Types follow AlphaFold2's order; sequence() inverts aatype(); X is 20."""
    types = rc.aatype("ARNDCQEGHILKMFPSTWYVX")
    assert types.tolist() == list(range(21))
    assert rc.sequence(types) == "ARNDCQEGHILKMFPSTWYVX"
    assert rc.RESTYPES_3[rc.aatype("W")[0]] == "TRP"
    assert len(rc.aatype("")) == 0 and rc.sequence(rc.aatype("")) == ""


def test_bad_sequences_are_refused() -> None:
    """A letter that is no residue, and a type out of range, are named with what was expected."""
    with pytest.raises(TrajectoryError, match=r"Residue 3 .*'B'.*expected"):
        rc.aatype("ACB")
    with pytest.raises(TrajectoryError, match="'a'"):
        rc.aatype("a")
    with pytest.raises(TrajectoryError, match="21"):
        rc.sequence(np.array([0, 21]))


def test_tables_are_consistent() -> None:
    """Every type has its known number of heavy atoms, under distinct names of atom37, its chi atoms among them."""
    counts = dict(
        zip("ARNDCQEGHILKMFPSTWYVX", [5, 11, 8, 8, 6, 9, 9, 4, 10, 8, 8, 9, 8, 11, 7, 6, 7, 14, 12, 7, 4], strict=True)
    )
    for name, letter in zip(rc.RESTYPES_3, rc.LETTERS, strict=True):
        atoms = rc.ATOM14[name]
        assert len(atoms) == counts[letter] == len(set(atoms)) and set(atoms) <= set(rc.ATOM37)
        assert all(set(chi) <= set(atoms) and len(chi) == 4 for chi in rc.CHI_ATOMS[name])
    assert rc.ATOM37[:5] == ("N", "CA", "C", "CB", "O") and len(set(rc.ATOM37)) == 37
    assert rc.ATOM14_MASK.sum() == rc.ATOM37_MASK.sum() == sum(counts.values())
    assert rc.CHI_MASK.sum(0).tolist() == [18, 14, 5, 2]


def test_atom14_atom37_round_trip(generator: torch.Generator) -> None:
    """atom37 -> atom14 -> atom37 keeps every atom under its name; absent atoms become zeros, even from NaN."""
    atom37, aatype = random_atom37((2, 3), generator)
    absent = ~atom37_mask(aatype).expand(atom37.shape[:-1])
    dirty = atom37.masked_fill(absent[..., None], math.nan)
    atom14 = atom37_to_atom14(dirty, aatype)
    assert atom14.shape == (2, 3, 21, 14, 3)
    assert torch.equal(atom14_to_atom37(atom14, aatype), atom37)
    for i, name in enumerate(rc.RESTYPES_3):
        for k, atom in enumerate(rc.ATOM14[name]):
            assert torch.equal(atom14[:, :, i, k], atom37[:, :, i, rc.ATOM37.index(atom)])
        assert (atom14[:, :, i, len(rc.ATOM14[name]) :] == 0).all()
    assert torch.equal(atom14_mask(aatype).sum(-1), atom37_mask(aatype).sum(-1))


def test_types_may_have_the_larger_batch(generator: torch.Generator) -> None:
    """Coordinates [L, 14, 3] with types [B, L] broadcast, and the other way round."""
    atom14 = torch.randn(21, 14, 3, generator=generator)
    assert atom14_to_atom37(atom14, EVERY_TYPE.expand(4, -1)).shape == (4, 21, 37, 3)
    assert atom14_to_atom37(atom14.expand(4, -1, -1, -1), EVERY_TYPE).shape == (4, 21, 37, 3)


# Torsions


def test_torsions_are_those_of_mdtraj(villin: mdtraj.Trajectory) -> None:
    """omega and phi of villin equal mdtraj's to 1e-5; psi, measured to O, within what the carbonyls are not planar."""
    atom37, aatype = atoms_of(villin)
    sin_cos, mask = atom37_to_torsions(atom37, aatype)
    assert rc.sequence(aatype.numpy()) == "LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF"
    torch.testing.assert_close(sin_cos.norm(dim=-1), torch.ones(35, 7, dtype=torch.float64))
    angles = angles_of(sin_cos)
    assert mask[0].tolist() == [False, False, True, True, True, False, False]
    assert mask[1:, :2].all() and mask[:, 2].all()
    assert wrapped(angles[1:, 0] - mdtraj.compute_omega(villin)[1][0]).max() < 1e-5
    assert wrapped(angles[1:, 1] - mdtraj.compute_phi(villin)[1][0]).max() < 1e-5
    # An unrestrained MD frame: O is out of the plane by more than in a crystal structure (mean 0.018, max 0.069 rad).
    psi = wrapped(angles[:-1, 2] - mdtraj.compute_psi(villin)[1][0])
    assert psi.mean() < 0.12 and psi.max() < 0.35


def test_omega_phi_and_chi_of_every_type_are_those_of_mdtraj(generator: torch.Generator) -> None:
    """For random points in all 20 residue types omega, phi and every chi angle, and which exist, are mdtraj's."""
    atom37, aatype = random_atom37((), generator)
    atom37, aatype = atom37[:20], aatype[:20]
    topology, points = mdtraj.Topology(), []
    chain = topology.add_chain()
    for i, name in enumerate(rc.RESTYPES_3[:20]):
        residue = topology.add_residue(name, chain, resSeq=i + 1)
        for atom in rc.ATOM14[name]:
            topology.add_atom(atom, mdtraj.element.Element.getBySymbol(atom[0]), residue)
            points.append(atom37[i, rc.ATOM37.index(atom)].numpy() / 10)
    trajectory = mdtraj.Trajectory(np.array(points)[None], topology)
    sin_cos, mask = atom37_to_torsions(atom37, aatype)
    angles = angles_of(sin_cos)
    chi = (mdtraj.compute_chi1, mdtraj.compute_chi2, mdtraj.compute_chi3, mdtraj.compute_chi4)
    for k, compute in enumerate((mdtraj.compute_omega, mdtraj.compute_phi, None, *chi)):
        if compute is None:
            continue
        atoms, expected = compute(trajectory, periodic=False)
        # All seven belong to the residue of their last atom.
        owners = [topology.atom(quartet[-1]).residue.index for quartet in atoms]
        assert sorted(owners) == np.flatnonzero(mask[:, k].numpy()).tolist(), k
        assert wrapped(angles[owners, k] - expected[0]).max() < 1e-3  # mdtraj's coordinates are float32


def twin_dihedral(p: list[NDArray]) -> float:
    """By projecting both ends on the plane across the bond: no cross products in common with the code."""
    axis = (p[2] - p[1]) / np.linalg.norm(p[2] - p[1])
    a = (p[0] - p[1]) - np.dot(p[0] - p[1], axis) * axis
    b = (p[3] - p[2]) - np.dot(p[3] - p[2], axis) * axis
    angle = math.acos(np.clip(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    return math.copysign(angle, np.linalg.det(np.stack([a, b, axis])))


def twin_torsions(atom37: NDArray, names: list[str]) -> NDArray:
    """[L, 7] angles by plain loops over atom names, NaN where undefined."""
    angles = np.full((len(names), 7), np.nan)
    for i, name in enumerate(names):
        here = {atom: atom37[i, rc.ATOM37.index(atom)] for atom in rc.ATOM14[name]}
        if i:
            ca, c = atom37[i - 1, 1], atom37[i - 1, 2]
            angles[i, 0] = twin_dihedral([ca, c, here["N"], here["CA"]])
            angles[i, 1] = twin_dihedral([c, here["N"], here["CA"], here["C"]])
        angles[i, 2] = twin_dihedral([here[atom] for atom in ("N", "CA", "C", "O")]) + math.pi
        for k, chi in enumerate(rc.CHI_ATOMS[name]):
            angles[i, 3 + k] = twin_dihedral([here[atom] for atom in chi])
    return angles


def test_torsions_equal_a_slow_twin(generator: torch.Generator) -> None:
    """Values and masks of all seven torsions of all 21 types, in batches, equal loops over atom names to 1e-10."""
    atom37, aatype = random_atom37((3, 2), generator)
    sin_cos, mask = atom37_to_torsions(atom37, aatype)
    assert sin_cos.shape == (3, 2, 21, 7, 2) and mask.shape == (3, 2, 21, 7)
    for batch in np.ndindex(3, 2):
        expected = twin_torsions(atom37[batch].numpy(), list(rc.RESTYPES_3))
        np.testing.assert_array_equal(mask[batch].numpy(), ~np.isnan(expected))
        found = np.where(mask[batch].numpy(), angles_of(sin_cos[batch]), np.nan)
        assert np.nanmax(wrapped(found - expected)) < 1e-7  # acos of the twin loses half the digits near 0 and pi


def test_missing_atoms_have_mask_zero_and_no_nan(generator: torch.Generator) -> None:
    """Without an atom every torsion through it is masked, reads (0, 1), and no value or gradient anywhere is NaN."""
    atom37, aatype = random_atom37((), generator)
    atom37[3] = 0  # a residue without any atom
    atom37[5, rc.ATOM37.index("CG")] = 0
    atom37[7, 4] = 0  # O of glycine
    atom37[10, 2] = atom37[10, 1]  # C on CA: no plane
    atom37.requires_grad_()
    sin_cos, mask = atom37_to_torsions(atom37, aatype)
    assert not mask[3].any() and not mask[4, :2].any() and mask[4, 2]
    assert mask[5].tolist() == [True, True, True, False, False, False, False]
    assert mask[7].tolist() == [True, True] + 5 * [False]
    assert not mask[10, 1:3].any() and not mask[11, 0]
    assert torch.equal(sin_cos[~mask], torch.tensor([0.0, 1.0], dtype=torch.float64).expand(int((~mask).sum()), 2))
    rigids = atom14_to_frames(atom37_to_atom14(atom37, aatype))
    assert torch.equal(rigids.rots[3], torch.eye(3, dtype=torch.float64))
    weights = torch.randn(21, 16, generator=generator, dtype=torch.float64)
    total = (torch.cat([sin_cos.flatten(1), rigids.to_tensor_7()[:, :2]], -1) * weights).sum()
    total.backward()
    assert sin_cos.isfinite().all() and rigids.rots.isfinite().all() and atom37.grad.isfinite().all()
    assert (atom37.grad[3] == 0).all() and (atom37.grad[0] != 0).any()


def test_masks_may_be_given(generator: torch.Generator) -> None:
    """A given mask wins over zeros: an atom at the origin counts, a masked NaN spoils neither values nor gradients."""
    atom37, aatype = random_atom37((), generator)
    atom37 = atom37 - atom37[4:5, 5:6]  # CG or whatever stands there at the origin
    mask = atom37_mask(aatype).clone()
    mask[6, 4] = False
    atom37 = torch.where(mask[..., None], atom37, torch.tensor(math.nan, dtype=torch.float64)).requires_grad_()
    sin_cos, defined = atom37_to_torsions(atom37, aatype, mask)
    assert sin_cos.isfinite().all() and not defined[6, 2] and defined[4, 3] and defined.sum() == 20 + 20 + 20 + 39
    sin_cos[..., 0].sum().backward()
    assert atom37.grad.isfinite().all()


def test_a_ca_at_the_origin_is_there(generator: torch.Generator) -> None:
    """A residue centred on its CA keeps its frame and torsions."""
    atom37, aatype = random_atom37((), generator)
    centred = torch.where(
        atom37_mask(aatype)[..., None], atom37 - atom37[5:6, 1:2], torch.zeros((), dtype=torch.float64)
    )
    assert present_atoms(centred)[5, 1] and torch.equal(present_atoms(centred), present_atoms(atom37))
    torch.testing.assert_close(atom14_to_frames(centred).rots, atom14_to_frames(atom37).rots)


# Frames


def twin_frame(n: NDArray, ca: NDArray, c: NDArray) -> NDArray:
    """x, y, z as columns: z normal to the plane of N, CA, C, y completing it."""
    x = (c - ca) / np.linalg.norm(c - ca)
    z = np.cross(x, n - ca)
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z], -1)


def test_frames_equal_a_slow_twin(generator: torch.Generator) -> None:
    """Frames of batches of random residues equal a loop over residues, to 1e-12; C lies on +x, N at y > 0."""
    atom14 = torch.randn(2, 3, 5, 14, 3, generator=generator, dtype=torch.float64)
    rigids = atom14_to_frames(atom14)
    assert rigids.shape == (2, 3, 5)
    for index in np.ndindex(2, 3, 5):
        n, ca, c = atom14[index][:3].numpy()
        np.testing.assert_allclose(rigids.rots[index].numpy(), twin_frame(n, ca, c), atol=1e-12)
        np.testing.assert_array_equal(rigids.trans[index].numpy(), ca)


def test_mean_local_coordinates_of_villin(villin: mdtraj.Trajectory) -> None:
    """In the frames N stands near (-0.51, 1.36, 0), C near (1.52, 0, 0): +x is CA -> C, not the other convention."""
    atom37, _ = atoms_of(villin)
    rigids = atom14_to_frames(atom37)
    n, c = (rigids.invert_apply(atom37[:, k]).mean(0) for k in (0, 2))
    expected = torch.tensor([[-0.509, 1.364, 0.0], [1.521, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([n, c]), expected, rtol=0, atol=0.08)


def test_frames_move_with_the_molecule(villin: mdtraj.Trajectory, generator: torch.Generator) -> None:
    """Frames of a moved molecule are the moved frames; torsions stay, up to 1e-12; a mirror image turns their signs."""
    atom37, aatype = atoms_of(villin)
    motion = Rigid(rotations.haar((), generator), torch.tensor([3.0, -20.0, 7.0], dtype=torch.float64))
    there = atom37_mask(aatype) & present_atoms(atom37)
    moved = torch.where(there[..., None], motion.apply(atom37), torch.zeros((), dtype=torch.float64))
    expected = motion.compose(atom14_to_frames(atom37))
    torch.testing.assert_close(atom14_to_frames(moved).rots, expected.rots, rtol=0, atol=1e-12)
    torch.testing.assert_close(atom14_to_frames(moved).trans, expected.trans, rtol=0, atol=1e-12)
    before, after = atom37_to_torsions(atom37, aatype)[0], atom37_to_torsions(moved, aatype)[0]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)
    mirrored = atom37_to_torsions(-atom37, aatype)[0]
    torch.testing.assert_close(mirrored[..., 0], -before[..., 0], rtol=0, atol=1e-12)


def test_float32_stays_float32(villin: mdtraj.Trajectory) -> None:
    """float32 in, float32 out, within 1e-5 of float64."""
    atom37, aatype = atoms_of(villin)
    single = atom37.float()
    rigids, (sin_cos, _) = atom14_to_frames(single), atom37_to_torsions(single, aatype)
    rebuilt, _, _ = compute_backbone(rigids, sin_cos[:, 2], aatype)
    assert {t.dtype for t in (rigids.rots, sin_cos, rebuilt, place_oxygens(rebuilt, atom37_mask(aatype)))} == {
        torch.float32
    }
    torch.testing.assert_close(rigids.rots.double(), atom14_to_frames(atom37).rots, rtol=0, atol=1e-5)
    torch.testing.assert_close(sin_cos.double(), atom37_to_torsions(atom37, aatype)[0], rtol=0, atol=2e-5)


# Backbones


def random_backbone(generator: torch.Generator) -> tuple[Rigid, torch.Tensor]:
    trans = 10 * torch.randn(4, 21, 3, generator=generator, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(4, 21, generator=generator, dtype=torch.float64)
    return Rigid(rotations.haar((4, 21), generator), trans), torch.stack([angle.sin(), angle.cos()], -1)


@pytest.mark.parametrize("coord_scale", [1.0, 0.14])
def test_frames_and_psi_come_back(coord_scale: float, generator: torch.Generator) -> None:
    """atoms of (frames, psi) have these frames and this psi, to 1e-11, for every type and length unit."""
    rigids, psi = random_backbone(generator)
    atom37, mask, atom14 = compute_backbone(rigids, psi, EVERY_TYPE, coord_scale)
    back = atom14_to_frames(atom14)
    torch.testing.assert_close(back.rots, rigids.rots, rtol=0, atol=1e-11)
    assert torch.equal(back.trans, rigids.trans)
    sin_cos, defined = atom37_to_torsions(atom37, EVERY_TYPE)
    torch.testing.assert_close(sin_cos[..., 2, :], psi, rtol=0, atol=1e-11)
    assert defined[..., 2].all() and not defined[..., 3:].any()
    assert torch.equal(atom37, atom14_to_atom37(atom14, EVERY_TYPE))
    bond = (atom37[..., 2, :] - atom37[..., 1, :]).norm(dim=-1)
    assert ((bond / coord_scale - 1.525).abs() < 0.01).all()
    assert torch.equal(mask, (atom37 != 0).any(-1))


def test_backbone_of_ideal_geometry(generator: torch.Generator) -> None:
    """Bonds N-CA, CA-C, C=O, CA-CB and the angles at CA and C are Engh & Huber's within 0.02 A and 3 degrees."""
    rigids, psi = random_backbone(generator)
    atom37, _, _ = compute_backbone(rigids, psi, EVERY_TYPE)
    n, ca, c, cb, o = atom37[..., :5, :].unbind(-2)
    with_cb = torch.from_numpy(rc.ATOM37_MASK[:, 3])

    def angle(p: torch.Tensor, q: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(p - q, r - q, dim=-1)))

    for found, expected, tolerance in [
        ((n - ca).norm(dim=-1), 1.458, 0.02),
        ((c - ca).norm(dim=-1), 1.525, 0.02),
        ((o - c).norm(dim=-1), 1.231, 0.02),
        ((cb - ca)[:, with_cb].norm(dim=-1), 1.530, 0.02),
        (angle(n, ca, c), 111.2, 3.0),
        (angle(ca, c, o), 120.5, 1.0),
        (angle(n, ca, cb)[:, with_cb], 110.5, 8.0),  # proline's ring: 103
    ]:
        assert (found - expected).abs().max() < tolerance, expected


def test_rebuilt_villin(villin: mdtraj.Trajectory) -> None:
    """From frames and psi an MD frame's N, CA, C, CB and O come back within its thermal strain, CB on its side."""
    atom37, aatype = atoms_of(villin)
    psi = atom37_to_torsions(atom37, aatype)[0][:, 2]
    rebuilt, mask, _ = compute_backbone(atom14_to_frames(atom37), psi, aatype)
    rmsd = {
        atom: float((rebuilt - atom37)[mask[:, k], k].square().sum(-1).mean().sqrt())
        for k, atom in enumerate(("N", "CA", "C", "CB", "O"))
    }
    # Crystal structures, whose bonds are restrained to the same ideals: N 0.05, C 0.01, O 0.02.
    limits = {"N": 0.12, "CA": 1e-12, "C": 0.05, "CB": 0.2, "O": 0.1}
    assert all(rmsd[atom] <= limits[atom] for atom in limits), rmsd
    mirrored = rebuilt.clone()
    mirrored[:, 3] = atom14_to_frames(atom37).apply(
        atom14_to_frames(atom37).invert_apply(rebuilt[:, 3]) * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    )

    def handedness(atoms: torch.Tensor) -> torch.Tensor:
        sides = atoms[mask[:, 3]][:, [0, 2, 3]] - atoms[mask[:, 3]][:, 1:2]
        return torch.linalg.det(sides).sign()

    assert torch.equal(handedness(rebuilt), handedness(atom37)) and (handedness(rebuilt) > 0).all()
    assert (handedness(mirrored) < 0).all()


def test_masks_by_type(generator: torch.Generator) -> None:
    """Glycine and X have no CB, nobody has atoms beyond O, and alanine is the default."""
    rigids, psi = random_backbone(generator)
    atom37, mask, _ = compute_backbone(rigids, psi, EVERY_TYPE)
    glycine, unknown = rc.RESTYPES.index("G"), rc.UNKNOWN
    has_cb = torch.ones(21, dtype=torch.bool)
    has_cb[[glycine, unknown]] = False
    assert torch.equal(mask[..., 3], has_cb.expand(4, -1)) and mask[..., [0, 1, 2, 4]].all() and not mask[..., 5:].any()
    assert (atom37[:, [glycine, unknown], 3] == 0).all()
    by_default, with_alanine = (
        compute_backbone(rigids, psi),
        compute_backbone(rigids, psi, torch.zeros_like(EVERY_TYPE)),
    )
    assert all(torch.equal(a, b) for a, b in zip(by_default, with_alanine, strict=True))


def test_backbone_gradients(generator: torch.Generator) -> None:
    """Atoms are differentiable in rotations, translations and psi: gradcheck."""
    rigids, psi = random_backbone(generator)
    inputs = [rotations.log(rigids.rots[0, :3]), rigids.trans[0, :3], psi[0, :3]]

    def atoms(vectors: torch.Tensor, trans: torch.Tensor, torsion: torch.Tensor) -> torch.Tensor:
        return compute_backbone(Rigid(rotations.exp(vectors), trans), torsion, EVERY_TYPE[6:9])[0][:, :5]

    assert torch.autograd.gradcheck(atoms, [x.requires_grad_() for x in inputs])


def plane_distances(atom37: torch.Tensor) -> torch.Tensor:
    """How far each O lies from the plane of CA, C and the next N."""
    ca, c, o = (atom37[..., :-1, k, :] for k in (1, 2, 4))
    normal = torch.linalg.cross(ca - c, atom37[..., 1:, 0, :] - c)
    return ((o - c) * normal).sum(-1).abs() / normal.norm(dim=-1)


def test_place_oxygens(villin: mdtraj.Trajectory) -> None:
    """O comes into the plane of its peptide bond, opposite to CA and N, at its old distance; nothing else moves."""
    atom37, _ = atoms_of(villin)
    mask = present_atoms(atom37)
    placed = place_oxygens(atom37, mask)
    assert plane_distances(placed).max() < 1e-10 and plane_distances(atom37).max() > 0.05
    ca, c, o = (placed[:-1, k] for k in (1, 2, 4))
    n = placed[1:, 0]
    lengths = ((o - c).norm(dim=-1), (atom37[:-1, 4] - c).norm(dim=-1))
    torch.testing.assert_close(*lengths)
    assert ((o - ca).norm(dim=-1) > 2.2).all() and ((o - n).norm(dim=-1) > 2.1).all()
    assert (placed - atom37).norm(dim=-1).max() < 0.5
    others = [k for k in range(37) if k != 4]
    assert torch.equal(placed[:, others], atom37[:, others]) and torch.equal(placed[-1], atom37[-1])


def test_place_oxygens_agrees_with_psi() -> None:
    """At ideal angles of a planar peptide bond O from psi and O from the next N are the same within 0.01 A."""
    identity = Rigid.identity((5,), torch.float64)
    angle = torch.linspace(-3, 3, 5, dtype=torch.float64)
    atom37, mask, _ = compute_backbone(identity, torch.stack([angle.sin(), angle.cos()], -1))
    bend = math.radians(180 - 116.6)
    direction = [torch.full_like(angle, math.cos(bend)), math.sin(bend) * angle.cos(), math.sin(bend) * angle.sin()]
    for i in range(5):  # five pairs, each a residue and the N that its psi points to
        pair, pair_mask = torch.stack([atom37[i], atom37[i]]), torch.stack([mask[i], mask[i]])
        pair[1, 0] = pair[0, 2] + 1.329 * torch.stack(direction, -1)[i]
        assert (place_oxygens(pair, pair_mask) - pair).norm(dim=-1).max() < 0.01


def test_place_oxygens_leaves_breaks_and_gaps(villin: mdtraj.Trajectory) -> None:
    """Across a break, beside a missing atom and for a collinear N the O stays; no NaN in values or gradients."""
    atom37, aatype = atoms_of(villin)
    broken = atom37.clone()
    broken[10:] += torch.tensor([30.0, 0.0, 0.0], dtype=torch.float64)
    mask = atom37_mask(aatype).clone()
    mask[20, 0] = False  # N of residue 20 is missing: O of 19 stays
    broken[20, 0] = 0
    broken[16, 0] = 2 * broken[15, 2] - broken[15, 1]
    broken.requires_grad_()
    placed = place_oxygens(broken, mask)
    stays = [9, 15, 19, 34]
    assert torch.equal(placed[stays, 4], broken[stays, 4])
    assert (placed[[8, 10, 20], 4] != broken[[8, 10, 20], 4]).any(-1).all()
    placed.square().sum().backward()
    assert placed.isfinite().all() and broken.grad.isfinite().all()
