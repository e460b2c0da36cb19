"""The backbone torsions of a molecule: reading them from positions and setting them exactly.

Setting torsions turns rigid bodies about bonds, seen from an anchor body that stays. Bond lengths, angles, impropers
and all other torsions are kept, and x -> set(x, get(x) + Delta) has a Jacobian of one for constant Delta.
"""

import base64
import json
import logging
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..errors import MoleculeError
from ..geometry.dihedral import dihedral
from ..peptide import TORSION_KINDS, TorsionDefinition, bond_graph, find_chains, rotatable_torsions
from ..units import wrap
from .bodies import BodyTree, cut_at
from .quantities import in_nanometers, like

logger = logging.getLogger(__name__)


class BackboneTorsions:
    """The rotatable backbone torsions of every peptide chain in a topology.

    Parameters
    ----------
    topology
        An OpenMM `Topology` with bonds.
    kinds
        Which torsions to take, out of "phi", "psi", "omega".
    labels
        Take only the torsions with these labels, in this order.

    Attributes
    ----------
    labels
        One name a torsion, such as "phi:ALA2", in the order of the last axis of `get`.
    excluded
        (label, reason) of the torsions of those kinds that cannot be turned: bonds in rings or across crosslinks.
    anchor
        The atoms of the bodies that stay where they are, one body a molecule. It depends on bonds alone, never on
        torsions.
    bonds
        [B, 2] bonds that hold the molecules of the chains together: one for each atom but the first of a molecule.

    Raises
    ------
    MoleculeError
        No peptide backbone, or no rotatable torsion of the kinds asked for.
    """

    def __init__(
        self, topology: Any, kinds: Sequence[str] = TORSION_KINDS, *, labels: Sequence[str] | None = None
    ) -> None:
        definitions, excluded = rotatable_torsions(topology, kinds)
        if labels is not None:
            definitions = _ordered(definitions, labels)
        for label, reason in excluded:
            logger.info("torsion %s is left out: %s", label, reason)
        tree = cut_at(definitions, bond_graph(topology), find_chains(topology))
        self._setup(definitions, tree, excluded)

    def _setup(self, definitions: list[TorsionDefinition], tree: BodyTree, excluded: list[tuple[str, str]]) -> None:
        self._definitions, self._tree = definitions, tree
        self.labels = tuple(t.label for t in definitions)
        self.kinds = tuple(t.kind for t in definitions)
        self.excluded = tuple(excluded)
        self.n_atoms = len(tree.body)
        self.anchor, self.bonds = tree.anchor, tree.bonds
        self._axes, self._body = torch.from_numpy(tree.axes), torch.from_numpy(tree.body)
        # An axis atom of the far body stays on its axis, so every atom of a turned body counts as moved.
        self._moved = torch.from_numpy(np.flatnonzero(tree.body < len(definitions)))
        self._jumps = [torch.from_numpy(pointer) for pointer in tree.jumps()]
        self._turned = tree.turned()
        self._build_dihedrals()

    def to_text(self) -> str:
        """A compact text from which `from_text` makes these torsions again without a topology."""
        definitions = [[t.label, t.kind, t.dihedrals, t.flipped] for t in self._definitions]
        plain = json.dumps({"definitions": definitions, "tree": self._tree.to_dict()}, separators=(",", ":"))
        return base64.b85encode(zlib.compress(plain.encode(), 9)).decode()

    @classmethod
    def from_text(cls, text: str) -> "BackboneTorsions":
        """The torsions that gave `to_text`."""
        data = json.loads(zlib.decompress(base64.b85decode(text)))
        definitions = [
            TorsionDefinition(label, kind, tuple(tuple(quad) for quad in quads), tuple(flipped))
            for label, kind, quads, flipped in data["definitions"]
        ]
        torsions = cls.__new__(cls)
        torsions._setup(definitions, BodyTree.from_dict(data["tree"]), [])
        return torsions

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"BackboneTorsions({', '.join(self.labels)})"

    def turned_atoms(self, index: int) -> NDArray[np.int64]:
        """The atoms that torsion `index` moves: the whole side of its bond that is away from the anchor."""
        return np.flatnonzero(self._turned[index])

    @property
    def axes(self) -> NDArray[np.int64]:
        """[T, 2] atoms of each torsion's bond, the one nearer to the anchor first."""
        return self._axes.numpy()

    @property
    def moved_atoms(self) -> NDArray[np.int64]:
        """The atoms that some torsion moves."""
        return np.flatnonzero(self._turned.any(0))

    def get(self, positions: Any) -> NDArray[np.float64]:
        """Torsions [..., T] in rad, in [-pi, pi), of positions [..., atoms, 3] (nm or a Quantity)."""
        return np.asarray(wrap(self._measure(self._positions(positions))))

    def set(self, positions: Any, torsions: Any) -> Any:
        """Positions with the torsions set to [..., T] (rad); leading axes broadcast; a Quantity comes back as one."""
        x = self._positions(positions)
        tau = torch.as_tensor(np.asarray(torsions, dtype=np.float64))
        if tau.shape[-1:] != (len(self),):
            raise MoleculeError(
                f"torsions have shape {tuple(tau.shape)}; expected [..., {len(self)}] for {', '.join(self.labels)}"
            )
        return like(positions, self._turn(x, tau - self._measure(x)).numpy())

    def turn(self, positions: Any, angles: Any) -> Any:
        """Positions with every torsion changed by angles [..., T] (rad): the volume-preserving map behind `set`."""
        angles = torch.as_tensor(np.asarray(angles, dtype=np.float64))
        return like(positions, self._turn(self._positions(positions), angles).numpy())

    def _positions(self, positions: Any) -> Tensor:
        x = in_nanometers(positions)
        if x.shape[-2:] != (self.n_atoms, 3):
            raise MoleculeError(
                f"positions have shape {x.shape}; expected [..., {self.n_atoms}, 3] for the topology given; "
                "pass the positions of this very topology, solvent included"
            )
        return torch.as_tensor(x)

    def _measure(self, x: Tensor) -> Tensor:
        points = x[..., self._dihedrals, :]
        angles = dihedral(*points.unbind(-2)) - self._shifts
        first = angles[..., :1]
        # The others follow the first by impropers, which no torsion changes: unwrap about it, then average.
        return (first + (wrap(angles - first) * self._weights).sum(-1, keepdim=True)).squeeze(-1)

    def _turn(self, x: Tensor, angles: Tensor) -> Tensor:
        lead = np.broadcast_shapes(x.shape[:-2], angles.shape[:-1])
        x = x.expand(*lead, *x.shape[-2:])
        angles = angles.expand(*lead, len(self))
        near, far = x[..., self._axes[:, 0], :], x[..., self._axes[:, 1], :]
        axis = torch.nn.functional.normalize(far - near, dim=-1)
        vectors = (axis * wrap(angles)[..., None]).reshape(-1, 3)
        rotation = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix()).reshape(*axis.shape, 3)
        offset = far - (rotation @ far[..., None])[..., 0]
        # Identity in the last place: the anchor's own motion and the parent of the innermost torsions.
        rotation = torch.cat([rotation, torch.eye(3, dtype=x.dtype).expand(*lead, 1, 3, 3)], -3)
        offset = torch.cat([offset, x.new_zeros(*lead, 1, 3)], -2)
        for parent in self._jumps:  # pointer jumping: the product along every path in log2(depth) rounds
            outer = rotation[..., parent, :, :]
            offset = (outer @ offset[..., None])[..., 0] + offset[..., parent, :]
            rotation = outer @ rotation
        moved = self._moved
        body = self._body[moved]
        turned = (rotation[..., body, :, :] @ x[..., moved, :, None])[..., 0] + offset[..., body, :]
        result = x.clone()
        result[..., moved, :] = turned
        return result

    def _build_dihedrals(self) -> None:
        width = max(len(t.dihedrals) for t in self._definitions)
        quads = np.zeros((len(self), width, 4), dtype=np.int64)
        shifts, weights = np.zeros((len(self), width)), np.zeros((len(self), width))
        for k, t in enumerate(self._definitions):
            padding = (t.dihedrals[0],) * (width - len(t.dihedrals))
            quads[k] = t.dihedrals + padding
            shifts[k, : len(t.flipped)] = np.pi * np.array(t.flipped)
            weights[k, : len(t.dihedrals)] = 1.0 / len(t.dihedrals)
        self._dihedrals = torch.from_numpy(quads)
        self._shifts, self._weights = torch.from_numpy(shifts), torch.from_numpy(weights)


def _ordered(definitions: list[TorsionDefinition], labels: Sequence[str]) -> list[TorsionDefinition]:
    by_label = {t.label: t for t in definitions}
    missing = [label for label in labels if label not in by_label]
    if missing:
        raise MoleculeError(f"torsions {', '.join(missing)} are not rotatable torsions of this topology")
    return [by_label[label] for label in labels]
