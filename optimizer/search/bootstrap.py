"""Bounds for metrics that are no share of right rows: F1, correlations, means of numbers between 0 and 1.

Rows are resampled, the same for original and candidate, and the metric of all rows is computed anew for each draw. How
often a row counts in a draw is not a whole number here but exponentially distributed: the Bayesian bootstrap of Rubin
(*Ann. Stat.* 9, 1981, 130-134), whose percentiles agree with those of Efron's to first order (Lo, *Ann. Stat.* 15,
1987, 360-375) and have no steps. Percentiles need no correction that cannot be computed, as that of BCa (Efron, *J. Am.
Stat. Assoc.* 82, 1987, 171-185) cannot when no row differs, and that is the case that matters most: resampling rows of
which none was lost says that none ever will be. So one row more stands among them, of usual weight, which only the
original has right (for the other bound, only the candidate). For means of numbers from 0 to 1 that is the bound of
Gaffke (*Math. Methods Stat.* 14, 2005, 451-467; Phan, Thomas and Learned-Miller, ICML 2021, 8567-8576, on how it keeps
its promise in small samples), which for zeros and ones is that of Clopper and Pearson (*Biometrika* 26, 1934, 404-413).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from optimizer.resampling import draws_for, exponential_weights
from optimizer.search.gates import POWER, Bounded, Gate, Outcome, drop_outcome, drop_says
from optimizer.task import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["HIGHEST_CONFIDENCE", "Drop", "bootstrapped_drop", "bootstrapped_gate", "bounded"]

#: Draws that the spread of the estimate is taken from.
_FOR_SPREAD = 500
#: The most that can be asked for: beyond it, shared among rivals, drawing would take minutes a candidate.
HIGHEST_CONFIDENCE = 0.995


@dataclass(frozen=True)
class Drop:
    """How much less a candidate has of a metric than the original, over the same rows.

    Attributes:
        found: the estimate, positive when the candidate is worse, and its one-sided bounds.
        spread: standard deviation of the estimate.
    """

    found: Bounded
    spread: float


def bootstrapped_drop(
    metric: Metric, original: Sequence[Any], candidate: Sequence[Any], confidence: float, seed: int = 0
) -> Drop:
    """The drop of a metric with its bounds.

    Args:
        metric: what is compared.
        original: what :attr:`Metric.score` gave for each row.
        candidate: the same of the candidate, for the same rows.
        confidence: of each bound.
        seed: of the draws; the same for every candidate.
    """
    import numpy as np

    first, second = _table(original), _table(candidate)
    width = first.shape[1]
    value = metric.value(first) - metric.value(second)
    # Rows of the same numbers are one row of more weight: a sum of exponential weights is a gamma.
    rows, counts = np.unique(np.concatenate([first, second], axis=1), axis=0, return_counts=True)
    left, right = rows[:, :width], rows[:, width:]
    best, worst = metric.one_more(np.concatenate([first, second]))

    def drop(weights: Array, more: tuple[Array, Array] | None) -> Array:
        a, b = left, right
        if more is not None:
            a, b = np.vstack([left, more[0]]), np.vstack([right, more[1]])
        difference: Array = metric.aggregate(a, weights) - metric.aggregate(b, weights)
        return difference

    highs: list[Array] = []
    lows: list[Array] = []
    spread = 0.0
    for weights in exponential_weights(np.append(counts, 1), draws_for(confidence), seed):
        spread = spread or float(np.std(drop(weights[:_FOR_SPREAD, :-1], None)))
        highs.append(drop(weights, (best, worst)))
        lows.append(drop(weights, (worst, best)))
    high = max(value, float(np.quantile(np.concatenate(highs), confidence)))
    low = min(value, float(np.quantile(np.concatenate(lows), 1 - confidence)))
    return Drop(Bounded(value, low, high), spread)


def bounded(metric: Metric, numbers: Sequence[Any], confidence: float, seed: int = 0) -> Bounded:
    """The metric itself with its bounds, by the same draws."""
    import numpy as np

    table = _table(numbers)
    rows, counts = np.unique(table, axis=0, return_counts=True)
    best, worst = metric.one_more(table)
    value = metric.value(table)
    highs, lows = [], []
    for weights in exponential_weights(np.append(counts, 1), draws_for(confidence), seed):
        highs.append(metric.aggregate(np.vstack([rows, best]), weights))
        lows.append(metric.aggregate(np.vstack([rows, worst]), weights))
    high = max(value, float(np.quantile(np.concatenate(highs), confidence)))
    low = min(value, float(np.quantile(np.concatenate(lows), 1 - confidence)))
    return Bounded(value, low, high)


def _table(numbers: Sequence[Any]) -> Array:
    import numpy as np

    return np.asarray(numbers, np.float64).reshape(len(numbers), -1)


def bootstrapped_gate(
    metric: Metric,
    original: Sequence[Any],
    candidate: Sequence[Any],
    max_drop: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> Gate:
    """Whether the metric falls by no more than ``max_drop``; see :func:`bootstrapped_drop`."""
    drop = bootstrapped_drop(metric, original, candidate, confidence, seed)
    outcome = drop_outcome(drop.found, max_drop)
    needed = _rows_needed(drop, len(original), max_drop, confidence) if outcome is Outcome.INCONCLUSIVE else None
    says = drop_says(metric.name, drop.found, max_drop, confidence, outcome)
    return Gate(
        f"{metric.name} drop", drop.found.value, drop.found.low, drop.found.high, max_drop, outcome, says, needed
    )


def _rows_needed(drop: Drop, rows: int, limit: float, confidence: float) -> int | None:
    """About how many rows would settle it, if the estimate stays and its spread shrinks like 1/√rows.

    A bound lies z · spread from the estimate, and what it lies beyond that is the doubt about rows that were not seen,
    which shrinks like 1/rows. For a power of 80 % it must keep its distance from the limit 0.84 spreads off: the rows n
    are asked for at which (z of the confidence + z of the power) · s / √n + u / n comes down to that distance.
    """
    found = drop.found
    room = limit - found.value
    if room == 0:
        return None
    z, of_power = (NormalDist().inv_cdf(each) for each in (confidence, POWER))
    reach = found.high - found.value if room > 0 else found.value - found.low
    unseen = max(0.0, reach - z * drop.spread) * rows
    steep = (z + of_power) * drop.spread * math.sqrt(rows)
    # With t = 1/√n it is u · t² + steep · t = room; written so that nothing is divided by a u of 0.
    t = 2 * abs(room) / (steep + math.sqrt(steep * steep + 4 * unseen * abs(room)))
    return max(1, math.ceil(1 / (t * t)))
