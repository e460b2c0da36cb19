"""Settings of the SE(3) noise process: the names and defaults of the first seed's configuration table."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import SettingError, validation_sentence

SMALLEST_HAAR_SIGMA = 2.5


class StrictModel(BaseModel):
    """Base of these settings: unknown keys and values out of range are a `SettingError`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True)

    place: ClassVar[str] = ""  # of the settings among those of `SE3Config`, for sentences

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as e:
            raise SettingError(validation_sentence(e, type(self), self.place)) from e


class SO3Config(StrictModel):
    """Rotation noise: Brownian motion on SO(3)."""

    place: ClassVar[str] = "so3"

    schedule: Literal["logarithmic"] = Field(
        default="logarithmic", description="sigma(t) = log(t e^max + (1 - t) e^min)"
    )
    min_sigma: float = Field(default=0.1, gt=0, description="rad; noise at t = 0")
    max_sigma: float = Field(default=1.5, gt=0, description="rad; noise at t = 1")
    base: Literal["igso3", "haar"] = Field(
        default="igso3", description="distribution at t = 1: IGSO(3) of max_sigma about the identity, or uniform"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.min_sigma < self.max_sigma:
            raise ValueError(f"so3.min_sigma is {self.min_sigma}; expected below so3.max_sigma, {self.max_sigma} rad")
        if self.base == "haar" and self.max_sigma < SMALLEST_HAAR_SIGMA:
            raise ValueError(
                f'so3.max_sigma is {self.max_sigma} with so3.base="haar"; expected at least {SMALLEST_HAAR_SIGMA} rad, '
                "where the noise covers all rotations; raise it"
            )
        return self


class R3Config(StrictModel):
    """Translation noise: the variance-preserving SDE with beta(t) = min_b + t (max_b - min_b)."""

    place: ClassVar[str] = "r3"

    min_b: float = Field(default=0.1, gt=0, description="beta at t = 0")
    max_b: float = Field(default=20.0, gt=0, description="beta at t = 1")
    coordinate_scaling: float | Literal["auto"] = Field(
        default=0.1,
        description="diffused units per Angstrom; auto = 1 / standard deviation of the training coordinates",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.min_b < self.max_b:
            raise ValueError(f"r3.min_b is {self.min_b}; expected below r3.max_b, {self.max_b}")
        if self.coordinate_scaling != "auto" and self.coordinate_scaling <= 0:
            raise ValueError(f'r3.coordinate_scaling is {self.coordinate_scaling}; expected a number > 0 or "auto"')
        return self


class SE3Config(StrictModel):
    """Noise process of backbone frames; the defaults are the seed's."""

    diffuse_rot: bool = Field(default=True, description="noise the rotations")
    diffuse_trans: bool = Field(default=True, description="noise the translations")
    min_t: float = Field(default=0.01, gt=0, lt=1, description="smallest time of training and sampling")
    so3: SO3Config = Field(default_factory=lambda: SO3Config())
    r3: R3Config = Field(default_factory=lambda: R3Config())

    @classmethod
    def of(cls, conf: "SE3Config | Mapping[str, Any]") -> "SE3Config":
        """The configuration of a mapping of any kind (dict, OmegaConf's DictConfig), or conf itself.

        Raises
        ------
        SettingError
            For unknown keys and values out of range.
        """
        if isinstance(conf, cls):
            return conf
        if not isinstance(conf, Mapping):
            raise SettingError(f"the SE(3) configuration is a {type(conf).__name__}; expected a mapping or SE3Config")
        return cls(**plain(conf))

    @classmethod
    def acceptance(cls, coordinate_scaling: float | Literal["auto"] = 0.1) -> "SE3Config":
        """Preset for models under an exact acceptance test: uniform rotations as the base, low noise floors.

        At min_t the noise is 0.031 rad and 0.0105 diffused units (0.1 A at 0.1 per A).
        """
        return cls(
            min_t=0.001,
            so3=SO3Config(min_sigma=0.02, max_sigma=SMALLEST_HAAR_SIGMA, base="haar"),
            r3=R3Config(coordinate_scaling=coordinate_scaling),
        )


def plain(value: Any) -> Any:
    """Mappings of any kind within a configuration (OmegaConf's included) as dictionaries, other values as they are."""
    return {str(key): plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
