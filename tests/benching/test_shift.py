"""A planted shift is found where it is, and noise is rarely called one."""

import itertools

import numpy as np
import pytest
from scipy import stats

from optimizer.benching.shift import find_shift, least_p


def noise(seed, count):
    return np.exp(np.random.default_rng(seed).normal(0, 0.02, count))


@pytest.mark.parametrize("factor", [1.2, 1 / 1.2])
@pytest.mark.parametrize("at", [5, 10, 15])
def test_a_planted_shift_is_found_where_it_is(at, factor):
    values = noise(at, 20)
    values[at:] *= factor
    found = find_shift(values)
    assert found.at == at
    assert found.p < (0.001 if at == 10 else 0.02)  # the nearer to an end, the fewer orders look like it
    assert found.share == pytest.approx(factor - 1, abs=0.03)


def test_pure_noise_is_rarely_a_shift():
    """Of 400 series 5 % may be: 20, and 33 with 99.9 % probability (binomial)."""
    alarms = sum(find_shift(noise(seed, 12)).p <= 0.05 for seed in range(400))
    assert alarms <= stats.binom.ppf(0.999, 400, 0.05)
    assert alarms >= 3  # and the test is not one that never says anything


def test_one_wild_run_is_no_shift():
    for place in (0, 7, 14):
        values = noise(1, 15)
        values[place] *= 100
        assert find_shift(values).p > 0.05


def test_the_p_value_is_that_of_all_permutations():
    values = [3.0, 1.0, 2.0, 6.0, 5.0, 7.0, 4.0]

    def statistic(series):
        ranks = stats.rankdata(series)
        return max(abs(2 * sum(ranks[:k]) - k * (len(ranks) + 1)) for k in range(1, len(ranks)))

    exact = [statistic(order) >= statistic(values) for order in itertools.permutations(values)]
    assert find_shift(values).p == pytest.approx(sum(exact) / len(exact), abs=0.015)


def test_ties_are_midranks():
    assert find_shift([1.0] * 10).p == 1.0
    assert find_shift([1.0] * 6 + [2.0] * 6).at == 6


def test_what_is_too_short_for_any_shift():
    assert find_shift([]) is None
    assert find_shift([1.0]) is None
    assert find_shift([1.0, 2.0]).p == 1.0


@pytest.mark.parametrize("count", [4, 6, 7, 8])
def test_the_least_p_value_is_that_of_two_separate_halves(count):
    values = [1.0] * (count // 2) + [2.0] * (count - count // 2)
    assert find_shift(values).p == pytest.approx(least_p(count), abs=0.01)
    assert find_shift(range(1, count + 1)).p >= least_p(count) - 0.01
