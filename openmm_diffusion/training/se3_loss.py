"""The losses of the SE(3) model: scale-normalised score matching for both parts, psi, and two optional atom losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import SettingError

PSI = 2  # place among the torsions omega, phi, psi, chi1-4
N_BACKBONE = 5  # N, CA, C, CB, O lead the atom37 order
TransWeighting = Literal["score", "x0", "balanced"]
_LARGEST_AUXILIARY_T = 0.25
_NEIGHBOUR_DISTANCE = 6.0  # Angstrom


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, and what is done against spikes.

    Attributes
    ----------
    rot, trans, psi
        Weights of the three terms.
    atoms, distances
        Weights of the two losses on backbone atoms below t = 0.25 (Yim et al. 2023, eq. 8 and 9); 0 leaves them out.
    trans_weighting
        "score": the normalised score, which weighs the error of x_0 by alpha^2/sigma^2. "x0": the squared error of x_0
        in diffused units. "balanced": that over sigma^2, near 3 for no knowledge at every noise level.
    clip
        Largest rotation and translation loss of a sample; None for no limit.
    """

    rot: float = 1.0
    trans: float = 1.0
    psi: float = 1.0
    atoms: float = 0.0
    distances: float = 0.0
    trans_weighting: TransWeighting = "score"
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("rot", "trans", "psi", "atoms", "distances"):
            if not getattr(self, name) >= 0.0:
                raise SettingError(f"the weight of the {name} loss is {getattr(self, name)}; expected a number >= 0")
        if self.trans_weighting not in ("score", "x0", "balanced"):
            raise SettingError(f"trans_weighting is {self.trans_weighting!r}; expected score, x0 or balanced")
        if self.clip is not None and not self.clip > 0.0:
            raise SettingError(f"the loss clip is {self.clip}; expected a number > 0, or nothing")


@dataclass(frozen=True)
class SE3Losses:
    """Losses of each sample [B]: the three terms as the first seed defines them, and the total that is minimised."""

    rot: Tensor
    trans: Tensor
    psi: Tensor
    total: Tensor


def se3_losses(batch: Mapping[str, Tensor], prediction: Mapping[str, Tensor], weights: LossWeights) -> SE3Losses:
    """Losses of a batch, each a mean over the visible residues of a sample, in float32 or better.

    A zero score has rotation and translation losses of 3 on average, at every noise level; the psi loss of random
    angles is 2. Residues with `res_mask` 0 or `fixed_mask` 1 do not count, nor does psi where `torsion_angles_mask` is
    0; `res_weight`, where the batch has it, weighs residues that crops include too often or too seldom: each by its own
    weight, a pair by the geometric mean of both, right for neighbours, which crops include together.
    """
    mask = batch["res_mask"].float() * (1 - batch["fixed_mask"].float())
    share = batch.get("res_weight")
    rot = _normalised(prediction["rot_score"], batch["rot_score"], batch["rot_score_scaling"], mask, share)
    trans = _normalised(prediction["trans_score"], batch["trans_score"], batch["trans_score_scaling"], mask, share)
    true_psi = batch["torsion_angles_sin_cos"][..., PSI, :]
    error = (_full(prediction["psi"]) - true_psi).square().sum(-1)
    torsion_mask = batch.get("torsion_angles_mask")
    psi = _mean(error, mask if torsion_mask is None else mask * torsion_mask[..., PSI], share)
    clipped = [_clip(rot, weights.clip), _clip(trans * _trans_factor(batch, weights.trans_weighting), weights.clip)]
    total = weights.rot * clipped[0] + weights.trans * clipped[1] + weights.psi * psi
    if weights.atoms or weights.distances:
        atoms, distances = _atom_losses(batch, prediction, mask, share)
        total = total + weights.atoms * atoms + weights.distances * distances
    return SE3Losses(rot, trans, psi, total)


def _normalised(predicted: Tensor, true: Tensor, scaling: Tensor, mask: Tensor, share: Tensor | None) -> Tensor:
    error = (_full(predicted) - true) / scaling[:, None, None]
    return _mean(error.square().sum(-1), mask, share)


def _full(tensor: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mean(values: Tensor, mask: Tensor, share: Tensor | None = None) -> Tensor:
    """Mean [B] of values [B, ...] where the mask is not zero, each times its share."""
    weighted = values * mask if share is None else values * mask * share
    # A where, not a product: what is masked must not count even if it is NaN.
    kept = torch.where(mask > 0, weighted, 0.0)
    return kept.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1.0)


def _clip(loss: Tensor, largest: float | None) -> Tensor:
    return loss if largest is None else loss.clamp(max=largest)


def _trans_factor(batch: Mapping[str, Tensor], weighting: str) -> Tensor:
    """What turns the normalised translation loss [B] into the weighting asked for; sigma^2 + alpha^2 = 1 here."""
    variance = batch["trans_score_scaling"].double().square().reciprocal()
    alpha_squared = (1.0 - variance).clamp(min=1e-8)
    factors = {"score": torch.ones_like(variance), "x0": variance / alpha_squared, "balanced": 1.0 / alpha_squared}
    return factors[weighting].to(batch["trans_score_scaling"].dtype)


def _atom_losses(
    batch: Mapping[str, Tensor], prediction: Mapping[str, Tensor], mask: Tensor, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Squared errors [B] (Angstrom^2) of backbone atoms, and of their distances below 6 Angstrom, for t < 0.25."""
    scale = batch["coord_scale"].reshape(-1, 1, 1, 1)
    true = batch["atom37_pos"][..., :N_BACKBONE, :] / scale
    predicted = _full(prediction["atom37"])[..., :N_BACKBONE, :] / scale
    # An atom that a residue does not have (CB of glycine) stands at the origin before centring: the mask knows it.
    present = mask[..., None] * batch["atom37_mask"][..., :N_BACKBONE]
    low_noise = (batch["t"] < _LARGEST_AUXILIARY_T).to(predicted.dtype)
    weight = (torch.ones_like(mask) if share is None else share.to(mask.dtype))[..., None].expand_as(present)
    atoms = _mean((predicted - true).square().sum(-1), present, weight)
    true, predicted, present = true.flatten(1, 2), predicted.flatten(1, 2), present.flatten(1, 2)
    distance = _distances(true)
    pairs = present[:, :, None] * present[:, None, :] * (distance < _NEIGHBOUR_DISTANCE)
    error = (_distances(predicted) - distance).square()
    root = weight.flatten(1, 2).sqrt()
    return atoms * low_noise, _mean(error, pairs, root[:, :, None] * root[:, None, :]) * low_noise


def _distances(points: Tensor) -> Tensor:
    """Distances [B, M, M] with a finite gradient on the diagonal."""
    return ((points[:, :, None] - points[:, None, :]).square().sum(-1) + 1e-10).sqrt()
