"""A model: network, the molecule it is for, and its card; created untrained, or loaded from a file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import SettingError
from ..peptide import MoleculeDescription, describe
from .torsion_network import TorsionNetwork, TorsionNetworkConfig

DEFAULT_KINDS = ("phi", "psi")


@dataclass(frozen=True)
class Model:
    """A score network for one molecule.

    Attributes
    ----------
    kind
        "torsion".
    network
        The score network, float32.
    molecule
        Sequences and torsion labels that the model is for.
    card
        Everything else that is known of it: sampling defaults, training data, metrics, commands. JSON values only.
    source
        Where the weights come from: {"name"}, {"path"}, {"create"} (a recipe), or {} for a network in memory.
    """

    kind: str
    network: nn.Module
    molecule: MoleculeDescription
    card: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def n_diffusion_steps(self) -> int:
        """Steps of the map from noise to data, unless a move asks for another number."""
        return int(self.card.get("sampling", {}).get("n_diffusion_steps", 8))

    def sha256(self) -> str:
        """Fingerprint of the architecture, the molecule and every weight."""
        digest = hashlib.sha256(repr((self.kind, self.molecule.to_dict())).encode())
        digest.update(repr(sorted(configuration(self.network).items())).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def create(
    kind: str, topology: Any, seed: int = 0, *, torsions: tuple[str, ...] = DEFAULT_KINDS, **config: Any
) -> Model:
    """An untrained model: random weights, the last layer not zero, so that it is a map with a density of its own.

    Parameters
    ----------
    kind
        "torsion".
    topology
        An OpenMM `Topology`, or a `MoleculeDescription`.
    seed
        Seed of the weights.
    torsions
        Which torsions the model moves (ignored for a `MoleculeDescription`, which lists them).
    config
        Sizes of the network, see `TorsionNetworkConfig`.
    """
    build = _builder(kind)
    molecule = topology if isinstance(topology, MoleculeDescription) else describe(topology, torsions)
    recipe = {"kind": kind, "molecule": molecule.to_dict(), "seed": seed, "config": dict(config)}
    return Model(kind, build(molecule, config, seed), molecule, {}, {"create": recipe})


def from_recipe(recipe: dict[str, Any]) -> Model:
    """The untrained model that `create` made, from the recipe in its source."""
    molecule = MoleculeDescription.from_dict(recipe["molecule"])
    return create(recipe["kind"], molecule, int(recipe["seed"]), **recipe["config"])


def configuration(network: nn.Module) -> dict[str, Any]:
    """The configuration that a network was built from, as plain values."""
    config: Any = network.config
    return dict(config.to_dict())


def _torsion_network(molecule: MoleculeDescription, config: dict[str, Any], seed: int) -> nn.Module:
    options = {key: value for key, value in config.items() if key != "n_torsions"}
    try:
        return TorsionNetwork(TorsionNetworkConfig(len(molecule.torsions), **options), seed)
    except TypeError as error:
        known = ", ".join(TorsionNetworkConfig.__dataclass_fields__)
        raise SettingError(
            f"the configuration {sorted(config)} is not that of a torsion network; known: {known}"
        ) from error


_BUILDERS: dict[str, Callable[[MoleculeDescription, dict[str, Any], int], nn.Module]] = {"torsion": _torsion_network}


def _builder(kind: str) -> Callable[[MoleculeDescription, dict[str, Any], int], nn.Module]:
    if kind not in _BUILDERS:
        raise SettingError(f"model kind {kind!r} is not known; choose among {', '.join(_BUILDERS)}")
    return _BUILDERS[kind]


def build(
    kind: str, molecule: MoleculeDescription, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> nn.Module:
    """A network of the architecture given with the weights given; raises ValueError where they do not fit."""
    network = _builder(kind)(molecule, config, 0)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[-1].strip()) from error
    return network
