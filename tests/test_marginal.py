"""Limits of a marginal proposal: closed forms, a brute-force Markov chain, and controls that must fail."""

import math

import numpy as np
import pytest

from openmm_diffusion.analysis import (
    acceptance_limits,
    conditionals,
    kish_limit,
    leave_one_out,
    marginal,
    marginal_eta,
    oracle_eta,
)
from openmm_diffusion.errors import SettingError, TrajectoryError

COUNTS = (1, 2, 8, 32)


def coupled(n_frames: int = 40, n_grid: int = 24, strength: float = 0.6) -> np.ndarray:
    """Reduced potentials on a circle whose minimum shifts and tilts with the frame; one grid point is never allowed."""
    rng = np.random.default_rng(5)
    tau = np.linspace(-math.pi, math.pi, n_grid, endpoint=False)
    shift, tilt = strength * rng.standard_normal((2, n_frames, 1))
    u = 2.0 * np.cos(2 * (tau - shift)) + tilt * np.sin(tau) + np.cos(tau + 1.0)
    u[:, 3] = np.inf
    return u


def right_half(u: np.ndarray) -> np.ndarray:
    return np.arange(u.shape[1]) >= 2 * u.shape[1] // 3


def brute_force(u: np.ndarray, n: int, steps: int, rng: np.random.Generator, rule: str = "exact") -> tuple:
    """A multiple-try Markov chain at every frame, written from DESIGN 2.2 with loops over steps: acceptance, basin
    changes (each [steps, frames]) and visits [frames, G]. `rule` "always" forgets the acceptance test."""
    p = conditionals(u)
    m, g = p.shape
    q = np.array([np.delete(p, i, axis=0).mean(axis=0) for i in range(m)])
    log_w = np.log(np.where(p > 0, p, 1.0)) - np.log(np.where(q > 0, q, 1.0))
    log_w[p == 0] = -np.inf
    at = np.array([rng.choice(g, p=p[i]) for i in range(m)])
    rows = np.arange(m)
    in_r = right_half(u)
    accepted, changed = np.zeros((2, steps, m), dtype=bool)
    visits = np.zeros((m, g))
    cumulative = q.cumsum(axis=1) / q.sum(axis=1, keepdims=True)
    for step in range(steps):
        candidates = (cumulative[:, None, :] <= rng.random((m, n, 1))).sum(axis=2)
        w = np.exp(log_w[rows[:, None], candidates])
        total = w.sum(axis=1)
        picked = ((w.cumsum(axis=1) / total[:, None]) <= rng.random((m, 1))).sum(axis=1).clip(max=n - 1)
        new = candidates[rows, picked]
        alpha = total / (total - w[rows, picked] + np.exp(log_w[rows, at]))
        accept = (rng.random(m) < alpha) | (rule == "always")
        accepted[step], changed[step] = accept, accept & (in_r[new] != in_r[at])
        at = np.where(accept, new, at)
        visits[rows, at] += 1
    return accepted, changed, visits


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over steps and frames, error from 20 blocks of steps (the chains are correlated in time)."""
    blocks = values.mean(axis=1).reshape(20, -1).mean(axis=1)
    return float(blocks.mean()), float(blocks.std(ddof=1) / math.sqrt(20))


class TestClosedForms:
    def test_product_target_is_limited_by_nothing(self) -> None:
        """u(tau, rho) = f(tau) + g(rho): every acceptance, Kish fraction and efficiency is 1, for any n."""
        rng = np.random.default_rng(1)
        u = rng.standard_normal((1, 30)) + 50.0 * rng.standard_normal((12, 1))
        in_r = np.arange(30) < 4
        for value in acceptance_limits(u, COUNTS, rng).values():
            assert value == pytest.approx(1.0, abs=1e-12)
        assert kish_limit(u) == pytest.approx(1.0, abs=1e-12)
        assert oracle_eta(u, in_r) == pytest.approx(1.0, abs=1e-12)
        assert marginal_eta(u, in_r) == pytest.approx(1.0, abs=1e-12)
        assert marginal_eta(u, in_r, 8, rng, n_repeats=2000) == pytest.approx(1.0, abs=0.05)

    def test_two_states_by_hand(self) -> None:
        """Three frames on two points, by hand: q, acceptance sum_ab p_a q_b min(1, w_b / w_a), Kish, oracle."""
        p = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
        u = -np.log(p)
        q = np.array([[0.3, 0.7], [0.5, 0.5], [0.7, 0.3]])
        np.testing.assert_allclose(leave_one_out(u), q, atol=1e-14)
        # Frame 1: w = (3, 1/7), so 0 -> 1 is accepted with 1/21: 0.9 (0.3 + 0.7/21) + 0.1; frame 3 is its mirror.
        outer = 0.9 * (0.3 + 0.7 / 21) + 0.1
        assert acceptance_limits(u, (1,))[1] == pytest.approx((2 * outer + 1.0) / 3, abs=1e-14)
        assert kish_limit(u) == pytest.approx((2 / (0.81 / 0.3 + 0.01 / 0.7) + 1.0) / 3, abs=1e-14)
        in_r = [True, False]
        assert oracle_eta(u, in_r) == pytest.approx((2 * 0.18 + 0.5) / 3 / 0.5, abs=1e-14)
        changes = 2 * (0.9 * 0.7 / 21 + 0.1 * 0.3) + 0.5  # frame 2 proposes the other state every second time
        assert marginal_eta(u, in_r) == pytest.approx(changes / 3 / 0.5, abs=1e-14)

    def test_marginals_are_mean_conditionals(self) -> None:
        """marginal() is the mean of softmax(-u); with leave_out it is that row of leave_one_out; all sum to 1."""
        u = coupled()
        p = conditionals(u)
        np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-14)
        np.testing.assert_allclose(marginal(u), p.mean(axis=0), atol=1e-16)
        loo = leave_one_out(u)
        for i in (0, 7, len(u) - 1):
            np.testing.assert_allclose(loo[i], marginal(u, leave_out=i), rtol=1e-13)
        np.testing.assert_allclose(marginal(u, leave_out=-1), loo[-1], rtol=1e-13)

    def test_single_try_sum_is_the_double_sum(self) -> None:
        """The sorted O(G log G) sums agree with the plain double sum over pairs of grid points to 1e-13."""
        u = coupled()
        p, q, in_r = conditionals(u), leave_one_out(u), right_half(u)
        flow = np.minimum(p[:, :, None] * q[:, None, :], p[:, None, :] * q[:, :, None])
        assert acceptance_limits(u, (1,))[1] == pytest.approx(flow.sum(axis=(1, 2)).mean(), rel=1e-13)
        crossing = (flow * (in_r[:, None] != in_r[None, :])).sum(axis=(1, 2)).mean()
        pi_r = marginal(u)[in_r].sum()
        assert marginal_eta(u, in_r) == pytest.approx(crossing / (2 * pi_r * (1 - pi_r)), rel=1e-13)


class TestAgainstSimulation:
    @pytest.mark.parametrize("n", [1, 2, 8])
    def test_limits_are_what_a_markov_chain_does(self, n: int) -> None:
        """Acceptance and basin changes of a simulated multiple-try chain agree at 6 sigma; negative control: a chain
        without the acceptance test disagrees in its stationary distribution."""
        u = coupled()
        in_r = right_half(u)
        accepted, changed, visits = brute_force(u, n, 3000, np.random.default_rng(10 + n))
        rng = np.random.default_rng(2)
        measured, error = mean_and_error(accepted)
        assert abs(acceptance_limits(u, (n,), rng, n_repeats=4000)[n] - measured) < 6 * math.hypot(error, 1e-3)
        pi_r = marginal(u)[in_r].sum()
        measured, error = (value / (2 * pi_r * (1 - pi_r)) for value in mean_and_error(changed))
        eta = marginal_eta(u, in_r, n, rng, n_repeats=4000)
        assert eta is not None
        assert abs(eta - measured) < 6 * math.hypot(error, 2e-3)
        wrong = brute_force(u, n, 3000, np.random.default_rng(30 + n), rule="always")[2]
        distance = [np.abs(v / 3000 - conditionals(u)).sum(axis=1).mean() for v in (visits, wrong)]
        assert distance[0] < 0.15
        assert distance[1] > (2.0 if n < 8 else 1.2) * distance[0]

    def test_many_candidates_reach_the_oracle(self) -> None:
        """Acceptance rises with n towards 1 and the efficiency towards the oracle's, which one candidate misses."""
        u = coupled()
        rng = np.random.default_rng(3)
        limits = acceptance_limits(u, (1, 4, 32, 512), rng, n_repeats=400)
        assert list(limits) == [1, 4, 32, 512]
        assert sorted(limits.values()) == list(limits.values())
        assert limits[512] > 0.99
        oracle, one = oracle_eta(u, right_half(u)), marginal_eta(u, right_half(u))
        assert oracle is not None and one is not None
        assert marginal_eta(u, right_half(u), 512, rng, n_repeats=1000) == pytest.approx(oracle, rel=0.02)
        assert one < 0.9 * oracle

    def test_detailed_balance_shortcut_is_unbiased(self) -> None:
        """Starting in the rarer basin only gives the efficiency of starts drawn from the whole conditional: swapping
        the names of the basins, which swaps nothing physical, agrees at 6 sigma."""
        u = coupled(strength=0.3)
        in_r = np.arange(24) == 12
        a = [marginal_eta(u, in_r, 4, np.random.default_rng(s), n_repeats=300) for s in range(20)]
        b = [marginal_eta(u, ~in_r, 4, np.random.default_rng(100 + s), n_repeats=300) for s in range(20)]
        sigma = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 20)
        assert abs(np.mean(a) - np.mean(b)) < 6 * sigma
        accepted = brute_force(u, 4, 3000, np.random.default_rng(4))[0]
        assert accepted.mean() == pytest.approx(acceptance_limits(u, (4,), np.random.default_rng(5))[4], abs=0.02)


