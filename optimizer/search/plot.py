"""The Pareto plot: accuracy or likeness upwards, time rightwards, bounds and budget drawn; inline SVG, nothing loaded.

Places are percentages of the drawing and text has a size of its own, so that one drawing is read on a phone, on a wide
screen and on paper.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.search.verdict import is_drop
from optimizer.types import JSON

__all__ = ["bars", "histogram", "pareto"]

#: The narrowest drawing that numbers beside points are laid out for, in pixels; on a wider one they lie further apart.
_NARROW, _TALL = 280, 300
_DOT = 6
#: Where a number may stand beside its point, in pixels, the best place first.
_BESIDE = tuple((dx, dy) for far in (11, 22, 33) for dx, dy in ((far, -far), (far, far), (-far, -far), (-far, far)))


@dataclass(frozen=True)
class _Axis:
    """What goes upwards: the gate that decides it, how a tick is written, and where the budget lies."""

    title: str
    gate: str
    percent: bool
    budget: float


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
        if each["speed"] is None or y is None:
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
    return _drawn(points, axis) + _key(points)


def _axis(report: Mapping[str, JSON]) -> _Axis:
    budgets = report["budgets"]
    original = report["original"]["accuracy"]
    if "max_drop" in budgets and original:
        return _Axis(str(report["metric"]), f"{report['metric']} drop", True, original["value"] - budgets["max_drop"])
    if "min_agreement" in budgets:
        return _Axis("same decision as the original", "agreement", True, budgets["min_agreement"])
    return _Axis("worst cosine to the original", "worst cosine", False, budgets["min_cosine"])


def _of_original(report: Mapping[str, JSON], axis: _Axis) -> tuple[float, float, float]:
    value = report["original"]["accuracy"]["value"] if is_drop(axis.gate) else 1.0
    return value, value, value


def _height(each: Mapping[str, Any], report: Mapping[str, JSON], axis: _Axis) -> tuple[float, float, float] | None:
    """Value, low and high of what goes upwards; None for a candidate that was not judged by it."""
    gate = next((gate for gate in each["gates"] if gate["name"] == axis.gate), None)
    if gate is None:
        return None
    if is_drop(axis.gate):
        right = report["original"]["accuracy"]["value"]
        return right - gate["value"], max(0.0, right - gate["high"]), min(1.0, right - gate["low"])
    if axis.gate == "agreement":
        return gate["value"], gate["low"], gate["high"]
    return gate["value"], gate["value"], gate["value"]  # of the worst row there is no estimate but the worst seen


def _key(points: Sequence[_Point]) -> str:
    """Which number is whose, as a list of words."""
    names = (f'<span class="{p.kind}"><b>{p.number}</b> {html.escape(p.label)}</span>' for p in points)
    return f'<p class="key">{" ".join(names)}</p>'


def _drawn(points: Sequence[_Point], axis: _Axis) -> str:
    x_ticks = _ticks(0.0, max(p.x_high for p in points) * 1.04)
    ys = [axis.budget, *(value for p in points for value in (p.y_low, p.y_high))]
    spread = max(max(ys) - min(ys), 1e-4)
    y_ticks = _ticks(min(ys) - 0.04 * spread, min(1.0, max(ys) + 0.04 * spread))
    x_end, y_start = x_ticks[-1], y_ticks[0]
    y_range = y_ticks[-1] - y_start

    def across(value: float) -> float:
        return 100 * value / x_end

    def up(value: float) -> float:
        return 100 - 100 * (value - y_start) / y_range

    parts = [f'<div class="plot"><svg role="img" aria-label="{html.escape(axis.title)} against time">']
    for tick in x_ticks:
        parts.append(_line(across(tick), 0, across(tick), 100, "grid"))
        parts.append(_text(across(tick), 100, f"{tick:g}", "middle", dy=18))
    for tick in y_ticks:
        parts.append(_line(0, up(tick), 100, up(tick), "grid"))
        parts.append(_text(0, up(tick), f"{100 * tick:.6g} %" if axis.percent else f"{tick:.6g}", "end", dx=-6, dy=4))
    parts.append(_text(50, 100, "time of a call, the original's = 1", "middle", dy=38))
    parts.append(_text(0, 0, axis.title, "start", dx=-56, dy=-12))
    parts.append(_line(0, up(axis.budget), 100, up(axis.budget), "budget"))
    parts.append(_text(100, up(axis.budget), "budget", "end", dx=-4, dy=-5, kind="budget"))
    front = _front(points)
    for one, two in itertools.pairwise(front):
        parts.append(_line(across(one.x), up(one.y), across(two.x), up(two.y), "front"))
    beside = _laid_out(points, across, up)
    for p in sorted(points, key=lambda p: p.kind == "best"):  # drawn last, the best hides under none
        x, y = across(p.x), up(p.y)
        parts.append(_line(across(p.x_low), y, across(p.x_high), y, f"bound {p.kind}"))
        parts.append(_line(x, up(p.y_low), x, up(p.y_high), f"bound {p.kind}"))
        parts.append(f'<circle class="{p.kind}" cx="{x:.2f}%" cy="{y:.2f}%" r="{_DOT}"/>')
    for p, (dx, dy) in zip(points, beside, strict=True):
        parts.append(_text(across(p.x), up(p.y), str(p.number), "middle", dx=dx, dy=dy + 4, kind=p.kind))
    return "".join([*parts, "</svg></div>"])


def _laid_out(
    points: Sequence[_Point], across: Callable[[float], float], up: Callable[[float], float]
) -> list[tuple[float, float]]:
    """For each point, where its number stands beside it: away from other numbers and from other points."""
    dots = [(across(p.x) * _NARROW / 100, up(p.y) * _TALL / 100) for p in points]
    numbers: list[tuple[float, float]] = []
    found: list[tuple[float, float]] = []
    for place, (x, y) in enumerate(dots):
        taken = [*dots[:place], *dots[place + 1 :], *numbers]
        free = (
            (dx, dy)
            for dx, dy in _BESIDE
            if x + dx > 5
            and -8 < y + dy < _TALL + 8
            and all(abs(x + dx - a) > 13 or abs(y + dy - b) > 12 for a, b in taken)
        )
        dx, dy = next(free, _BESIDE[0])
        numbers.append((x + dx, y + dy))
        found.append((dx, dy))
    return found


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Those that nothing beats in both directions, fastest first."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers that cover a range."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + i) * step, 12) for i in range(count + 1)]


def histogram(found: Mapping[str, JSON]) -> str:
    """An SVG of how long the rows are: ``low``, ``width`` and ``counts``."""
    counts = found["counts"]
    bar = 100 / len(counts)
    parts = ['<div class="lengths"><svg role="img" aria-label="lengths of the rows">']
    for place, count in enumerate(counts):
        tall = 100 * count / max(counts)
        parts.append(
            f'<rect class="bar" x="{(place + 0.06) * bar:.2f}%" y="{100 - tall:.2f}%" width="{0.88 * bar:.2f}%" '
            f'height="{tall:.2f}%"/>'
        )
    for place in range(0, len(counts), max(1, -(-len(counts) // 8))):
        low = found["low"] + place * found["width"]
        parts.append(_text((place + 0.5) * bar, 100, str(low), "middle", dy=18))
    parts.append(_text(0, 0, f"rows; the highest bar is {max(counts):,}", "start", dy=-8))
    parts.append(_text(50, 100, "length as the model sees it", "middle", dy=38))
    return "".join([*parts, "</svg></div>"])


def bars(lines: Sequence[tuple[str, float, str]]) -> str:
    """A list of names, each with a bar as long as its value and the value in words.

    Args:
        lines: name, value (not negative), and what is written behind the bar.
    """
    most = max((value for _, value, _ in lines), default=0.0) or 1.0
    items = []
    for name, value, text in lines:
        drawn = f'<rect class="bar" width="{100 * value / most:.2f}%" height="100%"/>'
        said = f'<span>{html.escape(name)}</span><span class="n">{html.escape(text)}</span>'
        items.append(f'<li>{said}<svg class="bar" aria-hidden="true">{drawn}</svg></li>')
    return f'<ul class="bars">{"".join(items)}</ul>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.2f}%" x2="{x2:.2f}%" y2="{y2:.2f}%"/>'


def _text(x: float, y: float, text: str, anchor: str, *, dx: float = 0, dy: float = 0, kind: str = "") -> str:
    """Text at a place in percent, moved from it by pixels."""
    return (
        f'<text class="{kind}" x="{x:.2f}%" y="{y:.2f}%" dx="{dx:g}" dy="{dy:g}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )
