"""Bounds over documents hold what is true as often as they say, and say nothing where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optimizer.evaluate.bounds import Bounds, mean_bounds, median_bounds, quotient_bounds, share_bounds

RUNS = 400


def missed(drawn: Callable[[Any, int], Bounds], true: float) -> tuple[float, float]:
    """In which share of runs the truth is below the lower bound, and above the upper one."""
    random = np.random.default_rng(0)
    found = [drawn(random, run) for run in range(RUNS)]
    return sum(true < each.low for each in found) / RUNS, sum(true > each.high for each in found) / RUNS


def test_a_divergence_is_held_as_often_as_they_say() -> None:
    """Documents differ by far more than their tokens do, and not evenly."""

    def drawn(random: Any, run: int) -> Bounds:
        tokens = random.integers(50, 400, 25)
        return mean_bounds(list(tokens * 0.02 * random.gamma(2.0, 0.5, 25)), list(tokens), seed=run)

    below, above = missed(drawn, 0.02)
    assert below <= 0.08
    assert above <= 0.11  # skewed, and few: a little more than the 5 % of many documents


def test_a_share_is_held_as_often_as_they_say() -> None:
    def drawn(random: Any, run: int) -> Bounds:
        tokens = random.integers(50, 400, 25)
        return share_bounds(list(random.binomial(tokens, random.beta(45, 5, 25))), list(tokens), seed=run)

    below, above = missed(drawn, 0.9)
    assert below <= 0.11  # skewed the other way
    assert above <= 0.08


def test_a_median_is_held_as_often_as_they_say() -> None:
    def drawn(random: Any, run: int) -> Bounds:
        return median_bounds(list(random.geometric(0.05, 16)))

    # The median of that distribution: the first number that half of it does not exceed.
    below, above = missed(drawn, math.ceil(-1 / math.log2(0.95)))
    assert below <= 0.07
    assert above <= 0.07


def test_documents_are_what_differs_and_not_tokens() -> None:
    """Half of the documents agree in all tokens and half in few: that many independent tokens would say far more."""
    same, tokens = [1000, 200] * 5, [1000] * 10
    found = share_bounds(same, tokens)
    assert found.value == pytest.approx(0.6)
    assert found.high - found.low > 0.3
    assert found.high - found.low > 10 * 1.645 * math.sqrt(0.6 * 0.4 / 10_000)


def test_all_the_same_is_not_certainty() -> None:
    found = share_bounds([40] * 5, [40] * 5)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(200 / (200 + 1.6448536**2)), "as of 200 tokens that are independent"
    none = share_bounds([0] * 5, [40] * 5)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - found.low))


def test_of_too_few_documents_nothing_is_known() -> None:
    assert quotient_bounds([1.0, 2.0], [10, 10]) is None
    assert mean_bounds([1.0, 2.0], [10, 10]) == Bounds(0.15, 0.0, math.inf)
    assert mean_bounds([1.0, 2.0], [10, 10]).to_json() == {"value": 0.15, "low": 0.0, "high": None}
    assert share_bounds([9, 10], [10, 10]) == Bounds(0.95, 0.0, 1.0)
    assert median_bounds([7, 3, 9, 1]) == Bounds(5.0, 0.0, math.inf)
    assert median_bounds([7, 3, 9, 1, 5]) == Bounds(5.0, 1.0, 9.0), "five are the fewest"


def test_a_sum_that_is_not_finite_has_no_bounds() -> None:
    assert quotient_bounds([1.0, math.inf, 2.0, 1.0], [10] * 4) is None


def test_a_bound_stays_where_the_number_can_be() -> None:
    found = mean_bounds([0.0, 0.0, 0.0, 90.0], [10] * 4)
    assert 0 <= found.low < found.value < found.high
    odd = share_bounds([10, 10, 10, 0], [10] * 4)
    assert 0 <= odd.low < odd.value < odd.high <= 1
