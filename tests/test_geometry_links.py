"""Links between frames: a chart of SE(3)^N over a global motion, with volume element r^2 sin(theta1) sin(theta2)."""

import math
from pathlib import Path

import mdtraj
import numpy as np
import openmm.app
import pytest
import torch

from openmm_diffusion.errors import MoleculeError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.frames import atom14_to_frames, frames_from_atoms
from openmm_diffusion.geometry.links import LINK, LinkGeometry, frames_from_links, links_from_frames, log_volume
from openmm_diffusion.geometry.rigid import Rigid

CAPPED = ("ACE", "ALA", "GLY", "PRO", "NME")
UNCAPPED = ("LEU", "SER", "ASP", "GLU", "ASP", "PHE", "LYS")
AMIDE = ("ACE", "ALA", "NH2")
CHAINS = [CAPPED, UNCAPPED, ("ACE", "NME"), ("ACE", "ALA", "NME"), AMIDE]
ALANINE = Path(__file__).parents[1] / "examples" / "alanine.pdb"
VILLIN = Path(openmm.app.__file__).parent / "data" / "test.pdb"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def random_links(shape: tuple[int, ...], n: int, generator: torch.Generator) -> torch.Tensor:
    """Links far from ideal: any torsion, angles 0.1 to pi - 0.1, bonds 0.5 to 4 Angstrom."""
    u = torch.rand((*shape, n - 1, 6), generator=generator, dtype=torch.float64)
    torsion, angle, bond = math.pi * (2 * u - 1), 0.1 + (math.pi - 0.2) * u, 0.5 + 3.5 * u
    return torch.stack(
        [torsion[..., 0], angle[..., 1], bond[..., 2], torsion[..., 3], angle[..., 4], torsion[..., 5]], -1
    )


def random_frames(shape: tuple[int, ...], generator: torch.Generator) -> Rigid:
    trans = torch.randn((*shape, 3), generator=generator, dtype=torch.float64)
    return Rigid(rotations.haar(shape, generator), 6 * trans)


@pytest.mark.parametrize("names", CHAINS)
def test_frames_to_links_and_back(names: tuple[str, ...], generator: torch.Generator) -> None:
    """Frames at random, far from any peptide, come back from their links and the first frame within 1e-10."""
    geometry, frames = LinkGeometry.of(names), random_frames((4, 3, len(names)), generator)
    links = links_from_frames(frames, geometry)
    assert links.shape == (4, 3, len(names) - 1, 6)
    back = frames_from_links(links, geometry, frames[..., 0])
    torch.testing.assert_close(back.rots, frames.rots, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.trans, frames.trans, rtol=0, atol=1e-10)


@pytest.mark.parametrize("names", CHAINS)
def test_links_to_frames_and_back(names: tuple[str, ...], generator: torch.Generator) -> None:
    """Links at random over the whole chart come back from their frames within 1e-10, torsions up to turns."""
    geometry, links = LinkGeometry.of(names), random_links((50,), len(names), generator)
    frames = frames_from_links(links, geometry, random_frames((50,), generator))
    difference = links_from_frames(frames, geometry) - links
    torsions = [k for k, name in enumerate(LINK) if name in ("psi", "omega", "phi")]
    difference[..., torsions] = torch.remainder(difference[..., torsions] + math.pi, 2 * math.pi) - math.pi
    assert difference.abs().max() < 1e-10
    torch.testing.assert_close(torch.linalg.det(frames.rots), torch.ones(50, len(names), dtype=torch.float64))


def test_long_chains_equal_a_loop(generator: torch.Generator) -> None:
    """100 residues by doubling equal one composition after another; one first frame serves a batch of links."""
    names = ("ACE", *(("ALA", "GLY") * 49), "NME")
    geometry, links = LinkGeometry.of(names), random_links((2,), 100, generator)
    first = random_frames((), generator)
    frames = frames_from_links(links, geometry, first)
    assert frames.shape == (2, 100)
    current = Rigid(first.rots.expand(2, 3, 3), first.trans.expand(2, 3))
    for i in range(99):
        pair = LinkGeometry(geometry.n_local[i : i + 2], geometry.c_local[i : i + 2])
        current = frames_from_links(links[:, i : i + 1], pair, current)[..., 1]
        torch.testing.assert_close(frames[:, i + 1].rots, current.rots, rtol=0, atol=1e-12)
        torch.testing.assert_close(frames[:, i + 1].trans, current.trans, rtol=0, atol=1e-10)


