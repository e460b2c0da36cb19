"""Mixing, free energies and importance weights against closed forms, simulation and each other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmm_diffusion.analysis import (
    autocorrelation,
    basin_free_energy,
    change_efficiency,
    count_changes,
    effective_sample_size,
    free_energy_surface,
    in_basin_r,
    kish_ess,
    md_rate_bound,
    pareto_k,
    r_hat,
    resample,
)
from openmm_diffusion.errors import SettingError, TrajectoryError


def two_state_chain(n: int, to_r: float, to_l: float, rng: np.random.Generator) -> np.ndarray:
    """Membership of R along a stationary Markov chain with these switching probabilities a step."""
    state = rng.random() < to_r / (to_r + to_l)
    states = np.empty(n, dtype=bool)
    for i, uniform in enumerate(rng.random(n)):
        state = (uniform >= to_l) if state else (uniform < to_r)
        states[i] = state
    return states


def ar1(shape: tuple[int, int], r: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary Gaussian chains with autocorrelation r^k at lag k."""
    x = rng.standard_normal(shape)
    for i in range(1, shape[1]):
        x[:, i] = r * x[:, i - 1] + math.sqrt(1 - r**2) * x[:, i]
    return x


class TestBasins:
    @given(st.floats(-3.1, 3.1), st.integers(-5, 5))
    def test_membership_is_periodic_and_has_open_borders(self, phi: float, turns: int) -> None:
        """R is 0 < phi < 2.2 rad whatever period the angle comes in."""
        if min(abs(phi), abs(phi - 2.2)) > 1e-9:
            assert in_basin_r(phi + 2 * math.pi * turns) == (0.0 < phi < 2.2)
        assert not in_basin_r([0.0, 2.2, math.pi, -math.pi]).any()

    def test_independent_draws_have_efficiency_one_and_a_sticky_chain_has_less(self) -> None:
        """Independent draws from the target reach eta = 1 within 6 sigma; negative control: a sticky chain does not."""
        rng = np.random.default_rng(1)
        n, pi_r = 40_000, 0.1
        ceiling = 2 * pi_r * (1 - pi_r)
        sigma = math.sqrt(2 / (ceiling * n))  # neighbouring changes share a draw: at most twice the binomial variance
        for chain, passes in ((rng.random(n) < pi_r, True), (two_state_chain(n, 0.05, 0.45, rng), False)):
            eta = change_efficiency(count_changes(chain[:-1], chain[1:]), n - 1, pi_r)
            assert eta is not None
            assert (abs(eta - 1.0) < 6 * sigma) == passes

    def test_undefined_efficiencies_are_none_and_impossible_ones_are_refused(self) -> None:
        """No attempts or an empty basin give None; more changes than attempts and populations outside 0..1 raise."""
        assert change_efficiency(0, 0, 0.1) is None
        assert [change_efficiency(1, 10, p) for p in (0.0, 1.0, math.nan)] == [None] * 3
        with pytest.raises(SettingError, match="11 changes in 10"):
            change_efficiency(11, 10, 0.1)
        with pytest.raises(SettingError, match="population"):
            change_efficiency(1, 10, 1.5)

    def test_changes_are_counted_by_attempt(self) -> None:
        """A change is a different membership after than before; no attempts are no changes; shapes must agree."""
        assert count_changes([True, False, True], [False, False, False]) == 2
        assert count_changes([], []) == 0
        with pytest.raises(TrajectoryError, match="shapes"):
            count_changes([True], [True, False])
        with pytest.raises(TrajectoryError, match="not boolean"):
            count_changes([0.3], [1.0])
        with pytest.raises(TrajectoryError, match="NaN"):
            in_basin_r([0.1, math.nan])


