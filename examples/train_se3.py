"""Learn villin headpiece from nothing: molecular dynamics, frames, training of an SE(3) model, backbones from it.

    python examples/train_se3.py                          # 2 ns of MD (40 minutes), 50 minutes of training, 2 cores
    python examples/train_se3.py --nanoseconds 0.02 --minutes 2 --samples 8 --output results/short
    python examples/train_se3.py --preset seed --accelerator gpu --minutes 240

The commands below stand in the card of the model. Every stage is skipped if its result is there already; dynamics and
training go on where they were stopped.
"""

import argparse
from pathlib import Path

from openmm_diffusion.workflows.console import run_stages

STAGES = (
    ("md/trajectory.dcd", "md --output md --system villin-hp35 --nanoseconds {nanoseconds} --interval-ps {interval} "
                          "--equilibration-ps {equilibration} --resume"),
    ("data/frame_splits.csv", "prepare se3 --trajectory md/trajectory.dcd --topology md/topology.pdb --name villin "
                              "--output data"),
    ("model/model.json", "train se3 --data_dir data --atlas_csv data/atlas.csv --train_split data/frame_splits.csv "
                         "--preset {preset} --batch_size 16 --epochs 100000 --max_minutes {minutes} --lr 1e-3 "
                         "--warmup_steps 200 --cosine_decay --trans_weighting balanced --low_noise_share 0.5 "
                         "--self_conditioning 0 --accelerator {accelerator} --save_dir model --resume"),
    ("backbones/quality.json", "generate se3 --model model --output backbones --n-samples {samples} --data-dir data "
                               "--name villin_R1"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/villin"), help="where the stages write")
    parser.add_argument("--nanoseconds", type=float, default=2.0, help="length of the dynamics")
    parser.add_argument("--minutes", type=float, default=50.0, help="wall time of the training")
    parser.add_argument("--samples", type=int, default=200, help="backbones to generate")
    parser.add_argument("--preset", choices=("small", "seed", "acceptance"), default="small")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu or auto")
    options = parser.parse_args()
    # At least 250 frames, however short the dynamics is.
    spacing = {"interval": min(2.0, 4.0 * options.nanoseconds), "equilibration": min(100.0, 50 * options.nanoseconds)}
    run_stages(options.output, STAGES, **vars(options), **spacing)


if __name__ == "__main__":
    main()
