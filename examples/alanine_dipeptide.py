"""Alanine dipeptide: a diffusion model proposes, the force field accepts exactly, Langevin dynamics goes on.

    python examples/alanine_dipeptide.py                    # OBC implicit solvent, 5 to 8 minutes
    python examples/alanine_dipeptide.py --vacuum --iterations 5000 --n-candidates 1 --output results/vacuum

The move is the SE(3) model's; `--model alanine-dipeptide-torsion` takes the torsion model. A second chain with the
other one of the two follows, for comparison (not in vacuum, where only a torsion model is shipped). Prints a table of
both and plain MD, and writes a trajectory, figures and summary.json. Basins: R is 0 < phi < 2.2 rad, L the rest.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from openmm_diffusion.workflows.console import output_tree, run_program, use_one_thread

MODELS = {
    "obc": {"se3": "alanine-dipeptide", "torsion": "alanine-dipeptide-torsion"},
    "vacuum": {"torsion": "alanine-dipeptide-torsion-vacuum"},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vacuum", action="store_true", help="openmmtools' AlanineDipeptideVacuum (amber96) instead of OBC"
    )
    parser.add_argument("--iterations", type=int, default=10_000, help="moves of each chain (default: %(default)s)")
    parser.add_argument("--n-candidates", type=int, default=8, help="candidates a move (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("results/alanine"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--model", help="name or path of a model (default: the shipped one for the solvent)")
    parser.add_argument("--no-comparison", action="store_true", help="no second chain with the other shipped model")
    parser.add_argument(
        "--md-steps", type=int, default=250, help="Langevin steps of 4 fs after a move (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of moves and dynamics (default: %(default)s)")
    parser.add_argument("--platform", help="OpenMM platform (default: the fastest one, measured)")
    parser.add_argument(
        "--limit-frames", type=int, default=200, help="frames for the limit of the true marginal; 0 for none"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what the output folder holds")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in the output folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def sample(chain: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a chain, or go on with it, and draw its pictures; its arrays."""
    from openmm_diffusion.workflows import alanine_report as report

    checkpoint = folder / "checkpoint.npz"
    if options.resume and checkpoint.exists():
        chain.load(checkpoint)
        print(f"going on at iteration {len(chain.series)}")
        if len(chain.series) >= options.iterations:
            print("nothing is left to do; give more --iterations")
    else:
        chain.equilibrate()
    arrays: dict[str, Any] = chain.run(options.iterations, folder, progress=not options.quiet).arrays()
    report.draw(arrays, folder)
    return arrays


def run(options: argparse.Namespace) -> None:
    from openmm_diffusion import DiffusionMove, models
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
    speeds = time_platforms(molecule.system, molecule.positions)
    platform = choose_platform(molecule.system, molecule.positions, options.platform or next(iter(speeds)))

    shipped = MODELS[solvent]
    name = options.model or next(iter(shipped.values()))
    chosen = {name: models.load(name)}
    if not options.no_comparison:
        # Of the other kind, where one is shipped.
        chosen |= {
            other: models.load(other) for kind, other in shipped.items() if kind != chosen[name].kind and other != name
        }
    chains = {}
    for key, model in chosen.items():
        move = DiffusionMove(model, molecule.topology, n_candidates=options.n_candidates, seed=options.seed)
        chains[key] = HybridChain(molecule, move, platform, md_steps=options.md_steps, seed=options.seed)
    # Everything has been checked: only now may an earlier result be emptied.
    folder = prepare_folder(options.output, overwrite=options.overwrite, resume=options.resume)
    print(f"{molecule.name}: " + ", ".join(f"{name} {speed:,.0f} steps/s" for name, speed in speeds.items()))
    print(f"platform {platform.getName()} for the hybrid chains and for plain MD")
    ns_per_s = md_speed(molecule, platform.getName())

    summaries, frames = [], np.empty(0)
    for key, chain in chains.items():
        print(f"chain with the model {key}")
        own = folder / "comparison" if summaries else folder
        own.mkdir(exist_ok=True)
        arrays = sample(chain, own, options)
        summary = report.summarise(arrays, chain.seconds, ns_per_s, reference(solvent))
        summaries.append(
            summary
            | {
                "platform": platform.getName(),
                "model": key,
                "kind": chosen[key].kind,
                "n_candidates": options.n_candidates,
                "seed": options.seed,
                "solvent": solvent,
            }
        )
        if own == folder:
            frames = arrays["positions"]
            write_pdb(folder / "topology.pdb", molecule.topology, frames[-1:])
            write_trajectory(folder / "trajectory.dcd", molecule.topology, frames)

    limits = None
    rows = np.unique(np.linspace(0, len(frames) - 1, options.limit_frames).astype(int))
    if len(rows) > 1:
        print(f"limit of the true (phi, psi) marginal, from energies on a grid at {len(rows)} frames ...")
        n = tuple(sorted({1, options.n_candidates}))
        limits = marginal_limits(molecule, frames[rows], platform, n, seed=options.seed)
    for summary in summaries:
        report.add_limits(summary, limits, options.n_candidates)
    summary = {**summaries[0], "comparison": summaries[1] if len(summaries) > 1 else None}
    write_json(folder / "summary.json", summary)
    print()
    print(report.table(summary))
    print(f"\n{output_tree(folder, report.FILES)}")


if __name__ == "__main__":
    options = parse()
    sys.exit(run_program(lambda: run(options)))
