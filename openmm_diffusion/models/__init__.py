"""Score networks, the molecules they are for, and their files (safetensors and a JSON card)."""

from .model import Model, create
from .store import load, names, save
from .torsion_network import TorsionNetwork, TorsionNetworkConfig

__all__ = ["Model", "TorsionNetwork", "TorsionNetworkConfig", "create", "load", "names", "save"]
