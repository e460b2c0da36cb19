"""The second seed's workflow: correction at frozen rho against quadrature, the whole command, bad input."""

import json
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from numpy.typing import NDArray
from openmm import app, unit
from scipy import stats

from openmm_diffusion import models
from openmm_diffusion.analysis import conditionals
from openmm_diffusion.errors import (
    InputFileError,
    ModelError,
    ModelFileError,
    OutputError,
    SettingError,
    TrajectoryError,
)
from openmm_diffusion.models import store
from openmm_diffusion.molecule import BackboneTorsions
from openmm_diffusion.workflows.boltzmann import (
    Correction,
    correct,
    diagnostics,
    log_weights,
    pick,
    shares,
)
from openmm_diffusion.workflows.energies import ReducedPotential
from openmm_diffusion.workflows.generate_torsion import FILES, generate_torsion, summary_text
from openmm_diffusion.workflows.job_settings import GenerateTorsionSettings
from openmm_diffusion.workflows.output import write_trajectory
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide

Array = NDArray[np.float64]
SHIPPED = "alanine-dipeptide-torsion"


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return alanine_dipeptide("vacuum")


@pytest.fixture(scope="module")
def reference() -> openmm.Platform:
    return openmm.Platform.getPlatformByName("Reference")


@pytest.fixture(scope="module")
def small_model(molecule: MolecularSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of (phi, psi), small enough to be fast."""
    path = tmp_path_factory.mktemp("model") / "untrained"
    models.save(models.create("torsion", molecule.topology, 1, hidden_size=16, n_layers=1, n_harmonics=2), path)
    return path


def settings_for(folder: Path, model: Path | str, **changes: Any) -> GenerateTorsionSettings:
    values: dict[str, Any] = {
        "output": folder,
        "model": str(model),
        "system": "alanine-dipeptide-vacuum",
        "n_frames": 4,
        "n_candidates": 32,
        "md_steps": 20,
        "limit_grid": 12,
        "platform": "Reference",
        "device": "cpu",
    }
    return GenerateTorsionSettings.build({**values, **changes})


class GridSource:
    """Torsions on the points of a grid, drawn from a probability of each; its density is exact on them."""

    def __init__(self, torsions: BackboneTorsions, grid: Array, q: Array) -> None:
        self.torsions, self._grid, self._q = torsions, grid, q

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array, NDArray[np.bool_]]:
        rows = rng.choice(len(self._q), n, p=self._q)
        return self._grid[rows], np.log(self._q[rows]), np.ones(n, dtype=np.bool_)

    def log_density(self, tau: Array) -> Array:
        distance = np.cos(tau[:, None] - self._grid).sum(-1)
        return np.log(self._q[distance.argmax(1)])


class TestCorrection:
    def test_leaves_boltzmann_invariant_at_frozen_rho(
        self, molecule: MolecularSystem, reference: openmm.Platform
    ) -> None:
        """4000 structures of one rho with tau from the exact conditional stay so distributed (quadrature, chi
        square), with a q centred elsewhere; negative control: weights without q are refuted."""
        rng = np.random.default_rng(2)
        torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
        centres = -np.pi + (np.arange(36) + 0.5) * np.pi / 18
        grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
        potential = ReducedPotential(molecule.system, reference, 600.0)
        p = conditionals(potential(torsions.set(molecule.positions, grid))[None])[0]
        q = np.exp(0.7 * np.cos(grid[:, 0] + 0.4) + 0.7 * np.cos(grid[:, 1] - 2.5))
        source = GridSource(torsions, grid, q / q.sum())
        present = grid[rng.choice(len(p), 4000, p=p)]
        correction = correct(torsions.set(molecule.positions, present), source, potential, 32, rng)
        # Coarse cells, those that are rare put together.
        cell = np.floor((grid + np.pi) / (np.pi / 4)).astype(int) @ (8, 1)
        expected = np.bincount(cell, p, 64)
        frequent = expected > 0.01

        def refutation(columns: NDArray[np.int64]) -> float:
            tau = correction.tau[np.arange(len(columns)), columns]
            rows = np.cos(tau[:, None] - grid).sum(-1).argmax(1)
            counts = np.bincount(cell[rows], minlength=64)
            observed = [*counts[frequent], counts[~frequent].sum()]
            wanted = len(tau) * np.array([*expected[frequent], expected[~frequent].sum()])
            return float(stats.chisquare(observed, wanted).pvalue)

        assert frequent.sum() > 5
        assert (correction.picked < 32).mean() > 0.5, "most structures have to move, or nothing is tested"
        assert refutation(correction.picked) > 1e-3
        without_q = log_weights(correction.u, np.zeros_like(correction.u))
        assert refutation(pick(without_q, rng)) < 1e-12

    def test_keeps_everything_but_the_torsions(
        self, molecule: MolecularSystem, reference: openmm.Platform, small_model: Path
    ) -> None:
        """Energies of a correction are those of the structures it stands for, to 1e-9 kT, and the pick is one of
        the columns; bond lengths of every candidate are the frame's to 1e-12 nm."""
        from openmm_diffusion.proposals import TorsionProposal

        proposal = TorsionProposal(models.load(small_model), molecule.topology, device="cpu")
        potential = ReducedPotential(molecule.system, reference, 300.0)
        frames = np.stack([molecule.positions, molecule.positions + 0.3])
        correction = correct(frames, proposal, potential, 32, np.random.default_rng(3))
        assert correction.tau.shape == (2, 33, 2)
        assert np.array_equal(correction.tau_picked[1], correction.tau[1, correction.picked[1]])
        structures = proposal.torsions.set(frames[1], correction.tau[1])
        context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), reference)
        context.setPositions(structures[5])
        energy = context.getState(energy=True).getPotentialEnergy()
        u = energy / (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin)
        assert correction.u[1, 5] == pytest.approx(u, abs=1e-9)
        assert correction.u[1, -1] == pytest.approx(correction.u[0, -1], abs=1e-6)  # the same structure, shifted
        bonds = np.array([(bond[0].index, bond[1].index) for bond in molecule.topology.bonds()])
        lengths = np.linalg.norm(structures[:, bonds[:, 0]] - structures[:, bonds[:, 1]], axis=-1)
        assert np.ptp(lengths, axis=0).max() < 1e-12

    def test_weights_of_what_has_no_density_or_energy(self) -> None:
        """NaN and infinite energies or densities weigh zero and are counted; a frame whose own torsions have no
        density keeps them; a frame all of whose candidates are invalid does too."""
        u = np.array([[1.0, np.nan, np.inf, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 5.0], [np.nan] * 4 + [3.0]])
        log_q = np.array([[-1.0, -1.0, -1.0, -np.inf, -1.0], [-1.0] * 4 + [-np.inf], [-1.0] * 5])
        log_w = log_weights(u, log_q)
        expected = np.array([[0.0, -np.inf, -np.inf, -np.inf, 1.0], [0.0] * 4 + [np.inf], [-np.inf] * 4 + [-2.0]])
        np.testing.assert_array_equal(log_w, expected)
        np.testing.assert_allclose(shares(log_w).sum(1), 1.0)
        rng = np.random.default_rng(4)
        picks = np.array([pick(log_w, rng) for _ in range(4000)])
        assert (picks[:, 1:] == 4).all()
        assert (picks[:, 0] == 4).mean() == pytest.approx(np.e / (1 + np.e), abs=0.03)
        found = diagnostics(Correction(np.zeros((3, 5, 2)), u, log_w, picks[0]))
        assert found["invalid_candidates"] == 3 + 4
        assert found["frames_without_density"] == 1
        assert found["kish"]["max"] == pytest.approx(1.0)  # four equal candidates, whatever the frame's own weight
        assert found["kish"]["min"] == 0.0
        assert found["pareto_k"]["mean"] is None
        assert found["frames_without_pareto_k"] == 3

    def test_refuses_a_frame_without_energy(self, molecule: MolecularSystem, reference: openmm.Platform) -> None:
        """An atom at NaN: the frame is named, with its energy."""
        torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
        broken = molecule.positions.copy()
        broken[21] = np.nan
        potential = ReducedPotential(molecule.system, reference, 300.0)
        source = GridSource(torsions, np.zeros((1, 2)), np.ones(1))
        with pytest.raises(TrajectoryError, match="frame 1 of those taken"):
            correct(np.stack([molecule.positions, broken]), source, potential, 32, np.random.default_rng(5))


