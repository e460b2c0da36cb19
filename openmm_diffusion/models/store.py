"""Model files: weights in safetensors, everything else in a JSON card beside them. Pickles are never loaded."""

import copy
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from ..errors import ModelFileError, OpenMMDiffusionError, first_line
from ..files import replacing, write_json
from ..peptide import MoleculeDescription
from .model import Model, build, configuration, from_recipe

FORMAT = "openmm_diffusion model 1"
PRETRAINED = Path(__file__).parent / "pretrained"

_cache: dict[str, Model] = {}
_evaluation: dict[tuple[str, str, torch.dtype], nn.Module] = {}
_lock = threading.Lock()


def names() -> list[str]:
    """The models that are shipped."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def save(model: Model, path: str | Path) -> Path:
    """Write `path`.safetensors and its card `path`.json, each in one piece; returns the path of the weights."""
    weights = _with_suffix(Path(path), ".safetensors")
    card = {
        **model.card,
        "format": FORMAT,
        "kind": model.kind,
        "molecule": model.molecule.to_dict(),
        **({"sequence": model.sequence} if model.kind == "se3" else {}),
        "network": configuration(model.network),
        "sha256": model.sha256(),
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in model.network.state_dict().items()}
    with replacing(weights) as aside:
        aside.write_bytes(save_tensors(tensors))
    write_json(weights.with_suffix(".json"), card)
    return weights


def load(name_or_path: str | Path) -> Model:
    """A shipped model by its name, or a model file by its path (with or without suffix, or the folder of a training).

    Raises ModelFileError where the file is missing, truncated, altered, or a pickle.
    """
    name = str(name_or_path)
    shipped = PRETRAINED / f"{name}.safetensors"
    if Path(name).name == name and shipped.exists():
        return _read(shipped, {"name": name})
    path = _locate(Path(name))
    return _read(path, {"path": str(path.resolve())})


def resolve(source: dict[str, Any], sha256: str) -> Model:
    """The model that a serialised move names, through a cache of this process.

    Raises ModelFileError where it cannot be found, or where the file now holds other weights.
    """
    with _lock:
        if sha256 in _cache:
            return _cache[sha256]
    if "create" in source:
        model = from_recipe(source["create"])
    elif source:
        model = load(source.get("name") or source["path"])
    else:
        raise ModelFileError(
            "a move was restored whose model existed only in the memory of another process; save the model with "
            "openmm_diffusion.models.save and make the move from that file"
        )
    if model.sha256() != sha256:
        raise ModelFileError(
            f"the model {source} has changed since the move was stored; expected sha256 {sha256[:12]}..."
        )
    return remember(model)[0]


def remember(model: Model) -> tuple[Model, str]:
    """The model in the cache of this process with these very weights, and its sha256.

    The cache holds a copy, so that training the network on does not change moves that use it.
    """
    sha256 = model.sha256()
    with _lock:
        if sha256 not in _cache or (model.source and not _cache[sha256].source):
            # A source, where one is known, lets another process find the model too.
            _cache[sha256] = dataclasses.replace(model, network=copy.deepcopy(model.network).cpu())
        return _cache[sha256], sha256


def evaluation_network(sha256: str, device: torch.device, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network of a remembered model on a device, frozen; one a process and dtype."""
    key = (sha256, str(device), dtype)
    with _lock:
        if key not in _evaluation:
            network = copy.deepcopy(_cache[sha256].network)
            _evaluation[key] = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
        return _evaluation[key]


def _read(path: Path, source: dict[str, Any]) -> Model:
    try:
        raw = path.read_bytes()
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"cannot read the model {path.name} and its card {path.stem}.json ({error}); both files belong together"
        ) from error
    if raw[:1] == b"\x80" or raw[:2] == b"PK":
        raise ModelFileError(f"{path.name} is a pickle, which is never loaded; save the weights as safetensors instead")
    try:
        if card.get("format") != FORMAT:
            raise ValueError(f"the card's format is {card.get('format')!r}, expected {FORMAT!r}")
        molecule = MoleculeDescription.from_dict(card["molecule"])
        network = build(card["kind"], molecule, card["network"], load_tensors(raw))
        model = Model(card["kind"], network, molecule, card, source)
        if card["sha256"] != model.sha256():
            raise ValueError("weights and card have different sha256")
    except OpenMMDiffusionError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path.name} is not a usable model ({first_line(error)}): truncated, altered, or of another program; "
            "copy it again or train it again"
        ) from error
    return model


def _locate(path: Path) -> Path:
    if path.suffix in (".pt", ".pth", ".ckpt", ".pkl", ".pickle"):
        raise ModelFileError(
            f"{path.name} is a pickle, which is never loaded; give the .safetensors file of the training"
        )
    candidates = (
        [path] if path.suffix == ".safetensors" else [_with_suffix(path, ".safetensors"), path / "model.safetensors"]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ModelFileError(
        f"there is no model {str(path)!r}; expected a .safetensors file, the folder of a training, "
        f"or one of the shipped models: {', '.join(names())}"
    )


def _with_suffix(path: Path, suffix: str) -> Path:
    return path if path.suffix == suffix else path.parent / (path.name + suffix)
