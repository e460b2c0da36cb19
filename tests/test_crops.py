"""Crops with equal inclusion: the claim of the seed, which its own weights miss by a third."""

import numpy as np
import pytest
from numpy.typing import NDArray
from villin_data import alpha_carbons

from openmm_diffusion.data.crops import (
    balls,
    crop_size,
    equal_inclusion_lp,
    make_crops,
    maximum_entropy,
    report_of,
)
from openmm_diffusion.errors import SettingError, TrajectoryError

RATIOS = (0.2, 0.5, 0.95)


def line(n: int = 60) -> NDArray[np.float64]:
    return np.stack([3.8 * np.arange(n), np.zeros(n), np.zeros(n)], -1)


STRUCTURES = {"villin": alpha_carbons(), "line": line()}


def seed_weights(masks: NDArray[np.bool_], steps: int = 50) -> NDArray[np.float64]:
    """The first seed's iteration (expectation maximisation for mixture weights) on nearest-k balls."""
    weights = np.full(len(masks), 1 / len(masks))
    for _ in range(steps):
        weights = weights * (masks @ (masks.mean() / (weights @ masks))) / masks[0].sum()
    return weights


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_every_residue_is_included_equally(name: str, ratio: float) -> None:
    """The largest deviation of pi / tau from 1 is below 1e-3, crops have k residues, and many are in use."""
    crops = make_crops(STRUCTURES[name], ratio)
    n, k = len(STRUCTURES[name]), crop_size(len(STRUCTURES[name]), ratio)
    assert (crops.masks.sum(1) == k).all()
    assert np.abs(crops.inclusion / (k / n) - 1).max() <= 1e-3
    assert crops.report.deviation <= 1e-3 and crops.report.ess >= 10
    assert crops.weights.min() >= 0 and crops.weights.sum() == pytest.approx(1)
    assert (crops.residue_weights == 1).all()


@pytest.mark.parametrize(("name", "ratio"), [(n, r) for n in STRUCTURES for r in RATIOS if (n, r) != ("line", 0.5)])
def test_the_seeds_weights_do_not(name: str, ratio: float) -> None:
    """Control: the seed's weights on balls alone miss by over 10 % (on a line of 60 at 0.5 by 9.8 %)."""
    masks = balls(STRUCTURES[name], crop_size(len(STRUCTURES[name]), ratio))
    assert report_of(masks, seed_weights(masks)).deviation > 0.1


def test_balls_alone_cannot() -> None:
    """The linear program certifies it: at 0.95 no weights of balls come closer than 10 %, of the dictionary 1e-6."""
    villin = STRUCTURES["villin"]
    assert equal_inclusion_lp(balls(villin, crop_size(35, 0.95)))[0] > 0.1
    assert make_crops(villin, 0.95).report.lp_deviation < 1e-6


def test_drawn_crops_have_the_weights() -> None:
    """10^5 drawn crops include every residue at its rate within 6 sigma; uniformly drawn balls do not."""
    crops, n_draws = make_crops(STRUCTURES["villin"], 0.5), 100_000
    tau, error = 17 / 35, np.sqrt(17 / 35 * 18 / 35 / n_draws)
    uniform = np.random.default_rng(3).random(n_draws)
    assert np.abs(crops.draw(uniform).mean(0) - tau).max() < 6 * error
    control = make_crops(STRUCTURES["villin"], 0.5, "horvitz-thompson").draw(uniform)
    assert np.abs(control.mean(0) - tau).max() > 6 * error


@pytest.mark.parametrize("ratio", RATIOS)
def test_horvitz_thompson_weights_are_unbiased(ratio: float) -> None:
    """The weighted sum over visible residues has the expectation tau times the sum; without weights it has not."""
    crops = make_crops(STRUCTURES["villin"], ratio, "horvitz-thompson")
    loss = np.random.default_rng(0).random(35)
    tau = crop_size(35, ratio) / 35
    sums = crops.masks @ (crops.residue_weights * loss)
    assert crops.weights @ sums == pytest.approx(tau * loss.sum(), rel=1e-12)
    assert crops.weights @ (crops.masks @ loss) != pytest.approx(tau * loss.sum(), rel=1e-3)


def test_entropy_is_maximal() -> None:
    """Moving along any direction that keeps the inclusion lowers the entropy of the weights (Lagrange condition)."""
    masks = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]], bool)
    target = np.array([0.55, 0.45, 0.45, 0.55])
    weights = maximum_entropy(masks, target)
    assert weights @ masks == pytest.approx(target, rel=1e-8)
    _, sizes, rows = np.linalg.svd(np.column_stack([masks, np.ones(5)]).T)
    kernel = rows[np.sum(sizes > 1e-9) :]
    assert len(kernel) and np.abs(kernel @ np.log(weights)).max() < 1e-7


def test_ties_are_broken_alike() -> None:
    """Equal distances go to the lower number even where rounding differs: a moved line has the same crops."""
    moved = line() @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] + 17.3
    assert (balls(line(), 12) == balls(moved, 12)).all()


def test_impossible_inclusion_is_an_error() -> None:
    """Atoms that all coincide leave few crops, none of them equal: the sentence has the best deviation."""
    with pytest.raises(TrajectoryError, match=r"the best deviation is 0\.33, the tolerance 0\.001; .*horvitz"):
        make_crops(np.zeros((8, 3)), 0.75)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01])
def test_ratios_outside_are_refused(ratio: float) -> None:
    """A ratio outside (0, 1] is an error; so is an unknown kind of inclusion."""
    with pytest.raises(SettingError, match="crop_ratio"):
        make_crops(line(), ratio)
    with pytest.raises(SettingError, match="inclusion is 'ipf'"):
        make_crops(line(), 0.5, "ipf")


def test_the_smallest_and_the_whole() -> None:
    """A ratio below 1 / L leaves one residue, a ratio of 1 all of them; both have equal inclusion."""
    assert crop_size(35, 0.01) == 1 and crop_size(35, 1.0) == 35
    for ratio in (0.01, 1.0):
        assert make_crops(STRUCTURES["villin"], ratio).report.deviation < 1e-9
