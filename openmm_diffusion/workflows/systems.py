"""The systems of the examples, those of files, and the choice of the fastest platform for a system."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..errors import SettingError
from ..molecule import load, peptide
from ..molecule.peptide import is_sequence
from ..molecule.quantities import in_nanometers

logger = logging.getLogger(__name__)

TIMESTEP = 4.0 * unit.femtoseconds
HYDROGEN_MASS = 3.0 * unit.amu  # what makes 4 fs stable together with constrained bonds to hydrogen
TEMPERATURE = 300.0 * unit.kelvin


@dataclass(frozen=True)
class MolecularSystem:
    """A named OpenMM System with its Topology and positions [atoms, 3] in nm."""

    name: str
    topology: app.Topology
    system: openmm.System
    positions: NDArray[np.float64]


def alanine_dipeptide(solvent: str = "obc", hydrogen_mass: Any = HYDROGEN_MASS) -> MolecularSystem:
    """ACE-ALA-NME with constrained bonds to hydrogen.

    Parameters
    ----------
    solvent
        "obc": amber99sbildn with OBC implicit solvent (OpenMM's native GBSAOBCForce). "vacuum": openmmtools'
        `AlanineDipeptideVacuum` (amber96).
    hydrogen_mass
        Mass of repartitioned hydrogens; None keeps the real one (then 2 fs is the largest safe time step).
    """
    from openmmtools import testsystems  # seconds to import

    vacuum = testsystems.AlanineDipeptideVacuum(hydrogenMass=hydrogen_mass)
    positions = in_nanometers(vacuum.positions)
    if solvent == "vacuum":
        return MolecularSystem("alanine-dipeptide-vacuum", vacuum.topology, vacuum.system, positions)
    if solvent != "obc":
        raise SettingError(f"solvent is {solvent!r}; expected 'obc' or 'vacuum'")
    force_field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = force_field.createSystem(
        vacuum.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds, hydrogenMass=hydrogen_mass
    )
    return MolecularSystem("alanine-dipeptide-obc", vacuum.topology, system, positions)


def villin(force_field: Sequence[str], hydrogen_mass: Any = HYDROGEN_MASS) -> MolecularSystem:
    """Villin headpiece HP35, 35 residues, from the solvated structure that OpenMM ships; implicit solvent or none."""
    pdb = app.PDBFile(str(Path(app.__file__).parent / "data" / "test.pdb"))
    protein = app.Modeller(pdb.topology, pdb.positions)
    protein.deleteWater()
    protein.delete([residue for residue in protein.topology.residues() if residue.name in ("Cl", "Na", "CL", "NA")])
    system = app.ForceField(*force_field).createSystem(
        protein.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds, hydrogenMass=hydrogen_mass
    )
    return MolecularSystem("villin-hp35", protein.topology, system, in_nanometers(protein.positions))


class SystemSettings(Protocol):
    """The settings of a job that say which system it runs on."""

    @property
    def system(self) -> str: ...
    @property
    def coordinates(self) -> Path | None: ...
    @property
    def force_field(self) -> list[str]: ...
    @property
    def hydrogen_mass(self) -> float: ...


def build_system(settings: SystemSettings) -> MolecularSystem:
    """A named system, a peptide by its sequence, or the molecule of a file: in its own force field or the one given.

    Solvated boxes get particle mesh Ewald, everything else no cutoff.
    """
    mass = settings.hydrogen_mass * unit.amu
    if settings.system in ("alanine-dipeptide-obc", "alanine-dipeptide-vacuum"):
        return alanine_dipeptide(settings.system.rsplit("-", 1)[1], mass)
    if settings.system == "villin-hp35":
        return villin(settings.force_field, mass)
    loaded = peptide(settings.system) if is_sequence(settings.system) else load(settings.system, settings.coordinates)
    solvated = loaded.box_vectors is not None and any(r.name in ("HOH", "WAT") for r in loaded.topology.residues())
    options = {
        "nonbondedMethod": app.PME if solvated else app.NoCutoff,
        "constraints": app.HBonds,
        "hydrogenMass": mass,
    }
    try:
        if loaded.system_source is not None:
            system = loaded.system_source.create_system(**options)
        else:
            system = app.ForceField(*settings.force_field).createSystem(loaded.topology, **options)
    except (ValueError, OSError) as error:
        raise SettingError(f"{settings.system} does not go with {', '.join(settings.force_field)}: {error}") from error
    return MolecularSystem(Path(settings.system).stem, loaded.topology, system, loaded.positions)


def time_platforms(
    system: openmm.System, positions: Any, timestep: Any = TIMESTEP, n_steps: int = 500
) -> dict[str, float]:
    """MD steps a second on every platform that can run the system, fastest first."""
    speeds: dict[str, float] = {}
    for index in range(openmm.Platform.getNumPlatforms()):
        platform = openmm.Platform.getPlatform(index)
        integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, timestep)
        try:
            context = openmm.Context(system, integrator, platform)
            context.setPositions(positions)
            integrator.step(20)
            context.getState(energy=True)
            start = time.perf_counter()
            integrator.step(n_steps)
            context.getState(energy=True)  # waits for asynchronous platforms
        except openmm.OpenMMException as error:
            logger.info("platform %s cannot run this system: %s", platform.getName(), error)
            continue
        speeds[platform.getName()] = n_steps / (time.perf_counter() - start)
        del context, integrator
    if not speeds:
        raise SettingError("no OpenMM platform can run this system; see the log for what each of them said")
    return dict(sorted(speeds.items(), key=lambda item: -item[1]))


def choose_platform(system: openmm.System, positions: Any, name: str | None = None) -> openmm.Platform:
    """The platform named, or the fastest one measured on this system: a guess by name is wrong for small molecules."""
    if name is None:
        speeds = time_platforms(system, positions)
        name = next(iter(speeds))
        logger.info("platforms: %s", ", ".join(f"{key} {value:.0f} steps/s" for key, value in speeds.items()))
    try:
        return openmm.Platform.getPlatformByName(name)
    except openmm.OpenMMException as error:
        known = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        raise SettingError(f"platform {name!r} is not available; choose among {', '.join(known)}") from error
