"""Evidence about slowdowns, on rounds whose truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.benching.evidence import ERROR, evidence, holm


def rounds(slowdown, count, noise, seed):
    """Rounds of a baseline of 1 ms, and of what is slower by a share, with a normal noise in the log of each round."""
    random = np.random.default_rng(seed)
    base = [[1_000_000] * 5 for _ in range(count)]
    other = [[round(1e6 * (1 + slowdown) * np.exp(random.normal(0, noise)))] * 5 for _ in range(count)]
    return base, other


def test_a_planted_slowdown_is_estimated_with_its_interval():
    found = evidence(*rounds(0.10, 16, 0.01, 1))
    assert found.low < 0.10 < found.high
    assert found.value == pytest.approx(0.10, abs=0.01)
    assert found.p_slower(0.05) <= ERROR < found.p_slower(0.10)
    assert found.p_within(0.15) <= ERROR < found.p_within(0.10)


def test_few_rounds_say_little_however_far_apart_they_lie():
    found = evidence(*rounds(1.0, 4, 0.001, 1))
    assert found.p_slower(0.05) == 0.5**4 > ERROR
    assert evidence(*rounds(1.0, 8, 0.001, 1)).p_slower(0.05) == 0.5**8 < ERROR


def test_less_than_three_rounds_say_nothing():
    found = evidence(*rounds(1.0, 2, 0.001, 1))
    assert (found.p_slower(0.05), found.p_within(5.0), found.low) == (1.0, 1.0, -1.0)


def test_means_and_medians_are_two_questions():
    base, spiky = [[100, 100, 100, 100]] * 8, [[100, 100, 100, 1000]] * 8
    assert evidence(base, spiky).value == pytest.approx(0.0)
    assert evidence(base, spiky, of_means=True).value == pytest.approx(2.25)


@pytest.mark.parametrize("noise", [0.01, 0.04])
def test_no_slowdown_is_hardly_ever_called_one(noise):
    """At the limit itself the error is the one that was asked for, within what a bootstrap of 16 rounds can do."""
    wrong = sum(evidence(*rounds(0.05, 16, noise, seed), seed=seed).p_slower(0.05) <= ERROR for seed in range(200))
    assert wrong <= 14  # 5 expected; a fair 4 % would give more than 14 in one of a hundred
    assert not any(evidence(*rounds(0.0, 16, 0.01, seed), seed=seed).p_slower(0.05) <= ERROR for seed in range(50))


def test_ten_percent_are_found_beyond_five():
    found = sum(evidence(*rounds(0.10, 32, 0.05, seed), seed=seed).p_slower(0.05) <= ERROR for seed in range(50))
    assert found >= 45


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        ([], []),
        ([0.01, 0.04, 0.03, 0.005], [True, False, False, True]),  # the example of Holm's procedure in textbooks
        ([0.02, 0.02], [True, True]),
        ([0.03, 0.04], [False, False]),
    ],
)
def test_holm(p_values, rejected):
    assert holm(p_values, 0.05) == rejected


def test_holm_keeps_the_error_of_the_family():
    random = np.random.default_rng(0)
    wrong = sum(any(holm(random.uniform(size=6).tolist(), 0.05)) for _ in range(2000))
    assert 60 <= wrong <= 140  # 100 expected, σ 9.7
