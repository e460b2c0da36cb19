"""Short chains for the tests of `openmm-diffusion sample`, and what two of them are compared by."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openmm_diffusion.models import create, store
from openmm_diffusion.workflows import sample as job
from openmm_diffusion.workflows.console import use_one_thread
from openmm_diffusion.workflows.sample_settings import SampleSettings
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide

TINY = {"hidden_size": 8, "n_layers": 1, "n_harmonics": 1}
SHORT = {
    "system": "alanine-dipeptide-vacuum",
    "n_iterations": 8,
    "n_candidates": 2,
    "n_diffusion_steps": 2,
    "pool_size": 10,  # used up inside a block
    "md_steps": 2,
    "equilibration_steps": 10,
    "checkpoint_interval": 3,
    "platform": "Reference",
}
TIMES = ("seconds_network", "seconds_energy", "seconds")


@functools.cache
def molecule() -> MolecularSystem:
    return alanine_dipeptide("vacuum")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny torsion model, untrained."""
    use_one_thread()
    path = tmp_path_factory.mktemp("model") / "tiny"
    store.save(create("torsion", molecule().topology, seed=0, **TINY), path)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Molecule and models are made once, and nothing waits for the disk."""
    monkeypatch.setattr(job, "build_system", lambda settings: molecule())
    monkeypatch.setattr(store, "load", functools.cache(store.load))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield


def settings(output: Path, model: Path | str, **changes: Any) -> SampleSettings:
    return SampleSettings.build({"output": output, "model": str(model), **SHORT, **changes})


def run(output: Path, model: Path | str, *, resume: bool = False, overwrite: bool = False, **changes: Any) -> Any:
    return job.sample(settings(output, model, **changes), resume=resume, overwrite=overwrite, progress=False)


def content(folder: Path) -> dict[str, Any]:
    """Everything that two equal chains have in common, byte for byte: all files but the times in them."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("trajectory.dcd", "trajectory.xtc", "state.xml", "pool.npz"):
            found[name] = path.read_bytes()
        elif path.name == "topology.pdb":
            found[name] = path.read_text().splitlines()[1:]  # without the date
        elif path.name == "chain.csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            keep = [k for k, column in enumerate(rows[0]) if column not in TIMES]
            found[name] = [[row[k] for k in keep] for row in rows]
        elif path.is_file():
            found[name] = None
    return found
