"""Populations, their errors and their comparison; effective draws; rates of switching: against processes known."""

import math

import numpy as np
import pytest

from openmm_diffusion.analysis import populations as pop
from openmm_diffusion.analysis import switching
from openmm_diffusion.analysis.free_energy import Estimate
from openmm_diffusion.analysis.mixing import in_basin_r
from openmm_diffusion.analysis.population_plots import population_bars, ramachandran_grid, rate_bars
from openmm_diffusion.errors import SettingError, TrajectoryError


def telegraph(rng: np.random.Generator, n: int, leave_r: float, leave_l: float, chains: int = 1) -> np.ndarray:
    """Membership of R [chains, n] of a two-state Markov chain in equilibrium."""
    u = rng.random((chains, n))
    state = rng.random(chains) < leave_l / (leave_l + leave_r)
    states = np.empty((chains, n), dtype=bool)
    for t in range(n):
        state = np.where(state, u[:, t] >= leave_r, u[:, t] < leave_l)
        states[:, t] = state
    return states


def shares(states: np.ndarray, rng: np.random.Generator, length: int | None = None) -> pop.Populations:
    """Populations of three states given as indices [walkers, times]."""
    numerators = pop.indicators(states, 3)
    ones = np.ones(states.shape)
    return pop.block_populations("abc", numerators, ones, length or pop.block_length(numerators, ones), rng, 400)


def test_joint_states_have_their_names() -> None:
    """The state of phi is the letter of each residue in turn, periodic in phi, R being 0 to 2.2 rad."""
    phi = np.array([[-1.0, -1.0, -1.0], [1.0, -1.0, 2.3], [-1.0, 1.0 + 2 * math.pi, -2.0], [1.0, 1.0, 1.0]])
    names = pop.state_names(3)
    assert [names[k] for k in pop.joint_states(phi)] == ["LLL", "RLL", "LRL", "RRR"]
    one_hot = pop.indicators(pop.joint_states(phi), 8)
    np.testing.assert_array_equal(one_hot.sum(-1), 1.0)
    # The marginal of the first phi is the sum over the states that begin with R.
    first = one_hot[:, [name[0] == "R" for name in names]].sum(-1)
    np.testing.assert_array_equal(first, in_basin_r(phi[:, 0]))


def test_errors_of_a_correlated_chain_are_those_of_its_repetitions() -> None:
    """The block bootstrap's error of a population is the spread over 200 chains to 25 %; that of single frames, the
    negative control, is several times too small."""
    rng = np.random.default_rng(1)
    member = telegraph(rng, 2000, 0.05, 0.01, chains=200)
    spread = member.mean(1).std()
    numerators, ones = member[..., None].astype(float), np.ones(member.shape)
    errors, naive = [], []
    for k in range(12):
        part, below = numerators[k : k + 1], ones[k : k + 1]
        length = pop.block_length(part, below)
        errors.append(pop.block_populations(["R"], part, below, length, rng, 200).errors[0])
        naive.append(pop.block_populations(["R"], part, below, 1, rng, 200).errors[0])
    assert np.median(errors) == pytest.approx(spread, rel=0.25)
    assert np.median(naive) < 0.4 * spread


def test_weights_make_the_ensemble_of_the_target() -> None:
    """Frames drawn evenly with weights have the weighted population; leaving the weights out, the control, has not."""
    rng = np.random.default_rng(2)
    member = rng.random((2, 3000, 4)) < 0.5
    weights = np.where(member, 0.1, 0.9)
    numerators = np.einsum("wtk,wtk->wt", weights, member)[..., None]
    result = pop.block_populations(["R"], numerators, weights.sum(-1), 5, rng)
    assert abs(result.values[0] - 0.1) < 4 * result.errors[0]
    assert result.errors[0] < 0.003
    plain = pop.block_populations(["R"], member.mean(-1)[..., None], np.ones((2, 3000)), 5, rng)
    assert abs(plain.values[0] - 0.1) > 20 * plain.errors[0]


def test_covariance_knows_that_shares_sum_to_one() -> None:
    """Rows of the covariance sum to zero, and independent draws have the multinomial covariance to 20 %."""
    rng = np.random.default_rng(3)
    p = np.array([0.7, 0.2, 0.1])
    result = shares(rng.choice(3, size=(1, 8000), p=p), rng, 20)
    np.testing.assert_allclose(result.covariance.sum(1), 0.0, atol=1e-12)
    expected = (np.diag(p) - np.outer(p, p)) / 8000
    np.testing.assert_allclose(result.covariance, expected, atol=0.2 * expected.max())


