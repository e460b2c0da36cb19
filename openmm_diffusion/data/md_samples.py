"""From geometry to samples: centring, units, masks and indices of a batch, and its times."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import residue_constants as rc
from ..geometry.frames import atom14_to_atom37
from .md_options import DataOptions
from .md_trajectories import present14
from .noise_times import NoiseTimes


def clean_samples(
    fields: dict[str, Tensor], scale: float, crop: tuple[Tensor, Tensor] | None, first_index: int = 1
) -> dict[str, Any]:
    """Everything of a batch but the noise: centred on the visible residues, scaled, with masks and indices.

    Parameters
    ----------
    fields
        `rigids_0` [B, L, 7], `atom14_pos` [B, L, 14, 3] (Angstrom), `torsion_angles_sin_cos`, `torsion_angles_mask`,
        `aatype` and `res_mask` (0 in padding).
    scale
        Length units of the samples per Angstrom.
    crop
        Mask and loss weights [B, L] of the visible residues; None where all are.
    first_index
        `seq_idx` of the first residue.
    """
    aatype = fields["aatype"]
    res_mask, weight = crop if crop is not None else (fields["res_mask"], fields["res_mask"])
    ca = fields["rigids_0"][..., 4:]
    centroid = (ca * res_mask[..., None]).sum(-2) / res_mask.sum(-1, keepdim=True)
    there = present14(fields["atom14_pos"])
    atom14 = (fields["atom14_pos"] - centroid[:, None, None]) * (scale * there[..., None])
    rigids = torch.cat([fields["rigids_0"][..., :4], (ca - centroid[:, None]) * scale], -1)
    # Frames of padding stay the identity.
    rigids = torch.where(fields["res_mask"][..., None] > 0, rigids, fields["rigids_0"])
    position = torch.arange(aatype.shape[1]).expand(aatype.shape)
    in_chain = fields["res_mask"].long()
    atom37 = atom14_to_atom37(torch.cat([atom14, there[..., None]], -1), aatype)
    return {
        "rigids_0": rigids,
        "res_mask": res_mask,
        "res_weight": weight,
        "fixed_mask": torch.zeros_like(res_mask),
        "torsion_angles_sin_cos": fields["torsion_angles_sin_cos"],
        "torsion_angles_mask": fields["torsion_angles_mask"],
        "seq_idx": (position + first_index) * in_chain,
        "sc_ca_t": torch.zeros_like(ca),
        "atom14_pos": atom14,
        "atom37_pos": atom37[..., :3],
        "atom37_mask": atom37[..., 3],
        "aatype": aatype,
        "chain_idx": torch.zeros_like(aatype),
        "residue_index": position * in_chain,
        "residx_atom14_to_atom37": torch.as_tensor(rc.ATOM14_TO_ATOM37)[aatype] * in_chain[..., None],
        "centroid": centroid,
        "coord_scale": torch.full((len(aatype),), scale),
    }


def draw_times(
    options: DataOptions, clock: NoiseTimes, rows: NDArray[np.int64], n_items: int, rng: np.random.Generator | None
) -> Tensor:
    """Times [B] in [min_t, max_t] of some items: with rng at random, else those of a fixed grid.

    At random they are uniform, or for a share in log t; with the time grid "noise" stratified over the batch.
    """
    min_t, max_t = clock.min_t, clock.max_t
    if options.fixed_t is not None:
        t = np.full(len(rows), options.fixed_t)
    elif rng is not None and options.time_grid == "noise":
        t = clock((np.arange(len(rows)) + rng.random(len(rows))) / len(rows))
    elif rng is not None:
        t = min_t + (max_t - min_t) * rng.random(len(rows))
        log_uniform = max_t * (min_t / max_t) ** rng.random(len(rows))
        t = np.where(rng.random(len(rows)) < options.low_noise_share, log_uniform, t)
    elif options.val_t is not None:
        t = np.array(options.val_t)[rows % len(options.val_t)]
    else:
        levels = min(options.n_val_t, n_items)
        centres = (rows % levels + 0.5) / levels
        t = clock(centres) if options.time_grid == "noise" else min_t + (max_t - min_t) * centres
    return torch.as_tensor(t, dtype=torch.float32)
