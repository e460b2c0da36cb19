"""What a hybrid chain is compared with: plain MD on every core, and the best that any marginal proposal could do."""

import json
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..analysis.marginal import acceptance_limits, kish_limit, marginal_eta, oracle_eta
from ..analysis.mixing import in_basin_r
from ..molecule import BackboneTorsions
from .energies import ReducedPotential
from .systems import TEMPERATURE, TIMESTEP, MolecularSystem


def reference(solvent: str) -> dict[str, Any]:
    """Escape time and free energies measured once for "obc" or "vacuum", with the commands that measured them."""
    text = files("openmm_diffusion.workflows").joinpath("alanine_references.json").read_text(encoding="utf-8")
    return dict(json.loads(text)[solvent])


def md_speed(molecule: MolecularSystem, platform: str, seconds: float = 10.0, walkers: int | None = None) -> float:
    """Simulated ns a wall second of plain Langevin dynamics (4 fs), one walker a core, all of them together."""
    n = walkers or available_cores()
    jobs = [(openmm.XmlSerializer.serialize(molecule.system), molecule.positions, platform, seconds)] * n
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_walk, *zip(*jobs, strict=True)))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _walk(system_xml: str, positions: NDArray[np.float64], platform: str, seconds: float) -> float:
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, TIMESTEP)
    context = openmm.Context(
        openmm.XmlSerializer.deserialize(system_xml), integrator, openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    context.setVelocitiesToTemperature(TEMPERATURE)
    integrator.step(1000)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        integrator.step(500)
        steps += 500
    return steps * float(TIMESTEP.value_in_unit(unit.nanosecond)) / (time.perf_counter() - start)


@dataclass(frozen=True)
class MarginalLimits:
    """What the true (phi, psi) marginal reaches as a proposal on given frames, by number of candidates."""

    acceptance: dict[int, float]
    eta: dict[int, float | None]
    eta_oracle: float | None
    kish: float


def marginal_limits(
    molecule: MolecularSystem,
    frames: NDArray[np.float64],
    platform: openmm.Platform,
    n_candidates: tuple[int, ...] = (1, 8, 32),
    *,
    bins: int = 36,
    seed: int = 0,
) -> MarginalLimits:
    """Limits on frames [n, atoms, 3] (nm) from the energies of a (phi, psi) grid at each frame's own rho."""
    return limits_of_grid(*grid_energies(molecule, frames, platform, bins), n_candidates, seed=seed)


def limits_of_grid(
    u: NDArray[np.float64], grid: NDArray[np.float64], n_candidates: tuple[int, ...] = (1, 8, 32), *, seed: int = 0
) -> MarginalLimits:
    """Limits from reduced potentials u [frames, G] at the (phi, psi) points grid [G, 2] of `grid_energies`."""
    rng = np.random.default_rng(seed)
    in_r = in_basin_r(grid[:, 0])
    eta = {n: marginal_eta(u, in_r, n, rng=rng) for n in n_candidates}
    return MarginalLimits(
        acceptance=acceptance_limits(u, n_candidates, rng=rng),
        eta=eta,
        eta_oracle=oracle_eta(u, in_r),
        kish=float(kish_limit(u)),
    )


def grid_energies(
    molecule: MolecularSystem, frames: NDArray[np.float64], platform: openmm.Platform, bins: int = 36
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reduced potentials [frames, bins^2] with (phi, psi) set to the points [bins^2, 2] (rad) of a grid."""
    torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
    centres = -math.pi + (np.arange(bins) + 0.5) * 2 * math.pi / bins
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    potential = ReducedPotential(molecule.system, platform, TEMPERATURE.value_in_unit(unit.kelvin))
    u = np.array([potential(torsions.set(np.asarray(frame, dtype=np.float64), grid)) for frame in frames])
    return u, grid