class TestLeaveOneOut:
    def test_a_frame_does_not_propose_to_itself(self) -> None:
        """Frames of disjoint support: nothing is ever accepted. Negative control: with the frame itself in the mean,
        each would find 1/M of its proposals acceptable."""
        u = np.where(np.eye(5, dtype=bool), 0.0, np.inf)
        assert acceptance_limits(u, COUNTS, np.random.default_rng(6)) == dict.fromkeys(COUNTS, 0.0)
        assert kish_limit(u) == 0.0
        p, with_itself = conditionals(u), marginal(u)
        assert np.mean(1 / (p**2 / with_itself).sum(axis=1)) == pytest.approx(1 / 5)

    def test_sums_keep_what_a_difference_would_lose(self) -> None:
        """Where only frame i has weight, q_i is what the others have there, down to e^-80; negative control: the
        total minus p_i is not."""
        u = np.full((4, 3), 0.0)
        u[1:, 2], u[0, 2] = 80.0, -40.0
        expected = math.exp(-80.0) / 2
        assert leave_one_out(u)[0, 2] == pytest.approx(expected, rel=1e-12, abs=0.0)
        p = conditionals(u)
        assert (p.sum(axis=0) - p[0])[2] / 3 != pytest.approx(expected, rel=1e-3, abs=0.0)

    def test_unreachable_points_are_as_if_absent(self) -> None:
        """NaN and +inf columns change no result: the grid without them gives the same to 1e-13."""
        u = coupled()
        full = np.insert(u, 5, np.nan, axis=1)
        rng = np.random.default_rng(7)
        assert acceptance_limits(full, (1,)) == pytest.approx(acceptance_limits(np.delete(u, 3, axis=1), (1,)))
        assert kish_limit(full) == pytest.approx(kish_limit(u), rel=1e-13)
        in_r = np.insert(right_half(u), 5, True)
        assert oracle_eta(full, in_r) == pytest.approx(oracle_eta(u, right_half(u)), rel=1e-13)
        assert math.isfinite(acceptance_limits(full, (8,), rng)[8])

    def test_an_empty_basin_has_no_efficiency(self) -> None:
        """Efficiencies are None where no frame reaches R; a frame without R beside others counts as no change."""
        u = np.array([[0.0, np.inf], [0.0, np.inf]])
        assert oracle_eta(u, [False, True]) is None
        assert marginal_eta(u, [False, True]) is None
        mixed = np.array([[0.0, np.inf], [0.0, 0.0], [0.0, 0.0]])
        # Populations of R: 0, 1/2, 1/2 with mean 1/3; the oracle changes in half of the moves of two frames.
        assert oracle_eta(mixed, [False, True]) == pytest.approx((2 * 0.5 / 3) / (2 / 3 * 2 / 3), abs=1e-14)
        assert marginal_eta(mixed, [False, True], 8, np.random.default_rng(8)) is not None


def test_bad_input_is_refused() -> None:
    """Wrong shapes, -inf, frames without energy, one frame, unknown frames, no generator, no candidates raise."""
    u = coupled(6)
    with pytest.raises(TrajectoryError, match="frames, grid points"):
        conditionals(np.zeros(3))
    with pytest.raises(TrajectoryError, match="-inf"):
        conditionals([[0.0, -np.inf]])
    with pytest.raises(TrajectoryError, match="frame 1 has no finite energy"):
        conditionals([[0.0, 0.0], [np.nan, np.inf]])
    with pytest.raises(TrajectoryError, match="one frame"):
        kish_limit(u[:1])
    with pytest.raises(SettingError, match="leave_out is 6"):
        marginal(u, leave_out=6)
    with pytest.raises(SettingError, match="rng is None with 8"):
        acceptance_limits(u)
    with pytest.raises(SettingError, match="candidates is 0"):
        marginal_eta(u, right_half(u), 0)
    with pytest.raises(TrajectoryError, match="in_r has shape"):
        oracle_eta(u, [True])