def test_links_do_not_see_a_global_motion(generator: torch.Generator) -> None:
    """Links of moved frames are the same; those of a frame moved alone are not (control)."""
    geometry, frames = LinkGeometry.of(CAPPED), random_frames((5,), generator)
    motion = random_frames((), generator)
    links = links_from_frames(frames, geometry)
    torch.testing.assert_close(links_from_frames(motion.compose(frames), geometry), links, rtol=0, atol=1e-11)
    alone = Rigid(frames.rots.clone(), frames.trans.clone())
    alone.trans[2] += 0.1
    assert (links_from_frames(alone, geometry) - links).abs()[1:3].max() > 1e-3


def increments_by_links(links: torch.Tensor, geometry: LinkGeometry, first: Rigid) -> torch.Tensor:
    """Jacobian [6 (N-1), 6 (N-1)] of the body-frame increments (R^T dt, R^T dR) of all frames but the first."""

    def unpacked(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frames = frames_from_links(x, geometry, first)[1:]
        return frames.rots, frames.trans

    rots, _ = unpacked(links)
    d_rots, d_trans = torch.func.jacfwd(unpacked)(links)
    n = links.numel()
    turns = rots.transpose(-1, -2) @ d_rots.reshape(-1, 3, 3, n).permute(3, 0, 1, 2)
    turns = torch.stack([turns[..., 2, 1], turns[..., 0, 2], turns[..., 1, 0]], -1)
    moves = (rots.transpose(-1, -2) @ d_trans.reshape(-1, 3, n).permute(2, 0, 1)[..., None])[..., 0]
    return torch.cat([moves, turns], -1).reshape(n, n).T


def jacobian_errors(names: tuple[str, ...], generator: torch.Generator, sines: tuple[float, float]) -> torch.Tensor:
    """log|det| of the numerical Jacobian less that of the formula, with powers of the two sines, at 8 random points."""
    geometry, errors = LinkGeometry.of(names), []
    for _ in range(8):
        links = random_links((), len(names), generator)
        jacobian = increments_by_links(links, geometry, random_frames((), generator))
        theta1, r, theta2 = links[:, 1], links[:, 2], links[:, 4]
        formula = 2 * r.log() + sines[0] * theta1.sin().log() + sines[1] * theta2.sin().log()
        errors.append(torch.linalg.slogdet(jacobian)[1] - formula.sum())
        if sines == (1.0, 1.0):
            torch.testing.assert_close(formula.sum(), log_volume(links))
    return torch.stack(errors)


@pytest.mark.parametrize("names", [("ACE", "ALA", "NME"), ("ALA", "GLY", "PRO", "TRP"), CAPPED, AMIDE])
def test_volume_element(names: tuple[str, ...], generator: torch.Generator) -> None:
    """prod dT_i / dT_first = prod r^2 sin(theta1) sin(theta2) dl, by a numerical Jacobian, caps included, to 1e-10."""
    assert jacobian_errors(names, generator, (1.0, 1.0)).abs().max() < 1e-10


@pytest.mark.parametrize("sines", [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0)])
def test_volume_element_control(sines: tuple[float, float], generator: torch.Generator) -> None:
    """Control: without sin(theta2), without sin(theta1), or with one too many, the formula is off by no constant."""
    assert jacobian_errors(CAPPED, generator, sines).std() > 0.3


