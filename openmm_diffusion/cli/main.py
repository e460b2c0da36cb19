"""Every command of `openmm-diffusion`; what a command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..workflows import job_settings as settings
from ..workflows.doctor_settings import DoctorSettings
from ..workflows.generate_se3_settings import GenerateSE3Settings
from ..workflows.prepare_se3_settings import PrepareSE3Settings
from ..workflows.sample_settings import SampleSettings
from ..workflows.settings import Settings
from ..workflows.train_se3_settings import TrainSE3Settings
from . import jobs
from .options import one_sentence, settings_command, with_file

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
    "sample": SampleSettings,
}


def _about(field: str) -> Any:
    described = DoctorSettings.model_fields[field]
    default = described.default
    shown = " ".join(default) if isinstance(default, list) else default
    suffix = "" if default is None else f" (default: {shown})"
    return typer.Option(f"--{field.replace('_', '-')}", help=f"{described.description}{suffix}", show_default=False)


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


app.command("sample")(
    with_file(
        settings_command(
            SampleSettings,
            jobs.sample_job,
            resumable=True,
            help="Run a Markov chain, or several: diffusion moves, accepted exactly, with Langevin dynamics between.",
        )
    )
)


@app.command("doctor")
@one_sentence
def doctor(
    system: Annotated[str | None, _about("system")] = None,
    coordinates: Annotated[Path | None, _about("coordinates")] = None,
    force_field: Annotated[list[str] | None, _about("force_field")] = None,
    hydrogen_mass: Annotated[float | None, _about("hydrogen_mass")] = None,
    model: Annotated[str | None, _about("model")] = None,
    seconds: Annotated[float | None, _about("seconds")] = None,
    n_candidates: Annotated[int | None, _about("n_candidates")] = None,
    platform: Annotated[str | None, _about("platform")] = None,
    device: Annotated[str | None, _about("device")] = None,
    seed: Annotated[int | None, _about("seed")] = None,
) -> None:
    """Versions, platforms and devices, and a check that the move is exact on your system.

    Exit status: 0 exact within noise, 1 not exact or an error, 3 not decided.
    """
    given = dict(locals())
    status = jobs.doctor_job(
        DoctorSettings.build({key: None if value == [] else value for key, value in given.items()})
    )
    if status:
        raise typer.Exit(status)


@app.command("models")
@one_sentence
def list_models() -> None:
    """List the models that are shipped, and check their files against their cards."""
    jobs.models_job()


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
