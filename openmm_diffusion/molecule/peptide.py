"""Peptides from their sequence: an ideal backbone, completed with side chains and hydrogens."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import MoleculeError
from ..geometry.residue_constants import RESTYPES_3, UNKNOWN
from .load import LoadedMolecule, load

_CAP_ATOMS = {"ACE": {"CA": "CH3", "C": "C", "O": "O"}, "NME": {"N": "N", "CA": "CH3"}, "NH2": {"N": "N"}}
_BACKBONE = {"N": "N", "CA": "CA", "C": "C", "O": "O"}
# Angstrom and degrees (Engh & Huber 1991): C-N, N-CA, CA-C, C-O; CA-C-N, C-N-CA, N-CA-C, CA-C-O.
_CN, _NCA, _CAC, _CO = 1.329, 1.458, 1.525, 1.231
_CACN, _CNCA, _NCAC, _CACO = 116.6, 121.7, 111.0, 120.1
_CHAINS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def peptide(*sequences: str, phi: float = -75.0, psi: float = 140.0, spacing: float = 20.0) -> LoadedMolecule:
    """A peptide of one or more chains, all atoms, neutral pH: `peptide("ACE-ALA-ALA-ALA-NME")`.

    Parameters
    ----------
    sequences
        Three-letter codes joined by "-", one string for each chain; ACE may begin, NME or NH2 may end it. Ends without
        caps become charged.
    phi, psi
        Torsions of every residue, degrees; omega is 180.
    spacing
        Angstrom between chains.

    Raises
    ------
    MoleculeError
        An unknown residue, a cap inside the chain, or a chain of fewer than two residues.
    """
    chains = [_checked(sequence) for sequence in sequences]
    if not 1 <= len(chains) <= len(_CHAINS):
        raise MoleculeError(f"{len(chains)} sequences were given; expected 1 to {len(_CHAINS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{sequences[0]}.pdb"
        path.write_text(backbone_pdb(chains, phi, psi, spacing))
        return load(path)


def is_sequence(text: str) -> bool:
    """Whether the text is written like a sequence of three-letter codes, such as "ACE-ALA-NME"."""
    parts = text.split("-")
    return len(parts) > 1 and all(len(part) == 3 and part.isalnum() and part.isupper() for part in parts)


def backbone_pdb(chains: Sequence[Sequence[str]], phi: float, psi: float, spacing: float) -> str:
    """PDB text of ideal backbones N, CA, C, O with caps, chains side by side along x."""
    lines: list[str] = []
    for number, names in enumerate(chains):
        lines += [*_records(names, _CHAINS[number], spacing * number, phi, psi), "TER"]
    return "\n".join([*lines, "END", ""])


def _checked(sequence: str) -> list[str]:
    names = sequence.split("-")
    known = (*RESTYPES_3[:UNKNOWN], *_CAP_ATOMS)
    for position, name in enumerate(names):
        if name not in known:
            raise MoleculeError(
                f"residue {position + 1} of {sequence!r} is {name!r}; expected three-letter codes of the 20 residues "
                'or the caps ACE, NME, NH2, joined by "-"'
            )
        if (name == "ACE" and position > 0) or (name in ("NME", "NH2") and position < len(names) - 1):
            raise MoleculeError(f"{sequence!r} has the cap {name} at position {position + 1}; caps stand at the ends")
    if len(names) < 2:
        raise MoleculeError(f"the sequence {sequence!r} has one residue; expected at least two, caps included")
    return names


def _records(names: Sequence[str], chain: str, shift: float, phi: float, psi: float) -> list[str]:
    lines: list[str] = []
    n, ca, c = np.array([0.0, 1.4, 0.3]), np.array([1.0, 0.4, 0.1]), np.array([2.5, 0.7, -0.2])
    for number, name in enumerate(names, 1):
        oxygen = _place(n, ca, c, _CO, _CACO, psi + 180.0)
        atoms = _CAP_ATOMS.get(name, _BACKBONE)
        for role, position in (("N", n), ("CA", ca), ("C", c), ("O", oxygen)):
            if role in atoms:
                x, y, z = position + np.array([shift, 0.0, 0.0])
                lines.append(
                    f"ATOM  {len(lines) + 1:5d}  {atoms[role]:<3s} {name:3s} {chain}{number:4d}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {role[0]:s}"
                )
        n_next = _place(n, ca, c, _CN, _CACN, psi)
        ca_next = _place(ca, c, n_next, _NCA, _CNCA, 180.0)
        n, ca, c = n_next, ca_next, _place(c, n_next, ca_next, _CAC, _NCAC, phi)
    return lines


def _place(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], length: float, angle: float, torsion: float
) -> NDArray[np.float64]:
    """The point d at this distance from c, with these angles (degrees) b-c-d and a-b-c-d."""
    bend, turn = np.radians([angle, torsion])
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    frame = np.stack([axis, np.cross(normal, axis), normal], -1)
    local = np.array([-np.cos(bend), np.sin(bend) * np.cos(turn), np.sin(bend) * np.sin(turn)])
    return np.asarray(c + length * frame @ local)