class TestMixing:
    @pytest.mark.parametrize("method", ["bulk", "identity"])
    @pytest.mark.parametrize("r", [0.0, 0.8])
    def test_ess_of_ar1_is_the_closed_form(self, r: float, method: str) -> None:
        """ESS of an AR(1) process is n (1 - r) / (1 + r), within 15 %."""
        x = ar1((4, 10_000), r, np.random.default_rng(2))
        assert effective_sample_size(x, method) == pytest.approx(x.size * (1 - r) / (1 + r), rel=0.15)

    def test_a_constant_series_counts_one_a_chain(self) -> None:
        """Stuck chains are one draw each; negative control: the library alone counts every draw of them."""
        from arviz_stats.base import array_stats

        stuck = np.ones((3, 100))
        assert effective_sample_size(stuck) == 3.0
        assert effective_sample_size(stuck[0]) == 1.0
        assert array_stats.ess(stuck) > 100

    def test_too_few_draws_are_nan_and_bad_values_are_refused(self) -> None:
        """Three draws have no ESS and no R-hat; NaN among the draws raises instead of spreading."""
        assert math.isnan(effective_sample_size([0.0, 1.0, 2.0]))
        assert math.isnan(r_hat([0.0, 1.0, 2.0]))
        assert math.isnan(r_hat([0.0]))
        for function in (effective_sample_size, r_hat, lambda x: autocorrelation(x, 1)):
            with pytest.raises(TrajectoryError, match="NaN"):
                function([0.0, math.nan, 1.0, 2.0])

    def test_r_hat_tells_agreement_from_disagreement(self) -> None:
        """Chains of one distribution are below 1.01; shifted chains, or halves of a drifting chain, are not."""
        rng = np.random.default_rng(3)
        x = rng.standard_normal((4, 2000))
        assert r_hat(x) < 1.01
        assert r_hat(x[0]) < 1.02
        assert r_hat(x + np.arange(4)[:, None]) > 1.1
        assert r_hat(x[0] + np.linspace(0, 3, 2000)) > 1.1

    def test_r_hat_of_stuck_chains(self) -> None:
        """Chains stuck in different basins: infinite. Chains stuck in one: nothing to compare, NaN."""
        assert r_hat([[0.0] * 10, [1.0] * 10]) == math.inf
        assert math.isnan(r_hat(np.zeros((2, 10))))

    def test_autocorrelation_is_the_direct_sum(self) -> None:
        """The transform agrees with the sum over pairs to 1e-12, and with r^k of an AR(1) process to 0.05."""
        x = ar1((3, 4000), 0.7, np.random.default_rng(4))
        rho = autocorrelation(x, 8)
        d = x - x.mean()
        direct = np.array([np.mean(d[:, : 4000 - k] * d[:, k:]) for k in range(9)]) / np.mean(d**2)
        np.testing.assert_allclose(rho, direct, atol=1e-12)
        np.testing.assert_allclose(rho, 0.7 ** np.arange(9), atol=0.05)

    def test_chains_stuck_apart_stay_correlated(self) -> None:
        """Two chains, each fluctuating in a basin of its own, never decorrelate; each by itself does."""
        x = np.random.default_rng(5).standard_normal((2, 3000)) + np.array([[-5.0], [5.0]])
        assert autocorrelation(x, 50)[50] > 0.9
        assert abs(autocorrelation(x[0], 50)[50]) < 0.1
        np.testing.assert_array_equal(autocorrelation(np.ones(10), 4), np.ones(5))
        with pytest.raises(SettingError, match="n_lags"):
            autocorrelation(np.ones(10), 10)


