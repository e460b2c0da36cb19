"""The settings of every job, light to import: `--help` needs neither torch nor OpenMM."""

from pathlib import Path

from pydantic import Field

from .settings import Settings


class SimulateSettings(Settings):
    """Settings of `openmm-diffusion simulate`."""

    output: Path = Field(description="folder to write")
    system: str = Field(
        "alanine-dipeptide-obc",
        description="alanine-dipeptide-obc, alanine-dipeptide-vacuum, a sequence such as ACE-ALA-ALA-NME, or a file",
    )
    coordinates: Path | None = Field(None, description="coordinates, where the file of the system has none")
    force_field: list[str] = Field(
        ["amber99sbildn.xml", "amber99_obc.xml"], description="OpenMM force fields, for files"
    )
    temperature: float = Field(300.0, gt=0, description="K; the temperature of the weights, and of the coldest replica")
    max_temperature: float = Field(900.0, gt=0, description="K; the temperature of the hottest replica")
    n_replicas: int = Field(6, ge=2, description="temperatures of the ladder")
    n_iterations: int = Field(7000, ge=1, description="exchanges; each replica runs steps_per_iteration between them")
    steps_per_iteration: int = Field(250, ge=1, description="MD steps between exchanges and between stored frames")
    timestep: float = Field(4.0, gt=0, le=10, description="fs")
    hydrogen_mass: float = Field(3.0, ge=1.0, le=4.5, description="amu; repartitioned so that 4 fs are stable")
    discard: float = Field(0.05, ge=0, lt=1, description="share of the iterations dropped as equilibration")
    walkers: int = Field(2, ge=1, le=64, description="independent ladders, one process each")
    platform: str | None = Field(None, description="OpenMM platform; the fastest one measured by default")
    seed: int = Field(0, ge=0, description="seed of the exchanges; OpenMM's integrators draw their own seeds")


class PlainMDSettings(Settings):
    """Settings of `openmm-diffusion md`."""

    output: Path = Field(description="folder to write; trajectory.dcd and topology.pdb in it")
    system: str = Field(
        "villin-hp35",
        description="villin-hp35, alanine-dipeptide-obc, alanine-dipeptide-vacuum, a sequence such as "
        "ACE-ALA-ALA-NME, or a file",
    )
    coordinates: Path | None = Field(None, description="coordinates, where the file of the system has none")
    force_field: list[str] = Field(
        ["amber99sbildn.xml", "amber99_obc.xml"], description="OpenMM force fields, for villin and for files"
    )
    temperature: float = Field(300.0, gt=0, description="K")
    nanoseconds: float = Field(2.0, gt=0, description="length of the trajectory after equilibration")
    equilibration_ps: float = Field(100.0, ge=0, description="ps left out at the start")
    interval_ps: float = Field(2.0, gt=0, description="ps between stored frames")
    timestep: float = Field(4.0, gt=0, le=10, description="fs")
    hydrogen_mass: float = Field(3.0, ge=1.0, le=4.5, description="amu; repartitioned so that 4 fs are stable")
    platform: str | None = Field(None, description="OpenMM platform; the fastest one measured by default")
    seed: int = Field(0, ge=0, le=2**30, description="seed of velocities and of the thermostat")


class PrepareTorsionSettings(Settings):
    """Settings of `openmm-diffusion prepare torsion`."""

    trajectory: list[Path] = Field(min_length=1, description="trajectory files, in any format that mdtraj reads")
    topology: Path = Field(description="topology file of the trajectory (PDB, mmCIF, prmtop, top, psf)")
    output: Path = Field(description="data set to write (.npz)")
    torsions: list[str] = Field(["phi", "psi"], description="kinds of torsions: phi, psi, omega")
    weights: Path | None = Field(
        None, description=".npz with 'weights' of all frames in order, as 'simulate' writes it"
    )
    stride: int = Field(1, ge=1, description="take every stride-th frame")


class TrainTorsionSettings(Settings):
    """Settings of `openmm-diffusion train torsion`."""

    data: Path = Field(description="data set of 'prepare torsion' (.npz)")
    output: Path = Field(description="folder to write; the model is model.safetensors and model.json in it")
    n_steps: int = Field(15_000, ge=1, description="training steps")
    batch_size: int = Field(1024, ge=1, description="frames a step, drawn by their weights")
    lr: float = Field(2e-3, gt=0, description="highest learning rate; cosine decay")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the moving average of the weights")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    hidden_size: int = Field(64, ge=1, description="width of the network")
    n_layers: int = Field(2, ge=1, description="hidden layers of the network")
    n_harmonics: int = Field(6, ge=1, description="harmonics of each torsion among the features")
    min_sigma: float = Field(0.05, gt=0, lt=1, description="rad; smallest noise, which is what the samples keep")
    n_diffusion_steps: int = Field(
        8, ge=1, description="steps of the map from noise to data that the model is used with"
    )
    flatten: float = Field(
        0.4,
        ge=0,
        le=1,
        description="rare basins get weights / density^flatten in training; 0 learns the data as they are",
    )
    validation_share: float = Field(0.1, gt=0, lt=0.9, description="share of the frames held out")
    accelerator: str = Field(
        "cpu", description="Lightning accelerator: cpu, gpu, auto; a network this small is fastest on cpu"
    )
    seed: int = Field(0, ge=0, description="seed of weights, noise, batches and split")


class GenerateTorsionSettings(Settings):
    """Settings of `openmm-diffusion generate torsion`."""

    output: Path = Field(description="folder to write")
    model: str = Field("alanine-dipeptide-torsion", description="name or path of a torsion model")
    system: str = Field(
        "alanine-dipeptide-obc",
        description="alanine-dipeptide-obc, alanine-dipeptide-vacuum, a sequence such as ACE-ALA-ALA-NME, or a file",
    )
    coordinates: Path | None = Field(None, description="coordinates, where the file of the system has none")
    force_field: list[str] = Field(
        ["amber99sbildn.xml", "amber99_obc.xml"], description="OpenMM force fields, for files"
    )
    frames: Path | None = Field(None, description="trajectory whose frames carry the torsions; short MD by default")
    weights: Path | None = Field(None, description=".npz with 'weights' of its frames, as 'simulate' writes it")
    n_frames: int = Field(100, ge=1, description="frames to take: evenly spaced, or in proportion to the weights")
    n_candidates: int = Field(64, ge=32, description="torsions drawn for each frame, at least 32")
    temperature: float = Field(300.0, gt=0, description="K")
    timestep: float = Field(4.0, gt=0, le=10, description="fs")
    hydrogen_mass: float = Field(3.0, ge=1.0, le=4.5, description="amu; repartitioned so that 4 fs are stable")
    md_steps: int = Field(2500, ge=0, description="MD steps from every structure kept; 0 for none")
    limit_grid: int = Field(
        36, ge=0, le=180, description="points an axis of the grid for the limit of the true marginal; 0 for no limit"
    )
    platform: str | None = Field(None, description="OpenMM platform; the fastest one measured by default")
    device: str | None = Field(None, description="torch device; cuda where there is one, else cpu")
    seed: int = Field(0, ge=0, description="seed of torsions, choices and velocities")
