"""Every command of `openmm-diffusion`; what a command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..workflows import job_settings as settings
from ..workflows.generate_se3_settings import GenerateSE3Settings
from ..workflows.prepare_se3_settings import PrepareSE3Settings
from ..workflows.settings import Settings
from ..workflows.train_se3_settings import TrainSE3Settings
from . import jobs
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
    "simulate": settings.SimulateSettings,
    "md": settings.PlainMDSettings,
    "prepare torsion": settings.PrepareTorsionSettings,
    "prepare se3": PrepareSE3Settings,
    "train torsion": settings.TrainTorsionSettings,
    "train se3": TrainSE3Settings,
    "generate torsion": settings.GenerateTorsionSettings,
    "generate se3": GenerateSE3Settings,
}


def main() -> None:
    """Entry point of the console script."""
    app()


app.command("simulate")(
    settings_command(
        settings.SimulateSettings,
        jobs.simulate_job,
        resumable=True,
        help="Make training MD by parallel tempering, with weights, so that rare basins are populated.",
    )
)
app.command("md")(
    settings_command(
        settings.PlainMDSettings,
        jobs.md_job,
        resumable=True,
        help="Run plain Langevin dynamics: training data of frame models.",
    )
)
prepare.command("torsion")(
    settings_command(
        settings.PrepareTorsionSettings,
        jobs.prepare_torsion_job,
        help="Backbone torsions of any trajectory that mdtraj reads.",
    )
)
prepare.command("se3")(
    settings_command(
        PrepareSE3Settings,
        jobs.prepare_se3_job,
        help="Backbone and side-chain atoms of any trajectory that mdtraj reads, as arrays for `train se3`.",
    )
)
train.command("torsion")(
    settings_command(
        settings.TrainTorsionSettings, jobs.train_torsion_job, resumable=True, help="Train the torsion diffusion model."
    )
)
train.command("se3")(
    settings_command(
        TrainSE3Settings,
        jobs.train_se3_job,
        resumable=True,
        help="Train the SE(3) diffusion model of backbone frames. Options may be written with underscores: --data_dir.",
    )
)
generate.command("torsion")(
    settings_command(
        settings.GenerateTorsionSettings,
        jobs.generate_torsion_job,
        help="Sample torsions, build structures, correct them by Boltzmann weights, and start MD from each.",
    )
)
generate.command("se3")(
    settings_command(
        GenerateSE3Settings,
        jobs.generate_se3_job,
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
