"""The workflow `generate se3`: files, their content against mdtraj and pdbfixer, quality against MD, bad input."""

import json
import re
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
import torch
from openmm import app
from villin_data import SEQUENCE, prepared

import openmm_diffusion
from openmm_diffusion import models
from openmm_diffusion.analysis.backbone_quality import bonds_and_angles
from openmm_diffusion.errors import InputFileError, ModelError, OutputError, SettingError, TrajectoryError
from openmm_diffusion.geometry import residue_constants as rc
from openmm_diffusion.geometry.backbone import compute_backbone, place_oxygens
from openmm_diffusion.geometry.frames import atom14_to_atom37, atom14_to_frames, atom37_to_torsions
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.model import protein
from openmm_diffusion.sampling import se3_backbones
from openmm_diffusion.sampling.se3_sampler import Prediction
from openmm_diffusion.workflows import backbone_files
from openmm_diffusion.workflows import generate_se3 as workflow
from openmm_diffusion.workflows.generate_se3 import (
    FILES,
    GenerateSE3Settings,
    generate_se3,
    quality_text,
    read_reference,
)
from openmm_diffusion.workflows.prepare_se3 import PreparedSE3

NETWORK = {
    "node_embed_size": 16,
    "edge_embed_size": 8,
    "ipa": {"num_blocks": 1, "no_heads": 2, "c_hidden": 4, "c_skip": 4, "seq_tfmr_num_heads": 2},
}


def small_model(path: Path, sequence: str = SEQUENCE, residue_types: bool = False) -> Path:
    """An untrained model, written to a file."""
    conf = {**NETWORK, "embed": {"embed_residue_type": residue_types}}
    models.save(models.create("se3", protein(sequence), 1, model_conf=conf, coord_scale=0.15), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "villin")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedSE3:
    return prepared(tmp_path_factory.mktemp("data"), n_frames=40)


def settings_for(folder: Path, model: Path, **changes: Any) -> GenerateSE3Settings:
    values = {"output": folder, "model": str(model), "n_samples": 5, "n_steps": 3, "device": "cpu", "batch_size": 3}
    return GenerateSE3Settings.build(values | changes)


