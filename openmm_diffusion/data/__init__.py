"""Trajectories as arrays, and batches of them."""

from .torsion_dataset import TorsionDataset

__all__ = ["TorsionDataset"]
