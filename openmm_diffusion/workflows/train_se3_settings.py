"""The settings of `openmm-diffusion train se3`, light to import: `--help` needs no torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from .se3_presets import training_preset
from .settings import Settings


class TrainSE3Settings(Settings):
    """Settings of `openmm-diffusion train se3`; the first eight are those of the first seed's command."""

    data_dir: Path = Field(description="folder of {name}_R{k}{suffix}.npy, as 'prepare se3' writes it")
    atlas_csv: Path | None = Field(None, description="table of sequences; {data_dir}/atlas.csv by default")
    train_split: Path | None = Field(None, description="table of frame splits; {data_dir}/frame_splits.csv by default")
    suffix: str = Field("", description="end of the file names before .npy")
    batch_size: int = Field(8, ge=1, description="frames a step (of each process)")
    epochs: int = Field(100, ge=1, description="passes over the training frames")
    lr: float = Field(1e-4, gt=0, description="learning rate of Adam")
    save_dir: Path = Field(
        Path("checkpoints/se3"), description="folder to write; the model is model.safetensors and model.json in it"
    )
    preset: Literal["seed", "small", "acceptance"] = Field(
        "seed",
        description="network and noise: the first seed's; small, for a CPU; acceptance, for exact Metropolis-Hastings, "
        "with other defaults of training too",
    )
    model_conf: Path | None = Field(None, description="YAML of the network's keys, put over the preset")
    se3_conf: Path | None = Field(None, description="YAML of the noise process's keys, put over the preset")
    max_minutes: float | None = Field(None, gt=0, description="wall time after which training ends")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="share of the residues in a training crop; 1 for no crops")
    inclusion: Literal["equal", "horvitz-thompson"] = Field(
        "equal", description="equal inclusion of residues by the weights of crops, or by weights in the loss"
    )
    crop_tolerance: float = Field(
        1e-3, gt=0, description="largest deviation of the inclusion from its mean, relative, with inclusion equal"
    )
    cache_mb: float = Field(512.0, ge=0, description="MB; frames and torsions are kept in memory if they need less")
    frame_interval: int = Field(1, ge=1, description="the files hold every n-th of the frames that the table counts")
    overfit: int = Field(0, ge=0, description="take only the first n frames of each trajectory's split; 0 for all")
    rot_loss_weight: float = Field(1.0, ge=0, description="weight of the rotation score")
    trans_loss_weight: float = Field(1.0, ge=0, description="weight of the translation score")
    psi_loss_weight: float = Field(1.0, ge=0, description="weight of psi")
    atom_loss_weight: float = Field(0.0, ge=0, description="weight of backbone atoms below t = 0.25")
    distance_loss_weight: float = Field(0.0, ge=0, description="weight of their distances below 6 Angstrom")
    trans_weighting: Literal["score", "x0", "balanced"] = Field(
        "score", description="translation loss: normalised score, x_0, or x_0 over the noise variance"
    )
    auxiliary_width: float | None = Field(
        None,
        gt=0,
        le=1,
        description="rad and Angstrom; train on the data's phi and psi with bonds, angles and other torsions drawn "
        "afresh with this width, as exact acceptance needs; on the data as they are if not given",
    )
    flatten: float = Field(
        0.0, ge=0, le=1, description="more of the rare basins of phi and psi: exponent of the density divided out"
    )
    time_grid: Literal["uniform", "noise"] = Field(
        "uniform", description="training times uniform in t, or stratified in the mean logarithm of the noise levels"
    )
    max_t: float = Field(1.0, gt=0, le=1, description="largest time of training")
    low_noise_share: float = Field(
        0.0, ge=0, le=1, description="share of the training times that are uniform in log t: sharper bonds and angles"
    )
    loss_clip: float | None = Field(None, gt=0, description="largest rotation and translation loss of a sample")
    self_conditioning: float = Field(
        0.5, ge=0, le=1, description="share of the steps with self-conditioning; 0 for an exact acceptance"
    )
    cosine_decay: bool = Field(False, description="let the learning rate fall to 1 % over the training")
    warmup_steps: int = Field(0, ge=0, description="steps of a linear warm-up of the learning rate")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the moving average of the weights, reached after a warm-up"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    validate_every: int | None = Field(None, ge=1, description="epochs between validations; by default about 500 steps")
    num_workers: int = Field(0, ge=0, description="processes that make batches; 0 for the training's own")
    accelerator: str = Field("auto", description="Lightning accelerator: cpu, gpu, auto")
    devices: str = Field("1", description="Lightning devices: how many, a list, or auto")
    num_nodes: int = Field(1, ge=1, description="Lightning num_nodes")
    strategy: str = Field("auto", description="Lightning strategy, such as ddp")
    precision: str | None = Field(
        None, description="Lightning precision; bf16-mixed on a GPU (rotations stay in float32), else 32-true"
    )
    threads: int = Field(0, ge=0, description="threads of torch on a CPU; 0 for one a core")
    seed: int = Field(0, ge=0, description="seed of weights, noise, batches and crops")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Settings that the preset implies, where they are not given: files and cards then show what was used."""
        return {**training_preset(values.get("preset", "")), **values} if isinstance(values, dict) else values

    def implied(self) -> dict[str, Any]:
        """What the preset implies."""
        return training_preset(self.preset)

    @property
    def output(self) -> Path:
        """The folder to write."""
        return self.save_dir
