"""The models that are shipped: what each is, and whether its weights are those of its card."""

import json
import logging
from collections.abc import Callable
from typing import Any

from ..errors import ModelFileError
from ..models import Model, store

logger = logging.getLogger(__name__)
_HEAD = 12  # digits of a sha256 that are shown


def list_models(say: Callable[[str], None] = logger.info) -> None:
    """Tell of every shipped model its kind, molecule, size, data, metrics and sha256, which is checked.

    Raises
    ------
    ModelFileError
        After the list: weights and card of some model do not match, or one of them is missing or cannot be read.
    """
    problems: list[str] = []
    for name in model_names():
        try:
            model = store.load(name)
        except ModelFileError as error:
            problems.append(f"{name}: {error}")
            say(f"{name}\n  FAILED: {error}\n")
            continue
        told = describe_model(model)
        say("\n".join([name, *(f"  {key:<10}  {value}" for key, value in told.items()), ""]))
    if problems:
        raise ModelFileError(f"{len(problems)} of the shipped models cannot be used; {problems[0]}")


def model_names() -> list[str]:
    """The shipped models, those that lack weights or card included."""
    return sorted({path.stem for suffix in ("safetensors", "json") for path in store.PRETRAINED.glob(f"*.{suffix}")})


def describe_model(model: Model) -> dict[str, str]:
    """What a model is, in words."""
    moved = f": {', '.join(model.molecule.torsions)}" if model.molecule.torsions else ""
    n_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    described = {
        "about": str(model.card.get("description", "")),
        "kind": f"{model.kind}{moved}",
        "molecule": str(model.molecule),
        "parameters": f"{n_parameters:,}",
        "data": _data(model.card.get("training_data") or {}),
        "metrics": _metrics(model.card.get("metrics") or {}),
        "sha256": f"{model.sha256()[:_HEAD]} verified",
    }
    return {key: value for key, value in described.items() if value}


def _data(data: dict[str, Any]) -> str:
    simulation = data.get("simulation") or {}
    parts = [f"{data['frames']:,} frames" if isinstance(data.get("frames"), int) else "", simulation.get("system", "")]
    temperatures = simulation.get("temperatures_K") or []
    if temperatures:
        parts.append(f"{min(temperatures):.0f} to {max(temperatures):.0f} K")
    return ", ".join(part for part in parts if part) or json.dumps(data)[:100]


def _metrics(metrics: dict[str, Any]) -> str:
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
