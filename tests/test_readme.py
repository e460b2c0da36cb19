"""The README keeps its word: the table of names, the quick start, the figures it shows."""

import re
from pathlib import Path

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
