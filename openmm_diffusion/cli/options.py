"""Commands made from settings: one option for each field, a YAML file for all of them, errors as one sentence."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..workflows.console import run_program
from ..workflows.settings import Settings

_SWITCHES = {
    "overwrite": (bool, False, "replace what the output holds"),
    "resume": (bool, False, "go on where an earlier run stopped"),
    "quiet": (bool, False, "no progress bar"),
}


def settings_command(
    cls: type[Settings], run: Callable[..., None], *, resumable: bool = False, help: str = ""
) -> Callable[..., None]:
    """A typer command with an option for each field of a settings class, and --config for a YAML file of them.

    `run` gets the settings and the switches `overwrite`, `resume` (where resumable) and `progress`.
    """

    def command(**values: Any) -> None:
        config = values.pop("config")
        switches = {"overwrite": values.pop("overwrite"), "progress": not values.pop("quiet")}
        if resumable:
            switches["resume"] = values.pop("resume")
        given = {key: value for key, value in values.items() if value not in (None, [])}
        run(cls.build(given, config), **switches)

    parameters = [_option(name, field.annotation, field) for name, field in cls.model_fields.items()]
    parameters.append(_parameter("config", Path | None, None, "YAML file with these settings; options go first"))
    switches = [name for name in _SWITCHES if resumable or name != "resume"]
    parameters += [_parameter(name, *_SWITCHES[name]) for name in switches]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = help
    return one_sentence(command)


def with_file(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with its YAML file as an argument too: `sample settings.yaml` is `sample --config ...`."""

    def with_argument(settings_file: Path | None = None, **values: Any) -> None:
        if settings_file is not None:
            values["config"] = settings_file
        command(**values)

    signature = inspect.signature(command)
    argument = typer.Argument(metavar="CONFIG", help="YAML file with these settings, as --config", show_default=False)
    first = inspect.Parameter(
        "settings_file",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[Path | None, argument],
    )
    with_argument.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[first, *signature.parameters.values()]
    )
    with_argument.__annotations__ = {"settings_file": first.annotation, **command.__annotations__}
    with_argument.__doc__ = command.__doc__
    return with_argument


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """End with one sentence and exit status 1 where the package raises an error of its own."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        status = run_program(lambda: command(*arguments, **options))
        if status:
            raise typer.Exit(status)

    return wrapped


def _option(name: str, annotation: Any, field: Any) -> inspect.Parameter:
    described = field.description or ""
    if not field.is_required() and field.default is not None:
        default = field.default
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        described += f" (default: {shown})"
    elif field.is_required():
        described += " (required)"
    # Not given means None here, so that a value from --config is not overridden by a default.
    return _parameter(name, annotation | None, None, described)


def _parameter(name: str, annotation: Any, default: Any, help: str) -> inspect.Parameter:
    flag = name.replace("_", "-")
    # A setting may be switched on or off; overwrite, resume and quiet are off unless given.
    flags = f"--{flag}/--no-{flag}" if annotation == (bool | None) else f"--{flag}"
    option = typer.Option(flags, help=help, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )
