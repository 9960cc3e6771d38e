"""Drawings as inline SVG.

Places are percentages of the drawing and text has a size of its own, so that one drawing is read on a phone, on a wide
screen and on paper.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optimizer.types import JSON

__all__ = ["Axis", "bars", "circle", "frame", "histogram", "key", "laid_out", "line", "linear", "log", "text", "ticks"]

#: The narrowest drawing that numbers beside points are laid out for, in pixels; on a wider one they lie further apart.
_NARROW, _TALL = 280, 300
#: Where a number may stand beside its point, in pixels, the best place first.
_BESIDE = tuple((dx, dy) for far in (11, 22, 33) for dx, dy in ((far, -far), (far, far), (-far, -far), (-far, far)))
_DOT = 6


@dataclass(frozen=True)
class Axis:
    """A range with its marks.

    Attributes:
        low: where it begins.
        high: where it ends.
        marks: the values that are written beside it.
        is_log: whether equal steps are equal ratios.
    """

    low: float
    high: float
    marks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in percent from the beginning."""
        if self.is_log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)


def linear(low: float, high: float) -> Axis:
    """An axis that begins and ends at round numbers around a range."""
    marks = ticks(low, high)
    return Axis(marks[0], marks[-1], tuple(marks))


def log(low: float, high: float, room: float = 1.1) -> Axis:
    """A logarithmic axis around a range, by the factor ``room`` longer at both ends.

    It is marked at 1, 2 and 5 times powers of ten; at powers of ten alone where that would be too many, and closer
    where it would be too few.
    """
    low, high = low / room, high * room
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        every = (factor * 10.0**power for power in range(first, last + 1) for factor in factors)
        marks = [mark for mark in every if low <= mark <= high]
        if len(marks) >= 3:
            return Axis(low, high, tuple(marks), is_log=True)
    return Axis(low, high, tuple(ticks(low, high)[1:-1]), is_log=True)


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers that cover a range."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + i) * step, 12) for i in range(count + 1)]


def frame(x: Axis, y: Axis, across: str, up: str, *, x_text: Callable[[float], str] = "{:g}".format) -> list[str]:
    """The grid of two axes with their marks and titles.

    Args:
        x: from left to right.
        y: from below to above.
        across: title of ``x``.
        up: title of ``y``.
        x_text: how a mark of ``x`` is written.
    """
    parts = []
    for mark in x.marks:
        parts += [line(x.at(mark), 0, x.at(mark), 100, "grid"), text(x.at(mark), 100, x_text(mark), "middle", dy=18)]
    for mark in y.marks:
        level = 100 - y.at(mark)
        parts += [line(0, level, 100, level, "grid"), text(0, level, f"{mark:,g}", "end", dx=-6, dy=4)]
    return [*parts, text(50, 100, across, "middle", dy=38), text(0, 0, up, "start", dx=-56, dy=-12)]


def laid_out(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """For each point, where its number stands beside it: away from other numbers and from other points.

    Args:
        places: of the points, in percent from the left and from above.

    Returns:
        pixels rightwards and downwards from each point.
    """
    dots = [(x * _NARROW / 100, y * _TALL / 100) for x, y in places]
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


def key(entries: Sequence[tuple[int, str, str]]) -> str:
    """Which number is whose, as a list of words: number, label and class of each."""
    names = (f'<span class="{kind}"><b>{number}</b> {html.escape(label)}</span>' for number, label, kind in entries)
    return f'<p class="key">{" ".join(names)}</p>'


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
        parts.append(text((place + 0.5) * bar, 100, str(low), "middle", dy=18))
    parts.append(text(0, 0, f"rows; the highest bar is {max(counts):,}", "start", dy=-8))
    parts.append(text(50, 100, "length as the model sees it", "middle", dy=38))
    return "".join([*parts, "</svg></div>"])


def bars(lines: Sequence[tuple[str, float, str]]) -> str:
    """A list of names, each with a bar as long as its value and the value in words.

    Args:
        lines: name, value (not negative), and what is written behind the bar.
    """
    most = max((value for _, value, _ in lines), default=0.0) or 1.0
    items = []
    for name, value, words in lines:
        drawn = f'<rect class="bar" width="{100 * value / most:.2f}%" height="100%"/>'
        said = f'<span>{html.escape(name)}</span><span class="n">{html.escape(words)}</span>'
        items.append(f'<li>{said}<svg class="bar" aria-hidden="true">{drawn}</svg></li>')
    return f'<ul class="bars">{"".join(items)}</ul>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line between two places in percent."""
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.2f}%" x2="{x2:.2f}%" y2="{y2:.2f}%"/>'


def circle(x: float, y: float, kind: str) -> str:
    """A dot at a place in percent."""
    return f'<circle class="{kind}" cx="{x:.2f}%" cy="{y:.2f}%" r="{_DOT}"/>'


def text(x: float, y: float, words: str, anchor: str, *, dx: float = 0, dy: float = 0, kind: str = "") -> str:
    """Text at a place in percent, moved from it by pixels."""
    return (
        f'<text class="{kind}" x="{x:.2f}%" y="{y:.2f}%" dx="{dx:g}" dy="{dy:g}" text-anchor="{anchor}">'
        f"{html.escape(words)}</text>"
    )
