"""Hybrid AI/physics sampling for OpenMM: diffusion models propose, Metropolis-Hastings accepts exactly."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import models, molecule
    from .mcmc import DiffusionKernel, DiffusionMove, NCMCDiffusionMove, ProposalMove, StepRecord
    from .proposals import BackboneProposal, Candidates, LocalProposal, Proposal, TorsionProposal

__version__ = "0.1.0"
__all__ = [
    "BackboneProposal",
    "Candidates",
    "DiffusionKernel",
    "DiffusionMove",
    "LocalProposal",
    "NCMCDiffusionMove",
    "Proposal",
    "ProposalMove",
    "StepRecord",
    "TorsionProposal",
    "__version__",
    "models",
    "molecule",
]

# Loaded at first use (PEP 562): the command line's --help needs neither torch nor OpenMM.
_HOMES = {
    "DiffusionKernel": "mcmc",
    "DiffusionMove": "mcmc",
    "NCMCDiffusionMove": "mcmc",
    "ProposalMove": "mcmc",
    "StepRecord": "mcmc",
    "BackboneProposal": "proposals",
    "Candidates": "proposals",
    "LocalProposal": "proposals",
    "Proposal": "proposals",
    "TorsionProposal": "proposals",
}


def __getattr__(name: str) -> Any:
    if name in ("models", "molecule"):
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
