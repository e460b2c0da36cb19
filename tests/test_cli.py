"""The command line: every bad input ends with one sentence, a non-zero status, and nothing written."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from openmm_diffusion.cli.main import app
from openmm_diffusion.data import TorsionDataset
from openmm_diffusion.errors import OutputError
from openmm_diffusion.models import store
from openmm_diffusion.workflows.generate_se3_settings import GenerateSE3Settings
from openmm_diffusion.workflows.job_settings import PlainMDSettings
from openmm_diffusion.workflows.settings import command_line, refuse_other_settings
from openmm_diffusion.workflows.train_se3_settings import TrainSE3Settings

ALANINE = str(Path(__file__).parents[1] / "examples" / "alanine.pdb")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def water(tmp_path: Path) -> str:
    path = tmp_path / "water.pdb"
    path.write_text("HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O\nEND\n")
    return str(path)


@pytest.fixture
def trajectory(tmp_path: Path) -> str:
    import mdtraj

    path = tmp_path / "alanine.dcd"
    frame = mdtraj.load(ALANINE)
    mdtraj.join([frame] * 20).save_dcd(str(path))
    return str(path)


@pytest.fixture
def short(tmp_path: Path) -> str:
    import mdtraj

    path = tmp_path / "short.dcd"
    mdtraj.load(ALANINE).atom_slice(np.arange(10)).save_dcd(str(path))
    return str(path)


def refused(result: Result, output: Path, *expected: str) -> None:
    """One sentence on stderr, status 1, no traceback, and no output."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in expected:
        assert word in lines[0]
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("simulate", "--n-iterations", "0"), ("n_iterations is 0", "greater than or equal to 1")),
        (("simulate", "--temperature", "-3"), ("temperature is -3", "greater than 0")),
        (("simulate", "--max-temperature", "200"), ("max_temperature is 200", "300")),
        (("simulate", "--system", "no.pdb"), ("no.pdb",)),
        (("simulate", "--platform", "Abacus", "--system", "alanine-dipeptide-vacuum"), ("Abacus", "Reference")),
        (("prepare", "torsion", "--trajectory", "no.dcd", "--topology", ALANINE), ("no.dcd",)),
        (("prepare", "torsion", "--trajectory", "no.dcd", "--topology", "no.pdb"), ("no.pdb",)),
        (("train", "torsion", "--data", "no.npz"), ("no.npz", "prepare torsion")),
        (("train", "torsion", "--data", ALANINE), ("alanine.pdb", "not a torsion data set")),
        (("train", "torsion", "--data", "no.npz", "--n-steps", "-1"), ("n_steps is -1",)),
        (("generate", "torsion", "--n-candidates", "2"), ("n_candidates is 2", "32")),
        (("generate", "torsion", "--model", "no-such-model"), ("no-such-model", "alanine-dipeptide-torsion")),
    ],
)
def test_bad_settings_and_missing_files(words: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path) -> None:
    """Each of them is named in the sentence, with what was expected."""
    output = tmp_path / "out"
    refused(run(*words, "--output", str(output)), output, *expected)


def test_required_settings_are_named() -> None:
    """A missing setting is one sentence with its option."""
    result = run("train", "torsion")
    assert result.exit_code == 1
    assert "data is missing; give --data" in result.stderr


def test_topology_without_peptide(water: str, trajectory: str, tmp_path: Path) -> None:
    """A topology without a peptide backbone says so."""
    output = tmp_path / "out.npz"
    result = run("prepare", "torsion", "--trajectory", trajectory, "--topology", water, "--output", str(output))
    refused(result, output, "no peptide backbone")


def test_trajectory_of_other_atoms(short: str, tmp_path: Path) -> None:
    """A trajectory of 10 atoms with a topology of 22 is refused."""
    output = tmp_path / "out.npz"
    result = run("prepare", "torsion", "--trajectory", short, "--topology", ALANINE, "--output", str(output))
    refused(result, output, "short.dcd", "22 atoms")


