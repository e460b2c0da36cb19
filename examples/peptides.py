"""Alanine peptides: SE(3) moves and dynamics against plain dynamics and against parallel tempering, on this machine.

    python examples/peptides.py                             # tri-alanine, about 40 minutes in all
    python examples/peptides.py --tempering runs/ala3/md    # its parallel tempering is there already
    python examples/peptides.py --sequence ACE-ALA-ALA-ALA-ALA-ALA-NME --model ace-ala5-nme --local-moves 3 --t-star 0.2

Prints a table and writes summary.json, figures and the trajectory. Effective draws a second of every phi: of the hybrid
chain and of parallel tempering (weighted frames of all temperatures, its speed measured here) from autocorrelations;
of plain MD at most what its rate of leaving the rare basin R (0 < phi < 2.2 rad) allows, measured here on all cores.
"""

import argparse
import sys
import types
import typing
from pathlib import Path

from openmm_diffusion.workflows.console import output_tree, run_program, use_one_thread
from openmm_diffusion.workflows.peptide_settings import PeptideSettings

FILES = {
    "summary.json": "all numbers",
    "populations.png": "basins of phi and joint states, hybrid chain and parallel tempering",
    "effective_draws.png": "effective draws a second of every phi",
    "ramachandran.png": "every residue, parallel tempering above the hybrid chain",
    "trajectory.dcd": "one frame an iteration",
    "topology.pdb": "its topology",
    "dynamics.npz": "torsions along plain dynamics",
    "settings.yaml": "the resolved settings",
    "checkpoint.npz": "for --resume",
}


def parse() -> tuple[dict[str, typing.Any], argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, field in PeptideSettings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, types.UnionType):
            kind = next(one for one in typing.get_args(kind) if one is not type(None))
        default = Path("results/peptides") if name == "output" else field.default
        text = field.description + ("" if default is None else f" (default: {default})")
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what the output folder holds")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in PeptideSettings.model_fields}
    return {"output": Path("results/peptides")} | {k: v for k, v in given.items() if v is not None}, options


def run(given: dict[str, typing.Any], options: argparse.Namespace) -> None:
    from openmm_diffusion.workflows.peptide_comparison import compare
    from openmm_diffusion.workflows.peptide_report import table

    use_one_thread()
    settings = PeptideSettings.build(given)
    summary = compare(settings, overwrite=options.overwrite, resume=options.resume, progress=not options.quiet)
    print()
    print(table(summary))
    print(f"\n{output_tree(settings.output, FILES)}")


if __name__ == "__main__":
    given, options = parse()
    sys.exit(run_program(lambda: run(given, options)))
