"""The one protein chain of an mdtraj topology: its sequence, and where its heavy atoms go in the atom14 layout."""

import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.md_arrays import BACKBONE
from ..errors import SettingError, TrajectoryError
from ..geometry import residue_constants as rc
from ..peptide import SAME_RESIDUE
from .cap_atoms import CAP_NAMES, cap_name, check_caps, role_atoms

logger = logging.getLogger(__name__)

# Protonation states and disulfides that only files of GROMACS and OPLS name, beside those of Amber and CHARMM.
_MORE_VARIANTS = {
    "HIS": "HISD HISE HISH HISA HISB HIS1 HIS2 HIN",
    "CYS": "CYN CYSH CYS1 CYS2",
    "ASP": "ASPH",
    "GLU": "GLUH",
    "LYS": "LYSH LYP",
    "ARG": "ARN ARGN",
    "TYR": "TYM TYRM",
}
_STANDARD = {name: name for name in rc.RESTYPES_3[: len(rc.RESTYPES)]}
STANDARD_NAMES = (
    _STANDARD
    | {variant: name for variant, name in SAME_RESIDUE.items() if name in _STANDARD}
    | {variant: name for name, text in _MORE_VARIANTS.items() for variant in text.split()}
)
_CODES = dict(zip(rc.RESTYPES_3, rc.RESTYPES, strict=False))
# Names of the same atom in older files.
_OXYGEN = ("O1", "OT1", "OC1", "OT")
_ATOM_NAMES = {("ILE", "CD"): "CD1"}


@dataclass(frozen=True)
class ProteinAtoms:
    """The heavy atoms of one chain, and the three of each cap where caps are asked for.

    `atoms` are their indices in the file, `slots` their places in the flattened [L * 14], `sequence` has X for caps,
    `residues` are the canonical names, `labels` the residues' names for error sentences, `skipped` the other residues
    by name, `absent` side-chain atoms that the file lacks.
    """

    atoms: NDArray[np.int64]
    slots: NDArray[np.int64]
    sequence: str
    residues: tuple[str, ...]
    labels: list[str]
    skipped: dict[str, int]
    absent: list[str]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Place in flattened [L * 14] -> index among the chain's atoms, -1 where there is none."""
        order = np.full(14 * len(self.sequence), -1)
        order[self.slots] = np.arange(len(self.slots))
        return order

    def local_indices(self, name: str) -> NDArray[np.int64]:
        """Indices [L], among the chain's atoms, of a backbone atom of all residues."""
        return self._order.reshape(-1, 14)[:, BACKBONE.index(name)]

    def atom14(self, xyz: NDArray[np.floating]) -> NDArray[np.float32]:
        """Coordinates [F, L, 14, 3] of the chain's atoms [F, atoms, 3]; zeros where there is no atom."""
        placed = np.zeros((len(xyz), 14 * len(self.sequence), 3), np.float32)
        placed[:, self.slots] = xyz
        return placed.reshape(len(xyz), -1, 14, 3)

    def report_skipped(self, path: Path) -> None:
        """Say in the log which residues of the file are left out, and which atoms it lacks."""
        caps = [name for name in self.skipped if name in CAP_NAMES]
        others = [f"{count} {name}" for name, count in self.skipped.items() if name not in CAP_NAMES]
        if caps:
            logger.warning("%s: the caps %s are left out, a frame needs N, CA and C", path, ", ".join(caps))
        if others:
            logger.info("%s: left out %s", path, ", ".join(others))
        if self.absent:
            logger.warning("%s lacks %d side-chain atoms (%s ...)", path, len(self.absent), ", ".join(self.absent[:3]))


