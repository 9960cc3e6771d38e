"""The interval against distributions whose answer is known, and against scipy's bootstrap and Mann-Whitney test.

How often something may be wrong is itself a matter of chance: counts are held against binomial limits that a correct
interval leaves once in a thousand times, and the seeds are fixed.
"""

import math

import numpy as np
import pytest
import scipy.stats

from optimizer.benching.evidence import ERROR, evidence, holm
from optimizer.benching.stats import speedup, throughput

RUNS = 300
ROUNDS = 8
CALLS = 15
#: Noise of a call's logarithm. All have the median 0, so that the ratio of medians is known.
NOISES = {
    "normal": lambda random, shape: random.normal(0, 0.03, shape),
    "log-normal": lambda random, shape: random.lognormal(0, 1, shape) * 0.03 - 0.03,
    "heavy tail": lambda random, shape: np.clip(random.standard_t(1.5, shape) * 0.02, -3, 3),
    "drifting": lambda random, shape: random.normal(0, 0.02, shape) + random.normal(0, 0.3, (shape[0], 1)),
    "steps": lambda random, shape: random.normal(0, 0.02, shape) + random.choice([0, 0.7], (shape[0], 1)),
}


def measured(name, factor, random, rounds=ROUNDS):
    """Rounds of a baseline and of something that is so many times faster, on the same machine.

    What drifts does so for both: each round is measured within moments.
    """
    shape = (rounds, CALLS)
    base, other = NOISES[name](random, shape), NOISES[name](random, shape)
    if name in ("drifting", "steps"):
        other += np.median(base, axis=1, keepdims=True) - np.median(other, axis=1, keepdims=True)
        other += random.normal(0, 0.01, (rounds, 1))
    # What else happens to a round happens to one of the two.
    base += random.normal(0, 0.01, (rounds, 1))
    return (1e7 * np.exp(base)).astype(int).tolist(), (1e7 / factor * np.exp(other)).astype(int).tolist()


def between(low, high):
    """Counts that chances of at least ``low`` and at most ``high`` allow, one time in a thousand aside on each side."""
    return scipy.stats.binom.ppf(0.001, RUNS, low), scipy.stats.binom.ppf(0.999, RUNS, high)


@pytest.mark.parametrize("name", NOISES)
def test_the_interval_holds_the_truth_as_often_as_its_docstring_says(name):
    random = np.random.default_rng(11)
    held = 0
    for seed in range(RUNS):
        ratio = speedup(*measured(name, 1.25, random), seed=seed, draws=600)
        held += ratio.low <= 1.25 <= ratio.high
    fewest, most = between(0.92, 0.97)
    assert fewest <= held <= most, held / RUNS


@pytest.mark.parametrize("name", NOISES)
def test_what_is_the_same_is_seldom_called_different(name):
    """Type I error of each direction: that of one end of the interval."""
    random = np.random.default_rng(12)
    found = [speedup(*measured(name, 1.0, random), seed=seed, draws=600) for seed in range(RUNS)]
    _, most = between(0, 0.04)
    assert sum(ratio.low > 1 for ratio in found) <= most
    assert sum(ratio.high < 1 for ratio in found) <= most


@pytest.mark.parametrize("name", NOISES)
def test_a_tenth_is_found(name):
    """Power: 10 % faster is told from no change in 95 of 100 runs of eight rounds."""
    random = np.random.default_rng(13)
    found = sum(speedup(*measured(name, 1.1, random), seed=seed, draws=600).low > 1 for seed in range(RUNS))
    fewest, _ = between(0.95, 1)
    assert found >= fewest, found / RUNS


def test_more_rounds_narrow_it_like_the_root_of_their_number():
    """The standard error of a median falls like 1/√n: four times the rounds, half the width."""
    random = np.random.default_rng(14)

    def width(rounds):
        found = (speedup(*measured("normal", 1.0, random, rounds), seed=seed, draws=600) for seed in range(60))
        return np.mean([math.log(ratio.high / ratio.low) for ratio in found])

    assert width(16) / width(64) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("of_means", [False, True])
