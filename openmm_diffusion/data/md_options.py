"""What `MDGenDataset` reads of its `args`: the data's place, the splits, crops, noise levels of validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import SettingError


class DataOptions(BaseModel):
    """Options of the SE(3) data set; `args` may hold any others, of the command that trains."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    data_dir: Path = Field(description="folder of {name}_R{k}{suffix}.npy, flat or one folder for each name")
    atlas_csv: Path = Field(description="table of sequences (name, seqres)")
    train_split: Path | None = Field(None, description="table of frame splits; without it every mode takes all frames")
    suffix: str = Field("", description="end of the file names before .npy")
    frame_interval: int = Field(1, ge=1, description="the files hold every n-th of the frames that the table counts")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="share of the residues in a training crop; 1 for no crops")
    inclusion: Literal["equal", "horvitz-thompson"] = Field(
        "equal", description="equal inclusion of residues by the weights of crops, or by weights in the loss"
    )
    crop_tolerance: float = Field(1e-3, gt=0, description="largest deviation of the inclusion from its mean, relative")
    overfit: int = Field(0, ge=0, description="take only the first n frames of each trajectory's split; 0 for all")
    overfit_peptide: str | None = Field(None, description="take only the trajectories of this protein")
    seed: int = Field(0, ge=0, description="seed of noise, times and crops")
    cache_mb: float = Field(512.0, ge=0, description="MB; frames and torsions are kept in memory if they need less")
    n_val_t: int = Field(20, ge=1, description="noise levels of the validation grid")
    val_t: list[float] | None = Field(None, description="noise levels of validation instead of the grid")
    low_noise_share: float = Field(
        0.0, ge=0, le=1, description="share of the training times that are uniform in log t instead of t"
    )
    auxiliary_width: float | None = Field(
        None,
        gt=0,
        le=1,
        description="rad and Angstrom; frames are built from the data's phi and psi, and from bonds, angles and other "
        "torsions drawn afresh with this width, as a model for exact acceptance needs; data as they are if not given",
    )
    flatten: float = Field(
        0.0, ge=0, le=1, description="exponent with which the frames drawn are flattened over basins of phi and psi"
    )
    time_grid: Literal["uniform", "noise"] = Field(
        "uniform", description="times uniform in t, or stratified in the mean logarithm of the two noise levels"
    )
    max_t: float = Field(1.0, gt=0, le=1, description="largest time of training and of the validation grid")
    fixed_t: float | None = Field(None, gt=0, le=1, description="one noise level for every item, in any mode")
    coord_scale: float | None = Field(
        None, gt=0, description="length units of the tensors per Angstrom; 1 / std of the training CA by default"
    )
    scale_frames: int = Field(20_000, ge=1, description="frames at most that the standard deviation is measured on")

    @classmethod
    def of(cls, args: Any) -> Self:
        """Options of a mapping (dict, OmegaConf's DictConfig) or an object with attributes (argparse's Namespace).

        Raises SettingError where one is missing or out of range.
        """
        if isinstance(args, cls):
            return args
        if isinstance(args, Mapping):
            given = {key: args.get(key) for key in cls.model_fields}
        else:
            given = {key: getattr(args, key, None) for key in cls.model_fields}
        given = {key: _plain(value) for key, value in given.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            value = "missing" if first["type"] == "missing" else repr(first["input"])
            raise SettingError(f"the data option {key} is {value}: {first['msg']}; expected {_meaning(key)}") from error


def _plain(value: Any) -> Any:
    # OmegaConf's lists are sequences, but not lists; a boolean --overfit means one frame.
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | int | float | Path) else list(value)


def _meaning(key: str) -> str:
    field = DataOptions.model_fields.get(key.split(".")[0])
    return (field.description if field else None) or key
