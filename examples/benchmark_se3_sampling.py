"""Samples a second of the SE(3) model: `python examples/benchmark_se3_sampling.py [--device cuda]`.

Untrained networks, which take as long as trained ones, at N = 3, 35, 100 residues and 100 steps of the reverse SDE. A
long chain may take minutes on a CPU: --measure runs fewer steps and scales, since all steps cost the same.
"""

import argparse
import time

import torch

from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.sampling.se3_backbones import sample_backbones
from openmm_diffusion.workflows.se3_presets import PRESETS, preset


def seconds(network: ScoreNetwork, n_residues: int, batch_size: int, n_steps: int, sampler: str) -> float:
    """Wall time of one batch of backbones."""
    aatype = torch.arange(n_residues) % 20
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    sample_backbones(
        network, aatype, batch_size, generator, sampler=sampler, n_steps=n_steps, batch_size=batch_size
    )  # ends with a copy to the CPU, which waits for the device
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="seed", choices=PRESETS)
    parser.add_argument("--sampler", default="reverse_sde")
    parser.add_argument("--residues", type=int, nargs="+", default=[3, 35, 100])
    parser.add_argument("--batch-size", type=int, nargs="+", help="one, or one for each N (default: 64, 16, 4)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--measure", type=int, help="steps that are run; all by default")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for one a core")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model_conf, se3_conf = preset(options.preset)
    diffuser = SE3Diffuser(se3_conf, 0.15).with_auto_scaling(1 / 0.15)
    network = ScoreNetwork(model_conf, diffuser, zero_init=False).to(options.device).eval()
    parameters = sum(p.numel() for p in network.parameters())
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(
        f"{options.preset} network, {parameters / 1e6:.2f} M parameters; {options.device} ({name}); {options.sampler}"
    )
    measured = options.measure or options.steps
    given = options.batch_size or [64, 16, 4]
    sizes = given * len(options.residues) if len(given) == 1 else given
    scaled = "" if measured == options.steps else f" ({measured} steps run)"
    print(f"{'N':>5} {'batch':>6} {'steps':>6} {'s/batch':>9} {'samples/s':>10}{scaled}")
    for n_residues, batch_size in zip(options.residues, sizes, strict=True):
        seconds(network, n_residues, batch_size, 1, options.sampler)  # warm up
        # The last call of the network, after the steps, is one more.
        calls = (options.steps + 1) / (measured + 1)
        took = calls * seconds(network, n_residues, batch_size, measured, options.sampler)
        print(f"{n_residues:>5} {batch_size:>6} {options.steps:>6} {took:>9.2f} {batch_size / took:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
