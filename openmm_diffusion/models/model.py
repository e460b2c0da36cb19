"""A model: network, the molecule it is for, and its card; created untrained, or loaded from a file."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..diffusion.se3_config import SE3Config
from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import SettingError
from ..geometry.residue_constants import RESTYPES, RESTYPES_3
from ..peptide import MoleculeDescription, describe
from .score_network import ScoreNetwork
from .se3_config import ScoreNetworkConfig
from .torsion_network import TorsionNetwork, TorsionNetworkConfig

DEFAULT_KINDS = ("phi", "psi")


@dataclass(frozen=True)
class Model:
    """A score network for one molecule.

    Attributes
    ----------
    kind
        "torsion" or "se3".
    network
        The score network, float32: a `TorsionNetwork`, or a `ScoreNetwork` with its diffuser.
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

    @property
    def sequence(self) -> str:
        """One letter for each residue, X for caps; chains one after another."""
        names = [name for sequence in self.molecule.sequences for name in sequence]
        return "".join(_ONE_LETTER.get(name, "X") for name in names)

    def sha256(self) -> str:
        """Fingerprint of the architecture, the units, the molecule and every weight."""
        config = configuration(self.network)
        # Cards made before this key existed have their fingerprints without it.
        if "coordinate_scaling" in config and config["coordinate_scaling"] == _implied_scaling(config):
            del config["coordinate_scaling"]
        digest = hashlib.sha256(repr((self.kind, self.molecule.to_dict())).encode())
        digest.update(repr(sorted(config.items())).encode())
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
        "torsion" or "se3".
    topology
        An OpenMM `Topology`, or a `MoleculeDescription`.
    seed
        Seed of the weights.
    torsions
        Which torsions a torsion model moves (ignored for a `MoleculeDescription`, which lists them).
    config
        Torsion models: sizes of the network, see `TorsionNetworkConfig`. SE(3) models: `model_conf` (see
        `ScoreNetworkConfig`), `se3_conf` (see `SE3Config`), `coord_scale` (length units of the batches per Angstrom),
        `coordinate_scaling` (diffused units per Angstrom; by default that of `se3_conf`, where it must not be "auto").

    Raises
    ------
    SettingError
        For an unknown kind, and for a configuration that is not of that kind.
    """
    build = _builder(kind)
    molecule = topology if isinstance(topology, MoleculeDescription) else describe(topology, torsions)
    if kind == "se3":
        molecule = dataclasses.replace(molecule, torsions=())  # it moves frames
        config = _se3_configuration(config)
    recipe = {"kind": kind, "molecule": molecule.to_dict(), "seed": seed, "config": dict(config)}
    return Model(kind, build(molecule, config, seed), molecule, {}, {"create": recipe})


def from_recipe(recipe: dict[str, Any]) -> Model:
    """The untrained model that `create` made, from the recipe in its source."""
    molecule = MoleculeDescription.from_dict(recipe["molecule"])
    return create(recipe["kind"], molecule, int(recipe["seed"]), **recipe["config"])


def configuration(network: nn.Module) -> dict[str, Any]:
    """The configuration that a network was built from, as plain values, with the units that its diffuser has now.

    Raises SettingError where coordinate_scaling is "auto" and no data have filled it in.
    """
    if isinstance(network, ScoreNetwork):
        _scaling(network.diffuser.coordinate_scaling)
        return {
            "coord_scale": float(network.diffuser.coord_scale),
            "coordinate_scaling": float(network.diffuser.coordinate_scaling),
            "model_conf": network.config.to_dict(),
            "se3_conf": network.diffuser.conf.model_dump(),
        }
    config: Any = network.config
    return dict(config.to_dict())


def protein(sequence: str) -> MoleculeDescription:
    """The description of one chain without caps, from its one-letter codes; raises SettingError for other letters."""
    unknown = sorted(set(sequence) - set(RESTYPES))
    if unknown or not sequence:
        raise SettingError(
            f"the sequence {sequence!r} has the letters {', '.join(unknown) or 'none'}; expected {''.join(RESTYPES)}"
        )
    return MoleculeDescription((tuple(_THREE_LETTERS[letter] for letter in sequence),))


def _torsion_network(molecule: MoleculeDescription, config: dict[str, Any], seed: int) -> nn.Module:
    options = {key: value for key, value in config.items() if key != "n_torsions"}
    try:
        return TorsionNetwork(TorsionNetworkConfig(len(molecule.torsions), **options), seed)
    except TypeError as error:
        known = ", ".join(TorsionNetworkConfig.__dataclass_fields__)
        raise SettingError(
            f"the configuration {sorted(config)} is not that of a torsion network; known: {known}"
        ) from error


def _se3_configuration(config: dict[str, Any]) -> dict[str, Any]:
    """All of an SE(3) model's configuration as plain values."""
    known = ("coord_scale", "coordinate_scaling", "model_conf", "se3_conf")
    if unknown := sorted(set(config) - set(known)):
        raise SettingError(f"the configuration has {', '.join(unknown)}; an SE(3) model takes {', '.join(known)}")
    se3_conf = SE3Config.of(config.get("se3_conf", {}))
    return {
        "coord_scale": _coord_scale(config),
        "coordinate_scaling": _scaling(config.get("coordinate_scaling", se3_conf.r3.coordinate_scaling)),
        "model_conf": ScoreNetworkConfig.of(config.get("model_conf", {})).to_dict(),
        "se3_conf": se3_conf.model_dump(),
    }


def _coord_scale(config: dict[str, Any]) -> float:
    return _positive(config.get("coord_scale", 1.0), "coord_scale is {!r}; expected length units per Angstrom")


def _scaling(value: Any) -> float:
    if value == "auto":
        raise SettingError(
            'r3.coordinate_scaling is "auto", which only training data fill in; give coordinate_scaling, a number of '
            "diffused units per Angstrom (1 / standard deviation of the coordinates), to models.create, or train first"
        )
    return _positive(value, "coordinate_scaling is {!r}; expected diffused units per Angstrom")


def _positive(value: Any, sentence: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < float("inf"):
        raise SettingError(f"{sentence.format(value)}, a number above 0")
    return float(value)


def _implied_scaling(config: dict[str, Any]) -> float:
    """The coordinate_scaling of cards that do not name it: "auto" meant one over a spread of 1 / coord_scale."""
    given = SE3Config.of(config.get("se3_conf", {})).r3.coordinate_scaling
    return 1.0 / (1.0 / _coord_scale(config)) if given == "auto" else float(given)


def _se3_network(_molecule: MoleculeDescription, config: dict[str, Any], seed: int) -> nn.Module:
    config = dict(config)
    values = _se3_configuration({"coordinate_scaling": _implied_scaling(config), **config})
    diffuser = SE3Diffuser(values["se3_conf"], values["coord_scale"])
    diffuser.coordinate_scaling = values["coordinate_scaling"]
    return ScoreNetwork(values["model_conf"], diffuser, seed=seed)


_ONE_LETTER = {name: RESTYPES[index] for index, name in enumerate(RESTYPES_3[: len(RESTYPES)])}
_THREE_LETTERS = {letter: name for name, letter in _ONE_LETTER.items()}
_BUILDERS: dict[str, Callable[[MoleculeDescription, dict[str, Any], int], nn.Module]] = {
    "torsion": _torsion_network,
    "se3": _se3_network,
}


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