def test_existing_output_is_kept(trajectory: str, tmp_path: Path) -> None:
    """A second run is refused and leaves the first one's file alone; --overwrite replaces it."""
    output = tmp_path / "out.npz"
    words = (
        "prepare",
        "torsion",
        "--trajectory",
        trajectory,
        "--topology",
        ALANINE,
        "--output",
        str(output),
        "--quiet",
    )
    assert run(*words).exit_code == 0
    before = output.read_bytes()
    again = run(*words)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert output.read_bytes() == before
    assert run(*words, "--overwrite").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alanine.dcd", "out.npz"]


def test_weights_of_another_trajectory(trajectory: str, tmp_path: Path) -> None:
    """Weights that are too few are refused."""
    np.savez(tmp_path / "w.npz", weights=np.ones(3))
    output = tmp_path / "out.npz"
    words = ("--trajectory", trajectory, "--topology", ALANINE, "--weights", str(tmp_path / "w.npz"))
    refused(run("prepare", "torsion", *words, "--output", str(output)), output, "3 weights for 20 frames")


def test_config_files(tmp_path: Path) -> None:
    """Unknown keys and broken YAML are refused; what `config` prints is a valid file; options go before the file."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("n_step: 3\n")
    output = tmp_path / "out"
    refused(run("train", "torsion", "--config", str(bad), "--output", str(output)), output, "unknown setting 'n_step'")
    bad.write_text("a: [1,\n")
    refused(run("train", "torsion", "--config", str(bad), "--output", str(output)), output, "not valid YAML")
    printed = run("config", "train", "torsion").stdout
    values = yaml.safe_load(printed)
    assert values["n_steps"] == 15_000
    good = tmp_path / "good.yaml"
    good.write_text(printed)
    result = run("train", "torsion", "--config", str(good), "--data", "no.npz", "--output", str(output))
    refused(result, output, "no.npz")
    assert run("config", "fly").exit_code == 1


def test_shipped_models_are_verified() -> None:
    """`models` lists every shipped model, each with its fingerprint verified."""
    result = run("models")
    assert result.exit_code == 0
    assert result.stdout.count("verified") == len(store.names()) == 5
    assert set(store.names()) <= set(result.stdout.split())


def test_overwriting_never_deletes_what_the_job_reads(tmp_path: Path) -> None:
    """A data set in the output folder, and a model named without suffix, are still there after --overwrite."""
    folder = tmp_path / "out"
    folder.mkdir()
    model = Path(store.PRETRAINED) / "alanine-dipeptide-torsion"
    for suffix in (".json", ".safetensors"):
        shutil.copy(f"{model}{suffix}", folder / f"model{suffix}")
    torsions = np.random.default_rng(0).uniform(-3, 3, (200, 2))
    TorsionDataset(torsions, np.ones(200), store.load(str(model)).molecule, {}).save(folder / "torsions.npz")
    training = ("train", "torsion", "--data", str(folder / "torsions.npz"))
    generation = ("generate", "torsion", "--model", str(folder / "model"))
    for words in (training, generation):
        result = run(*words, "--output", str(folder), "--overwrite")
        assert result.exit_code == 1
        assert "lies in the output folder" in result.stderr
        assert len(list(folder.iterdir())) == 3


def test_settings_younger_than_a_run_had_their_defaults(tmp_path: Path) -> None:
    """A run stored before a setting existed can go on with its default, and with no other value."""
    stored = PlainMDSettings.build({"output": tmp_path})
    values = stored.model_dump(mode="json")
    del values["interval_ps"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values))
    refuse_other_settings(stored)
    with pytest.raises(OutputError, match=r"interval_ps 2\.0"):
        refuse_other_settings(PlainMDSettings.build({"output": tmp_path, "interval_ps": 1.0}))


def test_stored_commands_can_be_run_again(tmp_path: Path) -> None:
    """The command that a card stores is taken by the command line, switches that are on or off among its settings."""
    on = TrainSE3Settings.build({"data_dir": tmp_path, "cosine_decay": True, "warmup_steps": 5})
    off = GenerateSE3Settings.build({"output": tmp_path, "model": "m", "denoise": False})
    for command, settings, word in (("train se3", on, "--cosine-decay"), ("generate se3", off, "--no-denoise")):
        words = shlex.split(command_line(command, settings))[1:]
        assert word in words
        result = run(*words, "--help")
        assert result.exit_code == 0, result.output
        assert run(*words, "--no-such", "--help").exit_code != 0
