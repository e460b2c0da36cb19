"""Measure how often a model's moves are accepted, and why not more often: one row of a table for each model.

    python examples/measure_acceptance.py --trajectory md --output results/acceptance
    python examples/measure_acceptance.py --system ACE-ALA-ALA-ALA-NME --model ace-ala3-nme --local 0.1 0.2

Frames of the target are drawn by weight from a folder that `openmm-diffusion simulate` wrote, or come from a short
hybrid chain. At each the expected acceptance is averaged over groups of fresh candidates; the limit of the true
marginal, the spread of log w and its origins, the cost of a move and a hybrid chain are measured in the same run.
Writes acceptance.json and acceptance.png.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from openmm_diffusion.workflows.console import output_tree, run_program, use_one_thread

FILES = {"acceptance.json": "all numbers", "acceptance.png": "acceptance against its limit; log w"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", help="name or path of a model, once for each row (default: alanine-dipeptide)")
    add("--system", default="alanine-dipeptide-obc", help="named system, or a sequence such as ACE-ALA-ALA-ALA-NME")
    add("--trajectory", type=Path, help="folder of `openmm-diffusion simulate` (default: a short hybrid chain)")
    add("--frames", type=int, default=300, help="equilibrium frames (default: %(default)s)")
    add("--candidates", type=int, nargs="+", default=[1, 8, 32], help="candidates a move (default: 1 8 32)")
    add("--drawn", type=int, default=64, help="candidates drawn at a frame (default: %(default)s)")
    add("--scorings", type=int, default=8, help="scorings of each present state (default: %(default)s)")
    add("--repeats", type=int, default=32, help="scorings for the origins of the spread; 0 for none")
    add("--density", choices=("path", "flow"), help="density of SE(3) models (default: that of DiffusionMove)")
    add("--n-diffusion-steps", type=int, help="levels of noise (default: the model's own)")
    add("--local", type=float, nargs="+", default=[], metavar="T", help="local moves too, at these t*: a row for each")
    add("--window", type=int, help="residues that a local move changes (default: all)")
    add("--chain", type=int, default=2000, help="iterations of the hybrid chain; 0 for none (default: %(default)s)")
    add("--chain-candidates", type=int, default=8, help="candidates of the chain's moves (default: %(default)s)")
    add("--md-seconds", type=float, default=10.0, help="how long plain MD is timed (default: %(default)s)")
    add("--platform", help="OpenMM platform (default: the fastest one, measured)")
    add("--seed", type=int, default=0, help="seed of everything (default: %(default)s)")
    add("--output", type=Path, default=Path("results/acceptance"), help="folder to write (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what the output folder holds")
    return parser.parse_args()


def checked(options: argparse.Namespace) -> None:
    from openmm_diffusion.errors import SettingError

    for name, lowest in (("frames", 2), ("scorings", 1), ("drawn", max(options.candidates)), ("chain", 0)):
        if getattr(options, name) < lowest:
            raise SettingError(f"--{name} is {getattr(options, name)}; expected {lowest} or more")
    if min(options.candidates) < 1:
        raise SettingError(f"--candidates holds {min(options.candidates)}; expected 1 or more")
    if options.chain_candidates < 1:
        raise SettingError(f"--chain-candidates is {options.chain_candidates}; expected 1 or more")
    if options.repeats != 0 and options.repeats < 2:
        raise SettingError(f"--repeats is {options.repeats}; expected 0, or 2 and more")


def rows_of(options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """The measured rows, and what the run was of."""
    from openmm_diffusion import models
    from openmm_diffusion.workflows import acceptance, trials
    from openmm_diffusion.workflows.acceptance_report import add_times_md
    from openmm_diffusion.workflows.baseline import md_speed
    from openmm_diffusion.workflows.job_settings import SimulateSettings
    from openmm_diffusion.workflows.systems import build_system, choose_platform

    settings = acceptance.AcceptanceOptions(
        n_candidates=tuple(sorted(set(options.candidates))),
        n_drawn=options.drawn,
        n_scorings=options.scorings,
        n_repeats=options.repeats,
        chain_iterations=options.chain,
        chain_candidates=options.chain_candidates,
        density=options.density,
        n_diffusion_steps=options.n_diffusion_steps,
        seed=options.seed,
    )
    loaded = [models.load(name) for name in options.model or ["alanine-dipeptide"]]
    molecule = build_system(SimulateSettings(output=options.output, system=options.system))
    platform = choose_platform(molecule.system, molecule.positions, options.platform)
    if options.trajectory:
        rng = np.random.default_rng(options.seed)
        frames = trials.simulated_frames(options.trajectory, molecule, options.frames, rng)
        source = f"{options.trajectory}, by weight"
    else:
        print(f"{options.frames} frames from a hybrid chain ...", flush=True)
        frames = trials.chain_frames(loaded[0], molecule, platform, options.frames, options.seed)
        source = f"a hybrid chain with {options.model or 'the model'}"
    print("energies on a grid, for the limit of the true marginal ...", flush=True)
    target = acceptance.Target.of(molecule, platform, frames, settings)
    rows = []
    for model in loaded:
        print(f"row {len(rows) + 1} ...", flush=True)
        rows.append(acceptance.independent_row(model, target, settings))
        for t_star in options.local if model.kind == "se3" else ():
            print(f"row {len(rows) + 1} ...", flush=True)
            rows.append(acceptance.local_row(model, target, t_star, options.window, settings))
    speed = (
        md_speed(molecule, platform.getName(), options.md_seconds)
        if any("chain" in row.values for row in rows)
        else None
    )
    for row in rows:
        add_times_md(row.values, molecule.name, speed)
    return rows, {"frames": source, "n_frames": len(frames), "md_ns_per_s": speed}


def run(options: argparse.Namespace) -> None:
    from openmm_diffusion.workflows import acceptance_report as report
    from openmm_diffusion.workflows.output import prepare_folder, write_json

    checked(options)
    use_one_thread()
    folder = prepare_folder(options.output, overwrite=options.overwrite)
    rows, source = rows_of(options)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    write_json(folder / "acceptance.json", {"settings": settings, **source, "rows": [row.values for row in rows]})
    report.draw(rows, folder / "acceptance.png")
    print()
    print(report.table([row.values for row in rows]))
    print(f"\n{output_tree(folder, FILES)}")


if __name__ == "__main__":
    options = parse()
    sys.exit(run_program(lambda: run(options)))
