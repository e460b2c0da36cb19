"""Nonequilibrium diffusion moves in explicit and in implicit solvent: acceptance, work and cost against n rotations.

    python examples/explicit_solvent.py                                    # about 30 minutes on two cores
    python examples/explicit_solvent.py --n 1 10 --attempts 3 --implicit-attempts 3 --output results/smoke

Every attempt starts from an equilibrated state, in explicit solvent one of the basin that MD is in, and is scored but
never taken. With alpha its acceptance probability, acceptance is the mean of alpha, and the rate of basin changes the
mean of alpha times whether the attempt ended in the other basin (0 < phi < 2.2 rad or not). Where that sums to less
than one change in all attempts, the cost of a change is a lower bound, three changes in the time spent. Writes
attempts.jsonl, which --resume goes on with, summary.json and ncmc.png. Rows that are extrapolated, not measured, say
so. A killed run loses the attempt that it was at; --resume --minutes 0 makes table and figure of what there is.

Explicit solvent is openmmtools' AlanineDipeptideExplicit (amber96 in TIP3P); the model was trained on amber99sbildn
with OBC implicit solvent, which is also the implicit solvent here.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit
from scipy.special import erfc
from tqdm.auto import tqdm

from openmm_diffusion.workflows.console import output_tree, run_program, use_one_thread

FILES = {
    "attempts.jsonl": "one line an attempt: work, shadow work, log q terms, torsions, seconds",
    "summary.json": "the table",
    "ncmc.png": "work distributions, acceptance, cost of a basin change",
    "explicit.npz": "state of the MD in explicit solvent, for --resume",
    "obc.npz": "the same in implicit solvent",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--n", type=int, nargs="+", default=[1, 10, 100, 1000], help="numbers of rotations (default: %(default)s)")
    add(
        "--attempts",
        type=int,
        default=50,
        help="attempts for each number of rotations in explicit solvent (default: %(default)s)",
    )
    add("--implicit-attempts", type=int, default=200, help="the same in implicit solvent (default: %(default)s)")
    add("--minutes", type=float, default=30.0, help="time limit of this run (default: %(default)s)")
    add(
        "--propagator",
        choices=("GHMC", "langevin"),
        default="GHMC",
        help="dynamics between rotations (default: %(default)s)",
    )
    add("--propagation-steps", type=int, default=1, help="its time steps after each rotation (default: %(default)s)")
    add("--timestep-fs", type=float, default=2.0, help="its time step (default: %(default)s)")
    add("--md-steps", type=int, default=100, help="2 fs steps of MD between attempts (default: %(default)s)")
    add("--model", default="alanine-dipeptide-torsion", help="name or path of a model (default: %(default)s)")
    add(
        "--extrapolate",
        type=int,
        default=10_000,
        help="number of rotations that the table extrapolates to (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the attempts (default: %(default)s)")
    add("--output", type=Path, default=Path("results/ncmc"), help="folder to write (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what the output folder holds")
    add("--resume", action="store_true", help="go on with the attempts in the output folder")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


class Bench:
    """MD of one system, and attempts from its states."""

    def __init__(self, solvent: str, options: argparse.Namespace, folder: Path) -> None:
        from openmmtools import cache, mcmc, states, testsystems
        from openmmtools.utils import get_fastest_platform

        from openmm_diffusion import DiffusionMove, models
        from openmm_diffusion.workflows.systems import TEMPERATURE, alanine_dipeptide, choose_platform

        self.solvent, self.options, self.checkpoint = solvent, options, folder / f"{solvent}.npz"
        if solvent == "explicit":
            system = testsystems.AlanineDipeptideExplicit()
            topology, positions, platform = system.topology, system.positions, get_fastest_platform()
            system = system.system
        else:
            molecule = alanine_dipeptide(solvent, hydrogen_mass=None)
            topology, system, positions = molecule.topology, molecule.system, molecule.positions * unit.nanometer
            platform = choose_platform(system, positions)
        print(f"{solvent}: {system.getNumParticles()} particles on platform {platform.getName()}")
        self.contexts = cache.ContextCache(platform=platform)
        self.state = states.ThermodynamicState(system, TEMPERATURE)
        self.sampler_state = states.SamplerState(positions, box_vectors=system.getDefaultPeriodicBoxVectors())
        moves: list[Any] = [
            mcmc.LangevinDynamicsMove(2 * unit.femtoseconds, 1 / unit.picosecond, n_steps=options.md_steps)
        ]
        move = DiffusionMove(models.load(options.model), topology, n_candidates=8)
        if solvent != "explicit":
            moves.append(move)  # so that attempts start in both basins
        self.md, self.proposal = mcmc.SequenceMove(moves), move.proposal

    def equilibrate(self, n_steps: int) -> None:
        """Minimise and run MD, or take the MD up where it was left."""
        if self.checkpoint.exists():
            with np.load(self.checkpoint) as stored:
                self.sampler_state.positions = stored["x"] * unit.nanometer
                self.sampler_state.velocities = stored["v"] * unit.nanometer / unit.picosecond
            return
        # Strong coupling, for minimisation has cooled the water.
        integrator = openmm.LangevinMiddleIntegrator(300, 10.0, 0.002)
        context = openmm.Context(self.state.system, integrator, self.contexts.platform)
        self.sampler_state.apply_to_context(context)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
        context.setVelocitiesToTemperature(300)
        integrator.step(n_steps)
        self.sampler_state.update_from_context(context)

    def advance(self) -> None:
        """Some MD, and a checkpoint of it."""
        from openmm_diffusion.files import replacing

        self.md.apply(self.state, self.sampler_state, context_cache=self.contexts)
        with replacing(self.checkpoint) as aside:
            x, v = self.sampler_state.positions, self.sampler_state.velocities
            np.savez(aside, x=x.value_in_unit(unit.nanometer), v=v.value_in_unit(unit.nanometer / unit.picosecond))

    def attempt(self, n: int, rng: np.random.Generator) -> dict[str, Any]:
        """One move of n rotations from the present state, scored and not taken."""
        from openmm_diffusion.mcmc import ncmc_step
        from openmm_diffusion.mcmc.propagators import INTEGRATORS, DynamicsPropagator

        timestep = self.options.timestep_fs * unit.femtosecond
        integrator = INTEGRATORS[self.options.propagator](self.state.temperature, timestep, 1 / unit.picosecond)
        context, _ = self.contexts.get_context(self.state, integrator)
        self.sampler_state.apply_to_context(context)
        positions = np.array(self.sampler_state.positions.value_in_unit(unit.nanometer))
        beta = 1.0 / self.state.kT.value_in_unit(unit.kilojoule_per_mole)
        propagator = DynamicsPropagator(self.options.propagation_steps, self.state.temperature)
        start = time.perf_counter()
        record, _ = ncmc_step(context, self.proposal, positions, beta, n, propagator, rng)
        seconds = time.perf_counter() - start
        log_ratio = None
        if record.log_q_candidate is not None:
            # log_q_present is -inf where the way back cannot be drawn
            log_ratio = -record.work - record.shadow_work + record.log_q_present - record.log_q_candidate
        row = dataclasses.asdict(record) | {
            "solvent": self.solvent,
            "n": n,
            "settings": settings(self.options),
            "log_ratio": log_ratio,
            "torsions_start": self.proposal.torsions.get(positions).tolist(),
            "seconds": seconds,
        }
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


def measure(bench: Bench, rows: list[dict[str, Any]], wanted: int, deadline: float, file: Path) -> None:
    """Attempts of every n in turn until all have `wanted` or time is over; costly ones leave time for the others."""
    options = bench.options
    done = {n: [row for row in rows if row["solvent"] == bench.solvent and row["n"] == n] for n in sorted(options.n)}
    bench.equilibrate(1000)
    total, start = wanted * len(options.n), sum(min(len(own), wanted) for own in done.values())
    with tqdm(total=total, initial=start, desc=bench.solvent, disable=options.quiet) as bar, file.open("a") as stream:
        while time.monotonic() < deadline:
            cost = {n: float(np.mean([row["seconds"] for row in own[-5:]])) if own else 0.0 for n, own in done.items()}
            todo = affordable(done, cost, wanted, deadline - time.monotonic())
            if not todo:
                return
            bench.advance()
            for n in todo:
                if time.monotonic() + cost[n] > deadline:
                    continue
                key = (n, len(done[n]), int(bench.solvent == "explicit"))
                row = bench.attempt(n, np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key)))
                done[n].append(row)
                rows.append(row)
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                bar.update()
                bar.set_postfix(n=n, log_ratio=row["log_ratio"], seconds=round(row["seconds"], 2))


def affordable(done: dict[int, list[Any]], cost: dict[int, float], wanted: int, seconds: float) -> list[int]:
    """The n that lack attempts and whose next one fits beside all that cheaper ones still lack."""
    todo = []
    for n, own in done.items():
        if len(own) < wanted and cost[n] < seconds:
            todo.append(n)
        seconds -= cost[n] * max(0, wanted - len(own))
    return todo


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all attempts of a folder have to share."""
    return {key: getattr(options, key) for key in ("propagator", "propagation_steps", "timestep_fs", "model", "seed")}


