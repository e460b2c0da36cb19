"""The 20 residues: types, atoms in the atom14 and atom37 orders, chi angles, ideal backbones. Lengths in Angstrom.

Orders of residues and atoms, chi atoms and ideal local coordinates are those of AlphaFold2 (Jumper et al., Nature 596,
583 (2021), SI section 1.8 and table 2), whose ideal bond lengths and angles are those of Engh & Huber (International
Tables for Crystallography F, 18.3 (2001)). Residue 20, letter X, is any other residue: it has N, CA, C, O and no more.
"""

import numpy as np
from numpy.typing import NDArray

from ..errors import TrajectoryError

RESTYPES = "ARNDCQEGHILKMFPSTWYV"
UNKNOWN_LETTER = "X"
UNKNOWN = len(RESTYPES)
N_RESTYPES = len(RESTYPES) + 1
LETTERS = RESTYPES + UNKNOWN_LETTER

# name, atoms after N, CA, C, O in atom14 order
_RESIDUES = """
ALA CB
ARG CB CG CD NE CZ NH1 NH2
ASN CB CG OD1 ND2
ASP CB CG OD1 OD2
CYS CB SG
GLN CB CG CD OE1 NE2
GLU CB CG CD OE1 OE2
GLY
HIS CB CG ND1 CD2 CE1 NE2
ILE CB CG1 CG2 CD1
LEU CB CG CD1 CD2
LYS CB CG CD CE NZ
MET CB CG SD CE
PHE CB CG CD1 CD2 CE1 CE2 CZ
PRO CB CG CD
SER CB OG
THR CB OG1 CG2
TRP CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2
TYR CB CG CD1 CD2 CE1 CE2 CZ OH
VAL CB CG1 CG2
UNK
"""
_ROWS = [line.split() for line in _RESIDUES.strip().splitlines()]
RESTYPES_3: tuple[str, ...] = tuple(row[0] for row in _ROWS)
ATOM14: dict[str, tuple[str, ...]] = {row[0]: ("N", "CA", "C", "O", *row[1:]) for row in _ROWS}
_ATOM37 = """
N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 OE2 CH2
NH1 NH2 OH CZ CZ2 CZ3 NZ OXT
"""
ATOM37: tuple[str, ...] = tuple(_ATOM37.split())
ATOM37_INDEX: dict[str, int] = {name: i for i, name in enumerate(ATOM37)}
N_ATOM14, N_ATOM37 = 14, len(ATOM37)

# Each chi angle is about the bond between the second and third of four consecutive atoms of these chains.
_CHI_CHAINS = {
    "ARG": "N CA CB CG CD NE CZ",
    "ASN": "N CA CB CG OD1",
    "ASP": "N CA CB CG OD1",
    "CYS": "N CA CB SG",
    "GLN": "N CA CB CG CD OE1",
    "GLU": "N CA CB CG CD OE1",
    "HIS": "N CA CB CG ND1",
    "ILE": "N CA CB CG1 CD1",
    "LEU": "N CA CB CG CD1",
    "LYS": "N CA CB CG CD CE NZ",
    "MET": "N CA CB CG SD CE",
    "PHE": "N CA CB CG CD1",
    "PRO": "N CA CB CG CD",
    "SER": "N CA CB OG",
    "THR": "N CA CB OG1",
    "TRP": "N CA CB CG CD1",
    "TYR": "N CA CB CG CD1",
    "VAL": "N CA CB CG1",
}


def _chi_atoms(name: str) -> tuple[tuple[str, ...], ...]:
    chain = _CHI_CHAINS.get(name, "").split()
    return tuple(tuple(chain[k : k + 4]) for k in range(len(chain) - 3))


CHI_ATOMS: dict[str, tuple[tuple[str, ...], ...]] = {name: _chi_atoms(name) for name in RESTYPES_3}

