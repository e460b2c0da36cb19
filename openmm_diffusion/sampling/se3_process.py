"""What all SE(3) samplers share: the score as a pull towards clean frames, the grid of times, the run over it.

Rotations diffuse by Brownian motion of width sigma(t), translations by the variance-preserving process
x_t = alpha x_0 + sqrt(1 - alpha^2) noise. In y = x / alpha, with the width sigma~ = sqrt(1 - alpha^2) / alpha, the
latter is a Brownian motion too, so one formula serves both. With the score s of either, sigma^2 s is the step from the
present point to the estimate of its clean one (Tweedie's formula; a body-frame rotation vector for rotations), called
the pull u.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ModelError, SettingError
from ..geometry.rigid import Rigid


class NoiseProcess(Protocol):
    """What a sampler asks of `diffusion.SE3Diffuser`."""

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    def alpha(self, t: Tensor) -> Tensor: ...

    def sample_ref(self, shape: tuple[int, ...], n_residues: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Prediction:
    """What is known of the clean frames behind noised ones.

    `rot_score` [B, N, 3] is in the body frame, `trans_score` [B, N, 3] in diffused units as the network gives it,
    `rigids` [B, N] are the clean frames in batch units, `psi` [B, N, 2] is (sin, cos).
    """

    rot_score: Tensor
    trans_score: Tensor
    rigids: Rigid
    psi: Tensor


class Denoiser(Protocol):
    """A score: of noised frames [B, N] at times t [B]; `previous` is the prediction before, for self-conditioning."""

    def __call__(self, rigids_t: Rigid, t: Tensor, previous: Prediction | None) -> Prediction: ...


def time_grid(n_steps: int, min_t: float, max_t: float = 1.0, rho: float = 2.0) -> Tensor:
    """n_steps + 1 times from max_t down to min_t (float64), evenly spaced in t^(1/rho).

    rho = 1 is even spacing; more puts more steps at low noise (the spacing of Karras et al., NeurIPS 2022, eq. 5).
    """
    if n_steps < 1:
        raise SettingError(f"n_steps is {n_steps}; expected at least 1")
    if not 0.0 < min_t < max_t <= 1.0:
        raise SettingError(f"min_t, max_t are {min_t}, {max_t}; expected 0 < min_t < max_t <= 1")
    if rho < 1.0:
        raise SettingError(f"rho is {rho}; expected at least 1")
    return torch.linspace(max_t ** (1 / rho), min_t ** (1 / rho), n_steps + 1, dtype=torch.float64) ** rho


@dataclass(frozen=True)
class Point:
    """Frames at one time: rotations, translations over alpha, and the pulls of both there."""

    rots: Tensor
    scaled: Tensor
    rot_pull: Tensor
    trans_pull: Tensor


class Process:
    """Evaluates a denoiser on points of a run, with noise levels (rotations, translations over alpha) by time."""

    def __init__(self, denoiser: Denoiser, diffuser: NoiseProcess, bar: Any) -> None:
        self._denoiser, self._diffuser, self._bar = denoiser, diffuser, bar
        self.latest: Prediction | None = None

    def sigmas(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._diffuser.sigma(t)

    def __call__(self, rots: Tensor, scaled: Tensor, t: Tensor) -> Point:
        alpha, (rot_sigma, trans_sigma) = self._diffuser.alpha(t), self._diffuser.sigma(t)
        found = self._denoiser(Rigid(rots, alpha * scaled), t.expand(len(rots)), self.latest)
        self.latest = found
        # var s / (alpha c), with c diffused units a batch unit and sigma~ = sqrt(var) / (alpha c).
        trans_pull = (1 - alpha**2).sqrt() * trans_sigma * found.trans_score
        return Point(rots, scaled, rot_sigma**2 * found.rot_score, centred(trans_pull))

    def tick(self) -> None:
        if self._bar is not None:
            self._bar.update()


Step = Callable[[Process, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def run(
    step: Step,
    denoiser: Denoiser,
    diffuser: NoiseProcess,
    times: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    start: Rigid | None = None,
    denoise: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    progress: Any = None,
) -> Prediction:
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()) or float(times[-1]) <= 0.0:
        raise SettingError("the times of a sampler have to be at least two, descending and positive")
    if start is None:
        start = Rigid.from_tensor_7(diffuser.sample_ref(shape[:1], shape[1], generator))
    start = start.to(torch.device(device)).to(dtype)
    process = Process(denoiser, diffuser, progress)
    times = times.to(device=device, dtype=dtype)
    rots, scaled = start.rots, centred(start.trans) / diffuser.alpha(times[0])
    for t, t_next in pairwise(times):
        rots, scaled = step(process, rots, scaled, t, t_next)
        process.tick()
    process(rots, scaled, times[-1])
    found = process.latest
    assert found is not None
    rigids = found.rigids if denoise else Rigid(rots, diffuser.alpha(times[-1]) * scaled)
    if not bool(torch.isfinite(rigids.trans).all()):
        raise ModelError("the network gave NaN or infinite frames; train it again, with a lower learning rate")
    return Prediction(found.rot_score, found.trans_score, rigids.map_trans(centred), found.psi)


def centred(x: Tensor) -> Tensor:
    """[..., N, 3] with their mean over N taken off: the noise process lives on the zero-centroid subspace."""
    return x - x.mean(-2, keepdim=True)
