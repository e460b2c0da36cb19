"""Measure how long plain MD of alanine dipeptide stays in the rare basin R (0 < phi < 2.2 rad).

Every escape starts from a fresh equilibrated state of R and ends when phi reaches the core of L, so that recrossings of
the barrier do not count. The mean is the maximum-likelihood estimate for exponential times. The result stands in
`openmm_diffusion/workflows/alanine_references.json`.

    python examples/measure_escape.py --solvent obc --escapes 40 --output escape_obc.json
"""

import argparse
import json
import math
import os
import time

import numpy as np
import openmm
from openmm import unit
from tqdm.auto import tqdm

from openmm_diffusion.molecule import BackboneTorsions
from openmm_diffusion.workflows.systems import TEMPERATURE, TIMESTEP, alanine_dipeptide, choose_platform

CORE_L = (-2.8, -0.7)  # rad: the populated range of phi in L, away from both barriers
CORE_R = (0.6, 1.6)
STEPS_BETWEEN_LOOKS = 50


def start_in_r(context: openmm.Context, torsions: BackboneTorsions, positions: np.ndarray) -> np.ndarray:
    """Positions near the lowest energy with phi = 1 rad."""
    psi = np.linspace(-math.pi, math.pi, 36, endpoint=False)
    candidates = torsions.set(positions, np.stack([np.full_like(psi, 1.0), psi], -1))
    energies = []
    for candidate in candidates:
        context.setPositions(candidate)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    context.setPositions(candidates[int(np.argmin(energies))])
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvent", choices=("obc", "vacuum"), default="obc")
    parser.add_argument("--escapes", type=int, default=40)
    parser.add_argument("--equilibrate-ps", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()

    molecule = alanine_dipeptide(options.solvent)
    torsions = BackboneTorsions(molecule.topology, ("phi", "psi"))
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, TIMESTEP)
    integrator.setRandomNumberSeed(options.seed)
    platform = choose_platform(molecule.system, molecule.positions)
    context = openmm.Context(molecule.system, integrator, platform)
    start = start_in_r(context, torsions, molecule.positions)
    step_ns = TIMESTEP.value_in_unit(unit.nanosecond)

    def phi() -> float:
        positions = context.getState(positions=True).getPositions(asNumpy=True)._value
        return float(torsions.get(positions)[0])

    times: list[float] = []
    began = time.perf_counter()
    with tqdm(total=options.escapes, desc="escapes") as bar:
        while len(times) < options.escapes:
            context.setPositions(start)
            context.setVelocitiesToTemperature(TEMPERATURE, options.seed * 100_003 + bar.n * 101 + len(times))
            integrator.step(round(options.equilibrate_ps / 1000 / step_ns))
            if not CORE_R[0] < phi() < CORE_R[1]:
                continue
            steps = 0
            while not CORE_L[0] < phi() < CORE_L[1]:
                integrator.step(STEPS_BETWEEN_LOOKS)
                steps += STEPS_BETWEEN_LOOKS
            times.append(steps * step_ns)
            bar.update()
            mean = float(np.mean(times))
            record = {
                "solvent": options.solvent,
                "escapes": len(times),
                "tau_rl_ns": mean,
                "tau_rl_error_ns": mean / math.sqrt(len(times)),
                "times_ns": [round(value, 4) for value in times],
                "simulated_ns": float(np.sum(times)),
                "wall_s": round(time.perf_counter() - began, 1),
                "platform": platform.getName(),
                "command": f"python examples/measure_escape.py --solvent {options.solvent} "
                f"--escapes {options.escapes} --seed {options.seed}",
            }
            with open(options.output + ".part", "w") as file:
                json.dump(record, file, indent=1)
            os.replace(options.output + ".part", options.output)
    print(json.dumps({key: value for key, value in record.items() if key != "times_ns"}, indent=1))


if __name__ == "__main__":
    main()
