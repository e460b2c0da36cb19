"""The frames of a topology's peptide chains, and which of the links between them are torsions that a move sets.

One frame a residue, caps included: from the atoms in the roles of (N, CA, C), which are (O, CH3, C) in ACE, (N, CH3, H)
in NME and (N, H1, H2) in NH2. A link entry is soft where `BackboneTorsions` holds its torsion, and stiff everywhere
else. The soft value of omega is that of `BackboneTorsions`, the mean of the dihedrals about C-N.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diffusion.stiff_links import TORSION_COLUMNS, link_labels
from ..errors import MoleculeError
from ..geometry import residue_constants as rc
from ..geometry.frames import frames_from_atoms
from ..geometry.links import LINK, LinkGeometry
from ..peptide import SAME_RESIDUE, TORSION_KINDS, Chain, Residue, find_chains, rotatable_torsions
from ..units import ANGSTROM_PER_NM
from .quantities import in_nanometers
from .torsions import BackboneTorsions

_REMEDY = "complete the molecule, for example with openmm_diffusion.molecule.load"


@dataclass(frozen=True)
class ChainLinks:
    """The frames and links of one peptide chain of N residues.

    Attributes
    ----------
    names
        Canonical residue names, caps included: what `StiffLinks.of` and `LinkGeometry.of` take.
    prefix
        What stands before this chain's labels, such as "2/"; empty if the topology has one chain.
    soft
        Bool [N-1, 6], the link entries that are torsions of the move.
    torsion_index
        [N-1, 6] where each of them stands on the axis T of the torsions; -1 where stiff.
    frame_atoms
        [N, 3] atoms in the roles of (N, CA, C).
    reasons
        Why a psi, omega or phi is stiff, by label.
    """

    names: tuple[str, ...]
    prefix: str
    soft: Tensor
    torsion_index: Tensor
    frame_atoms: Tensor
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> Tensor:
        """[n_soft] places of this chain's torsions on the axis T, in the order of `torsions`."""
        return self.torsion_index[self.soft]

    def links(self, torsions: Tensor, stiff: Tensor | None = None) -> Tensor:
        """Links [..., N-1, 6] with the soft entries from torsions [..., T] (rad) of the whole molecule.

        The stiff ones are zero, or those of `stiff` (broadcast), such as `StiffLinks.centres`.
        """
        source = torch.zeros(self.soft.shape) if stiff is None else stiff
        lead = torch.broadcast_shapes(torsions.shape[:-1], source.shape[:-2])
        filled = source.to(torsions).expand(*lead, *self.soft.shape).clone()
        filled[..., self.soft] = torsions[..., self.columns].expand(*lead, -1)
        return filled

    def torsions(self, links: Tensor) -> Tensor:
        """The soft entries [..., n_soft] of links [..., N-1, 6]: torsions `columns` of the molecule."""
        return links[..., self.soft]


def chain_links(topology: Any, torsions: BackboneTorsions) -> list[ChainLinks]:
    """The links of every peptide chain of an OpenMM topology, soft where `torsions` sets them.

    Raises MoleculeError for a residue without a frame (an atom is missing, or the residue is none of the 20 nor a cap),
    for a cyclic chain, for a topology without a chain of two residues, and for torsions of another topology.
    """
    _check_residues(topology)
    chains = find_chains(topology)
    following = {(bond[0].index, bond[1].index) for bond in topology.bonds()}
    following |= {(second, first) for first, second in following}
    for chain in chains:
        first, last = chain.residues[0], chain.residues[-1]
        if (last.atoms.get("C"), first.atoms.get("N")) in following:
            raise MoleculeError(
                f"The chain {'-'.join(chain.sequence)} is cyclic; expected an open one, whose frames have a first link."
            )
    fixed = dict(rotatable_torsions(topology, TORSION_KINDS)[1])
    found = [_of_chain(chain, torsions, fixed) for chain in chains]
    placed = torch.cat([links.columns for links in found]).tolist()
    if torsions.n_atoms != topology.getNumAtoms() or sorted(placed) != list(range(len(torsions))):
        missing = [label for k, label in enumerate(torsions.labels) if k not in placed]
        raise MoleculeError(
            f"The torsions {', '.join(missing or torsions.labels)} of a molecule of {torsions.n_atoms} atoms are not "
            f"those of this topology of {topology.getNumAtoms()} atoms; make both from the same topology."
        )
    return found


def torsions_from_links(links: Sequence[Tensor], chains: Sequence[ChainLinks]) -> Tensor:
    """Torsions [..., T] of the whole molecule from the links [..., N-1, 6] of all its chains, in their order."""
    values = torch.cat([chain.torsions(x) for chain, x in zip(chains, links, strict=True)], -1)
    return values[..., torch.argsort(torch.cat([chain.columns for chain in chains]))]


def frames_from_positions(positions_nm: Any, chain: ChainLinks) -> Tensor:
    """Frames [..., N, 7] (quaternion wxyz, Angstrom, zero centroid, float64) of positions [..., atoms, 3].

    A link of these frames is one of the ideal N and C in them. It differs from the atoms' own torsion by the strain of
    bonds and angles (a tenth of a radian at 300 K), so torsions are to be read by `BackboneTorsions.get`.
    Positions are in nm or a Quantity.
    """
    atoms = ANGSTROM_PER_NM * torch.as_tensor(in_nanometers(positions_nm))[..., chain.frame_atoms, :]
    frames = frames_from_atoms(*atoms.unbind(-2))
    return frames.map_trans(lambda x: x - x.mean(-2, keepdim=True)).to_tensor_7()


def _of_chain(chain: Chain, torsions: BackboneTorsions, fixed: dict[str, str]) -> ChainLinks:
    LinkGeometry.of(chain.sequence)  # an unknown residue is named here, before anything is built on it
    atoms = [_frame_atoms(residue, number, chain) for number, residue in enumerate(chain.residues, 1)]
    places = {label: k for k, label in enumerate(torsions.labels)}
    index = torch.full((len(atoms) - 1, 6), -1, dtype=torch.long)
    reasons = {}
    for k, row in enumerate(link_labels(chain.sequence)):
        for column in TORSION_COLUMNS:
            label = chain.prefix + row[column]
            if label in places:
                index[k, column] = places[label]
            else:
                owner = chain.residues[k + 1] if LINK[column] == "phi" else chain.residues[k]
                reasons[label] = _reason(LINK[column], owner, fixed.get(label))
    return ChainLinks(chain.sequence, chain.prefix, index >= 0, index, torch.tensor(atoms), reasons)


def _reason(kind: str, owner: Residue, fixed: str | None) -> str:
    if owner.is_cap and kind != "omega":
        return f"chain end: it is an improper of the cap {owner.name}"
    if fixed is None:
        return "not asked for"
    if owner.name == "PRO" and kind == "phi":
        return "its bond is in the ring of proline"
    return "a disulfide or another crosslink closes a ring through its bond"


def _frame_atoms(residue: Residue, number: int, chain: Chain) -> list[int]:
    """Indices of the atoms in the roles of (N, CA, C)."""
    named, amide = residue.atoms.get, residue.amide_substituents
    if residue.name == "ACE":
        roles = {"O": named("O"), "CH3": residue.alpha, "C": named("C")}
    elif residue.name == "NME":
        roles = {"N": named("N"), "CH3": residue.alpha, "H": amide[0] if amide else None}
    elif residue.name == "NH2":
        # The hydrogen that stands for CA is the one that the omega of NH2 is measured to.
        hydrogens = [*amide, None, None]
        roles = {"N": named("N"), "H1": hydrogens[0], "H2": hydrogens[1]}
    else:
        roles = {name: named(name) for name in ("N", "CA", "C")}
    indices = [index for index in roles.values() if index is not None]
    if len(indices) < 3:
        missing = " and ".join(name for name, index in roles.items() if index is None)
        raise MoleculeError(
            f"Residue {residue.name}{number} of the chain {'-'.join(chain.sequence)} has no atom {missing}; expected "
            f"{', '.join(roles)}, which make its frame; {_REMEDY}."
        )
    return indices


def _check_residues(topology: Any) -> None:
    """A residue that lacks N, CA or C would silently part its chain in two."""
    for residue in getattr(topology, "residues", list)():
        name = residue.name.upper()
        name = SAME_RESIDUE.get(name, SAME_RESIDUE.get(name[-3:], name[-3:]))
        atoms = {atom.name for atom in residue.atoms()}
        missing = [role for role in ("N", "CA", "C") if role not in atoms]
        if missing and name in rc.RESTYPES_3[: rc.UNKNOWN]:
            raise MoleculeError(
                f"Residue {residue.name}{residue.id} has no atom {' and '.join(missing)}; expected N, CA and C, which "
                f"make its frame; {_REMEDY}."
            )
