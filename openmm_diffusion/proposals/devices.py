"""Where a network runs: one accelerator for each MPI rank of a machine."""

import logging
import os
from collections.abc import Mapping

import torch

from ..errors import SettingError

logger = logging.getLogger(__name__)

# Rank among the ranks of one machine, by launcher; those of MPI first, because a batch job's own shell has Slurm's too.
_LOCAL = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "PMI_LOCAL_RANK",
    "FLUX_TASK_LOCAL_ID",
    "SLURM_LOCALID",
    # The rank over all machines: right on one, and where every machine has as many ranks as devices.
    "PMI_RANK",
    "PMIX_RANK",
)


def local_rank(environment: Mapping[str, str] | None = None) -> int | None:
    """The number of this process among those that an MPI launcher started on this machine; None without a launcher."""
    values = os.environ if environment is None else environment
    return next((int(values[name]) for name in _LOCAL if values.get(name, "").isdecimal()), None)


def default_device(environment: Mapping[str, str] | None = None) -> str:
    """The torch device where none is named: cuda where there is one, else the CPU.

    Ranks of one machine take its visible CUDA devices in turn.
    """
    if not torch.cuda.is_available():
        return "cpu"
    rank, count = local_rank(environment), torch.cuda.device_count()
    return "cuda" if rank is None or count < 2 else f"cuda:{rank % count}"


def choose_device(name: str | None) -> torch.device:
    """The device named, or `default_device`. Raises SettingError where it is not available."""
    chosen = name or default_device()
    try:
        device = torch.device(chosen)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"device {chosen!r} is not available ({str(error).splitlines()[0]}); try 'cpu'") from error
    if name is None:
        logger.info("the network runs on %s", device)
    return device