def test_agreement_is_uniform_for_one_ensemble_and_fails_for_another() -> None:
    """p values of pairs of estimates of one ensemble are uniform; a share off by a fifth is refused in most pairs."""
    rng = np.random.default_rng(4)
    p, other = [0.7, 0.2, 0.1], [0.66, 0.24, 0.10]
    same, off = [], []
    for _ in range(80):
        reference = shares(rng.choice(3, size=(2, 800), p=p), rng, 20)
        same.append(pop.compare_populations(shares(rng.choice(3, size=(1, 1600), p=p), rng, 20), reference).p_value)
        off.append(pop.compare_populations(shares(rng.choice(3, size=(1, 1600), p=other), rng, 20), reference).p_value)
    below = np.mean(np.array(same) < 0.5)
    assert abs(below - 0.5) < 4 * math.sqrt(0.25 / 80)
    assert np.mean(np.array(same) < 0.01) < 0.08
    assert np.mean(np.array(off) < 0.05) > 0.5


def test_a_state_never_sampled_is_no_certainty() -> None:
    """A chain that never saw a rare state is not refuted with an error of zero; one that misses a common state is."""
    rng = np.random.default_rng(5)
    reference = shares(rng.choice(3, size=(2, 5000), p=[0.89, 0.1, 0.01]), rng, 20)
    blind = shares(np.where(rng.random((1, 400)) < 0.9, 0, 1), rng, 20)
    rare = pop.compare_populations(blind, reference)
    assert abs(rare.z[2]) < 1.0
    common = shares(rng.choice(3, size=(2, 5000), p=[0.5, 0.1, 0.4]), rng, 20)
    assert abs(pop.compare_populations(blind, common).z[2]) > 3.0


def test_effective_draws_of_a_telegraph_process() -> None:
    """A chain's effective draws are n (1 - r) / (1 + r) with the correlation r of one step, within its own error."""
    rng = np.random.default_rng(6)
    leave_r, leave_l = 0.06, 0.02
    member = telegraph(rng, 40_000, leave_r, leave_l).astype(float)
    r = 1.0 - leave_r - leave_l
    expected = member.size * (1.0 - r) / (1.0 + r)
    result = pop.effective_draws(member, np.ones(member.shape), member.var())
    assert result is not None
    assert result.error is not None
    assert abs(result.value - expected) < 4 * result.error
    assert result.error < 0.2 * result.value
    assert pop.effective_draws(np.ones((1, 100)), np.ones((1, 100)), 0.1) is None


def test_effective_draws_with_weights_are_those_of_kish() -> None:
    """Independent frames with weights are worth (sum w)^2 / sum w^2 draws where weights and observable are unrelated;
    counting frames instead, the control, is far off."""
    rng = np.random.default_rng(7)
    weights = rng.exponential(size=(2, 20_000)) ** 2
    x = rng.normal(size=weights.shape)
    result = pop.effective_draws(weights * x, weights, 1.0)
    assert result is not None
    assert result.error is not None
    kish = weights.sum() ** 2 / (weights**2).sum()
    assert result.value == pytest.approx(kish, rel=0.15)
    assert abs(result.value - weights.size) > 10 * result.error


def test_recrossings_are_no_switches() -> None:
    """Leaving a core and coming back is none; a switch counts at the other core, in the time of which it belongs."""
    left, right = -1.5, 1.0
    phi = [0.2, left, -0.2, 0.3, left, right, 0.3, -0.3, right, left, 3.0, right]
    np.testing.assert_array_equal(switching.core_states(phi), [-1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1])
    assert switching.dwell([phi]) == switching.Dwell(frames_r=4, frames_l=6, r_to_l=1, l_to_r=2)
    assert switching.dwell([phi, phi]).r_to_l == 2
    # Negative control: the borders of the basin alone count the recrossings too.
    member = in_basin_r(phi)
    assert np.sum(member[:-1] & ~member[1:]) > 1


def test_rate_of_escape_and_its_bound() -> None:
    """n events in a time give n / time with the error sqrt(n) / time; none give 3 / time, where seeing none has 5 %."""
    assert switching.escape_rate(16, 8.0) == Estimate(2.0, 0.5)
    bound = switching.escape_rate(0, 10.0)
    assert bound.error is None
    assert math.exp(-bound.value * 10.0) == pytest.approx(0.05)
    with pytest.raises(SettingError, match="time above 0"):
        switching.escape_rate(1, 0.0)


