"""The README keeps its word: the table of names, the quick start, the figures it shows."""

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import openmm_diffusion
from openmm_diffusion.cli.main import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SEED = (
    "alanine.pdb",
    "environment.yml",
    "demo.ipynb",
    "docs/diagram.png",
    "results/loss_curve.png",
    "results/energy_before_after.png",
    "diff-sma-md",
)


def rows() -> list[tuple[str, str]]:
    table = TEXT.split("| name there | here |")[1].split("\n\n")[0]
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return [(there, here) for there, here in found if not there.startswith("---")]


def test_every_name_of_the_specification_has_a_row() -> None:
    """Files, figures and the environment of the specification stand in the left column."""
    left = " ".join(there for there, _ in rows())
    assert not [name for name in SEED if f"`{name}`" not in left]


@pytest.mark.parametrize(("there", "here"), rows())
def test_rows_point_to_what_exists(there: str, here: str) -> None:
    """Files exist, commands have help, classes can be imported."""
    checked = 0
    for name in re.findall(r"`([^`]+)`", here):
        if name.startswith("examples/"):
            assert (ROOT / name).is_file(), name
            checked += 1
        elif name.startswith("openmm-diffusion "):
            assert CliRunner().invoke(app, [*name.split()[1:], "--help"]).exit_code == 0, name
            checked += 1
        elif name == "DiffusionMove":
            assert hasattr(openmm_diffusion, name)
            checked += 1
        elif name.startswith("Torus") or name.startswith("Torsion"):
            from openmm_diffusion import diffusion, models

            owner, method = re.match(r"(\w+)\.(\w+)", name).groups()  # type: ignore[union-attr]
            assert hasattr(getattr(diffusion if owner.startswith("Torus") else models, owner), method)
            checked += 1
        elif name in ("generate torsion", "train torsion"):
            assert CliRunner().invoke(app, [*name.split(), "--help"]).exit_code == 0
            checked += 1
    assert checked, f"nothing to check in {here!r}"


def test_pictures_and_links_exist() -> None:
    """Relative links and pictures lead to files of the repository."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) >= 4
    assert not [link for link in links if not (ROOT / link).exists()]


def test_quick_start_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block runs as it stands (with fewer iterations, on the platform that it advises)."""
    import openmm
    from openmmtools import cache

    block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)  # type: ignore[union-attr]
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))
    names: dict[str, object] = {}
    exec(block.replace("sampler.run(100)", "sampler.run(5)"), names)
    assert names["sampler"].move.move_list[0].n_proposed == 5  # type: ignore[attr-defined]


GEN_MODEL = TEXT.split("| name in gen_model | here |")[1].split("\n\n")[0]
GEN_MODEL_ROWS = [row for row in re.findall(r"^\| (.+?) \| (.+?) \|$", GEN_MODEL, re.MULTILINE) if row[0][:3] != "---"]


def row_with(name: str) -> list[str]:
    """The names of the left column of the row that holds one of them."""
    return next(re.findall(r"`([^`]+)`", there) for there, _ in GEN_MODEL_ROWS if f"`{name}`" in there)


@pytest.mark.parametrize(("there", "here"), GEN_MODEL_ROWS)
def test_rows_of_the_second_table_point_to_what_exists(there: str, here: str) -> None:
    """Modules and their members can be imported, files exist, commands have help."""
    for name in re.findall(r"`([^`]+)`", here):
        if name.startswith(("examples/", "openmm_diffusion/")):
            assert (ROOT / name).is_file(), name
        elif name.startswith("openmm-diffusion "):
            assert CliRunner().invoke(app, [*name.split()[1:], "--help"]).exit_code == 0, name
        elif "." in name and name != "metrics.csv":
            assert resolved(name) is not None, name


def resolved(name: str) -> object:
    """The module, class, function or method of a dotted name within the package."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["openmm_diffusion", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_configuration_keys_have_the_defaults_of_the_specification() -> None:
    """Every key of the configuration tables exists under its name with its default."""
    from openmm_diffusion.diffusion.se3_config import SE3Config
    from openmm_diffusion.models.se3_config import ScoreNetworkConfig
    from openmm_diffusion.workflows.train_se3_settings import TrainSE3Settings

    noise = {"diffuse_rot": True, "diffuse_trans": True, "so3.schedule": "logarithmic", "so3.min_sigma": 0.1}
    noise |= {"so3.max_sigma": 1.5, "r3.min_b": 0.1, "r3.max_b": 20.0, "r3.coordinate_scaling": 0.1}
    network = {"node_embed_size": 256, "edge_embed_size": 128, "ipa.num_blocks": 4, "ipa.no_heads": 12}
    network |= {"ipa.seq_tfmr_num_layers": 2}
    for config, defaults in ((SE3Config(), noise), (ScoreNetworkConfig(), network)):
        assert row_with(next(iter(defaults))) == list(defaults)
        for key, value in defaults.items():
            assert functools.reduce(getattr, key.split("."), config) == value, key
    fields = TrainSE3Settings.model_fields
    assert [fields[name].default for name in ("rot_loss_weight", "trans_loss_weight", "psi_loss_weight")] == [1.0] * 3


def test_flags_of_the_specification_are_taken() -> None:
    """`train se3` takes every flag of the specification's command under its own name, and no made-up one."""
    flags = row_with("--data_dir")
    assert len(flags) == 8
    given = [word for flag in flags for word in (flag, "1")]
    assert CliRunner().invoke(app, ["train", "se3", *given, "--help"]).exit_code == 0
    assert CliRunner().invoke(app, ["train", "se3", *given, "--data_folder", "1", "--help"]).exit_code != 0


def test_backbone_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block of the SE(3) section runs as it stands beside a folder of prepared data."""
    from villin_data import prepared

    pytest.importorskip("omegaconf")
    prepared(tmp_path, 20)
    monkeypatch.chdir(tmp_path)
    block = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "SE3Module" in code)
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["train_dataset"]) == 12
    assert names["val_dataset"].coord_scale == names["train_dataset"].coord_scale
    assert sum(parameter.numel() for parameter in names["model"].parameters()) > 1e5
