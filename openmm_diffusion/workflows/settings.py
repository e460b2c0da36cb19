"""Settings of a job: pydantic models that refuse unknown keys, read from YAML, written beside the results."""

import shlex
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import InputFileError, OutputError, SettingError, first_problem
from .output import write_text


class Settings(BaseModel):
    """Base of every job's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def build(cls, values: dict[str, Any], config: str | Path | None = None) -> Self:
        """Settings from a YAML file, overridden by the values given; None means "not given".

        Raises SettingError naming the key, the value and what was expected.
        """
        merged: dict[str, Any] = read_yaml(config) if config is not None else {}
        merged.update({key: value for key, value in values.items() if value is not None})
        try:
            return cls(**merged)
        except ValidationError as error:
            raise SettingError(_sentence(error, cls)) from error
        except TypeError as error:
            raise SettingError(f"{config}: keys must be names, each with one value ({error})") from error

    def inputs(self) -> list[Path]:
        """Files and folders that the settings name, the output left out; models may be named without suffix."""
        values = [getattr(self, name) for name in type(self).model_fields if name not in ("output", "save_dir")]
        words = [item for value in values for item in (value if isinstance(value, list) else [value])]
        paths = [Path(word) for word in words if isinstance(word, Path) or (isinstance(word, str) and word)]
        return [path for path in paths if path.exists() or Path(f"{path}.safetensors").exists()]

    def implied(self) -> dict[str, Any]:
        """Values that others of the settings imply where they are not given; those of a preset, for instance."""
        return {}

    def write(self, path: Path) -> None:
        """Write the resolved settings as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises InputFileError where there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"cannot read the configuration {path}: {error}; check the path") from error
    except (yaml.YAMLError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise SettingError(f"{path} is not valid YAML ({first_line}); expected lines of 'key: value'") from error
    if not isinstance(values, dict):
        raise SettingError(f"{path} holds {type(values).__name__}; expected lines of 'key: value'")
    root: Any = yaml.compose(text, yaml.SafeLoader)
    keys = [key.value for key, _ in root.value]
    if len(keys) > len(values):  # YAML takes the last one and says nothing
        twice = next(key for key in keys if keys.count(key) > 1)
        raise SettingError(f"{path} has {twice!r} twice; expected each key once, delete one of the lines")
    return values


def refuse_other_settings(settings: Any, but: tuple[str, ...] = ()) -> None:
    """Raise OutputError where the run in `settings.output` was started with other settings than those now given.

    The output itself and the keys in `but` may differ.
    """
    stored = settings.output / "settings.yaml"
    if not stored.exists():
        return
    now = settings.model_dump(mode="json")
    # A setting that is younger than the run had what is its default now.
    before = {**type(settings).model_construct().model_dump(mode="json"), **read_yaml(stored)}
    for key, value in now.items():
        if key not in ("output", *but) and before.get(key) != value:
            raise OutputError(
                f"{settings.output} was run with {key} {before.get(key)}, now it is {value}; give the same to resume, "
                "or --overwrite"
            )


def command_line(command: str, settings: Settings) -> str:
    """The command that runs a job with these settings; what equals its default, or what others imply, is left out."""
    words = ["openmm-diffusion", command]
    implied = settings.implied()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value is None or (not field.is_required() and value == implied.get(name, field.default)):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
            continue
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{option}", shlex.quote(str(item))]
    return " ".join(words)


def _sentence(error: ValidationError, cls: type[BaseModel]) -> str:
    first, reason = first_problem(error)
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {key!r}; expected one of {', '.join(cls.model_fields)}"
    if first["type"] == "missing":
        return f"{key} is missing; give --{key.replace('_', '-')}, or {key} in the file of --config"
    return f"{key} is {first['input']!r}: {reason[0].lower() + reason[1:]}; correct it and run again"
