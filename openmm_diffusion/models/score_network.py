"""ScoreNetwork: noised backbone frames to scores, psi and atoms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import ModelError
from ..geometry.backbone import compute_backbone
from ..geometry.residue_constants import UNKNOWN
from ..geometry.rigid import Rigid
from .embedder import Embedder
from .ipa import Linear, centroid
from .ipa_score import IpaScore, Update
from .se3_config import ScoreNetworkConfig
from .torsion_angles import TorsionAngles

_PSI = 2  # of omega, phi, psi, chi1-4


@dataclass(frozen=True)
class Denoised:
    """What the network makes of noised frames: scores [B, N, 3], clean frames [B, N], and for the heads the last node
    embedding [B, N, c_s] and which residues were moved [B, N].
    """

    rot_score: Tensor
    trans_score: Tensor
    clean: Rigid
    node: Tensor
    moved: Tensor


class ScoreNetwork(nn.Module):
    """Predicts clean frames from noised ones, and from both the scores of the noise process.

    With `precondition` the updates of rotations and translations are multiplied by sigma/sqrt(1 + sigma^2), which is
    sigma as t -> 0, and translations start from alpha x_t: the network proper then has targets of order one at every
    noise level (Karras et al. 2022, section 5, with unit variance of the diffused data).

    Parameters
    ----------
    model_conf
        A `ScoreNetworkConfig` or a mapping of its keys; None for the defaults.
    diffuser
        The noise process; its `coord_scale` is read at every call.
    seed
        Of the weights.
    zero_init
        Start from updates of zero. False gives a random network that depends on everything it reads.
    """

    def __init__(self, model_conf: Any, diffuser: SE3Diffuser, seed: int = 0, zero_init: bool = True) -> None:
        super().__init__()
        self.config = ScoreNetworkConfig.of(model_conf)
        self.diffuser = diffuser
        self.embedder = Embedder(self.config)
        self.score_model = IpaScore(self.config)
        self.torsion_angles = TorsionAngles(self.config.node_embed_size)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, Linear):
                module.initialise(generator, zero_init)
        self.embedder.initialise(generator)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores, psi, frames and atoms.

        Parameters
        ----------
        batch
            `rigids_t` [B, N, 7], `res_mask`, `fixed_mask` and `seq_idx` [B, N], `t` [B], `sc_ca_t` [B, N, 3] and
            `torsion_angles_sin_cos` [B, N, 7, 2]; lengths in Angstrom times coord_scale. With
            `embed_residue_type` also `aatype` [B, N]. Residues with res_mask 0 are absent: what stands in their rows
            reaches no other row. In samples with fixed residues the process contracts to the origin, so where the
            origin is matters: the same point as in training, see `SE3Diffuser.forward_marginal`.

        Returns
        -------
        `rot_score` (own axes, 1/rad) and `trans_score` (diffused units) [B, N, 3], zero where a residue is absent or
        fixed; `psi` [B, N, 2], (sin, cos), the given one where fixed; `rigids` [B, N, 7], predicted clean frames; and
        their `atom37` [B, N, 37, 3] and `atom14` [B, N, 14, 3], zero where absent; lengths as in the batch.

        Raises
        ------
        ModelError
            For a missing key or a wrong shape.
        """
        output = self.predict(batch)
        aatype = self._present_types(batch) if self.config.embed.embed_residue_type else None
        rigids = Rigid.from_tensor_7(_visible(output["rigids"], batch["res_mask"] > 0.5))
        atom37, _, atom14 = compute_backbone(rigids, output["psi"], aatype, self.diffuser.coord_scale)
        present = (batch["res_mask"] > 0.5)[..., None, None].to(atom37.dtype)
        return {**output, "atom37": atom37 * present, "atom14": atom14 * present}

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`forward` without the atoms: what a sampler needs."""
        self._check(batch)
        present = batch["res_mask"] > 0.5
        given = batch["rigids_t"].to(self.dtype)
        found = self.denoise(Rigid.from_tensor_7(_visible(given, present)), batch)
        with torch.autocast(given.device.type, enabled=False):
            rigids = torch.where(found.moved[..., None] > 0.5, found.clean.to_tensor_7(), given)
        psi = self.torsion_angles(found.node, self.dtype)[..., 0, :]
        given_psi = batch["torsion_angles_sin_cos"][..., _PSI, :].to(self.dtype)
        psi = torch.where((batch["fixed_mask"] > 0.5)[..., None] & present[..., None], given_psi, psi)
        return {"rot_score": found.rot_score, "trans_score": found.trans_score, "psi": psi, "rigids": rigids}

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def denoise(self, noised: Rigid, batch: Mapping[str, Tensor]) -> "Denoised":
        """Scores and clean frames of noised frames [B, N], without psi, and without checks: what a path needs.

        `batch` has the keys of `forward` but for `rigids_t` and `torsion_angles_sin_cos`; absent residues stand at the
        identity in `noised`.
        """
        present = batch["res_mask"] > 0.5
        mask = present.to(self.dtype)
        fixed = batch["fixed_mask"].to(self.dtype) * mask
        t = batch["t"].to(self.dtype)
        node, edge = self._embed(batch, noised, present, t, fixed)
        scale = self.diffuser.r3.scale
        update, alpha = self._update(t, (1 - fixed) * mask)
        node, clean = self.score_model(node, edge, noised.map_trans(lambda x: x * scale), present, update, alpha)
        clean = clean.map_trans(lambda x: x / scale)
        with torch.autocast(noised.trans.device.type, enabled=False):
            rot_score, trans_score = self._scores(noised, clean, t, fixed, update.mask)
        return Denoised(rot_score, trans_score, clean, node, update.mask)

    def _embed(
        self, batch: Mapping[str, Tensor], noised: Rigid, present: Tensor, t: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        embed, per_angstrom, mask = self.config.embed, self.diffuser.coord_scale, present.to(t.dtype)
        rot_sigma, trans_sigma = (value.to(t.dtype).clamp(min=1e-5) for value in self.diffuser.sigma(t))
        sigma = (rot_sigma, trans_sigma / per_angstrom)
        sc_ca = aatype = frames = None
        if embed.embed_self_conditioning:
            sc_ca = _masked(batch["sc_ca_t"].to(t.dtype), present) / per_angstrom
        if embed.embed_residue_type:
            aatype = self._present_types(batch)
        if embed.relative_frames:
            frames = (noised.map_trans(lambda x: x / per_angstrom), self.diffuser.alpha(t).to(t.dtype), mask)
        seq_idx = _masked(batch["seq_idx"].to(t.dtype), present)
        return self.embedder(seq_idx, t, sigma, fixed, sc_ca, aatype, frames)

    def _update(self, t: Tensor, mask: Tensor) -> tuple[Update, Tensor]:
        """How far a block may move the frames at times t [B], and the contraction alpha [B] of the translations."""
        rot, trans, alpha = torch.ones_like(t), torch.ones_like(t), torch.ones_like(t)
        if self.config.precondition:
            sigma = self.diffuser.sigma(t)[0].to(t.dtype)
            rot = sigma / torch.sqrt(1 + sigma**2)
            # With sigma^2 = (1 - alpha^2) / alpha^2 the same function is sqrt(1 - alpha^2).
            trans, alpha = self.diffuser.r3.variance(t).sqrt().to(t.dtype), self.diffuser.alpha(t).to(t.dtype)
        if not self.diffuser.conf.diffuse_rot:
            rot = torch.zeros_like(t)
        if not self.diffuser.conf.diffuse_trans:
            trans, alpha = torch.zeros_like(t), torch.ones_like(t)
        return Update(rot, trans, mask), alpha

    def _scores(self, noised: Rigid, clean: Rigid, t: Tensor, fixed: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation and translation scores [B, N, 3], zero where nothing moves."""
        rot_score = self.diffuser.calc_rot_score(noised.rots, clean.rots, t) * moved[..., None]
        trans_score = self.diffuser.calc_trans_score(noised.trans, clean.trans, t, moved, center=False)
        # Beside fixed residues the noise of the others has a centroid; without any, it has none.
        free = (fixed.sum(-1) == 0).to(t.dtype)[:, None, None]
        trans_score = trans_score - free * centroid(trans_score, moved)
        return rot_score, trans_score * moved[..., None]

    def _present_types(self, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.where(batch["res_mask"] > 0.5, batch["aatype"], UNKNOWN)

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        """Raise ModelError where a key is missing or a shape does not fit `rigids_t`."""
        shapes = {"res_mask": (), "fixed_mask": (), "seq_idx": (), "torsion_angles_sin_cos": (7, 2)}
        if self.config.embed.embed_self_conditioning:
            shapes["sc_ca_t"] = (3,)
        if self.config.embed.embed_residue_type:
            shapes["aatype"] = ()
        missing = [key for key in ("rigids_t", "t", *shapes) if key not in batch]
        if missing:
            raise ModelError(f"the batch lacks {', '.join(missing)}; give the keys that MDGenDataset makes")
        rigids = tuple(batch["rigids_t"].shape)
        if len(rigids) != 3 or rigids[-1] != 7:
            raise ModelError(f"rigids_t has the shape {list(rigids)}; expected [B, N, 7], with a batch dimension")
        expected = {key: rigids[:2] + tail for key, tail in shapes.items()} | {"t": rigids[:1]}
        for key, shape in expected.items():
            if tuple(batch[key].shape) != shape:
                found = list(batch[key].shape)
                raise ModelError(f"{key} has the shape {found}; expected {list(shape)} beside rigids_t {list(rigids)}")


def _masked(values: Tensor, present: Tensor) -> Tensor:
    """values [B, N, ...] with zeros where a residue is absent, whatever stands there, NaN included."""
    return torch.where(present.reshape(*present.shape, *(1,) * (values.dim() - 2)), values, 0.0)


def _visible(rigids: Tensor, present: Tensor) -> Tensor:
    """Frames [B, N, 7] with the identity where a residue is absent."""
    identity = torch.tensor([1.0, 0, 0, 0, 0, 0, 0], dtype=rigids.dtype, device=rigids.device)
    return torch.where(present[..., None], rigids, identity)
