"""Point attention against its slow twin with displacement tensors: time and activation memory, in one table.

One layer of the first seed's size, or with `--network` the whole score network of that size with either attention. The
repeats of both are interleaved, medians printed. Memory is what autograd keeps for the backward pass (each storage
once, parameters and inputs left out); on a GPU the allocator's peak over forward and backward.

    python examples/benchmark_ipa.py --threads 1
    python examples/benchmark_ipa.py --device cuda --network
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.ipa import InvariantPointAttention
from openmm_diffusion.models.score_network import ScoreNetwork

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from slow_ipa import plain_ipa

CA_SPREAD = 10.0  # Angstrom


@dataclass(frozen=True)
class Job:
    """A forward pass and the tensors that it is given."""

    run: Callable[[], Tensor]
    inputs: list[Tensor]


def layer_job(network: ScoreNetwork, n: int, batch: int, device: str) -> Job:
    """One attention layer on random inputs."""
    g = torch.Generator().manual_seed(n)
    config = network.config
    node = torch.randn(batch, n, config.node_embed_size, generator=g).to(device)
    edge = torch.randn(batch, n, n, config.edge_embed_size, generator=g).to(device).requires_grad_()
    rigids = Rigid(rotations.haar((batch, n), g).float(), torch.randn(batch, n, 3, generator=g)).to(device)
    present = torch.ones(batch, n, dtype=torch.bool, device=device)
    layer = next(m for m in network.modules() if isinstance(m, InvariantPointAttention))
    return Job(lambda: layer(node, edge, rigids, present), [node, edge, rigids.rots, rigids.trans])


def network_job(network: ScoreNetwork, n: int, batch: int, device: str) -> Job:
    """The whole network on random frames."""
    g = torch.Generator().manual_seed(n)
    trans = CA_SPREAD * torch.randn(batch, n, 3, generator=g)
    rigids = torch.cat([rotations.to_quaternion(rotations.haar((batch, n), g)).float(), trans], -1)
    values = {
        "rigids_t": rigids,
        "res_mask": torch.ones(batch, n),
        "fixed_mask": torch.zeros(batch, n),
        "seq_idx": torch.arange(1, n + 1).expand(batch, n),
        "t": torch.full((batch,), 0.3),
        "sc_ca_t": torch.zeros(batch, n, 3),
        "torsion_angles_sin_cos": torch.zeros(batch, n, 7, 2),
    }
    values = {key: value.to(device) for key, value in values.items()}

    def run() -> Tensor:
        output = network(values)
        return torch.cat([output[key].flatten() for key in ("rot_score", "trans_score", "psi")])

    return Job(run, list(values.values()))


def measure(job: Job, device: str) -> dict[str, float]:
    """Seconds of a forward pass and of forward and backward, and MiB kept for the backward pass."""

    def clock() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    began = clock()
    with torch.no_grad():
        job.run()
    middle = clock()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    output = job.run()
    output.square().sum().backward()
    ended = clock()
    record = {"forward": middle - began, "both": ended - middle}
    if device != "cpu":
        record["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return record


def kept(job: Job, network: ScoreNetwork) -> float:
    """MiB of the storages that autograd keeps, parameters and inputs left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *job.inputs)}
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # or its address may be given to another
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        job.run()
    return sum(size for place, size in storages.items() if place not in own) / 2**20


def compare(network: ScoreNetwork, n: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of both attentions at n residues."""
    make = network_job if options.network else layer_job
    job = make(network, n, options.batch, options.device)
    plain = mock.patch.object(InvariantPointAttention, "forward", plain_ipa)
    records: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for _ in range(options.repeats + 1):
        records["ours"].append(measure(job, options.device))
        with plain:
            records["plain"].append(measure(job, options.device))
    result = {
        name: {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
        for name, rows in records.items()
    }
    if options.device == "cpu":
        result["ours"]["MiB"] = kept(job, network)
        with plain:
            result["plain"]["MiB"] = kept(job, network)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", action="store_true", help="the whole score network instead of one layer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = ScoreNetwork(None, SE3Diffuser({}), zero_init=False).to(options.device)
    what = "network" if options.network else "layer"
    print(f"{what}, batch {options.batch}, {options.device}, {options.threads} thread(s); plain / ours")
    print(f"{'N':>5} {'forward ms':>24} {'forward+backward ms':>24} {'memory MiB':>24}")
    for n in options.sizes:
        result = compare(network, n, options)
        cells = []
        for key, unit in (("forward", 1e3), ("both", 1e3), ("MiB", 1.0)):
            plain, ours = (result[name][key] * unit for name in ("plain", "ours"))
            cells.append(f"{plain:9.1f} /{ours:7.1f} ={plain / ours:4.1f}")
        print(f"{n:5d} {cells[0]:>24} {cells[1]:>24} {cells[2]:>24}", flush=True)


if __name__ == "__main__":
    main()
