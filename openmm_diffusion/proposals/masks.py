"""Which residues local moves free: windows along the sequence, crops of a reference structure, or masks as given."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.crops import balls
from ..errors import SettingError
from ..molecule.frames import ChainLinks
from ..molecule.quantities import in_nanometers
from ..sampling.windows import contiguous_windows


def masks_of(chains: list[ChainLinks], settings: dict[str, Any]) -> NDArray[np.bool_]:
    """Bool [W, N] over the residues of all chains, of which one is drawn in each move."""
    lengths = [len(chain.names) for chain in chains]
    size = settings["window"]
    if settings["masks"] is not None:
        masks = np.asarray(settings["masks"], bool)
        if size is not None or masks.ndim != 2 or masks.shape[1] != sum(lengths):
            raise SettingError(
                f"masks have the shape {masks.shape} and window is {size}; expected [W, {sum(lengths)}], one column a "
                "residue, and no window"
            )
        if not (len(masks) and masks.any(1).all()):
            raise SettingError("a mask fixes all residues; expected one or more that move in each")
    elif size is None:
        masks = np.ones((1, sum(lengths)), bool)
    elif settings["reference"] is not None:
        contiguous_windows(sum(lengths), size)
        masks = np.unique(balls(np.asarray(settings["reference"], np.float64), size), axis=0)
    else:
        masks = _sequence_windows(lengths, size)
    ends = np.cumsum(lengths)[:-1]
    turned = np.zeros(len(masks), bool)
    for chain, free in zip(chains, np.split(masks, ends, axis=1), strict=True):
        turned |= ((free[:, :-1] | free[:, 1:]) & chain.soft.any(-1).numpy()).any(1)
    if not turned.any():
        raise SettingError("no mask frees a residue beside a torsion that the move sets; choose other masks")
    return masks[turned]


def _sequence_windows(lengths: list[int], size: int) -> NDArray[np.bool_]:
    starts = np.cumsum([0, *lengths])
    rows = []
    for start, length in zip(starts, lengths, strict=False):
        windows = contiguous_windows(length, size).numpy()
        rows.append(np.pad(windows, ((0, 0), (start, starts[-1] - start - length))))
    return np.concatenate(rows)


def alpha_carbons(reference: Any, chains: list[ChainLinks]) -> list[list[float]]:
    """CA (or the cap's carbon) of all residues, nm, of the chains that have a torsion to set."""
    positions = np.asarray(in_nanometers(reference), np.float64)
    atoms = torch.cat([chain.frame_atoms[:, 1] for chain in chains if bool(chain.soft.any())]).numpy()
    if positions.ndim != 2 or positions.shape[1] != 3 or len(positions) <= atoms.max():
        raise SettingError(f"reference has the shape {positions.shape}; expected [atoms, 3], one row an atom")
    return [[float(x) for x in row] for row in positions[atoms]]
