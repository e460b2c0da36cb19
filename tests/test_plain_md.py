"""Plain dynamics: the files it writes, going on where it was stopped, and what it refuses."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from openmm_diffusion.errors import OutputError
from openmm_diffusion.workflows import plain_md
from openmm_diffusion.workflows.job_settings import PlainMDSettings
from openmm_diffusion.workflows.systems import HYDROGEN_MASS, villin


def settings(folder: Path, **changes: object) -> PlainMDSettings:
    values = {
        "output": folder,
        "system": "alanine-dipeptide-vacuum",
        "nanoseconds": 0.012,
        "equilibration_ps": 1.0,
        "interval_ps": 0.2,
        "platform": "Reference",
        **changes,
    }
    return PlainMDSettings.build(values)


def test_frames_are_those_of_a_thermostatted_molecule(tmp_path: Path) -> None:
    """60 frames of 0.2 ps; constrained bonds stay as they were; the blocks are gone at the end."""
    folder = plain_md.run_md(settings(tmp_path / "md"), progress=False)
    frames = mdtraj.load(str(folder / "trajectory.dcd"), top=str(folder / "topology.pdb"))
    assert frames.n_frames == 60
    assert sorted(path.name for path in folder.iterdir()) == [
        "md.json",
        "settings.yaml",
        "topology.pdb",
        "trajectory.dcd",
    ]
    bonds = [(a.index, b.index) for a, b in frames.topology.bonds if "H" in (a.element.symbol, b.element.symbol)]
    lengths = mdtraj.compute_distances(frames, bonds)
    assert lengths.std(0).max() < 1e-4
    assert mdtraj.compute_phi(frames)[1].std() > 0.1


def test_a_stopped_run_goes_on_and_loses_one_block_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its third block, a run keeps two; the resumed one has their very frames and the rest."""
    written = plain_md._write_block

    def stop_at_third(blocks: Path, block: int, *rest: object) -> None:
        if block == 2:
            raise KeyboardInterrupt
        written(blocks, block, *rest)

    monkeypatch.setattr(plain_md, "_write_block", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        plain_md.run_md(settings(tmp_path / "md"), progress=False)
    monkeypatch.undo()
    kept = np.concatenate(
        [mdtraj.formats.DCDTrajectoryFile(str(path)).read()[0] for path in sorted(tmp_path.glob("md/blocks/*.dcd"))]
    )
    assert len(kept) == 2 * plain_md.FRAMES_PER_BLOCK
    folder = plain_md.run_md(settings(tmp_path / "md"), resume=True, progress=False)
    frames = mdtraj.formats.DCDTrajectoryFile(str(folder / "trajectory.dcd")).read()[0]
    assert len(frames) == 60
    assert np.array_equal(frames[: len(kept)], kept)
    assert not np.array_equal(frames[50:60], kept[:10])


def test_other_settings_are_refused_on_resume(tmp_path: Path) -> None:
    """A resumed run at another temperature would be a mixture; it is refused, and nothing is lost."""
    folder = plain_md.run_md(settings(tmp_path / "md", nanoseconds=0.002), progress=False)
    before = (folder / "trajectory.dcd").read_bytes()
    with pytest.raises(OutputError, match="temperature 300"):
        plain_md.run_md(settings(tmp_path / "md", nanoseconds=0.002, temperature=310.0), resume=True, progress=False)
    assert (folder / "trajectory.dcd").read_bytes() == before


def test_villin_is_the_protein_alone() -> None:
    """35 residues, no water, no ions, charges included."""
    molecule = villin(["amber99sbildn.xml", "amber99_obc.xml"], HYDROGEN_MASS)
    names = [residue.name for residue in molecule.topology.residues()]
    assert len(names) == 35
    assert names[0] == "LEU"
    assert names[-1] == "PHE"
    assert molecule.system.getNumParticles() == len(molecule.positions) == 582
