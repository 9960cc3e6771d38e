"""Bounds over documents of what a text generator is judged by.

Tokens of one document are not independent of each other, so that documents are what is drawn: by the Bayesian bootstrap
(:func:`~optimizer.resampling.exponential_weights`) of a quotient of sums. Draws are widened around the estimate by
√((n + 1) / (n - 1)), since their variance for the mean of n numbers is Σ(x - x̄)² / n(n + 1), where the mean's own is
Σ(x - x̄)² / n(n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from optimizer.resampling import draws_for, exponential_weights
from optimizer.types import JSON

__all__ = ["FEWEST", "Bounds", "mean_bounds", "median_bounds", "quotient_bounds", "share_bounds"]

#: Fewer documents say nothing of how documents differ.
FEWEST = 3


@dataclass(frozen=True)
class Bounds:
    """An estimate with two one-sided bounds, each of which holds with a confidence of 95 %.

    Where there are too few documents nothing is known, and the bounds are the least and the most that there can be:
    0 and infinity, which is null in JSON, or for a share 0 and 1.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "high": self.high if math.isfinite(self.high) else None}


def quotient_bounds(
    sums: Sequence[float], tokens: Sequence[int], confidence: float = 0.95, seed: int = 0
) -> Bounds | None:
    """Σ sums / Σ tokens over documents, with its bounds.

    Args:
        sums: one a document.
        tokens: one a document.
        confidence: of each bound.
        seed: of the draws; the same for every candidate.

    Returns:
        None where nothing is known of how documents differ: there are fewer than three, or a sum is not finite.
    """
    import numpy as np

    given, counted = np.array(sums, np.float64), np.array(tokens, np.float64)
    value, count = float(given.sum() / counted.sum()), len(sums)
    if count < FEWEST or not math.isfinite(value):
        return None
    drawn = np.concatenate(
        [
            (weights @ given) / (weights @ counted)
            for weights in exponential_weights(np.ones(count, np.int64), draws_for(confidence), seed)
        ]
    )
    wider = value + math.sqrt((count + 1) / (count - 1)) * (drawn - value)
    low, high = np.quantile(wider, (1 - confidence, confidence))
    return Bounds(value, min(value, float(low)), max(value, float(high)))


def mean_bounds(sums: Sequence[float], tokens: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Bounds:
    """The mean of a number that is not negative: 0 to infinity where nothing is known."""
    found = quotient_bounds(sums, tokens, confidence, seed)
    if found is None:
        return Bounds(sum(sums) / sum(tokens), 0.0, math.inf)
    return Bounds(found.value, max(0.0, found.low), found.high)


def share_bounds(same: Sequence[int], tokens: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Bounds:
    """A share of tokens: 0 to 1 where nothing is known.

    Documents that are all the same to the last token say nothing of how they differ, and drawing them again would find
    no width at all. The bounds are never nearer than those of as many independent tokens: the score interval of Wilson,
    *J. Am. Stat. Assoc.* 22 (1927) 209-212.
    """
    found, count = quotient_bounds(same, tokens, confidence, seed), sum(tokens)
    value = sum(same) / count
    if found is None:
        return Bounds(value, 0.0, 1.0)
    z = NormalDist().inv_cdf(confidence)
    middle = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    return Bounds(value, max(0.0, min(found.low, middle - half)), min(1.0, max(found.high, middle + half)))


def median_bounds(values: Sequence[int], confidence: float = 0.95) -> Bounds:
    """The median of one number a document: 0 to infinity where there are too few for a bound (fewer than five).

    Its bounds are values themselves, whatever they are distributed like: the k-th smallest of n is above the median
    with the probability that fewer than k of n fair coins show heads (David and Nagaraja, *Order Statistics*, 2003,
    §7.1).
    """
    ordered, count = sorted(values), len(values)
    below, cut = 0.0, 0
    while cut < count and below + math.comb(count, cut) / 2**count <= 1 - confidence:
        below += math.comb(count, cut) / 2**count
        cut += 1
    if not cut:
        return Bounds(float(median(ordered)), 0.0, math.inf)
    return Bounds(float(median(ordered)), float(ordered[cut - 1]), float(ordered[count - cut]))
