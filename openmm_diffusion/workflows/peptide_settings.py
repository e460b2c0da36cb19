"""The settings of the comparison of peptides, light to import: `--help` needs neither torch nor OpenMM."""

from pathlib import Path

from pydantic import Field

from .settings import Settings


class PeptideSettings(Settings):
    """Settings of the comparison in `examples/peptides.py`."""

    output: Path = Field(description="folder to write")
    sequence: str = Field("ACE-ALA-ALA-ALA-NME", description="three-letter codes, caps included")
    model: str = Field("ace-ala3-nme", description="name or path of an SE(3) model")
    tempering: Path | None = Field(None, description="folder of 'openmm-diffusion simulate'; made if not given")
    tempering_iterations: int = Field(5000, ge=20, description="its length where it is made")
    independent_moves: int = Field(1, ge=0, description="independent moves in a cycle of moves")
    local_moves: int = Field(0, ge=0, description="local moves in a cycle of moves")
    n_candidates: int = Field(32, ge=1, description="candidates of an independent move")
    local_candidates: int = Field(8, ge=1, description="candidates of a local move")
    t_star: float = Field(0.2, gt=0, le=1, description="time up to which local moves noise the frames: their step size")
    window: int | None = Field(None, ge=1, description="residues that a local move frees; all by default")
    md_steps: int = Field(250, ge=1, description="Langevin steps of 4 fs after every move")
    minutes: float = Field(10.0, gt=0, description="wall time of the hybrid chain")
    md_minutes: float = Field(5.0, gt=0, description="wall time of plain dynamics, one walker a core")
    tempering_seconds: float = Field(20.0, gt=0, description="wall time in which parallel tempering is timed")
    platform: str | None = Field(None, description="OpenMM platform; the fastest one measured by default")
    device: str | None = Field(None, description="torch device; cuda where there is one, else cpu")
    seed: int = Field(0, ge=0, description="seed of moves and dynamics")
