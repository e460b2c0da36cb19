"""The notebook runs from top to bottom, with a model at hand and with one that it trains itself."""

from pathlib import Path
from typing import Any

import pytest

from openmm_diffusion import models
from openmm_diffusion.models import store
from openmm_diffusion.workflows.systems import alanine_dipeptide

NOTEBOOK = Path(__file__).parents[1] / "examples" / "demo.ipynb"
SHIPPED = "alanine-dipeptide-torsion"


def executed(folder: Path, **settings: Any) -> str:
    """Run the notebook in a folder with some of its settings changed; everything that it printed."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert all(f"{name} = " in first.source or f"{name}, " in first.source for name in settings)
    first.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_runs_with_a_model(tmp_path: Path) -> None:
    """Every cell runs with the shipped model (an untrained one until it is there), and the chain accepts moves."""
    model = SHIPPED
    if model not in store.names():
        model = str(tmp_path / "untrained")
        models.save(models.create("torsion", alanine_dipeptide("obc").topology, 0), model)
    text = executed(tmp_path, MODEL=model, N_FRAMES=8, N_MOVES=30)
    assert "true marginal" in text
    assert "integral of q: 1.00" in text or "integral of q: 0.99" in text
    assert "of 30 moves accepted" in text


@pytest.mark.slow
def test_trains_its_own_model(tmp_path: Path) -> None:
    """With TRAIN the notebook makes data, trains, and goes on with that model; the folder of the run holds it all."""
    text = executed(tmp_path, TRAIN=True, N_FRAMES=8, N_MOVES=10)
    assert "held_out_nll" in text
    out = tmp_path / "results" / "demo"
    for name in (
        "md/trajectory.dcd",
        "torsions.npz",
        "model/model.json",
        "generated/generated.pdb",
        "generated/md.dcd",
    ):
        assert (out / name).is_file(), name
