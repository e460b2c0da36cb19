"""The single-protein notebook runs from top to bottom with small settings."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "single_protein.ipynb"


def notebook() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_is_clean_and_its_knobs_stand_in_one_cell() -> None:
    """Valid, without outputs, and `protein_config` is assigned in the first code cell and nowhere else."""
    import nbformat

    book = notebook()
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert cells[0].source.startswith("protein_config = {")
    assert not any("protein_config =" in cell.source for cell in cells[1:])


@pytest.mark.slow
def test_runs(tmp_path: Path) -> None:
    """MD, data, training, generation and comparison, each with little of it; files and figures are there."""
    from nbclient import NotebookClient

    book = notebook()
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    changes = {
        "nanoseconds": 0.006,
        "equilibration_ps": 0.4,
        "interval_ps": 0.2,
        "epochs": 2,
        "max_minutes": 1.0,
        "batch_size": 4,
        "n_samples": 4,
        "n_steps": 4,
        "device": "cpu",
    }
    assert all(f'"{name}":' in first.source for name in changes)
    first.source += f"\nprotein_config.update({changes!r})"
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
    assert "LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF" in text
    assert "RMSF correlation" in text
    out = tmp_path / "results" / "single_protein"
    for name in ("md/trajectory.dcd", "data/villin_R1.npy", "model/model.safetensors", "generated/samples.pdb"):
        assert (out / name).is_file(), name
    quality = json.loads((out / "generated" / "quality.json").read_text())
    assert quality["generated"]["chains"] == 4
    assert quality["comparison"]["torsion_divergence"]["samples"] == 4
