"""Make the shipped SE(3) models from nothing: parallel tempering, frames with caps and weights, training.

    python examples/train_se3_models.py --model alanine-dipeptide      # about an hour each on 2 cores
    python examples/train_se3_models.py --model ace-ala3-nme --output runs --minutes 45
    python examples/train_se3_models.py --model ace-ala5-nme --install

The commands below stand in the card of each model. Every stage is skipped if its result is there already, and goes on
where it was stopped otherwise.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from train_alanine import install

from openmm_diffusion.workflows.console import run_stages


class Recipe(NamedTuple):
    """The molecule of a model, and how it is simulated."""

    system: str
    simulate: str


MODELS = {
    "alanine-dipeptide": Recipe("alanine-dipeptide-obc", ""),
    "ace-ala3-nme": Recipe("ACE-ALA-ALA-ALA-NME", "--n-iterations 5000"),
    "ace-ala5-nme": Recipe("ACE-ALA-ALA-ALA-ALA-ALA-NME", "--n-iterations 2500"),
}
STAGES = (
    ("md/simulation.json", "simulate --output md --system {system} {simulate} --resume"),
    ("data/frame_splits.csv", "prepare se3 --trajectory md/trajectory.dcd --topology md/topology.pdb --weights "
                              "md/weights.npz --caps --output data --name {model} --train-share 0.9 --val-share 0.05"),
    ("model/model.json", "train se3 --preset acceptance --data-dir data --save-dir model --max-minutes {minutes:g} "
                         "--threads 1 --validate-every 12 --accelerator {accelerator} --resume"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=(*MODELS, "all"), default="all")
    parser.add_argument("--output", type=Path, default=Path("results/se3-models"), help="where the stages write")
    parser.add_argument("--minutes", type=float, default=25.0, help="wall time of a training")
    parser.add_argument("--accelerator", default="cpu", help="cpu, gpu or auto; networks this small are fast on a cpu")
    parser.add_argument("--install", action="store_true", help="copy the models into the package, as its shipped ones")
    options = parser.parse_args()
    for name in MODELS if options.model == "all" else (options.model,):
        recipe = MODELS[name]
        values = {**recipe._asdict(), "minutes": options.minutes, "accelerator": options.accelerator}
        run_stages(options.output / name, STAGES, model=name, **values)
        if options.install:
            install(options.output / name / "model", name)


if __name__ == "__main__":
    main()
