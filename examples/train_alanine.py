"""Make the shipped alanine dipeptide models from nothing: parallel tempering, torsions, training.

    python examples/train_alanine.py                      # both, about 15 minutes each on 2 cores
    python examples/train_alanine.py --solvent vacuum --output runs

The commands below stand in the card of each model. Every stage is skipped if its result is there already, and goes on
where it was stopped otherwise.
"""

import argparse
import shutil
from pathlib import Path

from openmm_diffusion.workflows.console import run_stages

NAMES = {"obc": "alanine-dipeptide-torsion", "vacuum": "alanine-dipeptide-torsion-vacuum"}
# In vacuum R is rarer: its draws need more weight to be tried as often.
FLATTEN = {"obc": 0.4, "vacuum": 0.5}
STAGES = (
    ("md/simulation.json", "simulate --output md --system alanine-dipeptide-{solvent} --resume"),
    ("torsions.npz", "prepare torsion --trajectory md/trajectory.dcd --topology md/topology.pdb "
                     "--weights md/weights.npz --output torsions.npz"),
    ("model/model.json", "train torsion --data torsions.npz --output model --flatten {flatten} --resume"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvent", choices=(*NAMES, "both"), default="both")
    parser.add_argument("--output", type=Path, default=Path("results/models"), help="where the stages write")
    parser.add_argument("--install", action="store_true", help="copy the models into the package, as its shipped ones")
    options = parser.parse_args()
    for solvent in NAMES if options.solvent == "both" else (options.solvent,):
        folder = options.output / solvent
        run_stages(folder, STAGES, solvent=solvent, flatten=FLATTEN[solvent])
        if options.install:
            install(folder / "model", NAMES[solvent])


def install(trained: Path, name: str) -> None:
    """Copy a trained model to where `models.load(name)` looks for it."""
    from openmm_diffusion.models import store

    for suffix in (".safetensors", ".json"):
        shutil.copyfile(trained / f"model{suffix}", store.PRETRAINED / f"{name}{suffix}")
    print(f"{name}: sha256 {store.load(name).sha256()}")


if __name__ == "__main__":
    main()
