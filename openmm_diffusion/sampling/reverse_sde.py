"""Samples from the reverse-time stochastic process on the torus; their density is not known.

Euler-Maruyama steps of the reverse variance-exploding SDE (Song et al., ICLR 2021, eq. 47 with ancestral noise). For
pictures and for judging a network; a move needs `flow`, whose density is exact.
"""

import torch
from torch import Tensor

from ..errors import SettingError
from ..units import TWO_PI, wrap
from .flow import ScoreModel


@torch.no_grad()
def reverse_sde(
    model: ScoreModel,
    sigmas: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    noise_scale: float = 1.0,
) -> Tensor:
    """Torsions [n, T] in [-pi, pi) at the smallest noise level.

    Parameters
    ----------
    model
        The score.
    sigmas
        Descending noise levels [K + 1] (rad), float64; the base is uniform on the torus.
    shape
        (n, T).
    generator
        Source of the base draws and of the noise.
    noise_scale
        1 samples the reverse process; less concentrates the samples.
    """
    if noise_scale < 0:
        raise SettingError(f"noise_scale is {noise_scale}; expected at least 0")
    device, dtype = sigmas.device, sigmas.dtype
    tau = TWO_PI * torch.rand(shape, generator=generator, dtype=dtype).to(device) - TWO_PI / 2
    condition = model.condition(sigmas[:-1])
    for k in range(len(sigmas) - 1):
        step = sigmas[k] ** 2 - sigmas[k + 1] ** 2
        score, _ = model.score_and_jacobian(tau, condition[k])
        # The last noise of a step is that of the level it leads to: sigma_{k+1} / sigma_k narrower.
        spread = noise_scale * step.sqrt() * sigmas[k + 1] / sigmas[k]
        tau = tau + step * score + spread * torch.randn(shape, generator=generator, dtype=dtype).to(device)
    return wrap(tau)
