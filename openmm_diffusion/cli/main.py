"""Every command of `openmm-diffusion`; what a command needs is imported when it runs."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..workflows import job_settings as jobs
from ..workflows.generate_se3_settings import GenerateSE3Settings
from ..workflows.prepare_se3_settings import PrepareSE3Settings
from ..workflows.settings import Settings
from ..workflows.train_se3_settings import TrainSE3Settings
from .options import one_sentence, settings_command

app = typer.Typer(
    name="openmm-diffusion",
    help="Hybrid AI/physics sampling for OpenMM: diffusion models propose, Metropolis-Hastings accepts exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Options may be written with underscores, as the commands of published code have them: --data_dir.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
prepare = typer.Typer(help="Turn trajectories into training data.", no_args_is_help=True)
train = typer.Typer(help="Train a model.", no_args_is_help=True)
generate = typer.Typer(help="Draw structures from a model, without a Markov chain.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")
app.add_typer(train, name="train")
app.add_typer(generate, name="generate")

_JOBS: dict[str, type[Settings]] = {
    "simulate": jobs.SimulateSettings,
    "md": jobs.PlainMDSettings,
    "prepare torsion": jobs.PrepareTorsionSettings,
    "prepare se3": PrepareSE3Settings,
    "train torsion": jobs.TrainTorsionSettings,
    "train se3": TrainSE3Settings,
    "generate torsion": jobs.GenerateTorsionSettings,
    "generate se3": GenerateSE3Settings,
}


def main() -> None:
    """Entry point of the console script."""
    app()


def _simulate(settings: Any, **switches: bool) -> None:
    from ..workflows.simulate import simulate

    folder = simulate(settings, **switches)
    _tree(
        folder,
        {
            "topology.pdb": "the molecule",
            "trajectory.dcd": "frames of all replicas",
            "weights.npz": "their MBAR weights at the coldest temperature",
            "simulation.json": "what was run",
            "settings.yaml": "the resolved settings",
        },
    )


def _md(settings: Any, **switches: bool) -> None:
    from ..workflows.plain_md import run_md

    folder = run_md(settings, **switches)
    _tree(
        folder,
        {
            "topology.pdb": "the molecule",
            "trajectory.dcd": "the frames",
            "md.json": "what was run",
            "settings.yaml": "the resolved settings",
        },
    )


def _prepare_torsion(settings: Any, **switches: bool) -> None:
    from ..workflows.prepare import prepare_torsion

    data = prepare_torsion(settings, **switches)
    typer.echo(f"{len(data)} frames of {', '.join(data.molecule.torsions)}")


def _prepare_se3(settings: Any, **switches: bool) -> None:
    from ..workflows.prepare_se3 import prepare_se3

    data = prepare_se3(settings, **switches)
    for path, n_frames in data.files.items():
        typer.echo(f"{path}: {n_frames} frames of {len(data.sequence)} residues")
    typer.echo(f"tables: {data.atlas_csv}, {data.train_split}")


def _train_torsion(settings: Any, **switches: bool) -> None:
    from ..workflows.train_torsion import train_torsion

    model = train_torsion(settings, **switches)
    metrics = model.card["metrics"]
    typer.echo(
        f"held-out negative log likelihood {metrics['held_out_nll']:.4f} (uniform: {metrics['uniform_nll']:.4f})"
    )
    _tree(
        settings.output,
        {
            "model.safetensors": "the weights",
            "model.json": "the card: architecture, data, commands, metrics, sha256",
            "loss_curve.png": "training and validation loss",
            "metrics.csv": "the same as numbers",
            "checkpoints/last.ckpt": "for --resume",
            "settings.yaml": "the resolved settings",
        },
    )


def _train_se3(settings: Any, **switches: bool) -> None:
    from ..workflows.train_se3 import train_se3

    model = train_se3(settings, **switches)
    if model is None:  # not the first of several processes
        return
    metrics = model.card["metrics"]
    terms = ", ".join(f"{name} {metrics[f'val_{name}_loss']:.4f}" for name in ("rot", "trans", "psi"))
    typer.echo(f"validation loss {metrics['val_loss']:.4f} ({terms}) after {model.card['steps']} steps")
    _tree(
        settings.save_dir,
        {
            "model.safetensors": "the weights, averaged over the last steps",
            "model.json": "the card: architecture, noise process, data, commands, metrics, sha256",
            "loss_curve.png": "training and validation loss",
            "metrics.csv": "the same as numbers",
            "checkpoints/last.ckpt": "for --resume",
            "settings.yaml": "the resolved settings",
        },
    )


def _generate_torsion(settings: Any, **switches: bool) -> None:
    from ..workflows.generate_torsion import FILES, generate_torsion, summary_text

    summary = generate_torsion(settings, **switches)
    typer.echo(summary_text(summary))
    _tree(settings.output, FILES)


def _generate_se3(settings: Any, **switches: bool) -> None:
    from ..workflows.generate_se3 import FILES, generate_se3, quality_text

    typer.echo(quality_text(generate_se3(settings, **switches)))
    _tree(settings.output, FILES)


app.command("simulate")(
    settings_command(
        jobs.SimulateSettings,
        _simulate,
        resumable=True,
        help="Make training MD by parallel tempering, with weights, so that rare basins are populated.",
    )
)
app.command("md")(
    settings_command(
        jobs.PlainMDSettings,
        _md,
        resumable=True,
        help="Run plain Langevin dynamics: training data of frame models.",
    )
)
prepare.command("torsion")(
    settings_command(
        jobs.PrepareTorsionSettings, _prepare_torsion, help="Backbone torsions of any trajectory that mdtraj reads."
    )
)
prepare.command("se3")(
    settings_command(
        PrepareSE3Settings,
        _prepare_se3,
        help="Backbone and side-chain atoms of any trajectory that mdtraj reads, as arrays for `train se3`.",
    )
)
train.command("torsion")(
    settings_command(
        jobs.TrainTorsionSettings, _train_torsion, resumable=True, help="Train the torsion diffusion model."
    )
)
train.command("se3")(
    settings_command(
        TrainSE3Settings,
        _train_se3,
        resumable=True,
        help="Train the SE(3) diffusion model of backbone frames. Options may be written with underscores: --data_dir.",
    )
)
generate.command("torsion")(
    settings_command(
        jobs.GenerateTorsionSettings,
        _generate_torsion,
        help="Sample torsions, build structures, correct them by Boltzmann weights, and start MD from each.",
    )
)
generate.command("se3")(
    settings_command(
        GenerateSE3Settings,
        _generate_se3,
        help="Sample backbones from an SE(3) model, and compare them with molecular dynamics.",
    )
)


@app.command("models")
@one_sentence
def list_models() -> None:
    """List the models that are shipped, and check their files."""
    from ..models import store

    for name in store.names():
        model = store.load(name)
        alias = f" (= {store.ALIASES[name]})" if name in store.ALIASES else ""
        typer.echo(f"{name}{alias}: {model.card.get('description', '')}; sha256 {model.sha256()[:12]} verified")


@app.command("config")
@one_sentence
def show_config(
    command: Annotated[list[str], typer.Argument(help="the command, such as: train torsion")],
    config: Annotated[Path | None, typer.Option("--config", help="YAML file to resolve")] = None,
) -> None:
    """Print the settings of a command as YAML, each with its meaning; the print is a file for --config."""
    import yaml

    from ..errors import SettingError
    from ..workflows.settings import read_yaml

    name = " ".join(command)
    if name not in _JOBS:
        raise SettingError(f"there is no command {name!r} with settings; choose among {', '.join(_JOBS)}")
    cls = _JOBS[name]
    given = read_yaml(config) if config else {}
    values = cls.build(given).model_dump(mode="json") if given else {}
    for key, field in cls.model_fields.items():
        value = values.get(key, None if field.is_required() else field.default)
        value = str(value) if isinstance(value, Path) else value
        line = yaml.safe_dump({key: value}, default_flow_style=True, width=10_000).strip().strip("{}")
        prefix = "# " if value is None else ""
        typer.echo(f"{prefix}{line}  # {field.description}{' (required)' if field.is_required() else ''}")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _tree(folder: Path, files: dict[str, str]) -> None:
    """What a run left, one line each."""
    typer.echo(f"{folder}{os.sep}")
    width = max(map(len, files))
    for name, meaning in files.items():
        if (folder / name).exists():
            typer.echo(f"  {name:<{width}}  {meaning}")
