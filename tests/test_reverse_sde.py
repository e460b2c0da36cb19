"""The reverse-time sampler against an analytic score."""

import numpy as np
import pytest
import torch
from scipy import stats
from wrapped_mixture import WrappedMixture, example

from openmm_diffusion.errors import SettingError
from openmm_diffusion.sampling.flow import geometric_grid
from openmm_diffusion.sampling.reverse_sde import reverse_sde


def sample(model: WrappedMixture, n_steps: int, **options: float) -> np.ndarray:
    grid = geometric_grid(0.05, np.pi, n_steps)
    return reverse_sde(model, grid, (6000, 1), torch.Generator().manual_seed(1), **options)[:, 0].numpy()


def cdf(model: WrappedMixture, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-np.pi, np.pi, 4001)
    density = model.log_density(torch.as_tensor(x)[:, None], torch.tensor(sigma).double()).exp().numpy()
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return x, total / total[-1]


def test_samples_follow_the_mixture_at_the_lowest_noise() -> None:
    """With the exact score and many steps the samples pass Kolmogorov-Smirnov; without noise they do not."""
    model = example(1)
    x, f = cdf(model, 0.05)
    good = stats.kstest(sample(model, 400), lambda y: np.interp(y, x, f)).pvalue
    bad = stats.kstest(sample(model, 400, noise_scale=0.0), lambda y: np.interp(y, x, f)).pvalue
    print(f"p {good:.3f}, without noise {bad:.2g}")
    assert good > 1e-3
    assert bad < 1e-6


def test_negative_noise_is_refused() -> None:
    """noise_scale < 0 is a SettingError that names the value."""
    with pytest.raises(SettingError, match="noise_scale is -1"):
        sample(example(1), 5, noise_scale=-1.0)
