"""Small trajectories of villin (35 residues, OpenMM's own test.pdb) and the data sets made from them."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openmm import app

from openmm_diffusion.geometry import rotations
from openmm_diffusion.workflows.prepare_se3 import PreparedSE3, PrepareSE3Settings, prepare_se3

VILLIN = Path(app.__file__).parent / "data" / "test.pdb"
SEQUENCE = "LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF"


def structure(*, solvent: bool = False) -> Any:
    """Villin as an mdtraj trajectory of one frame, a new one each time."""
    return copy.deepcopy(_read(solvent))


@functools.cache
def _read(solvent: bool) -> Any:
    import mdtraj

    whole = mdtraj.load(str(VILLIN))
    return whole if solvent else whole.atom_slice(whole.top.select("protein"))


def alpha_carbons() -> NDArray[np.float64]:
    """CA positions [35, 3] in Angstrom."""
    villin = structure()
    return 10.0 * villin.xyz[0, villin.top.select("name CA")].astype(np.float64)


def shaken(n_frames: int, *, solvent: bool = False, seed: int = 0) -> Any:
    """Frames of villin with noise of 0.02 Angstrom, each turned and moved as a whole."""
    import mdtraj

    start = structure(solvent=solvent)
    rng = np.random.default_rng(seed)
    xyz = start.xyz + rng.normal(scale=0.002, size=(n_frames, start.n_atoms, 3))
    turns = rotations.exp(torch.as_tensor(rng.normal(size=(n_frames, 3)))).numpy()
    moved = np.einsum("fij,faj->fai", turns, xyz) + rng.normal(size=(n_frames, 1, 3))
    return mdtraj.Trajectory(moved.astype(np.float32), start.top)


def write(folder: Path, frames: Any, name: str = "trajectory.dcd") -> tuple[Path, Path]:
    """(trajectory, topology) files of some frames."""
    folder.mkdir(parents=True, exist_ok=True)
    frames.save(str(folder / name))
    frames[0].save(str(folder / "topology.pdb"))
    return folder / name, folder / "topology.pdb"


def prepared(folder: Path, n_frames: int = 40, frames: Any = None, **settings: Any) -> PreparedSE3:
    """Villin prepared in `folder`/data."""
    trajectory, topology = write(folder, shaken(n_frames) if frames is None else frames)
    values = {"trajectory": [trajectory], "topology": topology, "output": folder / "data", "name": "villin"}
    return prepare_se3(PrepareSE3Settings.build(values | settings), progress=False)


def options(data: PreparedSE3, **more: Any) -> dict[str, Any]:
    """Arguments of a data set over prepared villin."""
    folder = next(iter(data.files)).parent
    return {"data_dir": folder, "atlas_csv": data.atlas_csv, "train_split": data.train_split} | more
