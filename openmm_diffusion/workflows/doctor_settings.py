"""Settings of the doctor, light to import."""

from pathlib import Path

from pydantic import Field

from .settings import Settings


class DoctorSettings(Settings):
    """Settings of `openmm-diffusion doctor`."""

    system: str = Field(
        "alanine-dipeptide-obc",
        description="alanine-dipeptide-obc, alanine-dipeptide-vacuum, a sequence such as ACE-ALA-ALA-NME, or a file",
    )
    coordinates: Path | None = Field(None, description="coordinates, where the file of the system has none")
    force_field: list[str] = Field(
        ["amber99sbildn.xml", "amber99_obc.xml"], description="OpenMM force fields, for files"
    )
    hydrogen_mass: float = Field(3.0, ge=1.0, le=4.5, description="amu; repartitioned")
    model: str = Field("alanine-dipeptide-torsion", description="name or path of a model")
    seconds: float = Field(10.0, gt=0, le=86_400, description="length of the exactness check")
    n_candidates: int = Field(1, ge=1, description="candidates a move; 1 is the most sensitive to a wrong density")
    platform: str | None = Field(None, description="OpenMM platform of the check; the fastest for it by default")
    device: str | None = Field(None, description="torch device; cuda where there is one, else cpu")
    seed: int = Field(0, ge=0, description="seed of the check")
