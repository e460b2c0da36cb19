"""Backbones from an SE(3) score network: reverse SDE, probability-flow ODE, exponential integrator.

With the pull u of `se3_process` (the step to the estimate of the clean point), for rotations and translations alike:

    reverse SDE        d point = u d(sigma^2) / sigma^2 + noise     (Song et al., ICLR 2021, eq. 6)
    probability flow   d point / d sigma = -u / sigma               (the same, eq. 13)

For data at one point, the flow's paths are straight lines (geodesics, at a speed that differs from this where sigma
comes near pi), and a step of any length from sigma_a to sigma_b goes the fraction 1 - sigma_b / sigma_a of u. Both
integrators are exact there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..geometry import rotations
from .se3_process import Denoiser, NoiseProcess, Point, Prediction, Process, centred, run, time_grid

__all__ = [
    "SAMPLERS",
    "Denoiser",
    "NoiseProcess",
    "Prediction",
    "exponential_integrator",
    "probability_flow",
    "reverse_sde",
    "time_grid",
]


def reverse_sde(
    denoiser: Denoiser,
    diffuser: NoiseProcess,
    times: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    noise_scale: float = 1.0,
    **options: Any,
) -> Prediction:
    """Frames by a geodesic random walk along the reverse SDE; one evaluation a step.

    A step has the mean of the noising process pinned at the estimate of the clean frames (Ho et al., NeurIPS 2020, eq.
    7), and the variance of that process plus that of the clean frames about their estimate (Bao et al., "Analytic-DPM",
    ICLR 2022, theorem 1), which follows from the mean square of the pulls, over all chains of the batch. So it is exact
    for data at one point and for a normal distribution; the pinned process alone would be too narrow, by 4 % of the
    width at 100 steps.

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
        Factor of the noise alone. 1 is the SDE. Anything else is neither SDE nor ODE, and its samples have no known
        density: the first seed's 0.1 collapses the ensemble to a tenth of the width of normal data, which leaves
        fewer broken chains.
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

    def step(process: Process, rots: Tensor, scaled: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        here = process(rots, scaled, t)
        moved = []
        # Of the coordinates of N translations without a centroid, the share (N - 1) / N is free.
        shares = 1.0, 1.0 - 1.0 / max(shape[1], 2)
        pulls = here.rot_pull, here.trans_pull
        for pull, free, a, b in zip(pulls, shares, process.sigmas(t), process.sigmas(t_next), strict=True):
            noise = torch.randn(pull.shape, generator=generator, dtype=torch.float64, device=generator.device).to(pull)
            share = 1 - b**2 / a**2
            variance = share * b**2 + share**2 * _clean_variance(pull.square().mean() / free, a)
            moved.append(share * pull + noise_scale * variance.sqrt() * noise)
        return rots @ rotations.exp(moved[0]), scaled + centred(moved[1])

    return run(step, denoiser, diffuser, times, shape, generator, **options)


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

    def step(process: Process, rots: Tensor, scaled: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        here = process(rots, scaled, t)
        (rot_a, trans_a), (rot_b, trans_b) = process.sigmas(t), process.sigmas(t_next)
        rot_full, trans_full = (1 - rot_b / rot_a) * here.rot_pull, (1 - trans_b / trans_a) * here.trans_pull
        there = process(rots @ rotations.exp(rot_full), scaled + trans_full, t_next)
        # The pull there belongs to another tangent space; on the geodesic between them that is an error of third order.
        rot_mean = (rot_full + (rot_a / rot_b - 1) * there.rot_pull) / 2
        trans_mean = (trans_full + (trans_a / trans_b - 1) * there.trans_pull) / 2
        return rots @ rotations.exp(rot_mean), scaled + trans_mean

    return run(step, denoiser, diffuser, times, shape, generator, **options)


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
    before: list[tuple[Point, tuple[Tensor, Tensor]]] = []

    def step(process: Process, rots: Tensor, scaled: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        here, sigmas = process(rots, scaled, t), process.sigmas(t)
        pulls = [here.rot_pull, here.trans_pull]
        if before:
            last, last_sigmas = before.pop()
            # The old pull belongs to another tangent space; it is nearly parallel to the way back, so nothing turns it.
            back = rotations.log(rots.transpose(-1, -2) @ last.rots)
            old = (back + last.rot_pull, last.scaled - scaled + last.trans_pull)
            for i, (a, b, c) in enumerate(zip(last_sigmas, sigmas, process.sigmas(t_next), strict=True)):
                ratio = torch.log(b / c) / torch.log(a / b)
                pulls[i] = pulls[i] + ratio / 2 * (pulls[i] - old[i])
        before.append((here, sigmas))
        rot, trans = ((1 - b / a) * pull for pull, a, b in zip(pulls, sigmas, process.sigmas(t_next), strict=True))
        return rots @ rotations.exp(rot), scaled + trans

    return run(step, denoiser, diffuser, times, shape, generator, **options)


SAMPLERS: dict[str, Callable[..., Prediction]] = {
    "reverse_sde": reverse_sde,
    "probability_flow": probability_flow,
    "exponential_integrator": exponential_integrator,
}


def _clean_variance(square_of_pull: Tensor, sigma: Tensor) -> Tensor:
    """Variance of a coordinate of the clean points about their estimate: sigma^2 - E[u^2], between 0 and sigma^2."""
    return (sigma**2 - square_of_pull).clamp(min=0.0)
