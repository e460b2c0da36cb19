"""Metrics of backbone ensembles against mdtraj, closed forms and ensembles whose faults are known; their figures."""

from typing import Any

import mdtraj
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from villin_data import structure

from openmm_diffusion.analysis import backbone_comparison as comparison
from openmm_diffusion.analysis import backbone_plots as figures
from openmm_diffusion.analysis import backbone_quality as quality
from openmm_diffusion.analysis import plots
from openmm_diffusion.errors import TrajectoryError

Array = NDArray[np.float64]
NAMES = ("N", "CA", "C", "O")


@pytest.fixture(scope="module")
def villin() -> Any:
    """mdtraj's villin, and its backbone [1, 35, 4, 3] in Angstrom."""
    return structure()


@pytest.fixture(scope="module")
def backbone(villin: Any) -> Array:
    columns = [[villin.top.select(f"resid {i} and name {name}")[0] for name in NAMES] for i in range(35)]
    return 10.0 * villin.xyz[:, columns].astype(np.float64)


def moved(x: Array, n: int, rng: np.random.Generator) -> Array:
    """n copies, each turned and moved as a whole."""
    turns = Rotation.random(n, random_state=np.random.RandomState(rng.integers(2**31))).as_matrix()
    return np.asarray(np.einsum("nij,laj->nlai", turns, x) + rng.normal(size=(n, 1, 1, 3)))


def fluctuating(x: Array, widths: Array, n: int, seed: int) -> Array:
    """n copies with every residue displaced as a whole by a normal of its width, turned and moved."""
    rng = np.random.default_rng(seed)
    shifts = rng.normal(size=(n, len(x), 1, 3)) * widths[:, None, None]
    return np.stack([moved(frame, 1, rng)[0] for frame in x + shifts])


