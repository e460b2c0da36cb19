"""Trajectories of any format that mdtraj reads, turned into data sets."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import app
from tqdm.auto import tqdm

from ..data import TorsionDataset
from ..errors import InputFileError, first_line
from ..molecule import BackboneTorsions, check_unbroken, describe, load
from .job_settings import PrepareTorsionSettings
from .output import refuse_existing, replacing
from .settings import command_line
from .trajectories import read_chunks

CHUNK = 2000  # frames in memory


def prepare_torsion(
    settings: PrepareTorsionSettings, *, overwrite: bool = False, progress: bool = True
) -> TorsionDataset:
    """Write the torsions of trajectories with their weights as a data set, and return it.

    Raises TrajectoryError where trajectory, topology and weights do not match.
    """
    output = (
        settings.output
        if settings.output.suffix == ".npz"
        else settings.output.with_name(settings.output.name + ".npz")
    )
    refuse_existing(output, overwrite=overwrite)
    topology = load(settings.topology, fix=False).topology
    torsions = BackboneTorsions(topology, settings.torsions)
    measured = []
    with tqdm(desc="torsions", unit=" frames", disable=not progress) as bar:
        for frames in read_frames(settings.trajectory, topology, settings.stride):
            check_unbroken(torsions, frames)
            measured.append(torsions.get(frames))
            bar.update(len(frames))
    tau = np.concatenate(measured) if measured else np.zeros((0, len(torsions)))
    weights = read_weights(settings.weights, settings.stride) if settings.weights else np.ones(len(tau))
    molecule = describe(topology, settings.torsions)
    dataset = TorsionDataset(tau, weights, molecule, _source(settings, len(tau)))
    with replacing(output) as aside:
        dataset.save(aside)
    return dataset


def read_frames(files: list[Path], topology: app.Topology, stride: int = 1) -> Iterator[NDArray[np.float64]]:
    """Frames [n, atoms, 3] (nm) of trajectory files, a chunk at a time."""
    import mdtraj

    reference = mdtraj.Topology.from_openmm(topology)
    for file in files:
        for chunk in read_chunks(file, reference, stride=stride, chunk=CHUNK):
            yield chunk.xyz.astype(np.float64)


def read_weights(path: Path, stride: int = 1) -> NDArray[np.float64]:
    """The array 'weights' of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["weights"], dtype=np.float64)[::stride]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputFileError(
            f"{path} holds no weights ({first_line(error)}); expected an .npz with 'weights'"
        ) from error


def _source(settings: PrepareTorsionSettings, n_frames: int) -> dict[str, Any]:
    """Where the data come from: the commands, and what `simulate` said of the trajectory if it made it."""
    source: dict[str, Any] = {"frames": n_frames, "commands": []}
    beside = settings.trajectory[0].parent / "simulation.json"
    if beside.is_file():
        simulation = json.loads(beside.read_text(encoding="utf-8"))
        source["commands"].append(simulation.pop("command", "unknown"))
        source["simulation"] = simulation
    source["commands"].append(command_line("prepare torsion", settings))
    return source
