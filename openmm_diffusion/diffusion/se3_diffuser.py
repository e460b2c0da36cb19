"""Noise of backbone frames: rotations on SO(3), translations on the zero-centroid subspace of R^3, independently.

Yim et al., "SE(3) diffusion model with application to protein backbone generation", ICML 2023. Frames are [..., N, 7] =
quaternion (w, x, y, z), translation in batch units (Angstrom times coord_scale); times t are [...], one a sample.
Scores of rotations are in the body frame (1/rad), of translations in diffused units. Densities are against normalised
Haar measure and Lebesgue measure of the diffused coordinates' subspace.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..geometry.rigid import Rigid
from .r3_diffuser import R3Diffuser, visible_residues
from .se3_config import SE3Config
from .so3_diffuser import SO3Diffuser


class SE3Diffuser:
    """Forward and reverse noise of frames, with its densities.

    Parameters
    ----------
    se3_conf
        `SE3Config`, or a mapping with its keys (an OmegaConf DictConfig is one).
    coord_scale
        Length units per Angstrom of the translations handed in; may be set later.

    Notes
    -----
    Masks are [..., N], 1 = diffused. Other residues keep their frames, have zero scores and do not count in the
    centroid. `center=False` leaves centroids alone, for moves of some residues among fixed ones. The part that the
    configuration switches off (diffuse_rot, diffuse_trans) keeps its values, has zero scores and the log density 0.
    """

    def __init__(self, se3_conf: SE3Config | Mapping[str, Any], coord_scale: float = 1.0) -> None:
        self.conf = SE3Config.of(se3_conf)
        self.so3 = SO3Diffuser(self.conf.so3)
        self.r3 = R3Diffuser(self.conf.r3, coord_scale)

    @property
    def coord_scale(self) -> float:
        """Length units per Angstrom of the translations handed in."""
        return self.r3.coord_scale

    @coord_scale.setter
    def coord_scale(self, value: float) -> None:
        self.r3.coord_scale = float(value)

    @property
    def coordinate_scaling(self) -> float | str:
        """Diffused units per Angstrom, or "auto" as long as `with_auto_scaling` was not called."""
        return self.r3.coordinate_scaling

    @coordinate_scaling.setter
    def coordinate_scaling(self, value: float) -> None:
        self.r3.coordinate_scaling = float(value)

    def with_auto_scaling(self, std: float) -> "SE3Diffuser":
        """Set coordinate_scaling to 1 / std (A) where the settings say "auto", and return self."""
        self.r3.with_auto_scaling(std)
        return self

    def check_scale(self, std: float) -> float:
        """Diffused standard deviation of data with this one (batch units); SettingError outside 0.3 to 3."""
        return self.r3.check_scale(std)

    def forward_marginal(
        self,
        rigids_0: Tensor,
        t: Tensor | float,
        diffuse_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        center: bool = True,
    ) -> dict[str, Tensor]:
        """Noised frames, the scores of the kernel that they were drawn from, and the scores' scaling.

        Without fixed residues the mask is the batch's res_mask and `center` stays True. With fixed ones the mask is
        res_mask * (1 - fixed_mask) and `center` must be False: centring would shift the moved residues against the
        fixed ones, and `ScoreNetwork` does not project its scores there. The process then contracts the moved ones
        towards the origin, which is part of the data: put it at the centroid of the clean residues with res_mask 1,
        fixed ones included, as `MDGenDataset` does, or at a point of your choice, the same in training and sampling.

        Returns
        -------
        dict
            rigids_t [..., N, 7], rot_score and trans_score [..., N, 3], rot_score_scaling and trans_score_scaling
            [...].
        """
        clean, visible = Rigid.from_tensor_7(rigids_0), visible_residues(rigids_0, diffuse_mask)[..., None]
        rots_t, rot_score = clean.rots, torch.zeros_like(clean.trans)
        trans_t, trans_score = clean.trans, torch.zeros_like(clean.trans)
        if self.conf.diffuse_rot:
            rots_t, rot_score = self.so3.forward_marginal(clean.rots, t, generator)
        if self.conf.diffuse_trans:
            trans_t, trans_score = self.r3.forward_marginal(clean.trans, t, diffuse_mask, generator, center)
        rot_scaling, trans_scaling = self.score_scaling(t)
        return {
            "rigids_t": self._repack(Rigid(rots_t, trans_t), rigids_0, visible),
            "rot_score": torch.where(visible, rot_score, 0.0),
            "trans_score": trans_score,
            "rot_score_scaling": rot_scaling.to(rigids_0),
            "trans_score_scaling": trans_scaling.to(rigids_0),
        }

    def calc_rot_score(self, rots_t: Tensor, rots_0: Tensor, t: Tensor | float) -> Tensor:
        """Score [..., N, 3] of rotations [..., N, 3, 3] given clean (or predicted clean) ones, body frame."""
        if not self.conf.diffuse_rot:
            return torch.zeros_like(rots_t[..., 0])
        return self.so3.calc_rot_score(rots_t, rots_0, t)

    def calc_trans_score(
        self, trans_t: Tensor, trans_0: Tensor, t: Tensor | float, mask: Tensor | None = None, center: bool = True
    ) -> Tensor:
        """Score [..., N, 3] (diffused units) of translations (batch units) given clean or predicted clean ones."""
        if not self.conf.diffuse_trans:
            return torch.zeros_like(trans_t)
        return self.r3.calc_trans_score(trans_t, trans_0, t, mask, center)

    def score(
        self, rigids_t: Tensor, rigids_0: Tensor, t: Tensor | float, mask: Tensor | None = None, center: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Rotation and translation scores [..., N, 3] of frames given clean ones, zero in masked residues."""
        noisy, clean = Rigid.from_tensor_7(rigids_t), Rigid.from_tensor_7(rigids_0)
        rot_score = self.calc_rot_score(noisy.rots, clean.rots, t)
        rot_score = torch.where(visible_residues(rigids_t, mask)[..., None], rot_score, 0.0)
        return rot_score, self.calc_trans_score(noisy.trans, clean.trans, t, mask, center)

    def score_scaling(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Root mean squares of a component of the rotation and of the translation score at times t."""
        return self.so3.score_scaling(t), self.r3.score_scaling(t)

    def sigma(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Noise at times t: of rotations (rad), and of translations / alpha (batch units)."""
        return self.so3.sigma(t), self.r3.variance(t).sqrt() / (self.r3.alpha(t) * self.r3.scale)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Factor of the clean translations at times t."""
        return self.r3.alpha(t)

    def g2(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Squared diffusion coefficients of rotations (rad^2) and of translations (diffused units squared)."""
        return self.so3.g2(t), self.r3.beta(t)

    def drift(self, trans: Tensor, t: Tensor | float) -> Tensor:
        """Drift of translations [..., N, 3] in their own units; rotations have none."""
        return self.r3.drift(trans, t)

    def transition(
        self,
        rigids_s: Tensor,
        t_from: Tensor | float,
        t_to: Tensor | float,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        center: bool = True,
    ) -> Tensor:
        """Frames [..., N, 7] noised on from time t_from to t_to > t_from."""
        start = Rigid.from_tensor_7(rigids_s)
        rots, trans = start.rots, start.trans
        if self.conf.diffuse_rot:
            rots = self.so3.transition(rots, t_from, t_to, generator)
        if self.conf.diffuse_trans:
            trans = self.r3.transition(trans, t_from, t_to, mask, generator, center)
        return self._repack(Rigid(rots, trans), rigids_s, visible_residues(rigids_s, mask)[..., None])

    def log_transition(
        self,
        rigids_t: Tensor,
        rigids_s: Tensor,
        t_from: Tensor | float,
        t_to: Tensor | float,
        mask: Tensor | None = None,
        center: bool = True,
    ) -> Tensor:
        """log density [...] of `transition` (float64) from rigids_s to rigids_t; centred, any centroid is removed."""
        end, start = Rigid.from_tensor_7(rigids_t.double()), Rigid.from_tensor_7(rigids_s.double())
        total = torch.zeros(rigids_t.shape[:-2], dtype=torch.float64, device=rigids_t.device)
        if self.conf.diffuse_rot:
            each = self.so3.log_transition(end.rots, start.rots, t_from, t_to)
            total = total + torch.where(visible_residues(rigids_t, mask), each, 0.0).sum(-1)
        if self.conf.diffuse_trans:
            total = total + self.r3.log_transition(end.trans, start.trans, t_from, t_to, mask, center)
        return total

    def reverse(
        self,
        rigids_t: Tensor,
        rot_score: Tensor,
        trans_score: Tensor,
        t: Tensor | float,
        dt: Tensor | float,
        diffuse_mask: Tensor | None = None,
        center: bool = True,
        noise_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One step of the reverse SDE from t to t - dt, dt > 0 the actual difference of the grid."""
        noisy = Rigid.from_tensor_7(rigids_t)
        rots, trans = noisy.rots, noisy.trans
        if self.conf.diffuse_rot:
            rots = self.so3.reverse(rots, rot_score, t, dt, noise_scale, generator)
        if self.conf.diffuse_trans:
            trans = self.r3.reverse(trans, trans_score, t, dt, diffuse_mask, center, noise_scale, generator)
        return self._repack(Rigid(rots, trans), rigids_t, visible_residues(rigids_t, diffuse_mask)[..., None])

    def sample_ref(
        self,
        shape: tuple[int, ...],
        n_residues: int,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Frames [*shape, n_residues, 7] (batch units) from the base at t = 1; masked residues are the identity.

        A part that is not diffused has no base and is the identity too: put the data's values there.
        """
        place = device or (generator.device if generator is not None else "cpu")
        full = (*shape, n_residues)
        identity = Rigid.identity(full, dtype, place)
        rots, trans = identity.rots, identity.trans
        if self.conf.diffuse_rot:
            rots = self.so3.sample_ref(full, generator, dtype, place)
        if self.conf.diffuse_trans:
            trans = self.r3.sample_ref(full, mask, generator, dtype, place)
        visible = visible_residues(trans, mask)[..., None]
        return torch.where(visible, Rigid(rots, trans).to_tensor_7(), identity.to_tensor_7())

    def log_ref(self, rigids: Tensor, mask: Tensor | None = None, center: bool = True) -> Tensor:
        """log density [...] of the base at frames [..., N, 7], float64; centred, a centroid is projected out first."""
        frames = Rigid.from_tensor_7(rigids.double())
        total = torch.zeros(rigids.shape[:-2], dtype=torch.float64, device=rigids.device)
        if self.conf.diffuse_rot:
            total = total + torch.where(visible_residues(rigids, mask), self.so3.log_ref(frames.rots), 0.0).sum(-1)
        if self.conf.diffuse_trans:
            total = total + self.r3.log_ref(frames.trans, mask, center)
        return total

    def _repack(self, frames: Rigid, before: Tensor, visible: Tensor) -> Tensor:
        """[..., N, 7] of visible frames, the old values bit for bit in masked residues and in parts not diffused."""
        quats, trans = frames.to_tensor_7().split([4, 3], -1)
        quats = torch.where(visible, quats, before[..., :4]) if self.conf.diffuse_rot else before[..., :4]
        trans = torch.where(visible, trans, before[..., 4:]) if self.conf.diffuse_trans else before[..., 4:]
        return torch.cat([quats, trans], -1)
