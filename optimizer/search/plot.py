"""The Pareto plot: accuracy or likeness upwards, time rightwards, bounds drawn; inline SVG, nothing loaded."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.types import JSON

__all__ = ["histogram", "pareto"]

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 48


@dataclass(frozen=True)
class _Point:
    label: str
    kind: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


def pareto(report: Mapping[str, JSON]) -> str:
    """An SVG of the original and every candidate that was timed, numbered, with the line of those that nothing beats.

    Time is drawn as a share of the original's, as it was measured: round by round beside it.
    """
    labelled = report["original"]["accuracy"] is not None
    decided = any(c["agreement"] for c in report["candidates"])
    title = "accuracy" if labelled else "same decision as the original" if decided else "worst cosine to the original"
    points = []
    for each in [report["original"], *report["candidates"]]:
        if each["speed"] is None:
            continue
        is_original = each is report["original"]
        y = _height(each, is_original, labelled, decided)
        if y is None:
            continue
        ratio = each["speed"]["ratio"]
        is_best = not is_original and (each["ref"], each["provider"]) == (report["best"], report["provider"])
        kind = "original" if is_original else "best" if is_best else str(each["outcome"] or "error").lower()
        x, x_low, x_high = (1.0 / ratio[end] for end in ("value", "high", "low"))
        points.append(_Point(each["name"], kind, x, x_low, x_high, *y))
    return _drawn(points, title) + _key(points) if points else ""


def _key(points: Sequence[_Point]) -> str:
    """Which number is whose, as a list of words."""
    names = (f'<span class="{p.kind}">{n} {html.escape(p.label)}</span>' for n, p in enumerate(points, 1))
    return f'<p class="key">{" ".join(names)}</p>'


def _height(
    each: Mapping[str, Any], is_original: bool, labelled: bool, decided: bool
) -> tuple[float, float, float] | None:
    """Value, low and high of what goes upwards."""
    if labelled or (decided and not is_original):
        found = each["accuracy"] if labelled else each["agreement"]
        return (found["value"], found["low"], found["high"]) if found else None
    if is_original:
        return 1.0, 1.0, 1.0
    worst = each["cosine"].get("worst")
    return (worst, worst, worst) if worst is not None else None


def _drawn(points: Sequence[_Point], title: str) -> str:
    xs = [value for p in points for value in (p.x_low, p.x_high)]
    ys = [value for p in points for value in (p.y_low, p.y_high)]
    x_ticks = _ticks(0.0, max(xs) * 1.08)
    spread = max(max(ys) - min(ys), 1e-4)
    y_ticks = _ticks(min(ys) - 0.06 * spread, min(1.0, max(ys) + 0.06 * spread))
    x_end = max(x_ticks[-1], max(xs))
    y_start, y_end = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def across(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / x_end

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - y_start) / (y_end - y_start)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} against time">']
    for tick in x_ticks:
        parts.append(_line(across(tick), _TOP, across(tick), _HEIGHT - _BOTTOM, "grid"))
        parts.append(_text(across(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in y_ticks:
        parts.append(_line(_LEFT, up(tick), _WIDTH - _RIGHT, up(tick), "grid"))
        parts.append(_text(_LEFT - 8, up(tick) + 4, f"{tick:.6g}", "end"))
    parts.append(
        _text(
            (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "time of a call, the original's = 1 (less is better)", "middle"
        )
    )
    parts.append(_text(_LEFT, _TOP - 6, title, "start"))
    front = _front(points)
    path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in front)
    parts.append(f'<polyline class="front" points="{path}"/>')
    taken: list[tuple[float, float]] = []
    for number, p in enumerate(points, 1):
        x, y = across(p.x), up(p.y)
        parts.append(_line(across(p.x_low), y, across(p.x_high), y, f"bound {p.kind}"))
        parts.append(_line(x, up(p.y_low), x, up(p.y_high), f"bound {p.kind}"))
        parts.append(f'<circle class="{p.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{7 if p.kind == "best" else 5}"/>')
        place = x + 9, y - 9
        while any(abs(place[0] - a) < 18 and abs(place[1] - b) < 16 for a, b in taken):
            place = place[0] + 18, place[1]
        taken.append(place)
        parts.append(_text(*place, str(number), "start", p.kind))
    return "".join([*parts, "</svg>"])


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Those that nothing beats in both directions, fastest first."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that cover a range."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 7:
            step *= factor
            break
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + i) * step, 12) for i in range(count + 1)]


def histogram(found: Mapping[str, JSON]) -> str:
    """An SVG of how long the rows are: ``low``, ``width`` and ``counts``."""
    counts = found["counts"]
    height, bar = 120, 640 / len(counts)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height + 60}" role="img" aria-label="lengths of the rows">']
    for place, count in enumerate(counts):
        tall = height * count / max(counts)
        x = 40 + place * bar
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{20 + height - tall:.1f}" width="{bar * 0.9:.1f}" height="{tall:.1f}"/>'
        )
    for place in range(0, len(counts), max(1, len(counts) // 8)):
        low = found["low"] + place * found["width"]
        parts.append(_text(40 + (place + 0.45) * bar, height + 38, str(low), "middle"))
    parts.append(_text(40, 14, f"rows, at most {max(counts)} a bar", "start"))
    parts.append(_text(360, height + 56, "length as the model sees it", "middle"))
    return "".join([*parts, "</svg>"])


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