class TestGeometry:
    def test_torsions_are_those_of_mdtraj(self, villin: Any, backbone: Array) -> None:
        """phi and psi of residues 2..34 agree with mdtraj's to 1e-4 rad; the control, psi through O, does not."""
        phi, psi = quality.phi_psi(backbone)
        np.testing.assert_allclose(phi, mdtraj.compute_phi(villin)[1][:, :-1], atol=1e-4)
        np.testing.assert_allclose(psi, mdtraj.compute_psi(villin)[1][:, 1:], atol=1e-4)
        through_o = quality.dihedral(*(backbone[:, 1:-1, k] for k in range(4)))
        assert np.abs(np.cos(through_o - psi) - 1).max() > 0.1

    def test_bonds_and_angles(self, villin: Any, backbone: Array) -> None:
        """Lengths and angles agree with mdtraj's; a stretched N-CA and nothing else shows in the errors."""
        found = quality.bonds_and_angles(backbone)
        ca = villin.top.select("name CA")
        n, c = villin.top.select("name N"), villin.top.select("name C")
        peptide = 10.0 * mdtraj.compute_distances(villin, np.stack([c[:-1], n[1:]], 1))
        angle = np.degrees(mdtraj.compute_angles(villin, np.stack([c[:-1], n[1:], ca[1:]], 1)))
        np.testing.assert_allclose(found["C-N"], peptide, atol=1e-4)
        np.testing.assert_allclose(found["C-N-CA"], angle, atol=1e-2)
        stretched = backbone.copy()
        axis = backbone[:, :, 0] - backbone[:, :, 1]
        stretched[:, 0, 0] += 0.1 * axis[:, 0] / np.linalg.norm(axis[:, 0], axis=-1, keepdims=True)
        errors = comparison.geometry_errors(stretched, backbone)
        assert errors["N-CA"]["rms_error"] == pytest.approx(0.1 / np.sqrt(35))
        assert max(error["rms_error"] for name, error in errors.items() if name != "N-CA") < 1e-5

    def test_breaks_are_counted(self, backbone: Array) -> None:
        """Villin as it is has none; one of its 34 links pulled 3 Angstrom apart is one broken link and chain."""
        whole = quality.breaks(backbone)
        assert (whole["ca_links_above_4.5"], whole["chains_broken"], whole["cis_peptides"]) == (0.0, 0.0, 0.0)
        assert whole["ca_ca_mean"] == pytest.approx(3.83, abs=0.05)
        pulled = np.concatenate([backbone, backbone])
        pulled[1, 10:] += 3.0 * np.array([1.0, 0.0, 0.0])
        link = np.linalg.norm(pulled[1, 10, 1] - pulled[1, 9, 1])
        assert link > 4.5, "the control has to pull the link apart"
        found = quality.breaks(pulled)
        assert found["ca_links_above_4.5"] == pytest.approx(1 / 68)
        assert found["ca_links_above_3.902"] >= 1 / 68
        assert found["c_n_above_2.0"] == pytest.approx(1 / 68)
        assert found["chains_broken"] == 0.5

    def test_clashes_are_counted(self, backbone: Array) -> None:
        """Villin has none; residue 20 put onto residue 5 is one clashing chain of two, in chunks too."""
        folded = np.concatenate([backbone, backbone])
        folded[1, 20] += folded[1, 5, 1] - folded[1, 20, 1] + 0.1
        alone, found = quality.clashes(backbone), quality.clashes(folded)
        assert (alone["chains_with_ca_clash"], alone["chains_with_heavy_clash"]) == (0.0, 0.0)
        assert 2.0 < alone["closest"] < 4.0
        assert (found["chains_with_ca_clash"], found["chains_with_heavy_clash"]) == (0.5, 0.5)
        many = np.repeat(folded, 1000, 0)
        assert quality.clashes(many)["chains_with_ca_clash"] == 0.5

    def test_radius_of_gyration(self, villin: Any, backbone: Array) -> None:
        """That of the CA, as mdtraj computes it with equal masses."""
        ca = villin.atom_slice(villin.top.select("name CA"))
        expected = 10.0 * mdtraj.compute_rg(ca, masses=np.ones(35))
        np.testing.assert_allclose(quality.radius_of_gyration(backbone), expected, atol=1e-3)


class TestFluctuations:
    def test_superposition_is_proper_and_optimal(self, backbone: Array) -> None:
        """Turned and moved copies come back to 1e-9; a mirror image does not, because only rotations are allowed, and
        mdtraj finds the same distance."""
        rng = np.random.default_rng(1)
        ca = backbone[0, :, 1]
        copies = moved(backbone[0], 5, rng)[:, :, 1]
        back = quality.superpose(copies, ca)
        np.testing.assert_allclose(back, np.broadcast_to(ca - ca.mean(0), back.shape), atol=1e-9)
        mirrored = copies * np.array([1.0, 1.0, -1.0])
        rms = np.sqrt(((quality.superpose(mirrored, ca) - (ca - ca.mean(0))) ** 2).sum(-1).mean(-1))
        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for i in range(35):
            topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue("GLY", chain, i))
        one, other = (mdtraj.Trajectory(x.astype(np.float32) / 10, topology) for x in (mirrored, ca[None]))
        np.testing.assert_allclose(rms, 10 * mdtraj.rmsd(one, other), rtol=1e-3)
        assert rms.min() > 1.0

    def test_rmsf_is_recovered_whatever_the_orientation(self, backbone: Array) -> None:
        """Residues displaced by normals of known widths, in random orientations: RMSF = sqrt(3) width to 10 %, and a
        correlation above 0.99 between two such ensembles; the control, shuffled widths, correlates below 0.6."""
        widths = np.linspace(0.2, 1.0, 35) * (1 + 0.5 * np.sin(np.arange(35)))
        first, second = (fluctuating(backbone[0], widths, 600, seed) for seed in (1, 2))
        np.testing.assert_allclose(quality.rmsf(first), np.sqrt(3) * widths, rtol=0.1, atol=0.08)
        shuffled = fluctuating(backbone[0], np.random.default_rng(0).permutation(widths), 600, 3)
        assert comparison.correlation(quality.rmsf(first), quality.rmsf(second)) > 0.99
        assert comparison.correlation(quality.rmsf(first), quality.rmsf(shuffled)) < 0.6
        assert comparison.correlation(np.ones(5), np.arange(5.0)) is None

    def test_a_collapsed_ensemble_shows_in_the_amplitude(self, backbone: Array) -> None:
        """A tenth of the fluctuations: the correlation stays above 0.98, the ratio of amplitudes is 0.1; the control,
        another ensemble of the same widths, has a ratio of one, residue by residue."""
        widths = np.linspace(0.2, 1.0, 35)
        md, same, collapsed = (
            fluctuating(backbone[0], scale * widths, 600, seed) for seed, scale in ((1, 1.0), (2, 1.0), (3, 0.1))
        )
        found, control = comparison.fluctuations(collapsed, md), comparison.fluctuations(same, md)
        assert found["rmsf_correlation"] > 0.98
        assert found["rmsf_ratio"] == pytest.approx(0.1, rel=0.1)
        assert control["rmsf_ratio"] == pytest.approx(1.0, rel=0.05)
        np.testing.assert_allclose(control["rmsf_ratio_per_residue"], 1.0, atol=0.15)


