"""Whether a chain may be gone on with: the same model, molecule and force field, and not more iterations than asked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openmm
from openmm import app

from ..errors import ModelFileError, OutputError
from ..mcmc import ProposalMove
from .sample_settings import SampleSettings
from .sample_state import FOLDER, Checkpoints
from .systems import MolecularSystem

END = f"{FOLDER}/finished.json"


def fingerprints(molecule: MolecularSystem, move: ProposalMove) -> dict[str, str]:
    """What must be the same in every part of a chain: sha256 of model, topology and System, and OpenMM's version."""
    model = getattr(move.proposal, "model", None)
    return {
        "model_sha256": "" if model is None else str(model.sha256()),
        "topology_sha256": _topology_sha256(molecule.topology),
        "system_sha256": hashlib.sha256(openmm.XmlSerializer.serialize(molecule.system).encode()).hexdigest(),
        "openmm": str(openmm.version.version),
    }


def refuse_another(
    card: dict[str, Any], own: dict[str, str], settings: SampleSettings, energy: Callable[[], float]
) -> None:
    """Raise where the chain of a checkpoint's card is of another model, molecule or force field.

    Parameters
    ----------
    card, own
        What the checkpoint holds, and the fingerprints of what is to go on.
    settings
        For the names in the sentences.
    energy
        The potential energy (kJ/mol) that the checkpoint's state has now. It is compared where another version of
        OpenMM made the checkpoint, whose text of the same System may differ.

    Raises
    ------
    ModelFileError, OutputError
        One sentence with what differs.
    """
    folder, system = settings.output, settings.system
    if card["model_sha256"] != own["model_sha256"]:
        raise ModelFileError(
            f"the chain in {folder} was made with the model {card['model_sha256'][:12]}..., {settings.model} is now "
            f"{own['model_sha256'][:12]}...; put the first one back, or start again with --overwrite"
        )
    if card["topology_sha256"] != own["topology_sha256"]:
        raise OutputError(
            f"the chain in {folder} is of another molecule than {system} is now; give the files that it was started "
            "with, or --overwrite"
        )
    if card["openmm"] == own["openmm"]:
        same = card["system_sha256"] == own["system_sha256"]
    else:
        before = float(card["potential_energy"])
        same = abs(energy() - before) <= 0.5 + 1e-3 * abs(before)
    if not same:
        raise OutputError(
            f"the chain in {folder} was run with another force field than {system} has now; give the files that it "
            "was started with, or --overwrite"
        )


def refuse_fewer(folder: Path, n_iterations: int) -> None:
    """Raise OutputError where the chain in a folder has more iterations already than are asked for."""
    done = max(Checkpoints(folder / FOLDER).iterations, read_end(folder).get("iterations", 0))
    if done > n_iterations:
        raise OutputError(
            f"the chain in {folder} has {done} iterations already, more than the n_iterations = {n_iterations} given; "
            "give at least as many, or --overwrite"
        )


def read_end(folder: Path) -> dict[str, int]:
    """What a chain left when it was run to its end: iterations and bytes of its files; empty where there is nothing."""
    try:
        end = json.loads((folder / END).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in end.items() if isinstance(value, int)} if isinstance(end, dict) else {}


def _topology_sha256(topology: app.Topology) -> str:
    atoms = [(a.name, a.residue.name, a.residue.index, a.residue.chain.index) for a in topology.atoms()]
    bonds = sorted(tuple(sorted((a.index, b.index))) for a, b in topology.bonds())
    return hashlib.sha256(repr((atoms, bonds)).encode()).hexdigest()