def test_draws_of_dynamics_from_the_rate_of_leaving_r_alone() -> None:
    """Escapes out of R and its population give the effective draws of a long simulation; the control: the bare rate
    does not, nor does the bound for an observable with fast parts fall below what the simulation is worth."""
    rng = np.random.default_rng(8)
    leave_r, leave_l = 0.02, 0.005
    member = telegraph(rng, 100_000, leave_r, leave_l, chains=2)
    escapes = int(np.sum(member[:, :-1] & ~member[:, 1:]))
    rate = switching.escape_rate(escapes, float(member[:, :-1].sum()))
    pi_r = leave_l / (leave_l + leave_r)
    measured = pop.effective_draws(member.astype(float), np.ones(member.shape), pi_r * (1 - pi_r))
    predicted = switching.dynamics_draws(rate, pi_r)
    assert measured is not None
    assert measured.error is not None
    assert abs(measured.value - predicted.value * member.size) < 4 * measured.error
    assert abs(measured.value - rate.value / 2 * member.size) > 1.5 * measured.error
    noisy = member + rng.normal(scale=0.5, size=member.shape)
    share = switching.slow_share(noisy, member, np.ones(member.shape))
    assert share == pytest.approx(pi_r * (1 - pi_r) / (pi_r * (1 - pi_r) + 0.25), rel=0.05)
    worth = pop.effective_draws(noisy, np.ones(member.shape), float(noisy.var()))
    assert worth is not None
    assert worth.error is not None
    assert worth.value < switching.dynamics_draws(rate, pi_r, share).value * member.size + 3 * worth.error


def test_bad_input_is_one_sentence() -> None:
    """Shapes that do not fit, weights that are negative, states that differ, shares outside their range."""
    rng = np.random.default_rng(9)
    with pytest.raises(TrajectoryError, match="walkers, times, features"):
        pop.block_length(np.ones((2, 5, 1)), np.ones((2, 4)))
    with pytest.raises(TrajectoryError, match="negative"):
        pop.block_populations(["R"], np.ones((1, 5, 1)), -np.ones((1, 5)), 1, rng)
    with pytest.raises(SettingError, match="names"):
        pop.block_populations(["R", "L"], np.ones((1, 5, 1)), np.ones((1, 5)), 1, rng)
    a = pop.Populations(("a",), np.ones(1), np.eye(1), 10)
    b = pop.Populations(("b",), np.ones(1), np.eye(1), 10)
    with pytest.raises(TrajectoryError, match="states differ"):
        pop.compare_populations(a, b)
    with pytest.raises(SettingError, match="share"):
        switching.dynamics_draws(Estimate(1.0, 0.1), 1.0)


def test_figures_show_values_errors_and_bounds() -> None:
    """Bars are as high as the values, empty states have none, a bound has an arrow, and every residue has its axes."""
    ax = population_bars(["LL", "LR"], {"hybrid": ([0.9, 0.1], [0.01, 0.02]), "reference": ([1.0, 0.0], [0.0, 0.0])})
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_allclose(heights[:3], [0.9, 0.1, 1.0])
    assert math.isnan(heights[3])
    assert ax.get_yscale() == "log"
    ax = rate_bars(["phi"], {"hybrid": ([5.0], [0.5]), "plain MD": ([0.1], [math.nan])})
    assert len(ax.texts) == 1
    rng = np.random.default_rng(0)
    labels = ["phi:ALA2", "psi:ALA2", "phi:ALA3", "psi:ALA3"]
    tau = rng.uniform(-3, 3, (50, 4))
    figure = ramachandran_grid({"a": (tau, np.ones(50)), "b": (tau, None)}, labels)
    assert {ax.get_title() for ax in figure.axes} - {""} == {"a, ALA2", "a, ALA3", "b, ALA2", "b, ALA3"}
    with pytest.raises(SettingError, match="phi and psi"):
        ramachandran_grid({"a": (tau, None)}, ["phi:ALA2", "phi:ALA3", "psi:ALA4", "omega:ALA4"])
    with pytest.raises(SettingError, match="one each"):
        rate_bars(["phi"], {"hybrid": ([1.0, 2.0], [0.1, 0.1])})