def helix_ensemble(n: int, width: float, seed: int, shift: float = 0.0) -> Array:
    """Chains of 6 residues with (phi, psi) normal about (-1.1 + shift, -0.8) and ideal bonds, atom by atom."""
    rng = np.random.default_rng(seed)
    return built(rng.normal(0.0, width, (n, 6, 2)) + np.array([-1.1 + shift, -0.8]))


def built(torsions: Array) -> Array:
    """Chains of 6 residues with torsions [n, 6, 2] (phi, psi)."""
    n = len(torsions)
    atoms = [np.zeros((n, 3)), np.tile([1.46, 0.0, 0.0], (n, 1)), np.tile([2.0, 1.42, 0.0], (n, 1))]
    for i in range(1, 6):
        for length, angle, torsion in (
            (1.33, 116.6, torsions[:, i - 1, 1]),
            (1.46, 121.7, np.full(n, np.pi)),
            (1.52, 111.0, torsions[:, i, 0]),
        ):
            atoms.append(_placed(*atoms[-3:], length, np.radians(angle), torsion))
    x = np.stack(atoms, 1).reshape(n, 6, 3, 3)
    return np.concatenate([x, x[:, :, 2:] + np.array([0.0, 0.0, 1.23])], 2)


def slow_md(n: int, width: float, memory: float, seed: int) -> Array:
    """Chains of `helix_ensemble`'s distribution, torsions autoregressive walks that forget in `memory` frames."""
    rng = np.random.default_rng(seed)
    keep = np.exp(-1.0 / memory)
    kicks = np.sqrt(1 - keep**2) * width * rng.normal(size=(n, 6, 2))
    kicks[0] = width * rng.normal(size=(6, 2))
    for frame in range(1, n):
        kicks[frame] += keep * kicks[frame - 1]
    return built(kicks + np.array([-1.1, -0.8]))


def _placed(a: Array, b: Array, c: Array, length: float, angle: float, torsion: Array) -> Array:
    x = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
    z = np.cross(b - a, x)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    local = [np.full(len(torsion), -np.cos(angle)), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)]
    axes = (x, np.cross(z, x), z)
    return np.asarray(c + length * sum(u[:, None] * axis for u, axis in zip(local, axes, strict=True)))