class TestBasinFreeEnergy:
    def test_error_of_one_chain_covers_the_spread(self) -> None:
        """Over 150 chains the stated error is their true spread to 20 %; negative control: the binomial error of
        uncorrelated draws is not even half of it."""
        rng = np.random.default_rng(6)
        n, to_r, to_l = 3000, 0.02, 0.06
        exact = math.log(to_l / to_r)
        estimates = [basin_free_energy(two_state_chain(n, to_r, to_l, rng)) for _ in range(150)]
        values = np.array([e.value for e in estimates])
        errors = np.array([e.error for e in estimates], dtype=float)
        spread = values.std(ddof=1)
        assert abs(values.mean() - exact) < 6 * spread / math.sqrt(len(values)) + 0.5 * spread**2
        assert np.median(errors) == pytest.approx(spread, rel=0.2)
        pi_r = to_r / (to_r + to_l)
        assert 1 / math.sqrt(pi_r * (1 - pi_r) * n) < 0.5 * spread

    def test_error_of_independent_chains_covers_the_spread(self) -> None:
        """Eight chains at a time: the root mean square of the stated errors is the spread of the values to 25 %."""
        rng = np.random.default_rng(7)
        estimates = [
            basin_free_energy(np.stack([two_state_chain(400, 0.02, 0.06, rng) for _ in range(8)])) for _ in range(120)
        ]
        errors = np.array([e.error for e in estimates], dtype=float)
        spread = np.std([e.value for e in estimates], ddof=1)
        assert math.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.25)

    @pytest.mark.parametrize("correlated", [False, True])
    def test_weights_correct_a_biased_sample_and_the_bootstrap_knows_its_error(self, correlated: bool) -> None:
        """Draws at pi_R = 1/2 with weights of pi_R = 0.1 give Delta F = ln 9 and an error that is right to 25 %;
        negative control: without the weights the value is far off."""
        rng = np.random.default_rng(8)
        switch = 0.05 if correlated else 0.5
        values, errors = [], []
        for _ in range(100):
            in_r = two_state_chain(1500, switch, switch, rng)
            noise = np.exp(0.5 * rng.standard_normal(in_r.size))
            estimate = basin_free_energy(in_r, np.where(in_r, 0.1, 0.9) * noise, rng)
            values.append(estimate.value)
            errors.append(estimate.error)
        spread = np.std(values, ddof=1)
        assert abs(np.mean(values) - math.log(9)) < 6 * spread / 10
        assert np.median(np.array(errors, dtype=float)) == pytest.approx(spread, rel=0.25)
        unweighted = basin_free_energy(in_r)
        assert unweighted.error is not None
        assert abs(unweighted.value - math.log(9)) > 6 * unweighted.error

    def test_constant_weights_change_nothing(self) -> None:
        """Weights of any one size give the unweighted value, and nearly its error, for one chain and for several."""
        rng = np.random.default_rng(9)
        for shape in ((4000,), (10, 400)):
            in_r = rng.random(shape) < 0.3
            plain, weighted = basin_free_energy(in_r), basin_free_energy(in_r, np.full(shape, 1e-300), rng)
            assert weighted.value == pytest.approx(plain.value, abs=1e-12)
            assert weighted.error == pytest.approx(plain.error, rel=0.25)

    def test_empty_basins_are_infinite_without_an_error(self) -> None:
        """R never seen: +inf; L never seen: -inf; R seen with weight zero only: +inf. Never NaN, never an error bar."""
        rng = np.random.default_rng(10)
        assert basin_free_energy(np.zeros(10, dtype=bool)) == (math.inf, None)
        assert basin_free_energy(np.ones((2, 10), dtype=bool)) == (-math.inf, None)
        assert basin_free_energy([True, False, False], [0.0, 1.0, 1.0], rng) == (math.inf, None)

    def test_short_or_equal_chains_have_a_finite_error_or_none(self) -> None:
        """Three draws give no error; chains that agree to the digit do not claim an error of zero."""
        assert basin_free_energy([True, False, False]).error is None
        equal = basin_free_energy([[True, False] * 10, [False, True] * 10])
        assert equal.value == 0.0
        assert equal.error is not None and equal.error > 0.1

    def test_bad_input_is_refused(self) -> None:
        """Weights without a generator, of another shape, negative or NaN; no draws; values that are no booleans."""
        rng = np.random.default_rng(11)
        with pytest.raises(SettingError, match="rng is None"):
            basin_free_energy([True, False], [1.0, 1.0])
        for weights in ([1.0], [1.0, -1.0], [1.0, math.nan], [0.0, 0.0]):
            with pytest.raises(TrajectoryError, match="weights"):
                basin_free_energy([True, False], weights, rng)
        with pytest.raises(TrajectoryError, match="shape"):
            basin_free_energy(np.zeros(0, dtype=bool))
        with pytest.raises(TrajectoryError, match="not boolean"):
            basin_free_energy([0.5, 1.0])


