"""Exactness of the SE(3) moves, the whole grid: `python examples/exactness_se3.py`.

A trained network, the same with every weight perturbed by 10 %, and an untrained one; one and eight candidates; paths,
local moves and flows. Chains start from exact draws of exp(-u) and must stay distributed like them. The control, the
density of the present state replaced by a constant, must be seen at more than 6 sigma in as many moves.
"""

import argparse
from pathlib import Path

from tqdm.auto import tqdm

from openmm_diffusion.workflows.console import run_program, use_one_thread
from openmm_diffusion.workflows.exactness_grid import grid, quick_grid
from openmm_diffusion.workflows.output import refuse_existing, write_json, write_text
from openmm_diffusion.workflows.se3_exactness import run_grid, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="alanine-dipeptide", help="SE(3) model of ACE-ALA-NME, by name or path")
    parser.add_argument("--quick", action="store_true", help="a minute's worth, of an untrained network alone")
    parser.add_argument("--only", default="", help="entries whose name contains this, such as 'trained, path'")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("exactness_se3.md"), help="table; JSON beside it")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    as_json = refuse_existing(options.output.with_suffix(".json"), overwrite=options.overwrite)
    refuse_existing(options.output, overwrite=options.overwrite)
    use_one_thread()
    entries = [entry for entry in (quick_grid() if options.quick else grid()) if options.only in str(entry)]
    if not entries:
        parser.error(f"no entry contains {options.only!r}; expected some of {', '.join(map(str, grid()))}")

    def progress(tasks, total):  # type: ignore[no-untyped-def]
        return tqdm(tasks, total=total, unit="task", smoothing=0)

    rows = run_grid(entries, options.model, seed=options.seed, n_processes=options.processes, progress=progress)
    text = table(rows)
    print(text)
    write_text(options.output, text + "\n")
    write_json(as_json, [row.to_dict() for row in rows])
    if not all(row.passed for row in rows):
        raise SystemExit(f"{sum(not row.passed for row in rows)} of {len(rows)} entries did not pass")


if __name__ == "__main__":
    raise SystemExit(run_program(main))
