"""Backbones from an SE(3) score network: reverse SDE, probability-flow ODE, exponential integrator.

Rotations diffuse by Brownian motion of width sigma(t), translations by the variance-preserving process
x_t = alpha x_0 + sqrt(1 - alpha^2) noise. In y = x / alpha, with the width sigma~ = sqrt(1 - alpha^2) / alpha, the
latter is a Brownian motion too, so one formula serves both. With the score s of either, sigma^2 s is the step from the
present point to the estimate of its clean one (Tweedie's formula; a body-frame rotation vector for rotations), called
the pull u here:

    reverse SDE        d point = u d(sigma^2) / sigma^2 + noise     (Song et al., ICLR 2021, eq. 6)
    probability flow   d point / d sigma = -u / sigma               (the same, eq. 13)

For data at one point, the flow's paths are straight lines (geodesics, at a speed that differs from this where sigma
comes near pi), and a step of any length from sigma_a to sigma_b goes the fraction 1 - sigma_b / sigma_a of u. Both
integrators are exact there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ModelError, SettingError
from ..geometry import rotations
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
class _Point:
    """Frames at one time: rotations, translations over alpha, and the pulls of both there."""

    rots: Tensor
    scaled: Tensor
    rot_pull: Tensor
    trans_pull: Tensor


class _Process:
    """Evaluates a denoiser on points of a run, with noise levels (rotations, translations over alpha) by time."""

    def __init__(self, denoiser: Denoiser, diffuser: NoiseProcess, bar: Any) -> None:
        self._denoiser, self._diffuser, self._bar = denoiser, diffuser, bar
        self.latest: Prediction | None = None

    def sigmas(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._diffuser.sigma(t)

    def __call__(self, rots: Tensor, scaled: Tensor, t: Tensor) -> _Point:
        alpha, (rot_sigma, trans_sigma) = self._diffuser.alpha(t), self._diffuser.sigma(t)
        found = self._denoiser(Rigid(rots, alpha * scaled), t.expand(len(rots)), self.latest)
        self.latest = found
        # var s / (alpha c), with c diffused units a batch unit and sigma~ = sqrt(var) / (alpha c).
        trans_pull = (1 - alpha**2).sqrt() * trans_sigma * found.trans_score
        return _Point(rots, scaled, rot_sigma**2 * found.rot_score, _centred(trans_pull))

    def tick(self) -> None:
        if self._bar is not None:
            self._bar.update()


_Step = Callable[[_Process, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def reverse_sde(
    denoiser: Denoiser,
    diffuser: NoiseProcess,
    times: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    noise_scale: float = 0.1,
    **options: Any,
) -> Prediction:
    """Frames by a geodesic random walk along the reverse SDE; one evaluation a step.

    A step has the mean and the width of the noising process pinned at the estimate of the clean frames, sigma_a^2 -
    sigma_b^2 times sigma_b^2 / sigma_a^2 (Ho et al., NeurIPS 2020, eq. 7), which is exact for data at one point.

    Parameters
    ----------
    denoiser, diffuser
        The score and the noise that it belongs to.
    times
        Descending times [K + 1], see `time_grid`; the steps are their differences.
    shape
        (chains, residues).
    generator
        Source of the start and of the noise.
    noise_scale
        Factor of the noise alone. 1 is the SDE. 0.1 is the custom of the field: narrower than the data, with fewer
        broken chains; neither SDE nor ODE, and its samples have no known density.
    options
        `start` (frames at times[0], batch units; drawn from the diffuser's reference by default), `denoise` (True:
        return the estimate of the clean frames at the last time; False: the frames at the last time, which carry noise
        of width sigma(min_t)), `device`, `dtype` (of the walk; float64), `progress` (a tqdm bar to update once a step).

    Returns
    -------
    The last prediction; its `rigids` are the samples, in batch units, zero-centred.
    """
    if noise_scale < 0:
        raise SettingError(f"noise_scale is {noise_scale}; expected at least 0")

    def step(process: _Process, rots: Tensor, scaled: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        here = process(rots, scaled, t)
        moved = []
        for pull, a, b in zip((here.rot_pull, here.trans_pull), process.sigmas(t), process.sigmas(t_next), strict=True):
            noise = torch.randn(pull.shape, generator=generator, dtype=torch.float64, device=generator.device).to(pull)
            moved.append((1 - b**2 / a**2) * pull + noise_scale * (a**2 - b**2).sqrt() * b / a * noise)
        return rots @ rotations.exp(moved[0]), scaled + _centred(moved[1])

    return _run(step, denoiser, diffuser, times, shape, generator, **options)


def probability_flow(
    denoiser: Denoiser,
    diffuser: NoiseProcess,
    times: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
    **options: Any,
) -> Prediction:
    """Frames by Heun's method on the probability-flow ODE, rotations by body-frame increments; two evaluations a step.

    Second order; sigma is the variable of integration (Karras et al., NeurIPS 2022, algorithm 1). The samples are a
    function of the start. Parameters as of `reverse_sde`.
    """

    def step(process: _Process, rots: Tensor, scaled: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        here = process(rots, scaled, t)
        (rot_a, trans_a), (rot_b, trans_b) = process.sigmas(t), process.sigmas(t_next)
        rot_full, trans_full = (1 - rot_b / rot_a) * here.rot_pull, (1 - trans_b / trans_a) * here.trans_pull
        there = process(rots @ rotations.exp(rot_full), scaled + trans_full, t_next)
        # The pull there belongs to another tangent space; on the geodesic between them that is an error of third order.
        rot_mean = (rot_full + (rot_a / rot_b - 1) * there.rot_pull) / 2
        trans_mean = (trans_full + (trans_a / trans_b - 1) * there.trans_pull) / 2
        return rots @ rotations.exp(rot_mean), scaled + trans_mean

    return _run(step, denoiser, diffuser, times, shape, generator, **options)


def exponential_integrator(
    denoiser: Denoiser,
    diffuser: NoiseProcess,
    times: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
    **options: Any,
) -> Prediction:
    """Frames by a second-order multistep exponential integrator of the probability-flow ODE; one evaluation a step.

    DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), where the linear part of the ODE is exact and the
    estimate of the clean point is extrapolated from two steps; for rotations in the logarithmic chart of the step's
    start. The first step is DDIM's. Parameters as of `reverse_sde`.
    """
    before: list[tuple[_Point, tuple[Tensor, Tensor]]] = []

    def step(process: _Process, rots: Tensor, scaled: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        here, sigmas = process(rots, scaled, t), process.sigmas(t)
        pulls = [here.rot_pull, here.trans_pull]
        if before:
            last, last_sigmas = before.pop()
            back = rotations.log(rots.transpose(-1, -2) @ last.rots)
            old = (back + _to_chart(back, last.rot_pull), last.scaled - scaled + last.trans_pull)
            for i, (a, b, c) in enumerate(zip(last_sigmas, sigmas, process.sigmas(t_next), strict=True)):
                ratio = torch.log(b / c) / torch.log(a / b)
                pulls[i] = pulls[i] + ratio / 2 * (pulls[i] - old[i])
        before.append((here, sigmas))
        rot, trans = ((1 - b / a) * pull for pull, a, b in zip(pulls, sigmas, process.sigmas(t_next), strict=True))
        return rots @ rotations.exp(rot), scaled + trans

    return _run(step, denoiser, diffuser, times, shape, generator, **options)


SAMPLERS: dict[str, Callable[..., Prediction]] = {
    "reverse_sde": reverse_sde,
    "probability_flow": probability_flow,
    "exponential_integrator": exponential_integrator,
}


@torch.no_grad()
def _run(
    step: _Step,
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
    process = _Process(denoiser, diffuser, progress)
    times = times.to(device=device, dtype=dtype)
    rots, scaled = start.rots, _centred(start.trans) / diffuser.alpha(times[0])
    for t, t_next in pairwise(times):
        rots, scaled = step(process, rots, scaled, t, t_next)
        process.tick()
    process(rots, scaled, times[-1])
    found = process.latest
    assert found is not None
    rigids = found.rigids if denoise else Rigid(rots, diffuser.alpha(times[-1]) * scaled)
    if not bool(torch.isfinite(rigids.trans).all()):
        raise ModelError("the network gave NaN or infinite frames; train it again, with a lower learning rate")
    return Prediction(found.rot_score, found.trans_score, rigids.map_trans(_centred), found.psi)


def _centred(x: Tensor) -> Tensor:
    """[..., N, 3] with their mean over N taken off: the noise process lives on the zero-centroid subspace."""
    return x - x.mean(-2, keepdim=True)


def _to_chart(offset: Tensor, velocity: Tensor) -> Tensor:
    """Body-frame velocities at R Exp(offset) as velocities of the offset [..., 3]: J_r(offset)^-1."""
    return torch.linalg.solve(rotations.left_jacobian(-offset), velocity[..., None])[..., 0]
