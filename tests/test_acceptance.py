"""The acceptance ratio as a pure function: exact detailed balance by enumeration, and what invalid numbers do."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmm_diffusion.mcmc.acceptance import (
    accepts,
    choose,
    log_acceptance,
    log_sum_exp,
    log_weight,
    present_log_weight,
)

BAD_ENERGIES = [math.nan, math.inf, -math.inf]
BAD_DENSITIES = [math.nan, math.inf, -math.inf]
finite = st.floats(-50, 50)
weights = st.lists(finite, min_size=1, max_size=6)

U = np.array([0.3, 1.7, -0.4, 2.5, 0.9])
Q = np.array([0.1, 0.35, 0.05, 0.2, 0.3])


def chosen_share(log_weights: list[float], present: float, j: int) -> tuple[float, float]:
    """Exact probability that `choose` picks j, checked against `choose` itself, and log alpha of that choice."""
    shares = np.exp(np.array(log_weights) - log_sum_exp(log_weights))
    before = float(shares[:j].sum())
    choice = choose(log_weights, present, before + 0.5 * float(shares[j]))
    assert choice.index == j, "the uniform in the middle of a candidate's share has to choose it"
    return float(shares[j]), choice.log_alpha


def transition_matrix(
    u: np.ndarray, q: np.ndarray, n: int, drop_q: bool = False, drop_present: bool = False
) -> np.ndarray:
    """The whole matrix of multiple-try independence sampling with n candidates, enumerating every set of them."""
    log_q = np.zeros(len(q)) if drop_q else np.log(q, where=q > 0, out=np.full(len(q), -np.inf))
    matrix = np.zeros((len(u), len(u)))
    for x in np.flatnonzero(np.isfinite(u)):
        present = -math.inf if drop_present else present_log_weight(u[x], log_q[x])
        for candidates in itertools.product(np.flatnonzero(q > 0).tolist(), repeat=n):
            chance = float(np.prod(q[list(candidates)]))
            log_weights = [log_weight(u[y], log_q[y]) for y in candidates]
            for j, y in enumerate(candidates):
                if log_weights[j] > -math.inf:
                    share, log_alpha = chosen_share(log_weights, present, j)
                    matrix[x, y] += chance * share * math.exp(log_alpha)
        matrix[x, x] += 1.0 - matrix[x].sum()
    return matrix


def stationary_error(u: np.ndarray, matrix: np.ndarray) -> float:
    target = np.where(np.isfinite(u), np.exp(-np.where(np.isfinite(u), u, 0.0)), 0.0)
    target /= target.sum()
    return float(np.abs(target @ matrix - target).max())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 5])
def test_boltzmann_is_stationary_by_enumeration(n: int, size: int) -> None:
    """pi P = pi to 1e-12 for one, two and three candidates; every row sums to one and nothing is negative."""
    q = Q[:size] / Q[:size].sum()
    matrix = transition_matrix(U[:size], q, n)
    assert (matrix >= 0).all()
    assert stationary_error(U[:size], matrix) < 1e-12


@pytest.mark.parametrize("n", [1, 2, 3])
def test_detailed_balance_by_enumeration(n: int) -> None:
    """pi_x P_xy = pi_y P_yx for every pair, which is more than stationarity."""
    target = np.exp(-U) / np.exp(-U).sum()
    flux = target[:, None] * transition_matrix(U, Q, n)
    assert np.abs(flux - flux.T).max() < 1e-12


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("mistake", ["drop_q", "drop_present"])
def test_wrong_ratios_are_not_stationary(n: int, mistake: str) -> None:
    """Negative control: without log q, or without the present state's weight, the same enumeration finds the error."""
    matrix = transition_matrix(U, Q, n, **{mistake: True})
    assert stationary_error(U, matrix) > 1e-2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_states_out_of_reach_keep_the_balance(n: int) -> None:
    """A state that q never draws is never left, one of infinite energy never entered: pi stays stationary."""
    u, q = U.copy(), Q.copy()
    u[1] = math.inf
    q[3] = 0.0
    q /= q.sum()
    matrix = transition_matrix(u, q, n)
    assert stationary_error(u, matrix) < 1e-12
    assert matrix[3, 3] == 1.0 and matrix[0, 3] == 0.0 and matrix[[0, 2, 4], 1].max() == 0.0


