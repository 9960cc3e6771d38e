"""How long a run takes by its tokens: a line through the runs so far, the newest counting most."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Curve"]

#: What the sums of all runs so far keep when one more is added: about the last fifty count.
_KEPT = 0.98
#: Tokens that a run costs beside its own before that is known.
_USUAL_OVERHEAD = 16.0


@dataclass
class Curve:
    """Seconds of a run as ``start + tokens × slope``, by least squares with weights that fade exponentially.

    A line is what is known of transformer encoders on processors at the lengths that are served: the part that grows
    with the square of the length is small beside the products.
    """

    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count one run."""
        sums = (1.0, float(tokens), seconds, float(tokens) ** 2, tokens * seconds)
        kept = (self._weight, self._x, self._y, self._xx, self._xy)
        self._weight, self._x, self._y, self._xx, self._xy = (
            old * _KEPT + new for old, new in zip(kept, sums, strict=True)
        )

    def _line(self) -> tuple[float, float]:
        """Start and slope, both in seconds; through nothing where runs of one size say no slope."""
        if not self._weight:
            return 0.0, 0.0
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        covariance = self._xy / self._weight - x * y
        through_nothing = y / x if x else 0.0
        if variance <= 1e-9 * x * x or covariance <= 0:
            return 0.0, through_nothing
        slope = min(covariance / variance, through_nothing)
        return y - slope * x, slope

    def seconds(self, tokens: float) -> float:
        """Predicted seconds of a run of so many tokens; 0 for none."""
        start, slope = self._line()
        return start + slope * tokens if tokens else 0.0

    def tokens(self, seconds: float) -> float:
        """Tokens of a run that takes so long; infinite while nothing has run."""
        start, slope = self._line()
        return max(0.0, seconds - start) / slope if slope else math.inf

    @property
    def overhead(self) -> float:
        """Tokens that could be computed in the time that a run takes beside its tokens."""
        start, slope = self._line()
        return start / slope if start > 0 and slope else _USUAL_OVERHEAD
