"""The settings of `openmm-diffusion generate se3`, light to import: `--help` needs no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from .settings import Settings

FORMATS = ("pdb", "models", "dcd")


class GenerateSE3Settings(Settings):
    """Settings of `openmm-diffusion generate se3`."""

    output: Path = Field(description="folder to write")
    model: str = Field(description="name or path of an SE(3) model")
    n_samples: int = Field(100, ge=1, description="backbones to draw")
    sampler: Literal["reverse_sde", "probability_flow", "exponential_integrator"] = Field(
        "reverse_sde",
        description="reverse_sde (walk with noise), probability_flow (Heun, two network calls a step), or "
        "exponential_integrator (second order, one call a step)",
    )
    n_steps: int = Field(100, ge=1, description="steps from noise to data")
    noise_scale: float = Field(
        1.0,
        ge=0,
        description="noise of reverse_sde; 1 is the SDE itself, the first seed's 0.1 collapses the ensemble (to a "
        "tenth of its width for normal data), with fewer broken chains",
    )
    rho: float = Field(2.0, ge=1, description="crowding of the steps at low noise; 1 for even steps")
    min_t: float | None = Field(None, gt=0, lt=1, description="last time; that of the training by default")
    denoise: bool = Field(
        True, description="end with the estimate of the clean backbone; else keep the noise of the last time"
    )
    batch_size: int = Field(64, ge=1, description="backbones at a time")
    sequence: str | None = Field(None, description="one-letter sequence; that of the model by default")
    formats: list[str] = Field(
        ["models", "dcd"], description="pdb (a file for each), models (one PDB with all), dcd (with topology.pdb)"
    )
    side_chains: bool = Field(False, description="add side chains and hydrogens by pdbfixer, a PDB file for each")
    data_dir: Path | None = Field(None, description="folder of 'prepare se3': MD to compare with")
    name: str | None = Field(None, description="trajectory in it, such as villin_R1; all of this length by default")
    suffix: str = Field("", description="end of the file names before .npy")
    train_split: Path | None = Field(None, description="table of frame splits; {data_dir}/frame_splits.csv by default")
    frame_interval: int = Field(1, ge=1, description="the files hold every n-th of the frames that the table counts")
    held_out: Literal["unseen", "test", "val", "all"] = Field(
        "unseen",
        description="frames to compare torsions with: unseen (val and test, which training never drew), or one",
    )
    device: str | None = Field(None, description="torch device; cuda where there is one, else cpu")
    seed: int = Field(0, ge=0, description="seed of starts and noise")

    @field_validator("formats")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(value) - set(FORMATS))
        if unknown or not value:
            raise ValueError(f"expected one or more of {', '.join(FORMATS)}")
        return value
