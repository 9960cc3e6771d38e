"""How long a run takes by its tokens: a line through what runs of each size took, however few there were of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Curve"]

#: How much the newest run counts among those of its size.
_FADES = 0.1
#: The first runs of a size, of which the fastest counts: the others paid for what is done once.
_FIRST = 4
#: Tokens that a run costs beside its own before that is known.
_USUAL_OVERHEAD = 16.0


@dataclass
class _Size:
    """Runs of one size, a power of two apart from the next: how many, and the mean of their tokens and seconds."""

    tokens: float
    seconds: float
    count: int = 1

    def add(self, tokens: int, seconds: float) -> None:
        self.count += 1
        if self.count <= _FIRST:
            if seconds < self.seconds:
                self.tokens, self.seconds = float(tokens), seconds
            return
        self.tokens += _FADES * (tokens - self.tokens)
        self.seconds += _FADES * (seconds - self.seconds)


@dataclass
class Curve:
    """Seconds of a run as ``start + tokens × slope``.

    A line is what is known of transformer encoders on processors at the lengths that are served: the part that grows
    with the square of the length is small beside the products. Under load nearly all runs are of one size, which says
    nothing about the start; so every size counts the same, as runs of it were last seen, and what is small is the
    error in parts of the time (least squares with weights ``1 / seconds²``).
    """

    _sizes: dict[int, _Size] = field(default_factory=dict)
    _start: float = 0.0
    _slope: float = 0.0

    @classmethod
    def of(cls, runs: Iterable[tuple[int, float]]) -> Curve:
        """A curve that begins with what was measured before, which runs move from then on as they move any other.

        Args:
            runs: tokens, and the seconds of a usual run of so many; at least one.
        """
        curve = cls({tokens.bit_length(): _Size(float(tokens), seconds, _FIRST) for tokens, seconds in runs})
        curve._fit()
        return curve

    def add(self, tokens: int, seconds: float) -> None:
        """Count one run."""
        place = tokens.bit_length()
        if place in self._sizes:
            self._sizes[place].add(tokens, seconds)
        else:
            self._sizes[place] = _Size(float(tokens), seconds)
        self._fit()

    def _fit(self) -> None:
        weight = x = y = xx = xy = 0.0
        for size in self._sizes.values():
            counts = 1 / max(size.seconds, 1e-9) ** 2
            weight, x, y = weight + counts, x + counts * size.tokens, y + counts * size.seconds
            xx, xy = xx + counts * size.tokens**2, xy + counts * size.tokens * size.seconds
        spread = weight * xx - x * x
        slope = (weight * xy - x * y) / spread if spread > 1e-9 * x * x else 0.0
        start = (y - slope * x) / weight
        if slope <= 0 or start <= 0:  # of one size, or of sizes that say nothing together
            start, slope = 0.0, xy / xx if xx else 0.0
        self._start, self._slope = start, slope

    def seconds(self, tokens: float) -> float:
        """Predicted seconds of a run of so many tokens; 0 for none."""
        return self._start + self._slope * tokens if tokens else 0.0

    def tokens(self, seconds: float) -> float:
        """Tokens of a run that takes so long; infinite while nothing has run."""
        return max(0.0, seconds - self._start) / self._slope if self._slope else math.inf

    def enough(self, share: float) -> float:
        """Tokens of a run that computes this share of the tokens a second that an endless one would; infinite while
        what a run costs beside its tokens is not known.
        """
        return share / (1 - share) * self._start / self._slope if self._start > 0 and self._slope else math.inf

    @property
    def overhead(self) -> float:
        """Tokens that could be computed in the time that a run takes beside its tokens."""
        return self._start / self._slope if self._start > 0 and self._slope else _USUAL_OVERHEAD
