"""Alanine dipeptide in OBC: parallel tempering by openmmtools with a diffusion move at every temperature.

    python examples/parallel_tempering.py
    mpiexec -n 2 python examples/parallel_tempering.py --output results/two_ranks
    python examples/parallel_tempering.py --resume --iterations 9000

Every replica makes a diffusion move and 1 ps of Langevin dynamics, then replicas are exchanged. With `mpiexec` (of the
extra [mpi]) the replicas are shared out to ranks. `--compare N` runs a hybrid chain of N iterations at each of the
temperatures besides. Prints a table of the populations of basin R (0 < phi < 2.2 rad) and writes figures, summary.json
and the storage of openmmtools.
"""

import argparse
import logging
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from openmm_diffusion.workflows.console import output_tree, run_program, use_one_thread


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=6000, help="iterations in all (default: %(default)s)")
    parser.add_argument("--temperatures", type=int, default=6, help="number of temperatures (default: %(default)s)")
    parser.add_argument("--lowest", type=float, default=300.0, help="lowest temperature, K (default: %(default)s)")
    parser.add_argument("--highest", type=float, default=600.0, help="highest temperature, K (default: %(default)s)")
    parser.add_argument("--n-candidates", type=int, default=8, help="candidates a move (default: %(default)s)")
    parser.add_argument("--model", default="alanine-dipeptide", help="name or path of a model (default: %(default)s)")
    parser.add_argument(
        "--md-steps", type=int, default=250, help="Langevin steps of 4 fs after a move (default: %(default)s)"
    )
    parser.add_argument(
        "--equilibration", type=int, default=100, help="first iterations left out of the table (default: %(default)s)"
    )
    parser.add_argument(
        "--compare", type=int, default=0, metavar="N", help="iterations of a chain at each temperature (default: none)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/tempering"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moves (default: %(default)s)")
    parser.add_argument("--platform", help="OpenMM platform (default: the fastest one, measured)")
    parser.add_argument("--overwrite", action="store_true", help="replace what the output folder holds")
    parser.add_argument("--resume", action="store_true", help="go on from the storage in the output folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def plan(options: argparse.Namespace) -> Any:
    """What the run is made of, the same on every rank."""
    import mpiplus

    from openmm_diffusion import DiffusionMove
    from openmm_diffusion.errors import SettingError
    from openmm_diffusion.workflows.systems import alanine_dipeptide, choose_platform
    from openmm_diffusion.workflows.tempering import Tempering, ladder

    for name, least in (("iterations", 1), ("equilibration", 0), ("compare", 0)):
        if getattr(options, name) < least:
            raise SettingError(f"--{name} is {getattr(options, name)}; expected at least {least}")
    for name in ("iterations", "compare"):
        if 0 < getattr(options, name) <= options.equilibration:
            raise SettingError(
                f"--{name} is {getattr(options, name)}; expected more than the --equilibration of "
                f"{options.equilibration}"
            )
    molecule = alanine_dipeptide("obc")
    move = DiffusionMove.from_pretrained(
        options.model, molecule.topology, n_candidates=options.n_candidates, seed=options.seed
    )
    kelvin = ladder(options.lowest, options.highest, options.temperatures)

    def measured() -> str:
        return str(choose_platform(molecule.system, molecule.positions, options.platform).getName())

    # One rank measures for all, which may differ.
    platform = mpiplus.run_single_node(0, measured, broadcast_result=True)
    return Tempering(molecule, move, platform, kelvin, options.md_steps)


def run(options: argparse.Namespace) -> None:
    import mpiplus

    from openmm_diffusion.mcmc.streams import n_ranks, rank
    from openmm_diffusion.workflows.folder_lock import NAME, FolderLock
    from openmm_diffusion.workflows.output import prepare_folder
    from openmm_diffusion.workflows.tempering import TemperingRun, single_chains

    logging.getLogger("openmmtools").setLevel(logging.ERROR)  # it warns that its interface may change
    use_one_thread()
    tempering = plan(options)
    with FolderLock(options.output) if rank() == 0 else nullcontext():
        if rank() == 0:
            prepare_folder(options.output, overwrite=options.overwrite, resume=options.resume, ignore=(NAME,))
            print(f"{tempering.molecule.name} on {tempering.platform}, ranks: {n_ranks()}", flush=True)
        # The others wait until the folder is there.
        mpiplus.run_single_node(0, lambda: None, sync_nodes=True)
        sampler = TemperingRun(tempering, options.output)
        start, done = time.perf_counter(), sampler.sampler.iteration
        sampler.run(options.iterations, progress=not options.quiet)
        seconds = (time.perf_counter() - start) / max(1, options.iterations - done)
        sampler.close()
        single = None
        if options.compare:
            single = single_chains(
                tempering, options.output / "single", options.compare, options.seed, progress=not options.quiet
            )
        if rank() == 0:
            report(options, tempering, single, seconds if options.iterations > done else None)


def report(options: argparse.Namespace, tempering: Any, single: Any, seconds: float | None) -> None:
    """Read the storage, print the table, write numbers and figures."""
    from openmm_diffusion.mcmc.streams import n_ranks
    from openmm_diffusion.workflows import tempering_report
    from openmm_diffusion.workflows.baseline import reference
    from openmm_diffusion.workflows.output import write_json
    from openmm_diffusion.workflows.tempering_series import read_series

    series = read_series(options.output, tempering.molecule, options.equilibration)
    kept = None if single is None else single[options.equilibration :]
    summary = tempering_report.summarise(series, kept, reference("obc")) | {
        "model": options.model,
        "n_candidates": options.n_candidates,
        "platform": tempering.platform,
        "seed": options.seed,
        "ranks": n_ranks(),
        "seconds_per_iteration": seconds,
    }
    tempering_report.draw(series, options.output)
    write_json(options.output / "summary.json", summary)
    print(f"\n{tempering_report.table(summary)}\n")
    print(output_tree(options.output, tempering_report.FILES))


if __name__ == "__main__":
    arguments = parse()
    sys.exit(run_program(lambda: run(arguments)))