class TestCommand:
    def test_writes_everything(self, tmp_path: Path, small_model: Path) -> None:
        """One structure a frame in PDB and DCD, MD from each, figures, and a summary without missing numbers."""
        summary = generate_torsion(settings_for(tmp_path / "out", small_model), progress=False)
        missing = {name for name in FILES if not (tmp_path / "out" / name).exists()}
        assert missing == {"loss_curve.png"}  # an untrained model has none, and the summary says so
        assert any("no loss curve" in note for note in summary["notes"])
        assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
        assert len(list(app.PDBFile(str(tmp_path / "out" / "generated.pdb"))._positions)) == 4
        generated = mdtraj.load(tmp_path / "out" / "generated.dcd", top=tmp_path / "out" / "generated.pdb")
        assert generated.n_frames == 4
        assert mdtraj.load(tmp_path / "out" / "md.dcd", top=tmp_path / "out" / "md.pdb").n_frames == 40
        keys = ("kish_limit", "kish_on_grid", "kish_of_limit", "kish_on_grid_of_limit", "pareto_k_above_0.7")
        assert all(np.isfinite(summary[key]) for key in keys)
        assert 1 / 32 <= summary["kish"]["min"] <= summary["kish"]["mean"] <= summary["kish"]["max"] <= 1.0
        assert summary["energies_kT"]["corrected"]["median"] < summary["energies_kT"]["model"]["median"]
        text = summary_text(summary)
        assert "bias of the basins" in text
        assert f"{summary['kish_limit']:.3f}" in text
        assert not [path for path in (tmp_path / "out").iterdir() if ".part" in path.name]

    def test_same_seed_same_structures(self, tmp_path: Path, small_model: Path) -> None:
        """Two runs of one seed write the same bytes; another seed does not."""
        written = []
        for folder, seed in (("a", 7), ("b", 7), ("c", 8)):
            changes = {"seed": seed, "md_steps": 0, "limit_grid": 0, "n_frames": 2}
            summary = generate_torsion(settings_for(tmp_path / folder, small_model, **changes), progress=False)
            written.append((tmp_path / folder / "generated.pdb").read_text().split("\n", 1)[1])
            assert summary["kish_limit"] is None
            assert summary["share_of_basin_R"]["MD"] is None
            assert not (tmp_path / folder / "md.pdb").exists()
        assert written[0] == written[1]
        assert written[0] != written[2]

    def test_frames_of_a_trajectory(self, tmp_path: Path, small_model: Path, molecule: MolecularSystem) -> None:
        """Frames are taken evenly spaced or in proportion to their weights: bond lengths name the frame, because the
        correction keeps them."""
        frames = molecule.positions * np.linspace(1.0, 1.003, 9)[:, None, None]
        write_trajectory(tmp_path / "md.dcd", molecule.topology, frames)
        np.savez(tmp_path / "weights.npz", weights=np.eye(9)[6])

        def scales(folder: str, **changes: Any) -> Array:
            options = {"frames": tmp_path / "md.dcd", "n_frames": 3, "md_steps": 0, "limit_grid": 0, **changes}
            generate_torsion(settings_for(tmp_path / folder, small_model, **options), progress=False)
            found = mdtraj.load(tmp_path / folder / "generated.dcd", top=tmp_path / folder / "generated.pdb").xyz
            first, second = next((bond[0].index, bond[1].index) for bond in molecule.topology.bonds())
            length = np.linalg.norm(found[:, first] - found[:, second], axis=-1)
            return np.asarray(length / np.linalg.norm(molecule.positions[first] - molecule.positions[second]))

        np.testing.assert_allclose(scales("even"), [1.0, 1.0015, 1.003], atol=1e-5)
        np.testing.assert_allclose(scales("weighted", weights=tmp_path / "weights.npz"), 1.0 + 0.75 * 0.003, atol=1e-5)

    def test_bad_input(self, tmp_path: Path, small_model: Path, molecule: MolecularSystem) -> None:
        """Each mistake is one sentence of the right kind, and no folder is touched before all input is read."""
        short = tmp_path / "short.dcd"
        write_trajectory(short, molecule.topology, np.repeat(molecule.positions[None], 2, 0))
        (tmp_path / "other.pdb").write_text("ATOM      1  CA  ALA A   1       0.0     0.0     0.0\nEND\n")
        np.savez(tmp_path / "weights.npz", weights=np.ones(5))
        kept = tmp_path / "kept"
        kept.mkdir()
        (kept / "result").write_text("precious")
        cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (ModelFileError, "there is no model", {"model": "no-such-model"}),
            (SettingError, "n_candidates is 31", {"n_candidates": 31}),
            (SettingError, "limit_grid is 5", {"limit_grid": 5}),
            (SettingError, "without frames", {"weights": tmp_path / "weights.npz"}),
            (InputFileError, "there is no trajectory", {"frames": tmp_path / "none.dcd"}),
            (TrajectoryError, "lower --n-frames", {"frames": short}),
            (TrajectoryError, "atoms in the order", {"frames": tmp_path / "other.pdb"}),
            (TrajectoryError, "expected 2 finite", {"frames": short, "weights": tmp_path / "weights.npz"}),
            (SettingError, "platform 'Abacus'", {"platform": "Abacus"}),
            (InputFileError, "no-such-file", {"system": "no-such-file.pdb"}),
        ]
        for error, match, changes in cases:
            with pytest.raises(error, match=match) as caught:
                settings = settings_for(kept, changes.pop("model", small_model), **changes)
                generate_torsion(settings, overwrite=True, progress=False)
            assert "\n" not in str(caught.value)
            assert (kept / "result").read_text() == "precious"
        with pytest.raises(OutputError, match="holds results already"):
            generate_torsion(settings_for(kept, small_model), progress=False)

    def test_refuses_a_model_of_another_molecule(self, tmp_path: Path, molecule: MolecularSystem) -> None:
        """A model whose card names another sequence is refused with both sequences."""
        from dataclasses import replace

        model = models.create("torsion", molecule.topology, 1, hidden_size=16, n_layers=1)
        other = replace(model.molecule, sequences=(("ACE", "GLY", "NME"),))
        models.save(replace(model, molecule=other), tmp_path / "glycine")
        with pytest.raises(ModelError, match="for ACE-GLY-NME, the topology holds ACE-ALA-NME"):
            generate_torsion(settings_for(tmp_path / "out", tmp_path / "glycine"), progress=False)


@pytest.mark.slow
@pytest.mark.skipif(SHIPPED not in store.names(), reason="the model is not shipped yet")
def test_shipped_model_reaches_the_true_marginal(tmp_path: Path) -> None:
    """On 100 MD frames in OBC the shipped model's Kish ESS is at least 90 % of the true marginal's on the same frames;
    negative control: an untrained model's is below half of it."""
    options = {"system": "alanine-dipeptide-obc", "n_frames": 100, "n_candidates": 64, "limit_grid": 36, "md_steps": 0}
    summary = generate_torsion(settings_for(tmp_path / "shipped", SHIPPED, **options), progress=False)
    assert summary["kish_of_limit"] > 0.9
    assert summary["kish_on_grid_of_limit"] > 0.9
    topology = alanine_dipeptide("obc").topology
    models.save(models.create("torsion", topology, 0), tmp_path / "untrained")
    control = generate_torsion(settings_for(tmp_path / "control", tmp_path / "untrained", **options), progress=False)
    assert control["kish_on_grid_of_limit"] < 0.5
