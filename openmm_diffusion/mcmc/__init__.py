"""Exact moves: the acceptance ratio, the kernel on an OpenMM Context, the openmmtools adapter."""

from .acceptance import log_acceptance
from .context_kernel import DiffusionKernel
from .kernel import StepRecord, metropolis_step
from .move import DiffusionMove, ProposalMove
from .ncmc import NCMCDiffusionMove
from .ncmc_kernel import NCMCRecord, ncmc_step
from .openmm_samplers import expanded_ensemble_sampler, replica_exchange_sampler

__all__ = [
    "DiffusionKernel",
    "DiffusionMove",
    "NCMCDiffusionMove",
    "NCMCRecord",
    "ProposalMove",
    "StepRecord",
    "expanded_ensemble_sampler",
    "log_acceptance",
    "metropolis_step",
    "ncmc_step",
    "replica_exchange_sampler",
]
