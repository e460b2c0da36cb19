"""Train a torsion model on a data set, judge it on held-out frames, write it with its card."""

import dataclasses
import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from ..analysis import plots, read_metrics
from ..data import TorsionDataset
from ..data.torsion_dataset import WeightedBatches
from ..diffusion import TorusDiffuser
from ..models import Model, TorsionNetwork, create, save
from ..sampling.flow import TorusFlow, power_grid
from .console import use_one_thread
from .job_settings import TrainTorsionSettings
from .output import prepare_folder
from .settings import command_line

logger = logging.getLogger(__name__)


def train_torsion(
    settings: TrainTorsionSettings, *, overwrite: bool = False, resume: bool = False, progress: bool = True
) -> Model:
    """Train and write `model.safetensors`, `model.json`, `metrics.csv`, `loss_curve.png`; return the model."""
    from ..training.fit import FitOptions, fit
    from ..training.torsion_module import TorsionModule

    use_one_thread()
    data = TorsionDataset.load(settings.data)
    folder = prepare_folder(settings.output, overwrite=overwrite, resume=resume, inputs=settings.inputs())
    settings.write(folder / "settings.yaml")
    train, validation = data.split(settings.validation_share, np.random.default_rng(settings.seed))
    untrained = create(
        "torsion",
        data.molecule,
        settings.seed,
        hidden_size=settings.hidden_size,
        n_layers=settings.n_layers,
        n_harmonics=settings.n_harmonics,
        min_sigma=settings.min_sigma,
    )
    network = untrained.network
    assert isinstance(network, TorsionNetwork)
    steps_per_epoch = min(500, settings.n_steps)
    fit(
        TorsionModule(network, lr=settings.lr, n_steps=settings.n_steps, seed=settings.seed),
        WeightedBatches(train.flattened(settings.flatten), settings.batch_size, steps_per_epoch, settings.seed + 1),
        WeightedBatches(validation.flattened(settings.flatten), 4096, 2, settings.seed + 2, same_every_time=True),
        folder,
        FitOptions(
            n_steps=settings.n_steps,
            steps_per_epoch=steps_per_epoch,
            ema_decay=settings.ema_decay,
            gradient_clip=settings.gradient_clip,
            accelerator=settings.accelerator,
            progress=progress,
            resume=resume,
        ),
    )
    curve = _losses(folder)
    metrics = held_out_metrics(network, validation, settings)
    metrics |= {name: curve[name][-1] for name in ("train_loss", "val_loss")}
    model = dataclasses.replace(untrained, card={**_card(settings, data, metrics), "loss_curve": curve}, source={})
    weights = save(model, folder / "model")
    model = dataclasses.replace(model, source={"path": str(weights.resolve())})
    plots.save(plots.loss_curve(folder / "metrics.csv"), folder / "loss_curve.png")
    logger.info("held-out negative log likelihood %.4f", metrics["held_out_nll"])
    return model


def held_out_metrics(network: TorsionNetwork, data: TorsionDataset, settings: TrainTorsionSettings) -> dict[str, Any]:
    """Mean -log q of held-out frames under the exact density of the discrete map, and the share that is scorable."""
    rng = np.random.default_rng(settings.seed)
    rows = rng.choice(len(data), min(4000, 10 * len(data)), p=data.weights)
    tau = torch.as_tensor(data.torsions[rows])
    config = network.config
    double = _frozen_double(network)
    flow = TorusFlow(double, power_grid(config.min_sigma, config.max_sigma, settings.n_diffusion_steps))
    log_q, valid = flow.log_density(tau)
    return {
        "held_out_nll": float(-log_q[valid].mean()),
        "held_out_nll_error": float(log_q[valid].std() / len(rows) ** 0.5),
        "scorable": float(valid.double().mean()),
        "uniform_nll": -TorusDiffuser().log_base(tau.shape[-1]),
    }


def _frozen_double(network: TorsionNetwork) -> TorsionNetwork:
    copy = TorsionNetwork(network.config).double()
    copy.load_state_dict(network.state_dict())
    return copy.eval().requires_grad_(False)


def _losses(folder: Path, n_points: int = 60) -> dict[str, list[float]]:
    """The loss curves of a training at its validations, thinned to columns of equal length, for the card."""
    columns = read_metrics(folder / "metrics.csv")
    train, val = (np.flatnonzero(np.isfinite(columns[name])) for name in ("train_loss", "val_loss"))
    rows = val[np.unique(np.linspace(0, len(val) - 1, n_points).astype(int))]
    latest = train[np.clip(np.searchsorted(train, rows) - 1, 0, None)]
    return {
        "step": [int(value) for value in columns["step"][rows]],
        "train_loss": [round(float(value), 5) for value in columns["train_loss"][latest]],
        "val_loss": [round(float(value), 5) for value in columns["val_loss"][rows]],
    }


def _card(settings: TrainTorsionSettings, data: TorsionDataset, metrics: dict[str, Any]) -> dict[str, Any]:
    from .. import __version__

    centres = stats.circmean(_resampled(data), axis=0, high=np.pi, low=-np.pi)
    widths = stats.circstd(_resampled(data), axis=0, high=np.pi, low=-np.pi)
    statistics = {
        label: [round(float(c), 4), round(float(w), 4)]
        for label, c, w in zip(data.molecule.torsions, centres, widths, strict=True)
    }
    source = dict(data.source)
    commands = [*source.pop("commands", []), command_line("train torsion", settings)]
    return {
        "description": f"Torsion diffusion model of {', '.join(data.molecule.torsions)} of {data.molecule}",
        "sampling": {"n_diffusion_steps": settings.n_diffusion_steps},
        "torsion_statistics": statistics,
        "training_data": {**source, "kish_ess": float(1.0 / np.sum(data.weights**2))},
        "training": json.loads(settings.model_dump_json(exclude={"data", "output"})),
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "commands": commands,
        "made": {"date": date.today().isoformat(), "openmm_diffusion": __version__, "torch": torch.__version__},
    }


def _resampled(data: TorsionDataset) -> np.ndarray:
    rows = np.random.default_rng(0).choice(len(data), 10_000, p=data.weights)
    return data.torsions[rows]
