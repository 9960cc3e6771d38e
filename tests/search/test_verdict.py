"""The statistics against scipy, published formulas and exact coverage; the rule against planted truths and mutants."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from optimizer.search import gates, verdict
from optimizer.search.gates import Outcome, paired_drop, share
from optimizer.search.verdict import Standing, decide

TABLES = [(40, 20, 160), (0, 0, 600), (1, 0, 44), (5, 0, 100), (0, 7, 80), (12, 2, 50), (3, 3, 30), (9, 1, 600)]


def quartic(lost: int, won: int, n: int, confidence: float) -> tuple[float, float]:
    """Tango's limits as roots of a polynomial: Yang, Sun and Hardin, Statistics in Medicine 32 (2013) 1336-1342."""
    g, d, s = stats.norm.ppf(confidence) ** 2, lost - won, lost + won
    coefficients = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    roots = np.roots(coefficients)
    real = sorted(roots[np.abs(roots.imag) < 1e-6].real)
    return real[0], real[-1]


@pytest.mark.parametrize(("lost", "won", "rows"), TABLES)
def test_the_drop_is_tangos(lost: int, won: int, rows: int) -> None:
    for confidence in (0.95, 0.99):
        found = paired_drop(lost, won, rows, confidence)
        low, high = quartic(lost, won, rows, confidence)
        assert found.value == (lost - won) / rows
        assert found.high == pytest.approx(high, abs=1e-6)
        assert found.low == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize(("lost", "won", "rows", "drop"), [(12, 2, 50, 0.1), (5, 3, 100, 0.08), (9, 1, 600, 0.02)])
def test_the_statistic_maximizes_the_likelihood(lost: int, won: int, rows: int, drop: float) -> None:
    """The nuisance parameter by brute force: P(won) = q, P(lost) = q + drop."""

    def minus_log(q: float) -> float:
        return -(won * math.log(q) + lost * math.log(q + drop) + (rows - won - lost) * math.log(1 - 2 * q - drop))

    between = (1e-9, (1 - drop) / 2 - 1e-9)
    q = optimize.minimize_scalar(minus_log, bounds=between, method="bounded", options={"xatol": 1e-12}).x
    expected = (lost - won - rows * drop) / math.sqrt(rows * (2 * q + drop * (1 - drop)))
    assert gates._score(lost, won, rows, drop) == pytest.approx(expected, rel=1e-5)


def test_at_no_difference_it_is_mcnemars_test() -> None:
    assert gates._score(12, 2, 50, 1e-12) == pytest.approx((12 - 2) / math.sqrt(12 + 2), rel=1e-6)


def test_with_no_row_lost_the_bound_is_known() -> None:
    z2 = stats.norm.ppf(0.95) ** 2
    assert paired_drop(0, 0, 600).high == pytest.approx(z2 / (600 + z2), abs=1e-9)


