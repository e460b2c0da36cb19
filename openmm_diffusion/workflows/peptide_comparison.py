"""One peptide, three ways of sampling it on one machine: hybrid chain, parallel tempering, plain dynamics."""

from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from ..analysis import plots
from ..analysis.population_plots import population_bars, ramachandran_grid, rate_bars
from ..models import store
from ..molecule import BackboneTorsions, write_pdb
from .baseline import available_cores
from .escape_dynamics import DynamicsRecord, run_dynamics
from .hybrid import HybridChain
from .job_settings import SimulateSettings
from .output import prepare_folder, write_json, write_trajectory
from .peptide_mixing import MoveCycle, hybrid_chain, make_moves, run_for
from .peptide_report import mixing_report, moves_report, population_report
from .peptide_settings import PeptideSettings
from .settings import refuse_other_settings
from .simulate import simulate, tempering_speed
from .systems import MolecularSystem, build_system, choose_platform, time_platforms
from .tempered_reference import TemperedReference, read_reference

STARTS = 64  # structures of R for plain dynamics, for each phi
_MAY_CHANGE = ("minutes", "md_minutes", "tempering", "tempering_iterations", "tempering_seconds", "platform", "device")


def compare(
    settings: PeptideSettings, *, overwrite: bool = False, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Run everything, write the output folder, and return the summary (see `peptide_report`).

    Where no folder of parallel tempering is given, one is made beside the output, {output}-tempering, or gone on with.
    """
    system = SimulateSettings.build({"output": settings.output, "system": settings.sequence})
    molecule = build_system(system)
    model = store.load(settings.model)
    moves = make_moves(model, molecule.topology, settings)
    speeds = time_platforms(molecule.system, molecule.positions)
    platform = choose_platform(molecule.system, molecule.positions, settings.platform or next(iter(speeds)))
    chain = hybrid_chain(molecule, moves, platform, settings)
    if resume:
        refuse_other_settings(settings, but=_MAY_CHANGE)
    folder = prepare_folder(settings.output, overwrite=overwrite, resume=resume, inputs=settings.inputs())
    settings.write(folder / "settings.yaml")
    reference = _reference(settings, molecule, chain.torsions, platform.getName(), progress=progress)

    checkpoint = folder / "checkpoint.npz"
    if resume and checkpoint.exists():
        chain.load(checkpoint)
    else:
        chain.equilibrate()
    run_for(chain, settings.minutes, folder, progress=progress)
    dynamics = _dynamics(settings, molecule, reference, chain.torsions, platform, folder, progress=progress)
    steps_per_s = tempering_speed(
        reference.settings, molecule, platform.getName(), settings.tempering_seconds, available_cores()
    )
    summary = {
        "sequence": settings.sequence,
        "model": settings.model,
        "sha256": model.sha256(),
        "platform": platform.getName(),
        "platforms_steps_per_s": speeds,
        "cores": available_cores(),
        "seed": settings.seed,
        "md_steps": settings.md_steps,
        **_summary(chain, moves, reference, dynamics, steps_per_s, settings.seed),
    }
    _write(folder, summary, chain, reference)
    return summary


def _reference(
    settings: PeptideSettings,
    molecule: MolecularSystem,
    torsions: BackboneTorsions,
    platform: str,
    *,
    progress: bool,
) -> TemperedReference:
    folder = settings.tempering
    if folder is None:
        folder = settings.output.with_name(f"{settings.output.name}-tempering")
        if not (folder / "simulation.json").is_file():
            values = {"output": folder, "system": settings.sequence, "n_iterations": settings.tempering_iterations}
            simulate(SimulateSettings.build({**values, "platform": platform}), resume=True, progress=progress)
    return read_reference(folder, molecule, torsions)


def _dynamics(
    settings: PeptideSettings,
    molecule: MolecularSystem,
    reference: TemperedReference,
    torsions: BackboneTorsions,
    platform: openmm.Platform,
    folder: Path,
    *,
    progress: bool,
) -> DynamicsRecord:
    rng = np.random.default_rng(settings.seed)
    columns = phi_columns(torsions)
    pools = [[(column, x) for x in reference.starts_in_r(column, STARTS, rng)] for column in columns]
    starts = [start for several in zip(*[pool for pool in pools if pool], strict=True) for start in several]
    return run_dynamics(
        molecule,
        torsions,
        starts,
        platform.getName(),
        settings.md_minutes,
        available_cores(),
        folder / "dynamics.npz",
        seed=settings.seed,
        progress=progress,
    )


def phi_columns(torsions: BackboneTorsions) -> list[int]:
    """The columns of phi."""
    return [k for k, kind in enumerate(torsions.kinds) if kind == "phi"]


def _summary(
    chain: HybridChain,
    moves: MoveCycle,
    reference: TemperedReference,
    dynamics: DynamicsRecord,
    steps_per_s: float,
    seed: int,
) -> dict[str, Any]:
    arrays = chain.series.arrays()
    kinds = np.array([moves.kind_at(k) for k in range(len(chain.series))])
    set_ones = {label for move in moves.moves.values() for label in move.proposal.torsions.labels}  # type: ignore[attr-defined]
    moved = np.array([label in set_ones for label in chain.torsions.labels])
    columns = phi_columns(chain.torsions)
    labels = [chain.torsions.labels[k] for k in columns]
    phi = arrays["tau_end"][:, columns]
    report = moves_report(arrays, kinds, moved)
    for kind, row in report.items():
        row["candidates"] = moves.moves[kind].n_candidates
    return {
        "iterations": len(chain.series),
        "seconds": chain.seconds,
        **{name: float(arrays[name].sum()) for name in ("seconds_network", "seconds_energy", "seconds_md")},
        "moves": report,
        "dynamics": {"ns": dynamics.ns, "seconds": dynamics.seconds, "ns_per_s": dynamics.ns / dynamics.seconds},
        "tempering": {
            "steps_per_s": steps_per_s,
            "steps": reference.md_steps,
            "seconds": reference.md_steps / steps_per_s,
            "replicas": reference.settings.n_replicas,
            "walkers": reference.settings.walkers,
        },
        "mixing": mixing_report(phi, chain.seconds, reference, steps_per_s, dynamics, columns, labels),
        "populations": population_report(phi, reference, columns, labels, np.random.default_rng(seed)),
    }


def _write(folder: Path, summary: dict[str, Any], chain: HybridChain, reference: TemperedReference) -> None:
    positions = np.array(chain.series.positions)
    topology = chain.molecule.topology
    write_pdb(folder / "topology.pdb", topology, positions[-1:])
    write_trajectory(folder / "trajectory.dcd", topology, positions)
    write_json(folder / "summary.json", summary)
    shares = summary["populations"]
    rows = shares["phi"] + shares["joint"]
    series = {
        "hybrid": ([row["sampled"] for row in rows], [row["error"] for row in rows]),
        "parallel tempering": ([row["reference"] for row in rows], [row["reference_error"] for row in rows]),
    }
    names = [row["name"].removeprefix("phi:") for row in rows]
    plots.save(population_bars(names, series), folder / "populations.png")
    mixing = summary["mixing"]
    ways = {"hybrid": "hybrid", "tempering": "parallel tempering", "dynamics": "plain MD (at most)"}
    rates = {label: _column([row[way]["phi"] for row in mixing]) for way, label in ways.items()}
    plots.save(rate_bars([row["phi"] for row in mixing], rates), folder / "effective_draws.png")
    frames: dict[str, tuple[NDArray[Any], NDArray[Any] | None]] = {
        "parallel tempering": (reference.tau.reshape(-1, reference.tau.shape[-1]), reference.weights.ravel()),
        "hybrid": (np.array(chain.series.tau_end), None),
    }
    plots.save(ramachandran_grid(frames, chain.torsions.labels), folder / "ramachandran.png")


def _column(estimates: list[Any]) -> tuple[list[float], list[float]]:
    """Values and errors, NaN where there is none."""
    known = [one or {"value": np.nan, "error": np.nan} for one in estimates]
    return [one["value"] for one in known], [np.nan if one["error"] is None else one["error"] for one in known]
