"""What is drawn lies where it was measured: read from the SVG again."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from optimizer.drawing.svg import bars, histogram
from optimizer.search.plot import pareto


def gate(name: str, value: float, low: float, high: float) -> dict[str, Any]:
    return {"name": name, "value": value, "low": low, "high": high}


def candidate(
    name: str, ratio: float, gates: list[dict[str, Any]], outcome: str = "PASS", **more: Any
) -> dict[str, Any]:
    speed = {"ratio": {"value": ratio, "low": ratio * 0.8, "high": ratio * 1.25}}
    known = {"name": name, "ref": name, "provider": "cpu", "outcome": outcome, "gates": gates, "speed": speed}
    return {**known, "rows": {}, **more}


def report(candidates: list[dict[str, Any]], **budgets: float) -> dict[str, Any]:
    original = candidate("original", 1.0, [], "", accuracy={"value": 0.9}) | {
        "outcome": None,
        "speed": {"ratio": {"value": 1.0, "low": 1.0, "high": 1.0}},
    }
    best = candidates[0]["ref"] if candidates else None
    found = {"original": original, "candidates": candidates, "budgets": budgets, "best": best, "provider": "cpu"}
    return {**found, "metric": "accuracy" if "max_drop" in budgets else "fidelity"}


def circles(svg: str) -> list[tuple[str, float, float]]:
    found = re.findall(r'<circle class="(\w+)" cx="([\d.]+)%" cy="([\d.]+)%"', svg)
    return [(kind, float(x), float(y)) for kind, x, y in found]


def bounds(svg: str, kind: str) -> list[list[float]]:
    pattern = rf'<line class="bound {kind}" x1="([\d.]+)%" y1="([\d.]+)%" x2="([\d.]+)%" y2="([\d.]+)%"'
    return [list(map(float, each)) for each in re.findall(pattern, svg)]


def up(svg: str, value: float) -> float:
    """Where a value lies, by the first and the last tick."""
    ticks = re.findall(r'<text class="" x="0.00%" y="([\d.]+)%" dx="-6" dy="4" text-anchor="end">([\d.]+)( %)?<', svg)
    (y0, low), (y1, high) = ((float(y), float(v) / (100 if percent else 1)) for y, v, percent in (ticks[0], ticks[-1]))
    return y0 + (y1 - y0) * (value - low) / (high - low)


def test_accuracy_is_drawn_with_the_bounds_that_decide() -> None:
    drop = gate("accuracy drop", 0.01, -0.005, 0.03)
    svg = pareto(report([candidate("fast", 4.0, [drop])], max_drop=0.02))
    (_, x0, y0), (_, x1, y1) = circles(svg)
    assert [kind for kind, _, _ in circles(svg)] == ["original", "best"]
    assert x1 / x0 == pytest.approx(0.25, abs=1e-3)
    assert (y0, y1) == pytest.approx((up(svg, 0.9), up(svg, 0.89)), abs=0.05)
    across, upwards = bounds(svg, "best")
    assert [across[0] / x0, across[2] / x0] == pytest.approx([0.2, 0.3125], abs=1e-3)
    assert [upwards[1], upwards[3]] == pytest.approx([up(svg, 0.87), up(svg, 0.905)], abs=0.05)
    budget = re.search(r'<line class="budget" x1="0.00%" y1="([\d.]+)%"', svg)
    assert budget is not None
    assert float(budget[1]) == pytest.approx(up(svg, 0.88), abs=0.05)


def test_likeness_is_drawn_by_the_budget_that_was_given() -> None:
    gates = [gate("agreement", 0.97, 0.95, 0.98), gate("worst cosine", 0.999, -1.0, 0.999)]
    agreement = pareto(report([candidate("a", 2.0, gates)], min_agreement=0.96, min_cosine=0.99))
    assert "same decision as the original" in agreement
    assert circles(agreement)[1][2] == pytest.approx(up(agreement, 0.97), abs=0.05)
    cosine = pareto(report([candidate("a", 2.0, gates)], min_cosine=0.99))
    assert "worst cosine to the original" in cosine
    assert circles(cosine)[1][2] == pytest.approx(up(cosine, 0.999), abs=0.05)
    assert bounds(cosine, "best")[1][1] == bounds(cosine, "best")[1][3], "of the worst row there is no estimate"


def test_numbers_are_those_of_the_table_and_do_not_lie_on_each_other() -> None:
    drop = gate("accuracy drop", 0.0, -0.01, 0.01)
    close = [candidate(f"c{n}", 3.0 + 0.01 * n, [drop]) for n in range(6)]
    close[2]["speed"] = None
    svg = pareto(report(close, max_drop=0.02))
    pattern = r'x="([\d.]+)%" y="([\d.]+)%" dx="([-\d.]+)" dy="([-\d.]+)" text-anchor="middle">(\d)</text>'
    placed = [
        (number, float(x) * 2.8 + float(dx), float(y) * 3 + float(dy))
        for x, y, dx, dy, number in re.findall(pattern, svg)
        if abs(float(dx)) >= 11
    ]
    assert [number for number, _, _ in placed] == ["0", "1", "2", "4", "5", "6"]
    assert "c2" not in svg
    for (_, x1, y1), (_, x2, y2) in itertools.combinations(placed, 2):
        assert abs(x1 - x2) > 12 or abs(y1 - y2) > 11


def test_the_front_joins_what_nothing_beats() -> None:
    slow_and_right = candidate("a", 2.0, [gate("accuracy drop", -0.02, -0.03, 0.0)])
    beaten = candidate("b", 1.5, [gate("accuracy drop", 0.01, 0.0, 0.02)], "FAIL")
    fast = candidate("c", 8.0, [gate("accuracy drop", 0.005, 0.0, 0.01)])
    svg = pareto(report([slow_and_right, beaten, fast], max_drop=0.02))
    front = re.findall(r'<line class="front" x1="([\d.]+)%" y1="[\d.]+%" x2="([\d.]+)%"', svg)
    xs = {kind: x for kind, x, _ in circles(svg)}
    assert front == [(f"{xs['pass']:.2f}", f"{xs['best']:.2f}")]


def test_what_was_cut_does_not_squeeze_what_is_close() -> None:
    close = [candidate(name, 2.0, [gate("worst cosine", 0.9999, -1.0, 0.9999)]) for name in ("a", "b")]
    cut = candidate("c", 3.0, [gate("worst cosine", 0.2, -1.0, 0.2)], "FAIL", rows={"places": [0, 2]})
    whole = candidate("d", 3.0, [gate("worst cosine", 0.2, -1.0, 0.2)], "FAIL")
    assert pareto(report([*close, cut], min_cosine=0.999)) == pareto(report(close, min_cosine=0.999))
    assert pareto(report([*close, whole], min_cosine=0.999)) != pareto(report(close, min_cosine=0.999))


def test_bars_are_as_long_as_their_values() -> None:
    drawn = bars([("a<b", 2.0, "2 s"), ("c", 0.5, "0.5 s")])
    assert re.findall(r'<rect class="bar" width="([\d.]+)%"', drawn) == ["100.00", "25.00"]
    assert "a&lt;b" in drawn
    assert 'width="0.00%"' in bars([("nothing", 0.0, "")])


def test_the_histogram_has_a_bar_a_bin() -> None:
    svg = histogram({"low": 3, "width": 2, "counts": [10, 0, 40]})
    assert re.findall(r'height="([\d.]+)%"/>', svg) == ["25.00", "0.00", "100.00"]
    assert ">7<" in svg