class TestSurface:
    def test_surface_is_minus_log_density_with_phi_first(self) -> None:
        """Weights 1 and e^-2 on two points give 0 and 2 kT in their bins, phi on axis 0, and inf elsewhere."""
        edges, surface = free_energy_surface([0.1, 2.0], [-3.0, 1.0], bins=12, weights=[1.0, math.exp(-2.0)])
        assert edges[0] == -math.pi and edges[-1] == math.pi and surface.shape == (12, 12)
        i, j = np.searchsorted(edges, [0.1, 2.0]) - 1, np.searchsorted(edges, [-3.0, 1.0]) - 1
        np.testing.assert_allclose(surface[i, j], [0.0, 2.0], atol=1e-12)
        assert np.isinf(surface).sum() == 142

    def test_angles_may_come_in_any_period(self) -> None:
        """Adding turns to the angles changes nothing, and no draw falls off the edge at +-pi."""
        rng = np.random.default_rng(12)
        phi, psi = rng.uniform(-3, 3, (2, 500))
        _, inside = free_energy_surface(phi, psi, bins=9)
        _, turned = free_energy_surface(phi + 2 * math.pi, psi - 4 * math.pi, bins=9)
        np.testing.assert_allclose(turned, inside)
        _, edge = free_energy_surface([math.pi, -math.pi, -1e-17 - math.pi], [0.0, 0.0, 0.0], bins=4)
        assert np.isfinite(edge).sum() >= 1

    def test_reweighting_flattens_a_tilted_sample(self) -> None:
        """von Mises draws weighed by 1/density are flat within 6 sigma; negative control: unweighted they are not."""
        rng = np.random.default_rng(13)
        phi, psi = rng.vonmises(0.0, 0.5, 20_000), rng.uniform(-math.pi, math.pi, 20_000)
        for weights, flat in ((np.exp(-0.5 * np.cos(phi)), True), (None, False)):
            _, surface = free_energy_surface(phi, psi, bins=6, weights=weights)
            assert (np.ptp(surface) < 6 * math.sqrt(2 * 36 / 20_000)) == flat

    def test_bad_input_is_refused(self) -> None:
        """NaN angles, unequal lengths and no bins raise."""
        with pytest.raises(TrajectoryError, match="NaN"):
            free_energy_surface([math.nan], [0.0])
        with pytest.raises(SettingError, match="same draws"):
            free_energy_surface([0.0], [0.0, 1.0])
        with pytest.raises(SettingError, match="bins"):
            free_energy_surface([0.0], [0.0], bins=0)


class TestRateBound:
    def test_rate_is_that_of_a_simulated_telegraph_process(self) -> None:
        """The changes of a two-state process with the same dwell times come at the stated rate within 6 sigma;
        negative control: the rate for pi_R twice as large does not fit."""
        rng = np.random.default_rng(14)
        pi_r, tau_rl, speed = 0.1, 2.0, 5.0
        tau_lr = tau_rl * (1 - pi_r) / pi_r
        n = 20_000
        time_ns = rng.exponential(tau_rl, n).sum() + rng.exponential(tau_lr, n).sum()
        measured = 2 * n / (time_ns / speed)
        assert abs(measured / md_rate_bound(speed, tau_rl, 0.0, pi_r, 0.0)[0] - 1) < 6 / math.sqrt(n)
        assert abs(measured / md_rate_bound(speed, tau_rl, 0.0, 2 * pi_r, 0.0)[0] - 1) > 6 / math.sqrt(n)

    def test_error_is_that_of_random_inputs(self) -> None:
        """Inputs drawn within their errors spread the rate by the stated error to 3 %, with either error alone too."""
        rng = np.random.default_rng(15)
        for tau_error, pi_error in ((0.03, 0.002), (0.0, 0.002), (0.03, 0.0)):
            tau, pi_r = rng.normal(1.0, tau_error, 50_000), rng.normal(0.05, pi_error, 50_000)
            error = md_rate_bound(10.0, 1.0, tau_error, 0.05, pi_error)[1]
            assert error == pytest.approx(np.std(20.0 * pi_r / tau), rel=0.03)

    def test_an_empty_basin_has_rate_zero_with_its_error_and_bad_input_is_refused(self) -> None:
        """pi_R = 0 +- e is a rate of 0 +- 2 v e / tau; times and speeds of zero, and NaN, raise."""
        assert md_rate_bound(1.0, 2.0, 0.1, 0.0, 0.01) == (0.0, 0.01)
        for arguments in ((0.0, 1, 0, 0.1, 0), (1, 0.0, 0, 0.1, 0), (1, 1, -1, 0.1, 0), (1, 1, 0, 1.1, 0)):
            with pytest.raises(SettingError):
                md_rate_bound(*arguments)
        with pytest.raises(SettingError, match="pi_r is nan"):
            md_rate_bound(1.0, 1.0, 0.0, math.nan, 0.0)


