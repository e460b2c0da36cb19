"""Proposals: candidates with the density of how they were drawn."""

from .backbone import BackboneProposal
from .base import Candidates, Proposal
from .local import LocalProposal
from .torsion import TorsionProposal

__all__ = ["BackboneProposal", "Candidates", "LocalProposal", "Proposal", "TorsionProposal"]