# N x, y; C x; CB x, y, z in the frame (CA at the origin, C on +x, N in the xy plane, y > 0); O x, y in the psi frame (C
# at the origin, +x along CA->C, the plane turned by psi). UNK takes alanine's, without CB.
_IDEAL_BACKBONES = """
ALA -0.525 1.363  1.526  -0.529 -0.774 -1.205  0.627 1.062
ARG -0.524 1.362  1.525  -0.524 -0.778 -1.209  0.626 1.062
ASN -0.536 1.357  1.526  -0.531 -0.787 -1.200  0.625 1.062
ASP -0.525 1.362  1.527  -0.526 -0.778 -1.208  0.626 1.062
CYS -0.522 1.362  1.524  -0.519 -0.773 -1.212  0.625 1.062
GLN -0.526 1.361  1.526  -0.525 -0.779 -1.207  0.626 1.062
GLU -0.528 1.361  1.526  -0.526 -0.781 -1.207  0.626 1.062
GLY -0.572 1.337  1.517   0.000  0.000  0.000  0.626 1.062
HIS -0.527 1.360  1.525  -0.525 -0.778 -1.208  0.625 1.063
ILE -0.493 1.373  1.527  -0.536 -0.793 -1.213  0.627 1.062
LEU -0.520 1.363  1.525  -0.522 -0.773 -1.214  0.625 1.063
LYS -0.526 1.362  1.526  -0.524 -0.778 -1.208  0.626 1.062
MET -0.521 1.364  1.525  -0.523 -0.776 -1.210  0.625 1.062
PHE -0.518 1.363  1.524  -0.525 -0.776 -1.212  0.626 1.062
PRO -0.566 1.351  1.527  -0.546 -0.611 -1.293  0.621 1.066
SER -0.529 1.360  1.525  -0.518 -0.777 -1.211  0.626 1.062
THR -0.517 1.364  1.526  -0.516 -0.793 -1.215  0.626 1.062
TRP -0.521 1.363  1.525  -0.523 -0.776 -1.212  0.627 1.062
TYR -0.522 1.362  1.524  -0.522 -0.776 -1.213  0.627 1.062
VAL -0.494 1.373  1.527  -0.533 -0.795 -1.213  0.627 1.062
UNK -0.525 1.363  1.526   0.000  0.000  0.000  0.627 1.062
"""
_IDEAL = np.array([line.split()[1:] for line in _IDEAL_BACKBONES.strip().splitlines()], dtype=np.float64)


def _ideal_local() -> NDArray[np.float64]:
    local = np.zeros((N_RESTYPES, 4, 3))
    local[:, 0, :2] = _IDEAL[:, 0:2]
    local[:, 2, 0] = _IDEAL[:, 2]
    local[:, 3] = _IDEAL[:, 3:6]
    return local


def _atom_tables() -> tuple[NDArray[np.int64], ...]:
    to_37 = np.zeros((N_RESTYPES, N_ATOM14), dtype=np.int64)
    to_14 = np.zeros((N_RESTYPES, N_ATOM37), dtype=np.int64)
    mask_14, mask_37 = np.zeros_like(to_37), np.zeros_like(to_14)
    chi = np.zeros((N_RESTYPES, 4, 4), dtype=np.int64)
    mask_chi = np.zeros((N_RESTYPES, 4), dtype=np.int64)
    for i, name in enumerate(RESTYPES_3):
        for k, atom in enumerate(ATOM14[name]):
            to_37[i, k], to_14[i, ATOM37_INDEX[atom]] = ATOM37_INDEX[atom], k
            mask_14[i, k] = mask_37[i, ATOM37_INDEX[atom]] = 1
        for k, atoms in enumerate(CHI_ATOMS[name]):
            chi[i, k], mask_chi[i, k] = [ATOM37_INDEX[atom] for atom in atoms], 1
    return to_37, to_14, mask_14, mask_37, chi, mask_chi


# By residue type: where each atom14 atom stands in atom37 [21, 14] and back [21, 37] (0 where there is none), which
# atoms exist, the four atom37 atoms of each chi angle [21, 4, 4], which chi angles exist [21, 4].
_tables = _atom_tables()
ATOM14_TO_ATOM37: NDArray[np.int64] = _tables[0]
ATOM37_TO_ATOM14: NDArray[np.int64] = _tables[1]
ATOM14_MASK: NDArray[np.bool_] = _tables[2].astype(bool)
ATOM37_MASK: NDArray[np.bool_] = _tables[3].astype(bool)
CHI_INDICES: NDArray[np.int64] = _tables[4]
CHI_MASK: NDArray[np.bool_] = _tables[5].astype(bool)

# By residue type: N, CA, C, CB in the frame [21, 4, 3] (CB at the origin where there is none), O in the psi frame
# [21, 3].
IDEAL_BACKBONE: NDArray[np.float64] = _ideal_local()
IDEAL_OXYGEN: NDArray[np.float64] = np.pad(_IDEAL[:, 6:8], ((0, 0), (0, 1)))


def aatype(sequence: str) -> NDArray[np.int64]:
    """Residue types [L], 0-20, of one-letter codes; X is 20.

    Raises TrajectoryError for a letter that is none of the 20 residues nor X.
    """
    types = np.array([LETTERS.find(letter) for letter in sequence], dtype=np.int64)
    if (types < 0).any():
        position = int(np.argmax(types < 0))
        raise TrajectoryError(
            f"Residue {position + 1} of the sequence is {sequence[position]!r}; expected one of {RESTYPES} in "
            f"capitals, or {UNKNOWN_LETTER} for any other residue."
        )
    return types


def sequence(aatype: NDArray[np.integer]) -> str:
    """One-letter codes of residue types [L].

    Raises TrajectoryError for a type outside 0-20.
    """
    types = np.asarray(aatype)
    if types.size and (types.min() < 0 or types.max() > UNKNOWN):
        raise TrajectoryError(f"Residue types run from {types.min()} to {types.max()}; expected 0 to {UNKNOWN}.")
    return "".join(LETTERS[i] for i in types)
