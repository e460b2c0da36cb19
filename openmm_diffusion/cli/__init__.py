"""The command `openmm-diffusion`."""

from .main import main

__all__ = ["main"]
