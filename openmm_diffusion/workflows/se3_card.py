"""The card of a trained SE(3) model: what it is, what it learned from, and the commands that made it."""

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OpenMMDiffusionError
from .prepare_se3_settings import PrepareSE3Settings
from .se3_presets import ACCEPTANCE_STEPS
from .settings import command_line, read_yaml
from .train_se3_settings import TrainSE3Settings

if TYPE_CHECKING:
    from ..data.mdgen_dataset import MDGenDataset
    from ..training.se3_module import SE3Module

SOFT = ("phi", "psi")


def model_card(
    settings: TrainSE3Settings, module: "SE3Module", train: "MDGenDataset", metrics: dict[str, float]
) -> dict[str, Any]:
    """The card of a trained model: JSON values. That of a model for exact acceptance tells how its data were made."""
    import torch

    from .. import __version__

    names = [trajectory.name for trajectory in train.trajectories]
    training_data: dict[str, Any] = {
        "trajectories": len(names),
        "frames": len(train),
        "coord_scale": train.coord_scale,
    }
    commands = [command_line("train se3", settings)]
    if settings.auxiliary_width is not None:
        earlier, simulations = _source([trajectory.path for trajectory in train.trajectories])
        commands = [*earlier, *commands]
        training_data |= {"simulations": simulations} if simulations else {}
    if train.weights is not None:
        training_data["kish_ess"] = float(train.weights.sum() ** 2 / (train.weights**2).sum())
    return {
        "description": f"SE(3) backbone diffusion model trained on {', '.join(names[:5])}"
        + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        "sampling": {"n_diffusion_steps": 100, "self_conditioning": module.self_conditioning > 0},
        **_acceptance(settings),
        "training_data": training_data,
        "training": json.loads(settings.model_dump_json(exclude={"data_dir", "save_dir", "atlas_csv", "train_split"})),
        "steps": int(metrics.pop("step", 0)),
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "commands": commands,
        "made": {"date": date.today().isoformat(), "openmm_diffusion": __version__, "torch": torch.__version__},
    }


def _acceptance(settings: TrainSE3Settings) -> dict[str, Any]:
    """The entry `acceptance` of the card of a model of p(tau) a(s); nothing for other models."""
    if settings.auxiliary_width is None:
        return {}
    return {
        "acceptance": {
            "width": settings.auxiliary_width,
            "soft": list(SOFT),
            "max_t": settings.max_t,
            "flatten": settings.flatten,
            "n_steps": ACCEPTANCE_STEPS,
        }
    }


def _source(arrays: list[Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """Where arrays come from: the commands of `simulate`, `md` and `prepare se3`, and what was said of simulations.

    Read from the settings that `prepare se3` wrote beside an array, and from the files that the simulation left beside
    its trajectory; what is not there any more is left out.
    """
    commands: list[str] = []
    simulations: list[dict[str, Any]] = []
    for array in arrays:
        try:
            settings = PrepareSE3Settings.build(read_yaml(array.with_suffix(".yaml")))
        except OpenMMDiffusionError:  # the second array of one preparation, or one that was made elsewhere
            continue
        for folder in dict.fromkeys(path.parent for path in settings.trajectory):
            for found in (folder / name for name in ("simulation.json", "md.json")):
                if found.is_file():
                    simulation = json.loads(found.read_text(encoding="utf-8"))
                    commands.append(simulation.pop("command", "unknown"))
                    simulations.append(simulation)
        commands.append(command_line("prepare se3", settings))
    return list(dict.fromkeys(commands)), simulations
