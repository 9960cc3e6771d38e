"""Statistics against scipy and against distributions whose answers are known."""

import math

import numpy as np
import pytest
import scipy.stats

from optimizer.benching.stats import brief, samples_needed, speedup, summarize


@pytest.mark.parametrize(("percentile", "count"), [(90, 44), (99, 459), (99.9, 4603)])
def test_the_floor_of_each_percentile(percentile, count):
    assert samples_needed(percentile) == count
    # the binomial says the same: the chance that no sample at all lies beyond the percentile
    beyond = 1 - percentile / 100
    assert scipy.stats.binom.pmf(0, count, beyond) <= 0.01 < scipy.stats.binom.pmf(0, count - 1, beyond)


@pytest.mark.parametrize(
    ("count", "allowed"),
    [
        (43, []),
        (44, ["p90"]),
        (458, ["p90"]),
        (459, ["p90", "p99"]),
        (4602, ["p90", "p99"]),
        (4603, ["p90", "p99", "p99.9"]),
    ],
)
def test_percentiles_need_their_samples(count, allowed):
    assert list(summarize([list(range(1, count + 1))]).percentiles_ms) == allowed


def test_a_summary_is_over_all_rounds_in_milliseconds():
    summary = summarize([[1_000_000, 3_000_000], [2_000_000, 10_000_000]])
    assert summary.samples == 4
    assert summary.mean_ms == pytest.approx(4.0)
    assert summary.p50_ms == pytest.approx(2.5)
    assert summary.min_ms == pytest.approx(1.0)
    assert summary.spread == pytest.approx(3.0)


def test_percentiles_are_those_of_scipy():
    samples = np.random.default_rng(0).lognormal(15, 0.4, 6000).astype(int)
    found = summarize(np.split(samples, 8)).percentiles_ms
    for name, value in found.items():
        assert value == pytest.approx(scipy.stats.scoreatpercentile(samples, float(name[1:])) / 1e6)
    assert len(found) == 3


def blocks(random, factor, rounds=8, noise=0.05):
    drift = np.exp(random.normal(0, noise, rounds))
    base = [(1e6 * d * np.exp(random.normal(0, 0.02, 20))).tolist() for d in drift]
    other = [(1e6 / factor * d * np.exp(random.normal(0, 0.02, 20))).tolist() for d in drift]
    return base, other


def test_drift_that_both_share_does_not_blur_the_ratio():
    base, other = blocks(np.random.default_rng(0), 1.1, noise=0.5)
    ratio = speedup(base, other)
    assert ratio.value == pytest.approx(1.1, rel=0.03)
    assert ratio.low > 1.05
    assert ratio.high < 1.15


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """500 runs of 8 rounds whose log ratios are normal: 95 % intervals that hold the truth 95 ± 3 times in 100."""
    random = np.random.default_rng(1)
    held = 0
    for seed in range(500):
        logs = random.normal(math.log(2), 0.05, 8)
        ratio = speedup([[math.exp(x)] for x in logs], [[1.0]] * 8, seed=seed, draws=800)
        held += ratio.low <= 2 <= ratio.high
    assert 0.91 <= held / 500 <= 0.98


def test_the_interval_is_scipys_bootstrap_but_for_the_widening():
    logs = np.random.default_rng(2).normal(0, 0.1, 15)
    ratio = speedup([[math.exp(x)] for x in logs], [[1.0]] * 15, draws=20_000)
    theirs = scipy.stats.bootstrap((logs,), np.median, method="percentile", n_resamples=20_000, rng=0)
    middle, widen = np.median(logs), math.sqrt(15 / 14)
    low, high = theirs.confidence_interval
    assert math.log(ratio.low) == pytest.approx(middle + widen * (low - middle), abs=0.01)
    assert math.log(ratio.high) == pytest.approx(middle + widen * (high - middle), abs=0.01)


def test_the_same_seed_gives_the_same_interval():
    base, other = blocks(np.random.default_rng(3), 1.5)
    found = [speedup(base, other, seed=seed, draws=9) for seed in (5, 5, 6)]
    assert found[0] == found[1] != found[2]


def test_two_rounds_know_no_interval():
    ratio = speedup([[2.0], [2.0]], [[1.0], [1.0]])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 0.0, math.inf)


def test_rounds_must_pair_up():
    with pytest.raises(ValueError, match="same rounds"):
        speedup([[1.0]], [[1.0], [1.0]])


def test_a_table_has_no_powers_of_ten():
    assert [brief(x) for x in (0.00396, 3.961, 41.19, 999.0, 1000.0, 2545.5, 0.0)] == [
        "0.00396", "3.96", "41.2", "999", "1,000", "2,546", "0",
    ]  # fmt: skip
