"""Noise processes: marginals, transitions, scores, densities. No network."""

from .torus_diffuser import TorusDiffuser

__all__ = ["TorusDiffuser"]