@given(finite, finite, finite, finite)
def test_one_candidate_is_metropolis_hastings(u: float, u_new: float, log_q: float, log_q_new: float) -> None:
    """n = 1: log alpha = min(0, -(u' - u) + log q - log q'), from `choose` and from `log_acceptance` alike."""
    expected = min(0.0, -(u_new - u) + log_q - log_q_new)
    choice = choose([log_weight(u_new, log_q_new)], present_log_weight(u, log_q), 0.3)
    assert choice.index == 0
    assert choice.log_alpha == pytest.approx(expected, abs=1e-9)
    assert log_acceptance(u, u_new, log_q, log_q_new) == pytest.approx(expected, abs=1e-9)


@given(weights, finite, st.floats(0, 1, exclude_max=True), st.floats(-500, 500))
def test_constants_in_all_densities_cancel(log_weights: list[float], present: float, uniform: float, c: float) -> None:
    """Adding one constant to every log weight changes neither alpha nor, but for rounding at an edge, the choice."""
    before = choose(log_weights, present, uniform)
    after = choose([value + c for value in log_weights], present + c, uniform)
    if before.index == after.index:
        assert math.exp(after.log_alpha) == pytest.approx(math.exp(before.log_alpha), abs=1e-9)
    else:
        edge = np.cumsum(np.exp(np.array(log_weights) - log_sum_exp(log_weights)))
        assert np.abs(edge - uniform).min() < 1e-9


