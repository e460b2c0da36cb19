"""What each command with settings does: run its job, then say what it left."""

from pathlib import Path
from typing import Any

import typer

from ..workflows.console import output_tree


def _show(folder: Path, files: dict[str, str]) -> None:
    typer.echo(output_tree(folder, files))


def simulate_job(settings: Any, **switches: bool) -> None:
    from ..workflows.simulate import simulate

    folder = simulate(settings, **switches)
    _show(
        folder,
        {
            "topology.pdb": "the molecule",
            "trajectory.dcd": "frames of all replicas",
            "weights.npz": "their MBAR weights at the coldest temperature",
            "simulation.json": "what was run",
            "settings.yaml": "the resolved settings",
        },
    )


def md_job(settings: Any, **switches: bool) -> None:
    from ..workflows.plain_md import run_md

    folder = run_md(settings, **switches)
    _show(
        folder,
        {
            "topology.pdb": "the molecule",
            "trajectory.dcd": "the frames",
            "md.json": "what was run",
            "settings.yaml": "the resolved settings",
        },
    )


def prepare_torsion_job(settings: Any, **switches: bool) -> None:
    from ..workflows.prepare import prepare_torsion

    data = prepare_torsion(settings, **switches)
    typer.echo(f"{len(data)} frames of {', '.join(data.molecule.torsions)}")


def prepare_se3_job(settings: Any, **switches: bool) -> None:
    from ..workflows.prepare_se3 import prepare_se3

    data = prepare_se3(settings, **switches)
    for path, n_frames in data.files.items():
        typer.echo(f"{path}: {n_frames} frames of {len(data.sequence)} residues")
    typer.echo(f"tables: {data.atlas_csv}, {data.train_split}")


def train_torsion_job(settings: Any, **switches: bool) -> None:
    from ..workflows.train_torsion import train_torsion

    model = train_torsion(settings, **switches)
    metrics = model.card["metrics"]
    typer.echo(
        f"held-out negative log likelihood {metrics['held_out_nll']:.4f} (uniform: {metrics['uniform_nll']:.4f})"
    )
    _show(
        settings.output,
        {
            "model.safetensors": "the weights",
            "model.json": "the card: architecture, data, commands, metrics, sha256",
            "loss_curve.png": "training and validation loss",
            "metrics.csv": "the same as numbers",
            "checkpoints/last.ckpt": "for --resume",
            "settings.yaml": "the resolved settings",
        },
    )


def train_se3_job(settings: Any, **switches: bool) -> None:
    from ..workflows.train_se3 import train_se3

    model = train_se3(settings, **switches)
    if model is None:  # not the first of several processes
        return
    metrics = model.card["metrics"]
    terms = ", ".join(f"{name} {metrics[f'val_{name}_loss']:.4f}" for name in ("rot", "trans", "psi"))
    typer.echo(f"validation loss {metrics['val_loss']:.4f} ({terms}) after {model.card['steps']} steps")
    _show(
        settings.save_dir,
        {
            "model.safetensors": "the weights, averaged over the last steps",
            "model.json": "the card: architecture, noise process, data, commands, metrics, sha256",
            "loss_curve.png": "training and validation loss",
            "metrics.csv": "the same as numbers",
            "checkpoints/last.ckpt": "for --resume",
            "settings.yaml": "the resolved settings",
        },
    )


def generate_torsion_job(settings: Any, **switches: bool) -> None:
    from ..workflows.generate_torsion import FILES, generate_torsion, summary_text

    summary = generate_torsion(settings, **switches)
    typer.echo(summary_text(summary))
    _show(settings.output, FILES)


def generate_se3_job(settings: Any, **switches: bool) -> None:
    from ..workflows.generate_se3 import FILES, generate_se3, quality_text

    typer.echo(quality_text(generate_se3(settings, **switches)))
    _show(settings.output, FILES)


def sample_job(settings: Any, **switches: bool) -> None:
    from ..workflows.console import use_one_thread
    from ..workflows.sample import FILES, sample
    from ..workflows.sample_report import summary_text

    use_one_thread()
    typer.echo(summary_text(sample(settings, **switches)))
    _show(settings.output, FILES)


def doctor_job(settings: Any) -> int:
    from ..workflows.console import use_one_thread
    from ..workflows.doctor import doctor

    use_one_thread()
    exact = doctor(settings, typer.echo).is_exact
    return {True: 0, False: 1, None: 3}[exact]


def models_job() -> None:
    from ..workflows.list_models import list_models

    list_models(typer.echo)
