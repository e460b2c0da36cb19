"""Parallel tempering with a diffusion move at every temperature, in one process or on several MPI ranks."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import unit
from tqdm.auto import tqdm

from ..errors import InputFileError, OutputError, SettingError
from ..mcmc import DiffusionMove
from ..mcmc.move_state import proposal_state
from ..mcmc.streams import n_ranks, rank
from ..proposals.devices import local_rank
from .hybrid import HybridChain
from .output import write_json
from .storage_check import refuse_code
from .systems import TIMESTEP, MolecularSystem

STORAGE, CHECKPOINT, SETTINGS = "tempering.nc", "tempering_checkpoint.nc", "settings.json"
BLOCK = 10  # iterations between two updates of the progress bar


@dataclass(frozen=True)
class Tempering:
    """What a run is made of: every temperature (K) gets `move`, then md_steps of Langevin dynamics (4 fs)."""

    molecule: MolecularSystem
    move: DiffusionMove
    platform: str
    kelvin: NDArray[np.float64]
    md_steps: int = 250

    def __post_init__(self) -> None:
        if self.md_steps < 1:
            raise SettingError(f"md_steps is {self.md_steps}; expected at least 1, the move alone is not ergodic")

    def settings(self) -> dict[str, Any]:
        """What must not change between a run and one that goes on with it."""
        state = self.move.__getstate__()
        return {
            "system": self.molecule.name,
            "temperatures_K": [float(value) for value in self.kelvin],
            "md_steps": self.md_steps,
            "n_candidates": state["n_candidates"],
            "seed": state["seed"],
            "model_sha256": proposal_state(state)["sha256"],
        }


def ladder(low: float, high: float, n: int) -> NDArray[np.float64]:
    """n temperatures (K) from low to high, each the same factor above the one before."""
    if n < 2 or not 0.0 < low < high < np.inf:
        raise SettingError(f"{n} temperatures from {low} to {high} K; expected 2 or more, of 0 < lowest < highest")
    return np.geomspace(low, high, n)


def restored(sampler_class: Any, storage: Path, **options: Any) -> Any:
    """`sampler_class.from_storage` on every rank.

    Every rank reads the storage, and rank 0 then opens it to append, which locks it: so the others go first. Raises
    InputFileError where the file would run code as it is read (`storage_check`).
    """
    import mpiplus
    from openmmtools import multistate

    refuse_code(storage)
    reporter = multistate.MultiStateReporter(str(storage), **options)
    communicator = mpiplus.get_mpicomm()
    if communicator is None:
        return sampler_class.from_storage(reporter)
    sampler = sampler_class.from_storage(reporter) if communicator.rank != 0 else None
    communicator.Barrier()
    if sampler is None:
        sampler = sampler_class.from_storage(reporter)
    communicator.Barrier()
    return sampler


class TemperingRun:
    """A `ParallelTemperingSampler` with its storage in a folder: made there, or gone on with where there is one.

    Raises
    ------
    OutputError
        The folder holds a run of other settings.
    InputFileError
        Its storage or its settings cannot be read.
    """

    def __init__(self, tempering: Tempering, folder: Path) -> None:
        import mpiplus
        from openmmtools import multistate

        self.tempering, self.folder = tempering, folder
        if mpiplus.run_single_node(0, (folder / SETTINGS).exists, broadcast_result=True):
            refuse_other(folder, tempering.settings())
            try:
                self.sampler = restored(
                    multistate.ParallelTemperingSampler,
                    folder / STORAGE,
                    checkpoint_interval=1,
                    checkpoint_storage=CHECKPOINT,
                )
            except (OSError, KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
                raise InputFileError(
                    f"{folder / STORAGE} cannot be gone on with ({error}); start again with --overwrite"
                ) from error
        else:
            self.sampler = self._created()
        contexts = context_cache(tempering.platform)
        self.sampler.sampler_context_cache = self.sampler.energy_context_cache = contexts
        if self.sampler.iteration == 0:
            self.sampler.minimize(max_iterations=200)
            if rank() == 0:  # last, so that a run killed before is started again
                write_json(folder / SETTINGS, tempering.settings())

    def _created(self) -> Any:
        from openmmtools import mcmc, multistate, states

        tempering = self.tempering
        dynamics = mcmc.LangevinDynamicsMove(
            timestep=TIMESTEP,
            collision_rate=1 / unit.picosecond,
            n_steps=tempering.md_steps,
            constraint_tolerance=1e-6,
        )
        sampler = multistate.ParallelTemperingSampler(
            mcmc_moves=mcmc.SequenceMove([tempering.move, dynamics]), online_analysis_interval=None
        )
        if rank() == 0:
            for name in (STORAGE, CHECKPOINT):  # of a run killed before its first iteration
                (self.folder / name).unlink(missing_ok=True)
        reporter = multistate.MultiStateReporter(
            str(self.folder / STORAGE), checkpoint_interval=1, checkpoint_storage=CHECKPOINT
        )
        kelvin = [float(value) * unit.kelvin for value in tempering.kelvin]
        start = states.SamplerState(tempering.molecule.positions * unit.nanometer)
        sampler.create(
            states.ThermodynamicState(tempering.molecule.system, kelvin[0]),
            [copy.deepcopy(start) for _ in kelvin],
            reporter,
            temperatures=kelvin,
            n_temperatures=len(kelvin),
        )
        return sampler

    def run(self, n_iterations: int, *, progress: bool = True) -> None:
        """Go on until the run has n_iterations, each of them stored."""
        sampler = self.sampler
        shown = progress and rank() == 0
        with tqdm(total=n_iterations, initial=sampler.iteration, desc="parallel tempering", disable=not shown) as bar:
            while sampler.iteration < n_iterations:
                n = min(BLOCK, n_iterations - sampler.iteration)
                sampler.extend(n)
                bar.update(n)
                moves = [move.move_list[0] for move in sampler.mcmc_moves]
                low, high = (f"{moves[k].fraction_accepted:.2f}" for k in (0, -1))
                bar.set_postfix(accepted=f"{low} to {high}", refresh=False)

    def close(self) -> None:
        """Close the storage, so that it can be read."""
        self.sampler._reporter.close()


def refuse_other(folder: Path, settings: dict[str, Any]) -> None:
    """Raise OutputError where a folder holds a run of other settings."""
    try:
        stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputFileError(f"{folder / SETTINGS} cannot be read ({error}); start again with --overwrite") from error
    if different := [name for name, value in settings.items() if stored.get(name) != value]:
        raise OutputError(
            f"the run in {folder} was made with other settings ({', '.join(different)}); give the same, or --overwrite"
        )


def context_cache(platform: str) -> Any:
    """A context cache on a platform; ranks of one machine take its GPUs in turn."""
    from openmmtools import cache

    number, n_devices = local_rank(), torch.cuda.device_count()
    properties = None
    if platform in ("CUDA", "HIP") and number is not None and n_devices > 1:
        properties = {"DeviceIndex": str(number % n_devices)}
    return cache.ContextCache(platform=openmm.Platform.getPlatformByName(platform), platform_properties=properties)


def single_chains(
    tempering: Tempering, folder: Path, n_iterations: int, seed: int = 0, *, progress: bool = True
) -> NDArray[np.float64]:
    """phi [iterations, states] of one `HybridChain` at each temperature, of the same move and dynamics.

    Ranks share the chains. Each has a folder of its own there, and goes on from its checkpoint.
    """
    import mpiplus

    platform = openmm.Platform.getPlatformByName(tempering.platform)

    def one(k: int) -> NDArray[np.float64]:
        kelvin = float(tempering.kelvin[k])
        own = folder / f"{kelvin:.1f}K"
        own.mkdir(parents=True, exist_ok=True)
        move = copy.deepcopy(tempering.move)
        # Not the streams that the tempering began with: this may be another process than that one.
        move.seed = None if move.seed is None else move.seed + 1_000_000 + k
        chain = HybridChain(
            tempering.molecule,
            move,
            platform,
            md_steps=tempering.md_steps,
            seed=seed + k,
            temperature=kelvin * unit.kelvin,
        )
        if (own / "checkpoint.npz").exists():
            chain.load(own / "checkpoint.npz")
        else:
            chain.equilibrate()
        chain.run(n_iterations, own, progress=progress and rank() == 0)
        return np.array(chain.series.tau_end)[:n_iterations, 0]

    states = range(len(tempering.kelvin))
    chains = mpiplus.distribute(one, states, send_results_to="all") if n_ranks() > 1 else [one(k) for k in states]
    return np.stack(chains, axis=1)