@given(st.lists(finite, min_size=2, max_size=5), finite, st.randoms(use_true_random=False))
def test_order_of_candidates_does_not_matter(log_weights: list[float], present: float, random: object) -> None:
    """Each candidate's chance and alpha are the same in any order."""
    order = list(range(len(log_weights)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = [log_weights[k] for k in order]
    shares = np.exp(np.array(log_weights) - log_sum_exp(log_weights))
    for position, k in enumerate(order):
        if shares[k] > 1e-9:
            share, log_alpha = chosen_share(shuffled, present, position)
            original, original_alpha = chosen_share(log_weights, present, k)
            assert share == pytest.approx(original, rel=1e-9)
            assert math.exp(log_alpha) == pytest.approx(math.exp(original_alpha), rel=1e-9)


@given(weights, finite, st.floats(0, 1, exclude_max=True))
def test_alpha_is_a_probability_and_matches_the_textbook(log_weights: list[float], present: float, u: float) -> None:
    """alpha = min(1, W / (W - w_j + w_present)) in plain arithmetic, between 0 and 1."""
    choice = choose(log_weights, present, u)
    w, w_present = np.exp(np.longdouble(log_weights)), np.exp(np.longdouble(present))
    total = w.sum()
    rest = np.longdouble(sum(value for k, value in enumerate(w) if k != choice.index))
    assert choice.log_alpha <= 0.0
    assert math.exp(choice.log_alpha) == pytest.approx(float(min(1, total / (rest + w_present))), rel=1e-9)


@pytest.mark.parametrize("value", BAD_ENERGIES)
def test_candidate_without_energy_has_weight_zero(value: float) -> None:
    """NaN, +inf and -inf energies of a candidate give weight zero and rejection, never an exception."""
    assert log_weight(value, 0.0) == -math.inf
    assert log_acceptance(0.0, value, 0.0, 0.0) == -math.inf


@pytest.mark.parametrize("value", BAD_DENSITIES)
def test_candidate_without_density_has_weight_zero(value: float) -> None:
    """A candidate whose log q is NaN or infinite has weight zero; in particular -inf must not become weight +inf."""
    assert log_weight(0.0, value) == -math.inf
    assert log_acceptance(0.0, 0.0, 0.0, value) == -math.inf


@pytest.mark.parametrize("value", BAD_DENSITIES)
def test_present_state_without_density_rejects(value: float) -> None:
    """A present state that cannot be scored has weight +inf and rejects every candidate."""
    present = present_log_weight(1.0, value)
    assert present == math.inf
    for n in (1, 4):
        assert choose([5.0] * n, present, 0.2).log_alpha == -math.inf
    assert log_acceptance(1.0, -1000.0, value, 0.0) == -math.inf


@pytest.mark.parametrize("value", BAD_ENERGIES)
def test_present_state_without_energy_is_an_error(value: float) -> None:
    """A chain cannot be at a NaN or infinite energy: ValueError with the value."""
    with pytest.raises(ValueError, match=str(value)):
        present_log_weight(value, 0.0)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_all_candidates_invalid_rejects(n: int) -> None:
    """No candidate with a weight: nothing is chosen, alpha is zero, also beside an unscorable present state."""
    for present in (0.0, math.inf):
        choice = choose([-math.inf] * n, present, 0.5)
        assert choice.index is None and choice.log_alpha == -math.inf


@given(st.integers(0, 4), st.floats(0, 1, exclude_max=True))
def test_invalid_candidates_are_never_chosen(valid: int, uniform: float) -> None:
    """Among invalid candidates the only valid one is chosen at every uniform, 0 included."""
    log_weights = [-math.inf] * 5
    log_weights[valid] = -3.0
    choice = choose(log_weights, 0.0, uniform)
    assert choice.index == valid
    assert choice.log_alpha == pytest.approx(-3.0)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("log_weights", [[0.0], [-1e6, 1e6], [1e6, -1e6], [-1e6, -1e6, -1e6], [1e-300] * 7, [0.1] * 10])
def test_ends_of_the_uniform_choose_a_candidate(log_weights: list[float], uniform: float) -> None:
    """uniform = 0 and the largest number below 1 both choose a candidate of positive weight."""
    choice = choose(log_weights, 0.0, uniform)
    assert choice.index is not None
    assert log_weights[choice.index] > max(log_weights) - 745.0


def test_extreme_weights_are_stable() -> None:
    """Log weights of +-1e6 overflow nothing: the right one is chosen, alpha is exact."""
    assert choose([1e6, -1e6], 1e6, 0.5).log_alpha == 0.0
    assert choose([1e6, 1e6 - 1.0], 1e6 + 2.0, 0.1).log_alpha == pytest.approx(
        math.log((1 + math.exp(-1)) / (math.exp(-1) + math.exp(2)))
    )
    assert choose([-1e6], 1e6, 0.5).log_alpha == -2e6
    assert choose([-1e6], -1e6, 0.5).log_alpha == 0.0
    assert not accepts(-2e6, 0.0)


def test_acceptance_of_a_uniform_number() -> None:
    """accepts() takes log alpha >= 0 always, -inf never, and exp(log alpha) as its exact edge."""
    assert accepts(0.0, np.nextafter(1.0, 0.0)) and accepts(3.0, 0.999)
    assert not accepts(-math.inf, 0.0)
    edge = math.exp(-0.7)
    assert accepts(-0.7, np.nextafter(edge, 0.0)) and not accepts(-0.7, edge)
    assert not accepts(math.nan, 0.0)


def test_present_weight_that_depends_on_the_candidate_takes_one_candidate() -> None:
    """Several candidates with different present weights are refused; equal ones and single ones pass."""
    with pytest.raises(ValueError, match="n_candidates"):
        choose([0.0, 0.0], [1.0, 2.0], 0.5)
    assert choose([0.0, 0.0], [1.0, 1.0], 0.5) == choose([0.0, 0.0], 1.0, 0.5)
    assert choose([0.0, 1.0], [math.inf, math.inf], 0.5).log_alpha == -math.inf


@given(st.lists(st.floats(-700, 700), max_size=8))
def test_log_sum_exp_equals_long_arithmetic(values: list[float]) -> None:
    """log_sum_exp equals the plain sum in long double; empty and infinite cases have their limits."""
    expected = float(np.log(np.exp(np.longdouble(values)).sum())) if values else -math.inf
    assert log_sum_exp(values) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert log_sum_exp([*values, math.inf]) == math.inf
    assert log_sum_exp([*values, -math.inf]) == pytest.approx(log_sum_exp(values), rel=1e-15)
