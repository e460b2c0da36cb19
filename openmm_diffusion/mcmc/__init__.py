"""Exact moves: the acceptance ratio, the kernel on an OpenMM Context, the openmmtools adapter."""

from .acceptance import log_acceptance
from .kernel import StepRecord, metropolis_step
from .move import DiffusionMove, ProposalMove

__all__ = ["DiffusionMove", "ProposalMove", "StepRecord", "log_acceptance", "metropolis_step"]