def select_protein(topology: Any, selection: str | None, path: Path, *, caps: bool = False) -> ProteinAtoms:
    """The protein chain of an mdtraj topology, or of a selection of it, with its caps as residues where `caps` is set.

    Raises
    ------
    SettingError
        The selection is no mdtraj selection.
    TrajectoryError
        No protein, several chains, unknown residues or caps, missing backbone atoms.
    """
    residues, chosen, skipped = _residues(topology, selection, path, caps)
    names = [(cap_name(r.name) if caps else None) or STANDARD_NAMES[_plain(r.name)] for r in residues]
    if caps:
        check_caps(names, topology, residues, path)
    atoms: list[int] = []
    slots: list[int] = []
    absent: list[str] = []
    for number, (residue, name) in enumerate(zip(residues, names, strict=True)):
        if name in _CODES:
            placed, missing = _heavy_atoms(residue, name, chosen, path)
            absent += [f"{residue}-{atom}" for atom in missing]
        else:
            placed = dict(enumerate(role_atoms(name, residue, chosen, path)))
        atoms += placed.values()
        slots += [14 * number + slot for slot in placed]
    sequence = "".join(_CODES.get(name, rc.UNKNOWN_LETTER) for name in names)
    # mdtraj hands atoms over in the order of the file, whatever order was asked for.
    order = np.argsort(atoms)
    labels = [f"{residue.name} {residue.resSeq}" for residue in residues]
    return ProteinAtoms(np.array(atoms)[order], np.array(slots)[order], sequence, tuple(names), labels, skipped, absent)


def _heavy_atoms(residue: Any, standard: str, chosen: set[int], path: Path) -> tuple[dict[int, int], list[str]]:
    """Slot of atom14 -> index of an amino acid's atoms, and the names of those that it lacks."""
    names = rc.ATOM14[standard]
    found = {_atom_name(standard, atom.name): atom.index for atom in residue.atoms if atom.index in chosen}
    oxygens = [found[name] for name in _OXYGEN if name in found]
    if "O" not in found and oxygens:
        found["O"] = oxygens[0]
    missing = [name for name in names if name not in found]
    if set(missing) & set(BACKBONE):
        raise TrajectoryError(
            f"{path}: residue {residue} lacks {', '.join(name for name in missing if name in BACKBONE)}; "
            "expected N, CA, C and O in every residue, complete the structure or select another part with "
            "--selection"
        )
    return {slot: found[name] for slot, name in enumerate(names) if name in found}, missing


def _residues(
    topology: Any, selection: str | None, path: Path, caps: bool
) -> tuple[list[Any], set[int], dict[str, int]]:
    """The amino acids (and caps) in a selection, the selected atoms, how many residues of which names are left out."""
    chosen = set(range(topology.n_atoms))
    if selection is not None:
        try:
            chosen = set(topology.select(selection).tolist())
        except Exception as error:  # the parser's exceptions come from three libraries
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SettingError(
                f"the selection {selection!r} is not understood ({reason}); expected mdtraj's language, such as "
                "'chainid 0'"
            ) from error
    residues, skipped = [], Counter[str]()
    for residue in topology.residues:
        names = {atom.name for atom in residue.atoms if atom.index in chosen}
        if not names:
            continue
        if _plain(residue.name) in STANDARD_NAMES or (caps and cap_name(residue.name)):
            residues.append(residue)
        elif {"N", "CA", "C"} <= names:
            raise TrajectoryError(
                f"{path}: residue {residue.name} {residue.resSeq} is an amino acid of an unknown kind; expected the 20 "
                "standard ones and their protonation states, rename it in the topology or exclude it with --selection"
            )
        else:
            skipped[residue.name] += 1
    if not any(_plain(residue.name) in STANDARD_NAMES for residue in residues):
        raise TrajectoryError(
            f"{path} has no amino acid in the selection {selection or 'all'!r}; expected a protein chain, check "
            "--selection"
        )
    chains = sorted({residue.chain.index for residue in residues})
    if len(chains) > 1:
        raise TrajectoryError(
            f"{path} has {len(chains)} protein chains (chainid {', '.join(map(str, chains))}); expected one, select it "
            f"with --selection 'chainid {chains[0]}'"
        )
    return residues, chosen, dict(skipped)


def _plain(name: str) -> str:
    """A residue's name without Amber's mark of a terminus (NALA, CALA)."""
    name = name.strip().upper()
    return name[1:] if len(name) == 4 and name[0] in "NC" and name[1:] in STANDARD_NAMES else name


def _atom_name(standard: str, name: str) -> str:
    return _ATOM_NAMES.get((standard, name), name)