class TestDivergence:
    def test_of_known_histograms(self) -> None:
        """0 for equal, 1 bit for disjoint, and 1 - (3/4) log2(4/3)... = 0.3113 bit for (1, 0) against (1/2, 1/2)."""
        p = np.array([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
        q = np.array([[0.5, 0.5], [1.0, 1.0], [4.0, 0.0]])
        np.testing.assert_allclose(comparison.jensen_shannon(p, q), [0.3112781, 0.0, 1.0], atol=1e-6)

    def test_the_chain_has_the_torsions_that_it_was_built_with(self) -> None:
        """The ensemble of these tests: phi and psi come back."""
        phi, psi = quality.phi_psi(helix_ensemble(50, 0.0, 1))
        np.testing.assert_allclose(phi, -1.1, atol=1e-9)
        np.testing.assert_allclose(psi, -0.8, atol=1e-9)

    def test_equal_distributions_have_a_ratio_of_one(self) -> None:
        """The same distribution: ratio 1 to 30 %, whatever the number of samples, because all divergences use the same
        number; a shift of 0.5 rad: above 2; the unfair comparison, of 150 samples against halves of 3000, is above 2
        too without any difference."""
        md = helix_ensemble(6000, 0.3, 1)
        for n in (400, 2000):
            ratio = comparison.compare(helix_ensemble(n, 0.3, 2), md)["torsion_divergence"]["ratio"]
            assert ratio["per_residue"] == pytest.approx(1.0, abs=0.3)
        shifted = comparison.compare(helix_ensemble(2000, 0.3, 2, shift=0.5), md)["torsion_divergence"]
        assert shifted["ratio"]["per_residue"] > 2.0
        assert shifted["ratio"]["pooled"] > 2.0
        assert (shifted["samples"], shifted["bins"]) == (2000, 12)
        few = comparison.torsion_divergence(helix_ensemble(150, 0.3, 2), md)["per_residue"]
        many = comparison.torsion_divergence(md[:3000], md[3000:])["per_residue"]
        assert few > 2.0 * many

    def test_held_out_frames_are_what_it_compares_with(self) -> None:
        """A drift in the MD: samples like its end are near the held-out end and far from a held-out beginning."""
        md = np.concatenate([helix_ensemble(1000, 0.3, 1), helix_ensemble(1000, 0.3, 2, shift=0.6)])
        late = helix_ensemble(500, 0.3, 3, shift=0.6)
        near, far = (comparison.compare(late, md, rows)["torsion_divergence"] for rows in (md[1500:], md[:500]))
        assert near["generated_and_held_out"]["pooled"] < 0.3 * far["generated_and_held_out"]["pooled"]
        assert near["ratio"]["per_residue"] < 1.0
        assert near["by_chance"]["pooled"] < 0.3 * near["halves_of_md"]["pooled"]
        assert near["excess_ratio"]["pooled"] < near["ratio"]["pooled"] < 1.0

    @pytest.mark.parametrize("n", [200, 400])
    def test_a_generator_that_knows_twenty_frames_fails(self, n: int) -> None:
        """MD that forgets in 30 frames: draws from its frames 0..19 have a ratio above 2 at the n that is asked for,
        independent draws from its distribution (the control) one below 2; so do they with chance taken off."""
        md = slow_md(1200, 0.5, 30.0, 1)
        rng = np.random.default_rng(2)
        remembered, fresh = md[rng.integers(20, size=n)], helix_ensemble(n, 0.5, 3)
        bad, good = (comparison.compare(x, md, md[-n:])["torsion_divergence"] for x in (remembered, fresh))
        print(bad, good)
        assert (bad["samples"], bad["notes"], good["notes"]) == (n, [], [])
        assert bad["ratio"]["per_residue"] > 2.0 > good["ratio"]["per_residue"]
        assert bad["excess_ratio"]["per_residue"] > 2.0 * good["excess_ratio"]["per_residue"]

    def test_few_samples_judge_nothing_and_say_so(self) -> None:
        """Below 200 frames a note says how many are needed; chance is then most of the divergence. Equal halves have no
        excess to divide by."""
        md = helix_ensemble(4000, 0.3, 1)
        few = comparison.compare(helix_ensemble(50, 0.3, 2), md)["torsion_divergence"]
        assert len(few["notes"]) == 1 and "cannot be judged with 50 frames" in few["notes"][0]
        assert few["by_chance"]["per_residue"] > 0.7 * few["generated_and_held_out"]["per_residue"]
        twice = np.concatenate([md, md])
        assert comparison.compare(md, twice)["torsion_divergence"]["excess_ratio"] == dict.fromkeys(
            ("per_residue", "pooled")
        )

    def test_halves_are_those_of_each_trajectory(self) -> None:
        """Two trajectories that agree within themselves and not with each other: their halves are alike; taken for one
        trajectory (the control) they are not."""
        md = np.concatenate([helix_ensemble(1000, 0.3, 1), helix_ensemble(1000, 0.3, 2, shift=1.0)])
        halves = [
            comparison.compare(md[::2], md, lengths=lengths)["torsion_divergence"]["halves_of_md"]["pooled"]
            for lengths in ([1000, 1000], None)
        ]
        assert halves[0] < 0.1 * halves[1]
        with pytest.raises(TrajectoryError, match="1999 frames together"):
            comparison.compare(md, md, lengths=[1000, 999])


class TestBadInput:
    def test_shapes_and_numbers(self, backbone: Array) -> None:
        """Other shapes, NaN, chains of another length, more samples than there are: a TrajectoryError that names it."""
        with pytest.raises(TrajectoryError, match=r"\(1, 35, 3, 3\)"):
            quality.ca_links(backbone[:, :, :3])
        with pytest.raises(TrajectoryError, match="NaN"):
            quality.breaks(np.where(backbone > 20.0, backbone, np.nan))
        with pytest.raises(TrajectoryError, match="34 and 35 residues"):
            comparison.compare(backbone[:, 1:], backbone)
        with pytest.raises(TrajectoryError, match="1 frames"):
            comparison.compare(backbone, backbone)
        with pytest.raises(TrajectoryError, match="9 samples"):
            comparison.torsion_divergence(backbone, backbone, n=9)


class TestFigures:
    def test_each_draws_on_given_axes_and_on_its_own(self, backbone: Array, tmp_path: Any) -> None:
        """All figures show every label, are written, and draw on the axes given."""
        from matplotlib.figure import Figure

        ensemble = fluctuating(backbone[0], np.linspace(0.1, 0.3, 35), 30, 1)
        both = {"generated": ensemble, "MD": ensemble[::-1]}
        drawn = {
            "links": lambda ax: figures.ca_link_histogram({k: quality.ca_links(x) for k, x in both.items()}, ax),
            "gyration": lambda ax: figures.gyration_histogram(
                {k: quality.radius_of_gyration(x) for k, x in both.items()}, ax
            ),
            "rmsf": lambda ax: figures.rmsf_profile({k: quality.rmsf(x) for k, x in both.items()}, ax),
            "traces": lambda ax: figures.backbone_traces({k: x[:, :, 1] for k, x in both.items()}, ax),
            "bars": lambda ax: figures.geometry_bars(comparison.geometry_errors(ensemble, backbone), ax),
        }
        for name, draw in drawn.items():
            given = Figure().add_subplot()
            assert draw(given) is given
            axes = draw(None)
            assert plots.save(axes, tmp_path / f"{name}.png").stat().st_size > 5000
            if name != "bars":
                labels = [text.get_text() for text in axes.get_legend().get_texts()]
                assert {"generated", "MD"} <= set(labels)

    def test_nothing_to_draw(self) -> None:
        """No label is a TrajectoryError."""
        for draw in (figures.ca_link_histogram, figures.rmsf_profile, figures.backbone_traces, figures.geometry_bars):
            with pytest.raises(TrajectoryError, match=r"nothing to draw|no errors"):
                draw({})
