"""Streams of torch: different seeds, different numbers."""

import numpy as np
import torch
from scipy import stats

from openmm_diffusion.sampling.generators import torch_generator


def test_seeds_equal_in_their_low_bits_differ() -> None:
    """Seeds that torch's own seeding takes for one give different streams; the same seed gives the same."""
    seed, other = 12345, 12345 + (7 << 32)
    first, second, again = (torch.randn(1000, generator=torch_generator(s)) for s in (seed, other, seed))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.15
    naive = [torch.randn(10, generator=torch.Generator().manual_seed(s)) for s in (seed, other)]
    assert torch.equal(*naive)


def test_numbers_are_normal_and_uniform() -> None:
    """The state that is put together draws from the distributions asked for."""
    generator = torch_generator(2**62 + 3)
    assert stats.kstest(torch.randn(20_000, generator=generator).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(torch.rand(20_000, generator=generator).numpy(), "uniform").pvalue > 1e-3
