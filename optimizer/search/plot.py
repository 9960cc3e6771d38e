"""The Pareto plot: accuracy or likeness upwards, time rightwards, bounds and budget drawn."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.drawing.svg import circle, key, laid_out, line, text, ticks
from optimizer.search.gates import RISE, is_drop
from optimizer.types import JSON

__all__ = ["pareto"]


@dataclass(frozen=True)
class _Axis:
    """What goes upwards: the gate that decides it, how a tick is written, and where the budget lies."""

    title: str
    gate: str
    percent: bool
    budget: float

    @property
    def rises(self) -> bool:
        """It is a share by which something rises: drawn downwards, so that what is better is higher everywhere."""
        return self.gate.endswith(RISE)

    def tick(self, value: float) -> str:
        if self.rises:
            return f"{-100 * value or 0:+.6g} %"
        return f"{100 * value:.6g} %" if self.percent else f"{value:.6g}"


@dataclass(frozen=True)
class _Point:
    """One candidate: its number in the table, how it came out, and its place with bounds."""

    number: int
    label: str
    kind: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


def pareto(report: Mapping[str, JSON]) -> str:
    """An SVG of the original and every candidate that was timed, numbered as in the table.

    Time is drawn as a share of the original's, as it was measured: round by round beside it. Accuracy is drawn as the
    original's less the drop, with the bounds of the drop, which are those that decide.
    """
    axis = _axis(report)
    points = []
    for number, each in enumerate([report["original"], *report["candidates"]]):
        y = _height(each, report, axis) if number else _of_original(report, axis)
        if each["speed"] is None or y is None or _was_cut(each):
            continue
        is_best = bool(number and report["best"]) and (each["ref"], each["provider"]) == (
            report["best"],
            report["provider"],
        )
        kind = "best" if is_best else str(each["outcome"] or ("open" if number else "original")).lower()
        ratio = each["speed"]["ratio"]
        x, x_low, x_high = (1.0 / ratio[end] for end in ("value", "high", "low"))
        points.append(_Point(number, each["name"], kind, x, x_low, x_high, *y))
    if len(points) < 2:
        return '<p class="dim">No candidate was timed: what is known to miss a budget is not.</p>'
    return _drawn(points, axis) + key([(p.number, p.label, p.kind) for p in points])


def _was_cut(each: Mapping[str, Any]) -> bool:
    """It missed a budget before it had answered every row: drawn, it would squeeze those that are close."""
    return each["outcome"] == "FAIL" and bool(each["rows"].get("places"))


def _axis(report: Mapping[str, JSON]) -> _Axis:
    budgets = report["budgets"]
    original = report["original"]["accuracy"]
    if "max_drop" in budgets and report["metric"] == "perplexity":
        return _Axis("perplexity, beside the original's", f"perplexity{RISE}", True, -budgets["max_drop"])
    if "max_drop" in budgets and original:
        return _Axis(str(report["metric"]), f"{report['metric']} drop", True, original["value"] - budgets["max_drop"])
    if "min_agreement" in budgets:
        return _Axis("same decision as the original", "agreement", True, budgets["min_agreement"])
    return _Axis("worst cosine to the original", "worst cosine", False, budgets["min_cosine"])


def _of_original(report: Mapping[str, JSON], axis: _Axis) -> tuple[float, float, float]:
    value = 0.0 if axis.rises else report["original"]["accuracy"]["value"] if is_drop(axis.gate) else 1.0
    return value, value, value


def _height(each: Mapping[str, Any], report: Mapping[str, JSON], axis: _Axis) -> tuple[float, float, float] | None:
    """Value, low and high of what goes upwards; None for a candidate that was not judged by it."""
    gate = next((gate for gate in each["gates"] if gate["name"] == axis.gate), None)
    if gate is None:
        return None
    if axis.rises:
        return -gate["value"], -gate["high"], -gate["low"]
    if is_drop(axis.gate):
        right = report["original"]["accuracy"]["value"]
        return right - gate["value"], max(0.0, right - gate["high"]), min(1.0, right - gate["low"])
    if axis.gate == "agreement":
        return gate["value"], gate["low"], gate["high"]
    return gate["value"], gate["value"], gate["value"]  # of the worst row there is no estimate but the worst seen


def _drawn(points: Sequence[_Point], axis: _Axis) -> str:
    x_ticks = ticks(0.0, max(p.x_high for p in points) * 1.04)
    ys = [axis.budget, *(value for p in points for value in (p.y_low, p.y_high))]
    spread = max(max(ys) - min(ys), 1e-4)
    y_ticks = ticks(min(ys) - 0.04 * spread, min(1.0, max(ys) + 0.04 * spread))
    x_end, y_start = x_ticks[-1], y_ticks[0]
    y_range = y_ticks[-1] - y_start

    def across(value: float) -> float:
        return 100 * value / x_end

    def up(value: float) -> float:
        return 100 - 100 * (value - y_start) / y_range

    parts = [f'<div class="plot"><svg role="img" aria-label="{html.escape(axis.title)} against time">']
    for tick in x_ticks:
        parts.append(line(across(tick), 0, across(tick), 100, "grid"))
        parts.append(text(across(tick), 100, f"{tick:g}", "middle", dy=18))
    for tick in y_ticks:
        parts.append(line(0, up(tick), 100, up(tick), "grid"))
        parts.append(text(0, up(tick), axis.tick(tick), "end", dx=-6, dy=4))
    parts.append(text(50, 100, "time of a call, the original's = 1", "middle", dy=38))
    parts.append(text(0, 0, axis.title, "start", dx=-56, dy=-12))
    parts.append(line(0, up(axis.budget), 100, up(axis.budget), "budget"))
    parts.append(text(100, up(axis.budget), "budget", "end", dx=-4, dy=-5, kind="budget"))
    front = _front(points)
    for one, two in itertools.pairwise(front):
        parts.append(line(across(one.x), up(one.y), across(two.x), up(two.y), "front"))
    beside = laid_out([(across(p.x), up(p.y)) for p in points])
    for p in sorted(points, key=lambda p: p.kind == "best"):  # drawn last, the best hides under none
        x, y = across(p.x), up(p.y)
        parts.append(line(across(p.x_low), y, across(p.x_high), y, f"bound {p.kind}"))
        parts.append(line(x, up(p.y_low), x, up(p.y_high), f"bound {p.kind}"))
        parts.append(circle(x, y, p.kind))
    for p, (dx, dy) in zip(points, beside, strict=True):
        parts.append(text(across(p.x), up(p.y), str(p.number), "middle", dx=dx, dy=dy + 4, kind=p.kind))
    return "".join([*parts, "</svg></div>"])


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Those that nothing beats in both directions, fastest first."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front