class TestImportance:
    @given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.floats(-1e6, 1e6))
    def test_kish_is_the_plain_formula_at_any_scale(self, log_w: list[float], shift: float) -> None:
        """(sum w)^2 / sum w^2, unchanged by a factor that would overflow, between 1 and the number of weights."""
        w = np.exp(log_w)
        ess = float(kish_ess(np.array(log_w) + shift))
        assert ess == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-6)
        assert 1 - 1e-9 <= ess <= len(w) + 1e-9

    def test_kish_of_zero_weights_and_axes(self) -> None:
        """-inf is weight zero, all of them is size 0, rows and columns are kept apart, NaN and +inf raise."""
        log_w = np.array([[0.0, 0.0, -np.inf], [-np.inf, -np.inf, -np.inf], [-900.0, -900.0, -900.0]])
        np.testing.assert_allclose(kish_ess(log_w), [2.0, 0.0, 3.0])
        np.testing.assert_allclose(kish_ess(log_w, axis=0), [1.0, 1.0, 1.0])
        for bad in (math.nan, math.inf):
            with pytest.raises(TrajectoryError, match="log weights"):
                kish_ess([0.0, bad])

    @pytest.mark.parametrize("k", [0.3, 0.9])
    def test_pareto_k_recovers_the_tail(self, k: float) -> None:
        """Weights with a Pareto tail of shape k (U^-k) are recovered to 0.15, at any scale of the weights."""
        log_w = -k * np.log(np.random.default_rng(16).random(20_000))
        assert pareto_k(log_w) == pytest.approx(k, abs=0.15)
        assert pareto_k(log_w - 5000.0) == pytest.approx(pareto_k(log_w), abs=1e-6)

    def test_pareto_k_where_there_is_no_tail(self) -> None:
        """Fewer than 25 weights or equal ones: NaN. Zero weights are left out and do not change the others' tail."""
        rng = np.random.default_rng(17)
        log_w = rng.standard_normal(1000)
        assert math.isnan(pareto_k(log_w[:24]))
        assert math.isfinite(pareto_k(log_w[:25]))
        assert math.isnan(pareto_k(np.zeros(1000)))
        assert math.isnan(pareto_k(np.full(50, -np.inf)))
        assert pareto_k(np.concatenate([log_w, np.full(500, -np.inf)])) == pareto_k(log_w)

    @pytest.mark.parametrize("method", ["multinomial", "systematic"])
    def test_resampling_is_in_proportion(self, method: str) -> None:
        """Frequencies agree with the weights at 6 sigma; negative control: with uniform ones they do not."""
        rng = np.random.default_rng(18)
        log_w = np.array([0.0, 1.0, -np.inf, 2.0, -1.0]) + 800.0
        n = 20_000
        counts = np.bincount(resample(log_w, n, rng, method), minlength=5)
        w = np.exp(log_w - 800.0) / np.exp(log_w - 800.0).sum()
        sigma = np.sqrt(n * w * (1 - w)) + 1e-9
        assert counts[2] == 0
        assert (np.abs(counts - n * w) < 6 * sigma).all()
        assert not (np.abs(counts - n / 5) < 6 * sigma).all()

    def test_systematic_picks_floor_or_ceiling_and_multinomial_does_not(self) -> None:
        """Systematic: each draw floor(n w) or ceil(n w) times, over many offsets; multinomial breaks that bound."""
        rng = np.random.default_rng(19)
        log_w = rng.standard_normal(30)
        expected = 100 * np.exp(log_w) / np.exp(log_w).sum()

        def worst(method: str) -> float:
            return max(
                np.abs(np.bincount(resample(log_w, 100, rng, method), minlength=30) - expected).max() for _ in range(50)
            )

        assert worst("systematic") < 1.0 < worst("multinomial")

    def test_bad_input_is_refused(self) -> None:
        """No weight at all, two axes, an unknown method and a negative number raise; zero picks are none."""
        rng = np.random.default_rng(20)
        assert len(resample([0.0], 0, rng)) == len(resample([0.0], 0, rng, "systematic")) == 0
        with pytest.raises(TrajectoryError, match="every weight is zero"):
            resample([-np.inf, -np.inf], 1, rng)
        with pytest.raises(TrajectoryError, match="one axis"):
            resample([[0.0]], 1, rng)
        with pytest.raises(SettingError, match="method"):
            resample([0.0], 1, rng, "residual")
        with pytest.raises(SettingError, match="n is -1"):
            resample([0.0], -1, rng)
