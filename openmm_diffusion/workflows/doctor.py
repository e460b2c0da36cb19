"""What this machine offers, and whether the move is exact on it: versions, platforms, devices, a self-check."""

import logging
import os
import platform as machine
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import unit

from .. import __version__
from ..errors import IncompatibleSystemError
from ..mcmc import DiffusionMove
from ..proposals.devices import choose_device
from .doctor_settings import DoctorSettings
from .energies import ReducedPotential
from .self_check import CheckResult, check_exactness
from .systems import TEMPERATURE, MolecularSystem, alanine_dipeptide, build_system, choose_platform, time_platforms

logger = logging.getLogger(__name__)

_PACKAGES = (
    "openmmtools",
    "torch",
    "numpy",
    "scipy",
    "mdtraj",
    "pdbfixer",
    "ParmEd",
    "lightning",
    "roma",
    "safetensors",
    "pymbar",
    "netCDF4",
    "mpiplus",
    "mpi4py",
)


def doctor(settings: DoctorSettings, say: Callable[[str], None] = logger.info) -> CheckResult:
    """Tell versions, platforms and devices, then check the move on the system and the model of the settings.

    Parameters
    ----------
    settings
        System, model and length of the check.
    say
        Takes the report, part by part.

    Returns
    -------
    The result of the check; `is_exact` is None where it decided nothing.
    """
    say(section("versions", versions()))
    say(section("OpenMM platforms (alanine dipeptide in OBC solvent, 22 atoms, 4 fs)", platforms()))
    say(section("torch devices", devices(settings.device)))
    molecule = build_system(settings)
    move = DiffusionMove(settings.model, molecule.topology, settings.n_candidates, device=settings.device, pool_size=64)
    name = _platform_for(molecule, settings.platform)
    proposal = move.proposal
    labels = getattr(getattr(proposal, "torsions", None), "labels", ("unknown coordinates",))
    say(
        section(
            "exactness",
            {
                "system": f"{molecule.name}, {molecule.system.getNumParticles()} particles",
                "model": f"{settings.model}, {type(proposal).__name__} of {', '.join(labels)}",
                "method": "all but these torsions frozen, 300 K; moves from exact starts must change no average",
                "platform": f"{name}, {settings.n_candidates} candidates a move",
            },
        )
    )
    rng = np.random.default_rng(settings.seed)
    result = check_exactness(
        proposal, molecule, name, seconds=settings.seconds, n_candidates=settings.n_candidates, rng=rng
    )
    say(f"  {result}")
    return result


def section(title: str, lines: dict[str, str]) -> str:
    """A title with indented lines of names and values."""
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in lines.items()), ""])


def versions() -> dict[str, str]:
    """This package, Python, OpenMM, and what else matters to a result; "not installed" where it is missing."""
    found = {
        "openmm_diffusion": __version__,
        "python": f"{machine.python_version()} on {machine.system()} {machine.machine()}",
        "openmm": openmm.Platform.getOpenMMVersion(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def platforms(n_steps: int = 200) -> dict[str, str]:
    """Speed, default precision and error of the energy of every OpenMM platform, on alanine dipeptide."""
    molecule = alanine_dipeptide("obc")
    speeds = time_platforms(molecule.system, molecule.positions, n_steps=n_steps)
    reference = _energy(molecule, "Reference")
    told = {}
    for index in range(openmm.Platform.getNumPlatforms()):
        one = openmm.Platform.getPlatform(index)
        name = one.getName()
        if name not in speeds:
            told[name] = "cannot be used here"
            continue
        precision = one.getPropertyDefaultValue("Precision") if "Precision" in one.getPropertyNames() else ""
        precision = precision or ("double" if name == "Reference" else "single")
        off = abs(_energy(molecule, name) - reference)
        told[name] = f"{speeds[name]:8.0f} steps/s, {precision} precision by default, energy within {off:.0e} kJ/mol"
    for failure in openmm.Platform.getPluginLoadFailures():
        library, _, reason = failure.splitlines()[0].partition(": ")
        plugin = Path(library.split()[-1]).stem.removeprefix("libOpenMM")
        if plugin in ("OpenCL", "CUDA", "HIP", "Metal"):  # those of their parts fail with them
            told[plugin] = f"not loaded: {reason}"
    return told


def devices(asked: str | None = None) -> dict[str, str]:
    """The torch devices, and the one that a move uses."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = {"cpu": f"{torch.get_num_threads()} threads, {cores} cores"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        told[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    told["used"] = f"{choose_device(asked)}; maps and densities of torsions in float64"
    return told


def _energy(molecule: MolecularSystem, platform: str) -> float:
    """Potential energy (kJ/mol) with the platform's own precision."""
    context = openmm.Context(
        molecule.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(molecule.positions)
    return float(context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))


def _platform_for(molecule: MolecularSystem, asked: str | None) -> str:
    """The platform asked for, or the one that computes single energies fastest; dynamics plays no part in the check."""
    if asked is not None:
        return str(choose_platform(molecule.system, molecule.positions, asked).getName())
    seconds: dict[str, float] = {}
    for index in range(openmm.Platform.getNumPlatforms()):
        one = openmm.Platform.getPlatform(index)
        try:
            energies = ReducedPotential(molecule.system, one, TEMPERATURE.value_in_unit(unit.kelvin))
            energies([molecule.positions] * 2)
            start = time.perf_counter()
            energies([molecule.positions] * 10)
            seconds[one.getName()] = time.perf_counter() - start
        except openmm.OpenMMException as error:
            logger.info("platform %s cannot run this system: %s", one.getName(), error)
    if not seconds:
        raise IncompatibleSystemError(
            "no OpenMM platform can run this system; the log (level INFO) has what each of them said"
        )
    return min(seconds, key=lambda name: seconds[name])
