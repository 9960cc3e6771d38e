"""The bounds against known ones, their coverage by simulation of planted truths, and the gate they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from optimizer.resampling import draws_for
from optimizer.search.bootstrap import bootstrapped_drop, bootstrapped_gate, bounded
from optimizer.search.gates import Outcome
from optimizer.search.looks import final_confidence
from optimizer.task import Metric
from optimizer.tasks._entities import ENTITY_F1
from optimizer.tasks._similarity import SPEARMAN
from optimizer.tasks._squad import ANSWER_F1, EXACT_MATCH

Drawn = Callable[[int, np.random.Generator], tuple[Any, Any]]


def test_of_zeros_and_ones_it_is_clopper_and_pearsons() -> None:
    for lost, rows in ((0, 20), (0, 600), (3, 100), (20, 100)):
        original = [1.0] * rows
        candidate = [0.0] * lost + [1.0] * (rows - lost)
        found = bootstrapped_drop(EXACT_MATCH, original, candidate, 0.95).found
        exact = stats.beta.ppf(0.95, lost + 1, rows - lost)
        assert found.value == pytest.approx(lost / rows)
        assert found.high == pytest.approx(exact, rel=0.08)


def test_that_nothing_was_lost_is_no_proof() -> None:
    """A bootstrap of rows that were seen would be certain of it."""
    twenty = [(3.0, 3.0, 3.0)] * 20
    gate = bootstrapped_gate(ENTITY_F1, twenty, twenty, 0.01)
    assert gate.name == "f1 drop"
    assert (gate.value, gate.outcome) == (0.0, Outcome.INCONCLUSIVE)
    assert 0.1 < gate.high < 0.2
    assert -0.2 < gate.low < -0.1
    # What one row can do shrinks like 1/n: about ln 20 / 0.01 rows.
    assert gate.rows_needed == pytest.approx(-math.log(0.05) / 0.01, rel=0.15)
    enough = [(3.0, 3.0, 3.0)] * (gate.rows_needed + 40)
    assert bootstrapped_gate(ENTITY_F1, enough, enough, 0.01).outcome is Outcome.PASS


def test_far_from_the_edge_it_is_the_usual_bootstrap() -> None:
    drawn = np.random.default_rng(3)
    original, candidate = drawn.beta(8, 2, 400), drawn.beta(7, 3, 400)
    found = bootstrapped_drop(ANSWER_F1, original, candidate, 0.95)
    usual = stats.bootstrap(
        (original - candidate,), np.mean, confidence_level=0.9, method="percentile", n_resamples=9999, rng=drawn
    )
    interval = usual.confidence_interval
    assert found.spread == pytest.approx(usual.standard_error, rel=0.1)
    assert found.found.low == pytest.approx(interval.low, abs=0.004)
    assert found.found.high == pytest.approx(interval.high, abs=0.004)
    assert found.found.low <= interval.low
    assert found.found.high >= interval.high


def test_the_same_draws_every_time() -> None:
    rows = [(2.0, 3.0, 3.0), (1.0, 1.0, 2.0), (0.0, 1.0, 0.0)] * 30
    once, again, other = (bootstrapped_drop(ENTITY_F1, rows, rows[::-1], 0.95, seed) for seed in (0, 0, 1))
    assert once == again != other
    assert draws_for(0.95) == 2000
    assert draws_for(0.999) == 50_000


def entities(drop: float) -> Drawn:
    """F1 .9 for the original; the candidate misses entities that the original finds, so that it has ``drop`` less."""

    def draw(rows: int, random: np.random.Generator) -> tuple[Any, Any]:
        there = random.poisson(2.0, rows)
        found = random.binomial(there, 0.9)
        original = np.stack([found, there, there], axis=1).astype(float)
        kept = random.binomial(found, 1 - drop / 0.9)
        return original, np.stack([kept, there, there], axis=1).astype(float)

    return draw


def rare(drop: float) -> Drawn:
    """Few rows, each lost whole: a small sample often holds none of them."""

    def draw(rows: int, random: np.random.Generator) -> tuple[Any, Any]:
        original = np.full((rows, 3), 2.0)
        candidate = original.copy()
        candidate[random.random(rows) < drop, 0] = 0
        return original, candidate

    return draw


def rare_and_large(drop: float) -> Drawn:
    """The same where rows differ in size."""

    def draw(rows: int, random: np.random.Generator) -> tuple[Any, Any]:
        there = 1.0 + random.poisson(1.5, rows)
        found = np.where(random.random(rows) < drop, 0.0, there)
        return np.stack([there] * 3, axis=1), np.stack([found, there, there], axis=1)

    return draw


def overlaps(drop: float) -> Drawn:
    """Means of numbers between 0 and 1, a share of which falls to 0."""

    def draw(rows: int, random: np.random.Generator) -> tuple[Any, Any]:
        original = np.round(random.beta(6, 2, rows), 1)
        return original, np.where(random.random(rows) < drop / 0.75, 0.0, original)

    return draw


@pytest.mark.parametrize(
    ("metric", "plant", "rows", "limit"),
    [
        (ENTITY_F1, entities, 100, 0.02),
        (ENTITY_F1, entities, 400, 0.02),
        (ENTITY_F1, rare, 100, 0.02),
        (ENTITY_F1, rare, 300, 0.01),
        (ENTITY_F1, rare_and_large, 100, 0.02),
        (ENTITY_F1, rare_and_large, 300, 0.01),
        (ANSWER_F1, overlaps, 100, 0.03),
        (ANSWER_F1, overlaps, 300, 0.03),
    ],
)
def test_a_candidate_at_the_edge_passes_once_in_twenty(
    metric: Metric, plant: Callable[[float], Drawn], rows: int, limit: float
) -> None:
    """The worst that there is: as bad as is only just not allowed. It may pass in 5 % of samples."""
    turns = 300
    random = np.random.default_rng(5)
    draw = plant(limit)
    passed = sum(
        bootstrapped_gate(metric, *draw(rows, random), limit, seed=turn).outcome is Outcome.PASS
        for turn in range(turns)
    )
    assert passed / turns <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / turns)


def similar(noise: float, scrambled: float, rows: int, random: np.random.Generator) -> tuple[Any, Any]:
    """Scored pairs: cosines of the original, and of a candidate with noise of its own that knows nothing of a share."""
    score = random.integers(0, 11, rows) / 2
    first = score / 5 + random.normal(0, 0.3, rows)
    second = first + random.normal(0, noise, rows)
    second = np.where(random.random(rows) < scrambled, random.normal(0.5, 0.4, rows), second)
    return np.stack([score, first], axis=1), np.stack([score, second], axis=1)


@pytest.mark.parametrize(("noise", "scrambled"), [(0.2, 0.0), (0.0, 0.02)])
def test_the_bound_of_a_correlation_covers_its_drop(noise: float, scrambled: float) -> None:
    random = np.random.default_rng(6)
    many = similar(noise, scrambled, 400_000, random)
    truth = stats.spearmanr(*many[0].T).statistic - stats.spearmanr(*many[1].T).statistic
    assert 0.01 < truth < 0.15
    turns, rows = 100, 120
    passed = sum(
        bootstrapped_drop(SPEARMAN, *similar(noise, scrambled, rows, random), 0.95, turn).found.high <= truth
        for turn in range(turns)
    )
    assert passed / turns <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / turns)


def test_a_planted_loser_loses_and_an_equal_passes() -> None:
    random = np.random.default_rng(7)
    among = final_confidence(0.95, 8)
    loser = bootstrapped_gate(ENTITY_F1, *entities(0.2)(600, random), 0.02, among)
    assert loser.outcome is Outcome.FAIL
    assert loser.low > 0.02
    assert "f1 falls by 2" in loser.says
    equal = bootstrapped_gate(ENTITY_F1, *entities(0.0)(600, random), 0.02, among)
    assert equal.outcome is Outcome.PASS
    worse, better = entities(0.2)(600, random)[::-1]
    assert bootstrapped_gate(ENTITY_F1, worse, better, 0.0, among).outcome is Outcome.PASS, "better is no drop"


def test_the_rows_that_are_asked_for_settle_it() -> None:
    """Draw as many rows as an inconclusive gate asked for: it passes in about 80 of 100 draws."""
    random = np.random.default_rng(8)
    draw = overlaps(0.01)
    gate = None
    while gate is None or not 0.005 < gate.value < 0.015:
        gate = bootstrapped_gate(ANSWER_F1, *draw(100, random), 0.03)
    assert gate.outcome is Outcome.INCONCLUSIVE
    assert gate.rows_needed is not None
    same = overlaps(gate.value)
    passed = [
        bootstrapped_gate(ANSWER_F1, *same(gate.rows_needed, random), 0.03).outcome is Outcome.PASS for _ in range(80)
    ]
    assert 0.65 <= np.mean(passed) <= 0.97


def test_the_metric_itself_has_bounds() -> None:
    numbers = [(2.0, 2.0, 2.0)] * 45 + [(0.0, 2.0, 2.0)] * 5
    found = bounded(ENTITY_F1, numbers, 0.95)
    assert found.value == pytest.approx(0.9)
    assert 0.78 < found.low < 0.85
    assert 0.94 < found.high < 0.97