def test_volume_by_finite_differences(generator: torch.Generator) -> None:
    """The same of one link by central differences of the log of relative frames, without automatic derivatives."""
    geometry, links = LinkGeometry.of(("ALA", "SER")), random_links((), 2, generator)
    first = random_frames((), generator)
    middle = frames_from_links(links, geometry, first)[1]
    columns, step = [], 1e-5
    for k in range(6):
        shift = torch.zeros(1, 6, dtype=torch.float64)
        shift[0, k] = step
        up, down = (
            middle.inverse().compose(frames_from_links(links + sign * shift, geometry, first)[1]) for sign in (1, -1)
        )
        columns.append(
            torch.cat([rotations.log(up.rots) - rotations.log(down.rots), up.trans - down.trans]) / (2 * step)
        )
    determinant = torch.linalg.slogdet(torch.stack(columns, -1))[1]
    torch.testing.assert_close(determinant, log_volume(links), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_finite(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Frames, links and volumes have finite gradients, at planar peptide bonds and torsions of 0 and pi too."""
    geometry = LinkGeometry.of(CAPPED)
    ideal = torch.tensor([math.pi, 2.03, 1.335, math.pi, 2.12, -math.pi], dtype=dtype).repeat(3, 4, 1)
    ideal[1, :, [0, 3, 5]] = 0.0
    ideal[2] = random_links((), 5, generator).to(dtype)
    ideal.requires_grad_()
    frames = frames_from_links(ideal, geometry, random_frames((3,), generator).to(dtype))
    links = links_from_frames(frames, geometry)
    assert frames.rots.dtype is links.dtype is dtype
    assert (links - ideal)[..., [1, 2, 4]].abs().max() < {torch.float64: 1e-12, torch.float32: 1e-4}[dtype]
    (links.sin().sum() + log_volume(links).sum() + frames.trans.square().sum()).backward()
    assert ideal.grad.isfinite().all() and (ideal.grad != 0).any()


def test_gradients_are_right(generator: torch.Generator) -> None:
    """gradcheck of links -> frames -> links and of the volume."""
    geometry, first = LinkGeometry.of(("ACE", "ALA", "NME")), random_frames((), generator)

    def there_and_back(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        frames = frames_from_links(x, geometry, first)
        return frames.trans, frames.rots, links_from_frames(frames, geometry)

    links = (0.9 * random_links((), 3, generator)).requires_grad_()
    assert torch.autograd.gradcheck(there_and_back, links)
    assert torch.autograd.gradcheck(log_volume, links)


def test_volume_outside_the_chart_is_nan() -> None:
    """r <= 0 and angles outside (0, pi) have no volume: NaN, never a number; so have batches only where it is due."""
    inside = torch.tensor([0.3, 2.0, 1.3, 3.0, 2.1, -1.0], dtype=torch.float64).repeat(5, 2, 1)
    outside = inside.clone()
    for row, (column, value) in enumerate([(1, -0.1), (1, 7.0), (2, -1.0), (4, 3.3)]):
        outside[row, 1, column] = value
    assert log_volume(outside).isnan().tolist() == [True] * 4 + [False]
    expected = 2 * (2 * math.log(1.3) + math.log(math.sin(2.0)) + math.log(math.sin(2.1)))
    torch.testing.assert_close(log_volume(inside), torch.full((5,), expected, dtype=torch.float64))


def roles(trajectory: mdtraj.Trajectory, names: dict[str, tuple[str, str, str]]) -> list[torch.Tensor]:
    """Atoms in the roles of N, CA, C, [L, 3] in Angstrom each."""
    residues = list(trajectory.topology.residues)
    triples = [names.get(residue.name, ("N", "CA", "C")) for residue in residues]
    # The PDB calls the methyl carbon of NME C.
    rows = [[residue.atom(name).index for name in triple] for residue, triple in zip(residues, triples, strict=True)]
    return list(torch.from_numpy(10.0 * trajectory.xyz[0][np.array(rows)]).double().unbind(1))


def test_links_of_alanine_dipeptide() -> None:
    """Frames of real atoms: psi of ACE and phi of NME are near pi; phi, psi and peptide bonds are the atoms'."""
    trajectory = mdtraj.load(str(ALANINE))
    n, ca, c = roles(trajectory, {"ACE": ("O", "CH3", "C"), "NME": ("N", "C", "H")})
    links = links_from_frames(frames_from_atoms(n, ca, c), LinkGeometry.of(("ACE", "ALA", "NME")))
    psi, theta1, r, omega, theta2, phi = links.unbind(-1)
    stiff = torch.stack([psi[0], phi[1], *omega])
    assert (stiff.abs() > math.pi - 0.25).all()
    assert abs(float(phi[0]) - float(mdtraj.compute_phi(trajectory)[1][0, 0])) < 0.1
    assert abs(float(psi[1]) - float(mdtraj.compute_psi(trajectory)[1][0, 0])) < 0.1
    assert ((r - 1.335).abs() < 0.06).all()
    assert ((theta1 - math.radians(116.6)).abs() < 0.1).all() and ((theta2 - math.radians(121.9)).abs() < 0.1).all()


def test_cap_geometry_is_that_of_atoms() -> None:
    """Local N and C of the caps, C on +x and N at y > 0, agree with real atoms within 0.03 Angstrom."""
    n, ca, c = roles(mdtraj.load(str(ALANINE)), {"ACE": ("O", "CH3", "C"), "NME": ("N", "C", "H")})
    frames, geometry = frames_from_atoms(n, ca, c), LinkGeometry.of(("ACE", "ALA", "NME"))
    torch.testing.assert_close(frames.invert_apply(n)[[0, 2]], geometry.n_local[[0, 2]], rtol=0, atol=0.03)
    torch.testing.assert_close(frames.invert_apply(c)[[0, 2]], geometry.c_local[[0, 2]], rtol=0, atol=0.03)


def test_amide_cap_geometry() -> None:
    """NH2 is a triangle of two N-H bonds of 1.010 A at 120 degrees, seen from H1 with H2 on +x."""
    geometry = LinkGeometry.of(AMIDE)
    n, h2 = geometry.n_local[2], geometry.c_local[2]
    torch.testing.assert_close(torch.stack([n.norm(), (h2 - n).norm()]), torch.full((2,), 1.010, dtype=torch.float64))
    assert float((n * (n - h2)).sum()) == pytest.approx(1.010**2 * math.cos(math.radians(120.0)), rel=1e-12)
    assert n[1] > 0 and h2[0] > 0


def test_links_of_villin_are_peptide_bonds() -> None:
    """Frames of villin give bonds of 1.33 A, trans omegas, mdtraj's phi and psi, within thermal strain."""
    trajectory = mdtraj.load(str(VILLIN))
    trajectory = trajectory.atom_slice(trajectory.topology.select("protein"))
    atoms = torch.stack(roles(trajectory, {}), 1)
    geometry = LinkGeometry.of([residue.name for residue in trajectory.topology.residues])
    links = links_from_frames(atom14_to_frames(torch.nn.functional.pad(atoms, (0, 0, 0, 11))), geometry)
    assert (links[:, 2].mean() - 1.335).abs() < 0.04 and links[:, 2].min() > 1.0 and links[:, 2].max() < 1.7
    assert (links[:, 3].abs() > 2.6).all()
    for k, compute in ((0, mdtraj.compute_psi), (5, mdtraj.compute_phi)):
        difference = links[:, k].numpy() - compute(trajectory)[1][0]
        assert np.abs((difference + np.pi) % (2 * np.pi) - np.pi).max() < 0.35


def test_coord_scale_scales_lengths_alone(generator: torch.Generator) -> None:
    """In other length units of frames and geometry, r scales and the angles stay."""
    frames = random_frames((5,), generator)
    links = links_from_frames(frames, LinkGeometry.of(CAPPED))
    scaled = links_from_frames(frames.map_trans(lambda x: 0.14 * x), LinkGeometry.of(CAPPED, coord_scale=0.14))
    factors = torch.tensor([1, 1, 0.14, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(scaled, factors * links, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ALA", "ACE"), r"Residue 2 of 2 is the cap ACE"),
        (("NME", "ALA"), r"Residue 1 of 2 is the cap NME"),
        (("NH2", "ALA"), r"Residue 1 of 2 is the cap NH2; ACE only begins, NME and NH2 only end"),
        (("ACE", "MSE", "NME"), r"Residue 2 is 'MSE'; expected ACE, NME, NH2 or"),
    ],
)
def test_bad_chains_are_refused(names: tuple[str, ...], message: str) -> None:
    """A cap inside the chain or an unknown residue is named, with its place and what was expected."""
    with pytest.raises(MoleculeError, match=message):
        LinkGeometry.of(names)


def test_bad_shapes_are_refused(generator: torch.Generator) -> None:
    """Frames or links of another number of residues, and local atoms against the frames' convention, are errors."""
    geometry = LinkGeometry.of(CAPPED)
    with pytest.raises(MoleculeError, match=r"4 frames .* 5 residues"):
        links_from_frames(random_frames((4,), generator), geometry)
    with pytest.raises(MoleculeError, match=r"4 frames .* 5 residues"):
        frames_from_links(random_links((), 4, generator), geometry, random_frames((), generator))
    with pytest.raises(MoleculeError, match=r"expected C on \+x"):
        LinkGeometry(geometry.c_local, geometry.n_local)
    with pytest.raises(MoleculeError, match=r"\[N, 3\]"):
        LinkGeometry(geometry.n_local[:-1], geometry.c_local)