def read_rows(file: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The attempts of an earlier run; a line that was cut off when it was killed is dropped from the file."""
    from openmm_diffusion.errors import OutputError
    from openmm_diffusion.files import write_text

    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    write_text(file, "".join(lines))
    rows = [json.loads(line) for line in lines]
    if any(row["settings"] != settings(options) for row in rows):
        raise OutputError(f"{file} was made with {rows[0]['settings']}; give the same settings, or --overwrite")
    return rows


def summarise(rows: list[dict[str, Any]], extrapolate: int) -> list[dict[str, Any]]:
    """One line for each solvent and n; the last of a solvent is extrapolated."""
    from openmm_diffusion.analysis.mixing import in_basin_r

    table: list[dict[str, Any]] = []
    for solvent in sorted({row["solvent"] for row in rows}):
        lines = []
        for n in sorted({row["n"] for row in rows if row["solvent"] == solvent}):
            own = [row for row in rows if row["solvent"] == solvent and row["n"] == n]
            ratio = np.array([-np.inf if row["log_ratio"] is None else row["log_ratio"] for row in own])
            alpha = np.exp(np.minimum(0.0, ratio))
            ends = [row["torsions_end"] or row["torsions_start"] for row in own]
            changed = in_basin_r([tau[0] for tau in ends]) != in_basin_r([row["torsions_start"][0] for row in own])
            n_changes, seconds = float((alpha * changed).sum()), float(np.mean([row["seconds"] for row in own]))
            works = [math.inf if row["work"] is None else row["work"] for row in own]
            shadow = [row["shadow_work"] for row in own if row["shadow_work"] is not None]
            passed = [row["propagator_acceptance"] for row in own if row["propagator_acceptance"] is not None]
            lines.append(
                {
                    "solvent": solvent,
                    "n": n,
                    "extrapolated": False,
                    "attempts": len(own),
                    "acceptance": float(alpha.mean()),
                    "acceptance_error": float(alpha.std() / math.sqrt(len(own))),
                    "median_work_kT": finite(float(np.median(works))),
                    "median_minus_log_ratio": finite(-float(np.median(ratio))),
                    "sd_shadow_work_kT": float(np.std(shadow)) if shadow else None,
                    "mean_shadow_work_kT": float(np.mean(shadow)) if shadow else None,
                    "propagator_acceptance": float(np.mean(passed)) if passed else None,
                    "changed": int(changed.sum()),
                    "seconds_an_attempt": seconds,
                    "expected_changes": n_changes,
                    "seconds_a_basin_change": seconds * len(own) / (n_changes if n_changes >= 1 else 3),
                    "is_lower_bound": n_changes < 1,
                }
            )
        table += [*lines, *extrapolated(lines, extrapolate)]
    return table


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def extrapolated(lines: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """A line for n rotations from the two largest n with 20 attempts; none where they say nothing.

    -log ratio is taken to fall as a power of n; where it is normal with mean mu, E[ratio] = 1 makes its variance 2 mu
    and the acceptance erfc(sqrt(mu) / 2) (Crooks' relation).
    """
    known = [
        line for line in lines if (line["median_minus_log_ratio"] or 0) > 0 and line["n"] > 1 and line["attempts"] >= 20
    ]
    if len(known) < 2 or n <= lines[-1]["n"]:
        return []
    (n_1, mu_1), (n_2, mu_2) = ((line["n"], line["median_minus_log_ratio"]) for line in known[-2:])
    power = math.log(mu_2 / mu_1) / math.log(n_2 / n_1)
    mu = mu_2 * (n / n_2) ** power
    if mu_2 >= mu_1:
        return []
    line = dict.fromkeys(lines[-1]) | {"solvent": lines[-1]["solvent"], "n": n, "extrapolated": True, "attempts": 0}
    return [
        line
        | {
            "acceptance": float(erfc(math.sqrt(mu) / 2)),
            "median_minus_log_ratio": mu,
            "seconds_an_attempt": lines[-1]["seconds_an_attempt"] * n / lines[-1]["n"],
        }
    ]


def table_text(table: list[dict[str, Any]]) -> str:
    head = "solvent    n      attempts  acceptance         median W   sd shadow  s/attempt  s/basin change"
    lines = [head]
    for row in table:
        show = {key: "-" if value is None else f"{value:.4g}" for key, value in row.items() if key != "solvent"}
        error = "" if row["extrapolated"] else f" +- {row['acceptance_error']:.1g}"
        at_least = "> " if row["is_lower_bound"] else ""
        lines.append(
            f"{row['solvent']:<10} {row['n']:<6} {show['attempts']:<9} {show['acceptance'] + error:<18} "
            f"{show['median_work_kT']:<10} {show['sd_shadow_work_kT']:<10} {show['seconds_an_attempt']:<10} "
            f"{at_least}{show['seconds_a_basin_change']}{'  (EXTRAPOLATED)' if row['extrapolated'] else ''}"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], table: list[dict[str, Any]], path: Path) -> None:
    """Work distributions (in explicit solvent where there is any), acceptance and cost of a basin change against n."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from openmm_diffusion.analysis import save

    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    works, accepted, cost = figure.subplots(1, 3)
    shown = min(row["solvent"] for row in rows)
    for n in sorted({row["n"] for row in rows}):
        own = [r["work"] for r in rows if r["n"] == n and r["solvent"] == shown]
        told = np.sort([work for work in own if work is not None])
        if len(told):  # those that met a NaN or an infinite energy count as above all others
            works.plot(told, (np.arange(len(told)) + 0.5) / len(own), marker=".", label=f"n = {n}")
    works.set(xscale="symlog", xlabel="work W of the rotations (kT)", ylabel="share of attempts below")
    works.set_title(f"solvent: {shown}")
    for solvent in sorted({line["solvent"] for line in table}):
        own = [line for line in table if line["solvent"] == solvent]
        told = [line for line in own if not line["extrapolated"]]
        points = accepted.errorbar(
            [line["n"] for line in told],
            [max(line["acceptance"], 1e-12) for line in told],
            [line["acceptance_error"] for line in told],
            marker="o",
            capsize=3,
            label=solvent,
        )
        colour = points[0].get_color()
        rest = [line for line in own if line["extrapolated"]]
        accepted.plot(
            [line["n"] for line in rest], [line["acceptance"] for line in rest], "o", mfc="none", color=colour
        )
        cost.plot([x["n"] for x in told], [x["seconds_a_basin_change"] for x in told], "-", color=colour, label=solvent)
        for line in told:
            cost.plot(line["n"], line["seconds_a_basin_change"], "^" if line["is_lower_bound"] else "o", color=colour)
    accepted.set(xscale="log", yscale="log", ylim=(1e-12, 2), xlabel="rotations n", ylabel="acceptance")
    accepted.set_title("open circles: extrapolated")
    cost.set(xscale="log", yscale="log", xlabel="rotations n", ylabel="seconds a basin change")
    cost.set_title("triangles: lower bounds")
    for ax in (works, accepted, cost):
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    save(figure, path)


def run(options: argparse.Namespace) -> None:
    from openmm_diffusion.errors import SettingError
    from openmm_diffusion.workflows.output import prepare_folder, write_json

    if min(*options.n, options.propagation_steps, options.md_steps) < 1 or options.timestep_fs <= 0:
        raise SettingError("--n, --propagation-steps, --md-steps and --timestep-fs have to be positive")
    use_one_thread()
    deadline = time.monotonic() + 60 * options.minutes
    folder = prepare_folder(options.output, overwrite=options.overwrite, resume=options.resume)
    file = folder / "attempts.jsonl"
    rows = read_rows(file, options)
    for solvent, wanted in (("obc", options.implicit_attempts), ("explicit", options.attempts)):
        if any(sum(row["solvent"] == solvent and row["n"] == n for row in rows) < wanted for n in options.n):
            measure(Bench(solvent, options, folder), rows, wanted, deadline, file)
    if not rows:
        raise SettingError("nothing was measured within --minutes; give more")
    table = summarise(rows, options.extrapolate)
    write_json(folder / "summary.json", table)
    draw(rows, table, folder / "ncmc.png")
    print(f"\n{table_text(table)}\n\n{output_tree(folder, FILES)}")


if __name__ == "__main__":
    options = parse()
    sys.exit(run_program(lambda: run(options)))
