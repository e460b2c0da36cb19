"""The settings of `prepare se3`, light to import: `--help` needs neither torch nor mdtraj."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from .settings import Settings


class PrepareSE3Settings(Settings):
    """Settings of `openmm-diffusion prepare se3`."""

    trajectory: list[Path] = Field(min_length=1, description="trajectory files, one replica each (R1, R2, ...)")
    topology: Path = Field(description="topology of the trajectories, in any format that mdtraj reads")
    output: Path = Field(description="data folder; gets {name}_R{k}{suffix}.npy")
    name: str = Field(min_length=1, pattern=r"^[^/\\\s,]+$", description="name of the protein in files and tables")
    suffix: str = Field("", pattern=r"^[^/\\\s,]*$", description="end of the file names, such as _i10")
    replica: int = Field(1, ge=0, description="number k of the first trajectory; the others follow")
    selection: str | None = Field(None, description="mdtraj selection of the chain, such as 'chainid 0'")
    caps: bool = Field(False, description="take the caps ACE, NME and NH2 as residues, as exact acceptance needs them")
    weights: list[Path] | None = Field(
        None, description=".npz file with 'weights', one a frame, for each trajectory; training draws frames by them"
    )
    stride: int = Field(1, ge=1, description="take every stride-th frame")
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="number type of the files; float16 halves them and rounds to 0.01 Angstrom"
    )
    superpose: Literal["heavy", "ca"] = Field("heavy", description="atoms that are superposed on the first frame")
    nested: bool = Field(False, description="write {output}/{name}/{name}_R{k}{suffix}.npy instead")
    atlas_csv: Path | None = Field(None, description="table of sequences; {output}/atlas.csv by default")
    train_split: Path | None = Field(None, description="table of frame splits; {output}/frame_splits.csv by default")
    train_share: float = Field(0.6, gt=0, lt=1, description="share of the frames for training")
    val_share: float = Field(0.2, gt=0, lt=1, description="share of the frames for validation; the rest is for testing")
    early_frames: int = Field(0, ge=0, description="first stored frames that only train_early takes (equilibration)")
    gap_frames: int = Field(0, ge=0, description="stored frames left out between splits, against their correlation")
    blocks: int | None = Field(
        None,
        ge=1,
        description="deal so many blocks of each trajectory to the splits by their shares, for frames that are not in "
        "the order of time (replicas, temperatures); 1 by default, 100 with --weights",
    )
    chunk: int | None = Field(None, ge=1, description="frames in memory at once; by their size if not given")
