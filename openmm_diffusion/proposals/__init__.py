"""Proposals: candidates with the density of how they were drawn."""

from .base import Candidates, Proposal
from .torsion import TorsionProposal

__all__ = ["Candidates", "Proposal", "TorsionProposal"]
