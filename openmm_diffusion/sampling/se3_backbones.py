"""Whole backbones from a trained score network: batches of samples, in Angstrom, with their atoms."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ModelError, SettingError
from ..geometry.backbone import compute_backbone, place_oxygens
from ..geometry.rigid import Rigid
from ..models.score_network import ScoreNetwork
from .se3_sampler import SAMPLERS, Denoiser, Prediction, time_grid


class NetworkDenoiser:
    """A `ScoreNetwork` as a denoiser of whole chains: every residue is visible and moves.

    Parameters
    ----------
    network
        The network; evaluated as it stands, without gradients.
    aatype
        Residue types [N] (int), for networks that embed them.
    self_conditioning
        Give the network the CA positions of its previous prediction. For networks trained so only: others have never
        seen them different from zero.
    first_index
        Number of the first residue, as in training: 0 for models of the preset acceptance.
    """

    def __init__(
        self, network: ScoreNetwork, aatype: Tensor, *, self_conditioning: bool = False, first_index: int = 1
    ) -> None:
        self._network, self._first = network, first_index
        parameter = next(network.parameters())
        self._to: dict[str, Any] = {"dtype": parameter.dtype, "device": parameter.device}
        self._aatype = aatype.to(parameter.device)
        self._self_conditioning = self_conditioning

    def __call__(self, rigids_t: Rigid, t: Tensor, previous: Prediction | None) -> Prediction:
        shape = rigids_t.shape
        known = previous.rigids.trans if self._self_conditioning and previous is not None else None
        ones = torch.ones(shape, **self._to)
        batch = {
            "rigids_t": rigids_t.to_tensor_7().to(**self._to),
            "t": t.to(**self._to),
            "res_mask": ones,
            "fixed_mask": torch.zeros_like(ones),
            "seq_idx": (torch.arange(shape[-1], device=ones.device) + self._first).expand(shape),
            "sc_ca_t": torch.zeros((*shape, 3), **self._to) if known is None else known.to(**self._to),
            "torsion_angles_sin_cos": torch.zeros((*shape, 7, 2), **self._to),
            "aatype": self._aatype.expand(shape),
        }
        out = self._network.predict(batch)
        dtype = rigids_t.trans.dtype
        return Prediction(
            out["rot_score"].to(dtype),
            out["trans_score"].to(dtype),
            Rigid.from_tensor_7(out["rigids"].to(dtype)),
            out["psi"].to(dtype),
        )


@dataclass(frozen=True)
class Backbones:
    """Samples in Angstrom, float64, on the CPU.

    `rigids` [n, N] are zero-centred, `psi` [n, N, 2] is (sin, cos), `atom37` [n, N, 37, 3] has the mask [n, N, 37].
    """

    rigids: Rigid
    psi: Tensor
    atom37: Tensor
    atom37_mask: Tensor

    def __len__(self) -> int:
        return len(self.psi)


@torch.no_grad()
def sample_backbones(
    network: ScoreNetwork,
    aatype: Tensor,
    n_samples: int,
    generator: torch.Generator,
    *,
    sampler: str = "reverse_sde",
    n_steps: int = 100,
    noise_scale: float = 1.0,
    rho: float = 2.0,
    min_t: float | None = None,
    denoise: bool = True,
    batch_size: int = 64,
    self_conditioning: bool = False,
    first_index: int = 1,
    progress: bool = False,
) -> Backbones:
    """Draw backbones of a chain from a network, where it stands (device, train or eval mode).

    Parameters
    ----------
    network
        Its diffuser has to know the coord_scale of the training.
    aatype
        Residue types [N]; they choose CB and, for networks that embed them, the residue.
    generator
        Source of starts and noise. Samples do not depend on the device, but on batch_size.
    sampler, noise_scale, denoise
        See `se3_sampler`; noise_scale goes to the reverse SDE only.
    n_steps, rho, min_t
        The grid of times, see `time_grid`; min_t is that of the training by default.
    self_conditioning, first_index
        See `NetworkDenoiser`.

    Raises
    ------
    SettingError
        An unknown sampler, or numbers out of range.
    ModelError
        The noise process leaves rotations or translations alone, so that there is nothing to start from; or the network
        gave NaN.
    """
    if sampler not in SAMPLERS:
        raise SettingError(f"the sampler is {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    if n_samples < 1 or batch_size < 1:
        raise SettingError(f"n_samples, batch_size are {n_samples}, {batch_size}; expected at least 1 of each")
    diffuser = network.diffuser
    if not (diffuser.conf.diffuse_rot and diffuser.conf.diffuse_trans):
        raise ModelError(
            "the model diffuses only rotations or only translations; train one that diffuses both to generate"
        )
    times = time_grid(n_steps, diffuser.conf.min_t if min_t is None else min_t, rho=rho)
    options: dict[str, Any] = {"noise_scale": noise_scale} if sampler == "reverse_sde" else {}
    device = next(network.parameters()).device
    denoiser: Denoiser = NetworkDenoiser(network, aatype, self_conditioning=self_conditioning, first_index=first_index)
    sizes = [min(batch_size, n_samples - first) for first in range(0, n_samples, batch_size)]
    found = []
    with tqdm(total=n_steps * len(sizes), desc="sampling", unit=" steps", disable=not progress) as bar:
        for size in sizes:
            shape = (size, len(aatype))
            drawn = SAMPLERS[sampler](
                denoiser, diffuser, times, shape, generator, denoise=denoise, device=device, progress=bar, **options
            )
            found.append(drawn)
    return _with_atoms(found, aatype.cpu(), diffuser.coord_scale)


def _with_atoms(found: list[Prediction], aatype: Tensor, coord_scale: float) -> Backbones:
    rots, trans, psi = (
        torch.cat([part.cpu() for part in parts])
        for parts in zip(*((p.rigids.rots, p.rigids.trans, p.psi) for p in found), strict=True)
    )
    rigids = Rigid(rots, trans / coord_scale)
    atom37, mask, _ = compute_backbone(rigids, psi, aatype.expand(rigids.shape))
    return Backbones(rigids, psi, place_oxygens(atom37, mask), mask)