def test_the_ratio_of_rounds_is_bootstrapped_as_scipy_does_it(of_means):
    base, other = measured("log-normal", 1.3, np.random.default_rng(15), rounds=12)
    ratio = speedup(base, other, of_means=of_means, draws=20_000)

    def middle(each):
        return math.log(sum(each) / len(each) if of_means else sorted(each)[len(each) // 2])

    logs = np.array([middle(b) - middle(o) for b, o in zip(base, other, strict=True)])
    assert math.log(ratio.value) == pytest.approx(np.median(logs))
    same_as_scipys(logs, ratio)


def test_throughput_is_bootstrapped_as_scipy_does_it():
    rounds, _ = measured("heavy tail", 1.0, np.random.default_rng(16), rounds=12)
    found = throughput(rounds, batch=8, draws=20_000)
    logs = np.log([8 * len(each) / (sum(each) / 1e9) for each in rounds])
    assert found.value == pytest.approx(np.exp(np.median(logs)))
    same_as_scipys(logs, found)


def same_as_scipys(logs, ratio):
    """The percentile interval of the same numbers, widened for their being few; ends are themselves drawn."""
    theirs = scipy.stats.bootstrap((logs,), np.median, method="percentile", n_resamples=20_000, rng=1)
    middle, widen = np.median(logs), math.sqrt(len(logs) / (len(logs) - 1))
    spread = np.std(logs) / 10
    for ours, end in zip((ratio.low, ratio.high), theirs.confidence_interval, strict=True):
        assert math.log(ours) == pytest.approx(middle + widen * (end - middle), abs=spread)


@pytest.mark.parametrize("name", ["normal", "log-normal", "heavy tail"])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_the_direction_is_that_of_mann_and_whitney(name, factor):
    """On samples that share no drift, which that test knows nothing of, and on one number a round."""
    base, other = measured(name, factor, np.random.default_rng(17))
    ratio = speedup(base, other)
    medians = [np.median(each, axis=1) for each in (base, other)]
    faster, slower = (scipy.stats.mannwhitneyu(*medians, alternative=side).pvalue for side in ("greater", "less"))
    assert (ratio.low > 1) == (faster < 0.025) == (factor == 1.4)
    assert (ratio.high < 1) == (slower < 0.025) == (factor == 0.7)


@pytest.mark.parametrize("name", NOISES)
def test_a_gate_at_its_limit_is_wrong_as_often_as_it_may_be(name):
    """5 % slower held to 5 %: called REGRESSION, and PASS, at most as often as a test of 2.5 % by 16 rounds."""
    random = np.random.default_rng(18)
    found = [evidence(*measured(name, 1 / 1.05, random, rounds=16), seed=seed) for seed in range(100)]
    most = scipy.stats.binom.ppf(0.999, 100, 0.04)
    assert sum(each.p_slower(0.05) <= ERROR for each in found) <= most
    assert sum(each.p_within(0.05) <= ERROR for each in found) <= most


@pytest.mark.parametrize("name", ["normal", "log-normal", "heavy tail"])
def test_a_gates_direction_is_that_of_wilcoxon(name):
    """Held to no slowdown at all, on pairs of rounds: Wilcoxon's signed ranks call the same ones slower."""
    for factor in (0.8, 1.0, 1.25):
        base, other = measured(name, factor, np.random.default_rng(19))
        logs = [math.log(np.median(o) / np.median(b)) for b, o in zip(base, other, strict=True)]
        slower = scipy.stats.wilcoxon(logs, alternative="greater").pvalue <= ERROR
        faster = scipy.stats.wilcoxon(logs, alternative="less").pvalue <= ERROR
        found = evidence(base, other)
        assert (found.p_slower(0.0) <= ERROR) == slower == (factor == 0.8)
        assert (found.p_within(0.0) <= ERROR) == faster == (factor == 1.25)


def test_no_p_value_is_below_that_of_the_sign_test():
    for rounds in (3, 5, 8):
        found = evidence([[10**6]] * rounds, [[2 * 10**6]] * rounds)
        assert found.p_slower(0.05) == pytest.approx(
            scipy.stats.binomtest(rounds, rounds, 0.5, "greater").pvalue, abs=2e-4
        )


def test_holm_is_its_adjusted_p_values():
    """The other way to write it: the running maximum of (m - i) pᵢ over ascending p-values, against the whole error."""
    random = np.random.default_rng(20)
    some = 0
    for _ in range(300):
        p_values = random.beta(0.4, 4, size=random.integers(1, 9))
        order = np.argsort(p_values)
        adjusted = np.empty(len(p_values))
        adjusted[order] = np.maximum.accumulate((len(p_values) - np.arange(len(p_values))) * p_values[order])
        assert holm(p_values.tolist(), 0.05) == (adjusted <= 0.05).tolist()
        some += 0 < np.count_nonzero(adjusted <= 0.05) < len(p_values)
    assert some > 100
