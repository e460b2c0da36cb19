"""Settings of `openmm-diffusion sample`, light to import."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .settings import Settings


class SampleSettings(Settings):
    """Settings of `openmm-diffusion sample`."""

    output: Path = Field(description="folder to write")
    system: str = Field(
        "alanine-dipeptide-obc",
        description="alanine-dipeptide-obc, alanine-dipeptide-vacuum, villin-hp35, a sequence such as "
        "ACE-ALA-ALA-NME, or a file",
    )
    coordinates: Path | None = Field(None, description="coordinates, where the file of the system has none")
    force_field: list[str] = Field(
        ["amber99sbildn.xml", "amber99_obc.xml"], description="OpenMM force fields, for villin, sequences and files"
    )
    hydrogen_mass: float = Field(3.0, ge=1.0, le=4.5, description="amu; repartitioned so that 4 fs are stable")
    model: str = Field("alanine-dipeptide-torsion", description="name or path of a model")
    n_iterations: int = Field(1000, ge=1, description="moves of each chain, md_steps of dynamics after each")
    n_candidates: int = Field(8, ge=1, description="candidates a move")
    torsions: list[str] | None = Field(None, description="kinds of torsions to set; by default all of the model")
    t_star: float | None = Field(None, gt=0, le=1, description="makes the move local: noise up to this time")
    window: int | None = Field(None, ge=1, description="residues that a local move sets at a time; all by default")
    density: Literal["path", "flow"] | None = Field(
        None, description="density of an SE(3) model's draws; the model's own by default"
    )
    n_diffusion_steps: int | None = Field(None, ge=1, description="levels of noise; the model's own number by default")
    pool_size: int | None = Field(None, ge=1, description="candidates drawn at a time; the proposal's own by default")
    md_steps: int = Field(250, ge=1, description="Langevin steps after every move")
    timestep: float = Field(4.0, gt=0, le=10, description="fs")
    collision_rate: float = Field(1.0, gt=0, description="1/ps")
    temperature: float = Field(300.0, gt=0, description="K")
    equilibration_steps: int = Field(5000, ge=0, description="Langevin steps before the first move, after minimisation")
    walkers: int = Field(1, ge=1, le=256, description="independent chains, one process each")
    report_interval: int = Field(1, ge=1, description="iterations between frames of the trajectory")
    checkpoint_interval: int = Field(100, ge=1, description="iterations between checkpoints")
    format: Literal["dcd", "xtc"] = Field("dcd", description="of the trajectory: dcd, or xtc (smaller, 1e-3 nm)")
    platform: str | None = Field(None, description="OpenMM platform; the fastest one measured by default")
    device: str | None = Field(None, description="torch device; cuda where there is one, else cpu")
    seed: int = Field(0, ge=0, description="seed of every random number")

    def move_options(self) -> dict[str, Any]:
        """The options of `DiffusionMove` that are given.

        A checkpoint cannot hold what is left of a batch drawn from a flow, so batches of flows are made to end where
        blocks between checkpoints end: nothing is left then.
        """
        names = ("torsions", "t_star", "window", "density", "n_diffusion_steps", "pool_size", "device")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.density == "flow" and self.t_star is None:
            size, n = self.pool_size or 512, self.checkpoint_interval
            fitting = (k for k in range(n, 0, -1) if n % k == 0 and k * self.n_candidates <= size)
            options["pool_size"] = self.n_candidates * next(fitting, 1)
        return options
