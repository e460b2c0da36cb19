"""Alanine dipeptide: a diffusion model proposes, the force field accepts exactly, Langevin dynamics goes on.

    python examples/alanine_dipeptide.py                    # OBC implicit solvent, about 5 minutes
    python examples/alanine_dipeptide.py --vacuum --iterations 5000 --n-candidates 1 --output results/vacuum

Prints a table and writes a trajectory, figures and summary.json. Basins: R is 0 < phi < 2.2 rad, L the rest.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from openmm_diffusion.workflows.console import output_tree, run_program, use_one_thread

MODELS = {"obc": "alanine-dipeptide-torsion", "vacuum": "alanine-dipeptide-torsion-vacuum"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vacuum", action="store_true", help="openmmtools' AlanineDipeptideVacuum (amber96) instead of OBC"
    )
    parser.add_argument("--iterations", type=int, default=20_000, help="moves (default: %(default)s)")
    parser.add_argument("--n-candidates", type=int, default=8, help="candidates a move (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("results/alanine"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--model", help="name or path of a model (default: the shipped one for the solvent)")
    parser.add_argument(
        "--md-steps", type=int, default=250, help="Langevin steps of 4 fs after a move (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of moves and dynamics (default: %(default)s)")
    parser.add_argument("--platform", help="OpenMM platform (default: the fastest one, measured)")
    parser.add_argument(
        "--limit-frames", type=int, default=200, help="frames for the limit of the true marginal; 0 for none"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what the output folder holds")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    from openmm_diffusion import DiffusionMove
    from openmm_diffusion.errors import SettingError
    from openmm_diffusion.molecule import write_pdb
    from openmm_diffusion.workflows import alanine_report as report
    from openmm_diffusion.workflows.baseline import marginal_limits, md_speed, reference
    from openmm_diffusion.workflows.hybrid import HybridChain
    from openmm_diffusion.workflows.output import prepare_folder, write_json, write_trajectory
    from openmm_diffusion.workflows.systems import alanine_dipeptide, choose_platform, time_platforms

    if options.iterations < 1:
        raise SettingError(f"--iterations is {options.iterations}; expected at least 1")
    if options.limit_frames < 0:
        raise SettingError(f"--limit-frames is {options.limit_frames}; expected 0 or more")
    use_one_thread()
    solvent = "vacuum" if options.vacuum else "obc"
    molecule = alanine_dipeptide(solvent)
    model = options.model or MODELS[solvent]
    move = DiffusionMove.from_pretrained(model, molecule.topology, n_candidates=options.n_candidates, seed=options.seed)
    speeds = time_platforms(molecule.system, molecule.positions)
    platform = choose_platform(molecule.system, molecule.positions, options.platform or next(iter(speeds)))
    print(f"{molecule.name}: " + ", ".join(f"{name} {speed:,.0f} steps/s" for name, speed in speeds.items()))
    print(f"platform {platform.getName()} for the hybrid chain and for plain MD")
    chain = HybridChain(molecule, move, platform, md_steps=options.md_steps, seed=options.seed)
    # Everything has been checked: only now may an earlier result be emptied.
    folder = prepare_folder(options.output, overwrite=options.overwrite, resume=options.resume)
    checkpoint = folder / "checkpoint.npz"
    ns_per_s = md_speed(molecule, platform.getName())

    if options.resume and checkpoint.exists():
        chain.load(checkpoint)
        print(f"going on at iteration {len(chain.series)}")
        if len(chain.series) >= options.iterations:
            print("nothing is left to do; give more --iterations")
    else:
        chain.equilibrate()
    series = chain.run(options.iterations, folder, progress=not options.quiet)
    arrays = series.arrays()
    write_pdb(folder / "topology.pdb", molecule.topology, arrays["positions"][-1:])
    write_trajectory(folder / "trajectory.dcd", molecule.topology, arrays["positions"])
    report.draw(arrays, folder)

    summary = report.summarise(arrays, chain.seconds, ns_per_s, reference(solvent))
    summary |= {
        "platform": platform.getName(),
        "model": model,
        "n_candidates": options.n_candidates,
        "seed": options.seed,
        "solvent": solvent,
    }
    limits = None
    if options.limit_frames:
        rows = np.unique(np.linspace(0, len(arrays["positions"]) - 1, options.limit_frames).astype(int))
        if len(rows) > 1:
            print(f"limit of the true (phi, psi) marginal, from energies on a grid at {len(rows)} frames ...")
            n = tuple(sorted({1, options.n_candidates}))
            limits = marginal_limits(molecule, arrays["positions"][rows], platform, n, seed=options.seed)
    report.add_limits(summary, limits, options.n_candidates)

    write_json(folder / "summary.json", summary)
    print()
    print(report.table(summary))
    print(f"\n{output_tree(folder, report.FILES)}")


if __name__ == "__main__":
    options = parse()
    sys.exit(run_program(lambda: run(options)))