class TestCommand:
    def test_writes_everything(self, tmp_path: Path, model: Path, data: PreparedSE3) -> None:
        """All formats, figures and the quality against MD; the summary is the file's and has text for people; nothing
        half written is left."""
        folder = next(iter(data.files)).parent
        changes = {"formats": ["pdb", "models", "dcd"], "data_dir": folder}
        quality = generate_se3(settings_for(tmp_path / "out", model, **changes), progress=False)
        missing = {name for name in FILES if not (tmp_path / "out" / name).exists()}
        assert missing == {"all_atom"}
        assert quality == json.loads((tmp_path / "out" / "quality.json").read_text())
        assert quality["generated"]["chains"] == 5
        assert quality["md"]["chains"] == 40
        assert quality["comparison"]["torsion_divergence"]["samples"] == 5
        text = quality_text(quality)
        for part in (
            "CA-CA > 4.5 A",
            "CA-CA > 3.902 A",
            "RMSF correlation",
            "RMSF amplitude",
            "cannot be judged with 5 frames",
            "JSD per residue",
            "not Boltzmann samples",
        ):
            assert part in text
        assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]

    def test_files_hold_the_same_backbones(self, tmp_path: Path, model: Path) -> None:
        """PDB files, models of one PDB and the DCD agree; every PDB says that it is no Boltzmann sample; residues,
        atoms and bonds are the sequence's, without CB in glycine."""
        generate_se3(settings_for(tmp_path / "out", model, formats=["pdb", "models", "dcd"]), progress=False)
        out = tmp_path / "out"
        pdb, dcd = mdtraj.load(out / "samples.pdb"), mdtraj.load(out / "samples.dcd", top=out / "topology.pdb")
        single = mdtraj.load([out / "pdb" / f"sample_{k:04d}.pdb" for k in range(1, 6)])
        np.testing.assert_allclose(pdb.xyz, dcd.xyz, atol=1e-4)
        np.testing.assert_allclose(pdb.xyz, single.xyz, atol=1e-4)
        assert pdb.top.to_fasta() == [SEQUENCE]
        atoms = [[atom.name for atom in residue.atoms] for residue in pdb.top.residues]
        assert atoms[0] == ["N", "CA", "C", "O", "CB"]
        assert atoms[SEQUENCE.index("G")] == ["N", "CA", "C", "O"]
        for path in (out / "samples.pdb", out / "topology.pdb", out / "pdb" / "sample_0003.pdb"):
            assert "NOT SAMPLES OF A BOLTZMANN" in path.read_text()[:400]
        assert backbone_files.backbone_topology(SEQUENCE).getNumBonds() == 35 * 4 - 2 + 34

    def test_same_seed_same_backbones(self, tmp_path: Path, model: Path) -> None:
        """Two runs of one seed write the same coordinates; another seed, or another sampler, does not."""
        written = []
        for folder, changes in (
            ("a", {"seed": 7}),
            ("b", {"seed": 7}),
            ("c", {"seed": 8}),
            ("d", {"seed": 7, "sampler": "exponential_integrator"}),
        ):
            generate_se3(
                settings_for(tmp_path / folder, model, n_samples=2, formats=["dcd"], **changes), progress=False
            )
            written.append((tmp_path / folder / "samples.dcd").read_bytes()[-400:])
        assert written[0] == written[1]
        assert len(set(written)) == 3

    def test_an_existing_folder_is_kept(self, tmp_path: Path, model: Path) -> None:
        """Results are not overwritten without being asked to."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("x")
        with pytest.raises(OutputError, match="holds results"):
            generate_se3(settings_for(tmp_path / "out", model), progress=False)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]

    def test_what_fails_leaves_old_results(
        self, tmp_path: Path, model: Path, data: PreparedSE3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With --overwrite, a model that diffuses rotations only, a wrong reference and a sampling that fails leave the
        folder as it was, and make none; the control, a good run, replaces it."""
        old = tmp_path / "out" / "mine"
        old.parent.mkdir()
        old.write_text("x")
        half = tmp_path / "half"
        conf = {"model_conf": NETWORK, "se3_conf": {"diffuse_trans": False}, "coord_scale": 0.15}
        models.save(models.create("se3", protein(SEQUENCE), 1, **conf), half)
        folder = next(iter(data.files)).parent
        for error, path, changes in (
            (ModelError, half, {}),
            (InputFileError, model, {"data_dir": folder, "name": "villin_R9"}),
            (SettingError, model, {}),
        ):
            for place in (old.parent, tmp_path / "new"):
                with monkeypatch.context() as patch, pytest.raises(error):
                    if error is SettingError:
                        patch.setattr(workflow, "sample_backbones", _failing)
                    generate_se3(settings_for(place, path, **changes), overwrite=True, progress=False)
            assert old.read_text() == "x" and not (tmp_path / "new").exists()
        generate_se3(settings_for(old.parent, model), overwrite=True, progress=False)
        assert not old.exists() and (old.parent / "samples.pdb").exists()


def _failing(*arguments: Any, **options: Any) -> None:
    raise SettingError("no")