def test_a_paired_bootstrap_agrees() -> None:
    differences = np.array([1] * 40 + [-1] * 25 + [0] * 535, np.float64)
    settings = {"confidence_level": 0.9, "method": "percentile", "n_resamples": 4000, "random_state": 0}
    drawn = stats.bootstrap((differences,), np.mean, **settings)
    found = paired_drop(40, 25, 600, 0.95)
    assert found.low == pytest.approx(drawn.confidence_interval.low, abs=0.003)
    assert found.high == pytest.approx(drawn.confidence_interval.high, abs=0.003)


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.05, 0.05), (0.1, 0.02), (0.03, 0.0), (0.3, 0.25)])
def test_the_upper_bound_covers_the_truth(lost: float, won: float) -> None:
    """Exactly, by adding up every table of 60 rows: a bound of 95 % is missed in 5 % of them, give or take 2.5."""
    n = 60
    covered = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            weight = stats.multinomial.pmf([a, b, n - a - b], n, [lost, won, 1 - lost - won])
            if weight > 1e-9 and paired_drop(a, b, n).high >= lost - won - 1e-12:
                covered += weight
    assert 0.925 <= covered <= 1.0


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (95, 100), (593, 600), (7, 13)])
def test_the_share_is_wilsons(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(confidence_level=0.9, method="wilson")
    found = share(k, n, 0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_fractions_are_never_taken_for_more_certain_than_ones() -> None:
    assert share(47.5, 50).low <= share(48, 50).low


def test_impossible_counts_are_refused() -> None:
    for counts in ((1, 1, 1), (-1, 0, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="rows"):
            paired_drop(*counts)
    with pytest.raises(ValueError, match="rows"):
        share(6, 5)


def test_the_rows_that_are_asked_for_settle_it_four_times_in_five() -> None:
    """Draw as many rows as an inconclusive gate asked for, from what it saw: it passes in about 80 of 100 draws."""
    original, candidate = answers(right=190, lost=2, won=1, rows=200)
    gate = gates.drop_gate(original, candidate, 0.02)
    assert gate.outcome is Outcome.INCONCLUSIVE
    assert gate.rows_needed is not None
    random = np.random.default_rng(0)
    n = gate.rows_needed
    draws = random.multinomial(n, [0.01, 0.005, 0.985], size=2000)
    passed = np.mean([paired_drop(int(a), int(b), n).high <= 0.02 for a, b, _ in draws])
    assert 0.7 <= passed <= 0.95


def answers(*, right: int, lost: int, won: int, rows: int) -> tuple[list[float], list[float]]:
    """Scores of the original and of a candidate: ``right`` rows that both have."""
    both_wrong = rows - right - lost - won
    original = [1.0] * (right + lost) + [0.0] * (won + both_wrong)
    candidate = [1.0] * right + [0.0] * lost + [1.0] * won + [0.0] * both_wrong
    return original, candidate


def truths(module: Any) -> Iterator[bool]:
    """Whether a rule (gates and verdict in one) knows what was planted; every one of these is True for the real one."""
    out = module.Outcome

    def drop(limit: float, **table: int) -> Any:
        return module.drop_gate(*answers(**table), limit)

    yield drop(0.02, right=550, lost=1, won=1, rows=600).outcome is out.PASS
    yield drop(0.02, right=450, lost=90, won=10, rows=600).outcome is out.FAIL
    # The point estimate keeps the budget, the bound does not: a lucky small sample.
    lucky = drop(0.001, right=19, lost=0, won=0, rows=20)
    yield lucky.outcome is out.INCONCLUSIVE
    yield lucky.rows_needed == math.ceil(1.6448536**2 * 0.999 / 0.001)
    # The point estimate misses the budget, the bound does not: an unlucky one.
    yield drop(0.02, right=50, lost=3, won=1, rows=60).outcome is out.INCONCLUSIVE
    # Better than the original is no drop.
    yield drop(0.0, right=400, lost=2, won=40, rows=600).outcome is out.PASS
    yield drop(0.05, right=400, lost=40, won=2, rows=600).value > 0
    yield module.agreement_gate([1.0] * 600, 0.99).outcome is out.PASS
    yield module.agreement_gate([1.0] * 20, 0.99).outcome is out.INCONCLUSIVE
    yield module.agreement_gate([1.0] * 20, 0.99).rows_needed > 20
    yield module.agreement_gate([1.0] * 500 + [0.0] * 100, 0.99).outcome is out.FAIL
    yield module.agreement_gate([1.0] * 58 + [0.0] * 2, 0.97).outcome is out.INCONCLUSIVE
    yield module.cosine_gate([0.9999] * 59, 0.999).outcome is out.PASS
    yield module.cosine_gate([0.9999] * 58, 0.999).outcome is out.INCONCLUSIVE
    yield module.cosine_gate([0.9999] * 58, 0.999).rows_needed == 59
    yield module.cosine_gate([0.9999] * 599 + [0.99], 0.999).outcome is out.FAIL

    good = drop(0.02, right=550, lost=1, won=1, rows=600)
    bad = drop(0.02, right=450, lost=90, won=10, rows=600)

    def decide(*standings: Any) -> Any:
        return module.decide(standings, lambda cost, best: f"costs {cost / best:g}")

    def stand(name: str, gate: Any, cost: float | None, **more: Any) -> Any:
        return module.Standing(name, (gate,), cost, **more)

    won = decide(stand("slow", good, 2.0), stand("fast", good, 1.0), stand("wrong", bad, 0.1))
    yield (won.verdict, won.best) == (out.PASS, "fast")
    yield "costs 2" in won.reasons["slow"]
    yield "15.00" not in won.reasons["fast"] and "13.33" in won.reasons["wrong"]
    yield decide(stand("wrong", bad, 0.1)).verdict is out.FAIL
    yield decide(stand("wrong", bad, 0.1)).best == ""
    open_one = decide(stand("wrong", bad, 0.1), stand("lucky", lucky, 0.1))
    yield (open_one.verdict, open_one.rows_needed) == (out.INCONCLUSIVE, lucky.rows_needed)
    # Few rows are enough to show that one fails: they settle the verdict only where nothing else may pass.
    unlucky, worse = drop(0.001, right=19, lost=1, won=0, rows=20), drop(0.001, right=18, lost=2, won=0, rows=20)
    yield worse.rows_needed < unlucky.rows_needed < lucky.rows_needed
    yield decide(stand("a", unlucky, 0.1), stand("b", lucky, 0.2)).rows_needed == lucky.rows_needed
    yield decide(stand("a", unlucky, 0.1), stand("b", worse, 0.2)).rows_needed == unlucky.rows_needed
    yield decide(stand("dead", good, 0.1, error="died")).verdict is out.FAIL
    yield decide(stand("wrong", bad, 0.1), stand("late", good, None, skipped=True)).verdict is out.INCONCLUSIVE
    unjudged = stand("promising", good, 0.1, unjudged="slower by far")
    yield decide(unjudged, stand("judged", good, 1.0)).best == "judged"
    yield decide(stand("wrong", bad, 0.1), unjudged).verdict is out.INCONCLUSIVE
    tied = decide(stand("chance", good, 0.9, tied=True), stand("plain", good, 1.0), stand("slow", good, 2.0))
    yield tied.best == "plain"
    yield "not known to be better" in tied.reasons["chance"] and "costs 2" in tied.reasons["slow"]
    two = module.Standing("two", (good, bad), 0.1)
    yield decide(two, stand("one", good, 1.0)).best == "one"


#: What the rule is written in; the second part takes the first as it was run here, and not as it is installed.
SOURCES = [Path(str(part.__file__)).read_text() for part in (gates, verdict)]
FROM_GATES = re.compile(r"^from optimizer\.search\.gates import .*$", re.MULTILINE)


def rule(old: str = "", new: str = "") -> dict[str, Any]:
    """Every name of both parts, after ``old`` was replaced where it stands."""
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    try:
        for source in SOURCES:
            changed = source.replace(old, new) if old else source
            exec(compile(FROM_GATES.sub("", changed), "mutant", "exec"), module.__dict__)
    finally:
        del sys.modules["mutant"]
    return module.__dict__


def test_the_rule_knows_what_was_planted() -> None:
    assert [place for place, holds in enumerate(truths(types.SimpleNamespace(**rule()))) if not holds] == []


MUTANTS = [
    ("found.high <= max_drop", "found.value <= max_drop"),
    ("found.high <= max_drop", "found.low <= max_drop"),
    ("found.low > max_drop", "found.value > max_drop"),
    ("found.low > max_drop", "found.high > max_drop"),
    ("sum(a > b for a, b in pairs), sum(a < b", "sum(a < b for a, b in pairs), sum(a > b"),
    ("found.low >= least", "found.value >= least"),
    ("found.high < least", "found.value < least"),
    ("worst = min(cosines)", "worst = sum(cosines) / len(cosines)"),
    ("len(cosines) >= needed", "True"),
    ("best = min(apart", "best = max(apart"),
    ("if not s.tied]", "]"),
    ("is Outcome.PASS and s.cost", "is not Outcome.FAIL and s.cost"),
    ("if outcome_of(s.gates) is Outcome.PASS and s.cost is not None]", "]"),
    ("if not s.error and not s.skipped", "if not s.skipped"),
    ("and not any(s.skipped or s.unjudged for s in standings)", ""),
    ("s.skipped or s.unjudged for", "s.skipped for"),
    ("and not s.unjudged]", "]"),
    ("for each in (Outcome.FAIL, Outcome.INCONCLUSIVE)", "for each in (Outcome.INCONCLUSIVE,)"),
    ("_z(confidence) * math.sqrt(supposed)", "math.sqrt(supposed)"),
    ("_highest(lost, won, rows, z))", "(lost - won) / rows)"),
    ("for s in hopeful or open_ones]", "for s in open_ones]"),
    ("return max(known) if", "return min(known) if"),
]


@pytest.mark.parametrize(("old", "new"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_mutated_rule_is_found_out(old: str, new: str) -> None:
    assert any(old in source for source in SOURCES), f"{old!r} is not in the rule any more"
    with contextlib.suppress(TypeError, ValueError):  # to fall over a planted truth is to be noticed too
        assert not all(truths(types.SimpleNamespace(**rule(old, new)))), "no planted truth noticed"


def test_the_same_artifact_passes_every_gate() -> None:
    same = [gates.same_gate(name, 0.01) for name in ("accuracy drop", "agreement", "worst cosine")]
    assert gates.outcome_of(same) is Outcome.PASS
    assert [gate.value for gate in same] == [0.0, 1.0, 1.0]
    assert decide([Standing("a", tuple(same), 1.0)], lambda cost, best: "").best == "a"