class TestOxygens:
    @pytest.mark.parametrize("placed", [True, False])
    def test_carbonyls_of_samples_are_planar(
        self, tmp_path: Path, model: Path, data: PreparedSE3, placed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Generated frames of villin with a psi that is wrong by a radian: O lies in the plane of CA, C and the next N
        (0.02 Angstrom) and O-C-N is 123 degrees to 10 in the file; the control, O left where psi puts it, is not."""
        atom14 = torch.as_tensor(np.load(next(iter(data.files)))[:5].astype(np.float64))
        aatype = torch.as_tensor(rc.aatype(SEQUENCE)).expand(5, 35)
        sine, cosine = atom37_to_torsions(atom14_to_atom37(atom14, aatype), aatype)[0][:, :, 2].unbind(-1)
        psi = torch.stack([sine * 0.54 + cosine * 0.84, cosine * 0.54 - sine * 0.84], -1)
        rigids = atom14_to_frames(atom14)
        in_batch_units = Rigid(rigids.rots, 0.15 * rigids.trans)
        zero = torch.zeros(5, 35, 3)
        found = Prediction(zero, zero, in_batch_units, psi)
        monkeypatch.setitem(se3_backbones.SAMPLERS, "reverse_sde", lambda *_, **__: found)
        if not placed:
            monkeypatch.setattr(se3_backbones, "place_oxygens", lambda atom37, mask: atom37)
        generate_se3(settings_for(tmp_path, model, formats=["models"], batch_size=5), progress=False)
        pdb = mdtraj.load(tmp_path / "samples.pdb")
        columns = [[pdb.top.select(f"resid {i} and name {n}")[0] for n in ("N", "CA", "C", "O")] for i in range(35)]
        x = 10.0 * pdb.xyz[:, columns].astype(np.float64)
        away = np.abs(bonds_and_angles(x)["O-C-N"] - 123.0)
        ca, c, o, n = x[:, :-1, 1], x[:, :-1, 2], x[:, :-1, 3], x[:, 1:, 0]
        normal = np.cross(ca - c, n - c)
        height = np.abs(((o - c) * normal).sum(-1)) / np.linalg.norm(normal, axis=-1)
        print(away.max(), height.max())
        assert (away.max() < 10.0 and height.max() < 0.02) == placed
        assert placed or (away.max() > 20.0 and np.median(height) > 0.3)


class TestPrecision:
    def test_no_energy_knows_the_files_of_coordinates(self) -> None:
        """Modules that read arrays of MD frames (float16) name nothing of OpenMM's energies, and data/ and sampling/ do
        not import OpenMM; the control: plain_md, which runs MD, is seen to."""
        package = Path(openmm_diffusion.__file__).parent
        readers = []
        for path in sorted(package.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            part = path.relative_to(package).parts[0]
            if part in ("data", "sampling"):
                assert not _IMPORTS_OPENMM.search(text), path
            if _READS_ARRAYS.search(text):
                readers.append(path.stem)
                assert not _ENERGY.search(text), path
        assert {"se3_reference", "train_se3", "prepare_se3"} <= set(readers)
        assert _ENERGY.search((package / "workflows" / "plain_md.py").read_text(encoding="utf-8"))
        assert _IMPORTS_OPENMM.search((package / "workflows" / "backbone_files.py").read_text(encoding="utf-8"))

    def test_side_chains_are_added_to_samples_in_double_precision(
        self, tmp_path: Path, model: Path, data: PreparedSE3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is completed are the samples, float64, also where float16 MD is compared with: as many as were drawn,
        equal to those of the written file."""
        given = []

        def spy(folder: Path, topology: Any, atoms: Any, *rest: Any, **options: Any) -> tuple[int, list[str]]:
            given.append(atoms)
            return len(atoms), []

        monkeypatch.setattr(workflow, "write_all_atom", spy)
        folder = next(iter(data.files)).parent
        assert np.load(next(iter(data.files))).dtype == np.float16
        generate_se3(settings_for(tmp_path, model, side_chains=True, data_dir=folder), progress=False)
        assert given[0].dtype == np.float64 and len(given[0]) == 5
        written = 10.0 * mdtraj.load(tmp_path / "samples.pdb").xyz
        np.testing.assert_allclose(given[0], written, atol=2e-3)


_READS_ARRAYS = re.compile(
    r"from (\.\.data|\.|openmm_diffusion\.data)\.(md_arrays|md_trajectories|mdgen_dataset) import"
)
_IMPORTS_OPENMM = re.compile(r"^\s*(from|import) (openmm|openmmtools|simtk)\b", re.MULTILINE)
_ENERGY = re.compile(r"\b(ForceField|createSystem|Context|Simulation|getState|getPotentialEnergy|Integrator)\b")


class TestAtoms:
    def test_real_backbones_survive(self, data: PreparedSE3) -> None:
        """Frames and psi of villin's MD give back its atoms in the written order, 0.15 Angstrom root mean square; the
        control, psi turned by one radian with O left where psi puts it, does not."""
        atom14 = torch.as_tensor(np.load(next(iter(data.files)))[:3].astype(np.float64))
        aatype = torch.as_tensor(rc.aatype(SEQUENCE)).expand(3, 35)
        topology = backbone_files.backbone_topology(SEQUENCE)
        real37 = atom14_to_atom37(atom14, aatype)
        psi = atom37_to_torsions(real37, aatype)[0][:, :, 2]
        turned = torch.stack([psi[..., 0] * 0.54 + psi[..., 1] * 0.84, psi[..., 1] * 0.54 - psi[..., 0] * 0.84], -1)
        real = backbone_files.atoms_of(real37.numpy(), topology)
        errors = []
        for angle in (psi, turned):
            atom37, mask, _ = compute_backbone(atom14_to_frames(atom14), angle, aatype)
            placed = place_oxygens(atom37, mask) if angle is psi else atom37
            built = backbone_files.atoms_of(placed.numpy(), topology)
            errors.append(np.sqrt(((built - real) ** 2).sum(-1).mean()))
        print(errors)
        assert errors[0] < 0.15
        assert errors[1] > 0.3

    def test_side_chains_and_hydrogens(self, tmp_path: Path, data: PreparedSE3) -> None:
        """pdbfixer completes real backbones: all heavy atoms and hydrogens of the sequence, L amino acids, the backbone
        where it was, and no leftovers."""
        atom14 = np.load(next(iter(data.files)))[:1].astype(np.float64)[:, :8]
        topology = backbone_files.backbone_topology(SEQUENCE[:8])
        aatype = torch.as_tensor(rc.aatype(SEQUENCE[:8]))[None]
        atoms = backbone_files.atoms_of(atom14_to_atom37(torch.as_tensor(atom14), aatype).numpy(), topology)
        done, failures = backbone_files.write_all_atom(tmp_path, topology, atoms, 1, progress=False)
        assert (done, failures) == (1, [])
        assert [path.name for path in (tmp_path / "all_atom").iterdir()] == ["sample_0001.pdb"]
        whole = app.PDBFile(str(tmp_path / "all_atom" / "sample_0001.pdb"))
        app.ForceField("amber99sbildn.xml").createSystem(whole.topology)  # every residue has all its atoms
        positions = 10.0 * np.array([[v.x, v.y, v.z] for v in whole.positions])
        kept = [
            positions[next(a.index for a in residue.atoms() if a.name == "CA")] for residue in whole.topology.residues()
        ]
        np.testing.assert_allclose(kept, atom14[0, :, 1], atol=2e-3)


class TestReference:
    def test_held_out_frames_are_those_of_the_table(self, tmp_path: Path, model: Path, data: PreparedSE3) -> None:
        """The MD is the whole file, the held-out frames the table's test frames (or val, or all), in Angstrom."""
        file = next(iter(data.files))
        array = np.load(file)[:, :, :4].astype(np.float64)
        for held_out, rows in (
            ("unseen", slice(24, 40)),
            ("test", slice(32, 40)),
            ("val", slice(24, 32)),
            ("all", slice(0, 40)),
        ):
            settings = settings_for(tmp_path, model, data_dir=file.parent, held_out=held_out)
            found = read_reference(settings, SEQUENCE)
            np.testing.assert_array_equal(found.md, array)
            np.testing.assert_array_equal(found.held_out, array[rows])
            assert found.lengths == [40]

    def test_caps_have_no_oxygen(self, tmp_path: Path, model: Path, data: PreparedSE3) -> None:
        """MD with caps is read, their missing O at their C; the same file is refused where the residue is none."""
        array = np.load(next(iter(data.files)))
        array[:, 0, 3] = 0.0
        np.save(tmp_path / "villin_R1.npy", array)
        settings = settings_for(tmp_path, model, data_dir=tmp_path)
        found = read_reference(settings, "X" + SEQUENCE[1:])
        np.testing.assert_array_equal(found.md[:, 0, 3], found.md[:, 0, 2])
        np.testing.assert_array_equal(found.md[:, 1:], array[:, 1:, :4])
        with pytest.raises(TrajectoryError, match="no O in residue 1"):
            read_reference(settings, SEQUENCE)

    def test_another_protein_of_the_same_length_is_refused(
        self, tmp_path: Path, model: Path, data: PreparedSE3
    ) -> None:
        """By the sequence in atlas.csv: named, it is an error with both sequences; beside the right one it is left out,
        and the right one's replicas have their own halves. Without a table (the control) only the length counts."""
        array = np.load(next(iter(data.files)))
        other = SEQUENCE[::-1]
        for name in ("other_R1", "villin_R1", "villin_R2"):
            np.save(tmp_path / f"{name}.npy", array)
        read_reference(settings_for(tmp_path, model, data_dir=tmp_path, name="other_R1"), SEQUENCE)
        (tmp_path / "atlas.csv").write_text(f"name,seqres\nother,{other}\nvillin,{SEQUENCE}\n")
        with pytest.raises(TrajectoryError, match=f"other_R1.npy has the sequence {other} in atlas.csv, the model"):
            read_reference(settings_for(tmp_path, model, data_dir=tmp_path, name="other_R1"), SEQUENCE)
        found = read_reference(settings_for(tmp_path, model, data_dir=tmp_path), SEQUENCE)
        assert found.lengths == [40, 40] and len(found.md) == 80
        with pytest.raises(TrajectoryError, match="no trajectory"):
            read_reference(settings_for(tmp_path, model, data_dir=tmp_path), "A" * 35)

    def test_other_proteins_and_missing_files(self, tmp_path: Path, model: Path, data: PreparedSE3) -> None:
        """A missing trajectory, a missing folder and MD of another length are one sentence each, before anything is
        written."""
        folder = next(iter(data.files)).parent
        short = small_model(tmp_path / "short", "ACDEFG")
        for error, pattern, path, changes in (
            (InputFileError, "there is no villin_R9.npy", model, {"data_dir": folder, "name": "villin_R9"}),
            (InputFileError, "does not exist", model, {"data_dir": tmp_path / "nowhere"}),
            (TrajectoryError, "35 residues, the model 6", short, {"data_dir": folder, "name": "villin_R1"}),
            (TrajectoryError, "no trajectory .* has 6 residues", short, {"data_dir": folder}),
        ):
            with pytest.raises(error, match=pattern):
                generate_se3(settings_for(tmp_path / "out", path, **changes), progress=False)
        assert not (tmp_path / "out").exists()


class TestSequence:
    def test_only_models_that_read_it_take_another(self, tmp_path: Path, model: Path) -> None:
        """A sequence that the model has not seen: refused where it does not read sequences, built where it does."""
        with pytest.raises(ModelError, match="does not read the sequence"):
            generate_se3(settings_for(tmp_path / "out", model, sequence="ACDEF"), progress=False)
        reads = small_model(tmp_path / "reads", "ACDEFG", residue_types=True)
        generate_se3(settings_for(tmp_path / "out", reads, sequence="GAVLIKW"), progress=False)
        assert mdtraj.load(tmp_path / "out" / "samples.pdb").top.to_fasta() == ["GAVLIKW"]
        with pytest.raises(SettingError, match="'GAZ'"):
            generate_se3(settings_for(tmp_path / "other", reads, sequence="GAZ"), progress=False)

    def test_torsion_models_are_refused(self, tmp_path: Path) -> None:
        """A model of another kind is named."""
        with pytest.raises(ModelError, match="'torsion'; expected 'se3'"):
            generate_se3(settings_for(tmp_path / "out", Path("alanine-dipeptide-torsion")), progress=False)


def test_unknown_format_is_refused(tmp_path: Path, model: Path) -> None:
    """A format that there is not is a SettingError with the formats that there are."""
    with pytest.raises(SettingError, match="pdb, models, dcd"):
        settings_for(tmp_path, model, formats=["xtc"])
