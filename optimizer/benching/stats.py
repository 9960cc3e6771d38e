"""Numbers from samples: percentiles only where there are enough of them, and ratios with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.types import JSON

__all__ = [
    "PERCENTILES",
    "Ratio",
    "Summary",
    "bootstrapped",
    "brief",
    "log_ratios",
    "samples_needed",
    "speedup",
    "summarize",
    "throughput",
]

#: What is reported when there are enough samples for it.
PERCENTILES = (90.0, 99.0, 99.9)

#: Confidence that the largest sample lies above the percentile.
_CONFIDENCE = 0.99


def brief(value: float) -> str:
    """Three digits of a number for a table, and never a power of ten: ``3.96``, ``41.2``, ``2,545``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def samples_needed(percentile: float) -> int:
    """The fewest samples from which a percentile may be reported: 44 for p90, 459 for p99, 4,603 for p99.9.

    The smallest n with 1 - qⁿ ≥ 0.99, q being the percentile's fraction: with fewer samples, the chance that not one
    of them lies beyond the percentile is more than one in a hundred, and then its estimate is a guess. The formula is
    Wilks's for one-sided tolerance limits (Ann. Math. Stat. 12, 1941); the confidence is that of MLPerf's LoadGen.
    """
    return math.ceil(math.log(1 - _CONFIDENCE) / math.log(percentile / 100))


@dataclass(frozen=True)
class Summary:
    """One candidate's times at one shape.

    Attributes:
        samples: how many.
        mean_ms: arithmetic mean; throughput is made from it.
        p50_ms: median.
        min_ms: fastest call.
        percentiles_ms: ``p90``, ``p99``, ``p99.9``, each only with at least :func:`samples_needed` samples.
        spread: largest over smallest median of a round: 1 on a quiet machine.
    """

    samples: int
    mean_ms: float
    p50_ms: float
    min_ms: float
    percentiles_ms: dict[str, float]
    spread: float

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))


def summarize(rounds: Sequence[Sequence[int]]) -> Summary:
    """Summarize samples in nanoseconds, one sequence a round."""
    import numpy as np

    every = np.concatenate([np.asarray(r, np.float64) for r in rounds]) / 1e6
    medians = [float(np.median(r)) for r in rounds]
    return Summary(
        samples=int(every.size),
        mean_ms=float(every.mean()),
        p50_ms=float(np.median(every)),
        min_ms=float(every.min()),
        percentiles_ms={
            f"p{p:g}": float(np.percentile(every, p)) for p in PERCENTILES if every.size >= samples_needed(p)
        },
        spread=max(medians) / min(medians) if min(medians) > 0 else math.inf,
    )


@dataclass(frozen=True)
class Ratio:
    """How many times faster (or how many rows a second), with the 95 % interval of it.

    Attributes:
        value: the estimate; of a speed-up, above 1 is faster than the baseline.
        low: lower end of the interval.
        high: upper end; infinite where nothing is known of it. JSON has no infinity: null stands for it there.
    """

    value: float
    low: float
    high: float = field(metadata={"null": math.inf})

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "high": self.high if math.isfinite(self.high) else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ratio:
        return cls(data["value"], data["low"], math.inf if data["high"] is None else data["high"])


def log_ratios(
    baseline: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], *, of_means: bool = False
) -> list[float]:
    """Round by round, log(baseline) - log(candidate) of the medians: above 0 where the candidate was faster.

    Args:
        baseline: samples, one sequence a round.
        candidate: samples, the same number of rounds, in the same order.
        of_means: of the means instead, which throughput is made of.
    """
    import numpy as np

    if len(baseline) != len(candidate) or not baseline:
        raise ValueError("a ratio needs the same rounds of both")
    middle = np.mean if of_means else np.median
    return [float(np.log(middle(b)) - np.log(middle(c))) for b, c in zip(baseline, candidate, strict=True)]


def bootstrapped(logs: Sequence[float], seed: int, draws: int) -> tuple[float, list[float]]:
    """The median of rounds, and bootstrap draws of it, ascending.

    Rounds are drawn whole, with replacement; draws are widened around the median by √(n / (n - 1)), because a bootstrap
    of n blocks knows too little of their variance (Davison and Hinkley, *Bootstrap Methods*, 1997, §2.3).

    Args:
        logs: one number a round.
        seed: of the drawing.
        draws: how many.

    Returns:
        the draws are empty with fewer than three rounds, as nothing is known of their spread.
    """
    import numpy as np

    rounds = np.asarray(logs)
    middle, count = float(np.median(rounds)), len(rounds)
    if count < 3:
        return middle, []
    random = np.random.default_rng(seed)
    drawn = np.median(rounds[random.integers(0, count, (draws, count))], axis=1)
    return middle, np.sort(middle + math.sqrt(count / (count - 1)) * (drawn - middle)).tolist()


def speedup(
    baseline: Sequence[Sequence[int]],
    candidate: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    draws: int = 4000,
    of_means: bool = False,
) -> Ratio:
    """The baseline's time over the candidate's.

    Each round measured both within moments of each other, so a machine that slows down for a while slows both, and
    their ratio keeps. The estimate is the median over rounds of log(median baseline) - log(median candidate), and the
    interval lies between the 2.5 and 97.5 percentiles of its block bootstrap (:func:`bootstrapped`), as the samples
    within a round are not independent of each other. With 5 to 32 rounds of normal, skewed or heavy-tailed noise it
    holds the true ratio in 92 to 97 of 100 cases.

    Args:
        baseline: samples, one sequence a round.
        candidate: samples, the same number of rounds, in the same order.
        seed: of the drawing.
        draws: how many bootstrap draws.
        of_means: compare means of rounds and not their medians: throughput, which slow calls count in.

    Returns:
        the ratio; with fewer than three rounds the interval is 0 to infinity, as nothing is known of it.
    """
    return _interval(bootstrapped(log_ratios(baseline, candidate, of_means=of_means), seed, draws))


def throughput(rounds: Sequence[Sequence[int]], batch: int, *, seed: int = 0, draws: int = 4000) -> Ratio:
    """Rows a second of calls one after the other, with its interval.

    A round's throughput is its rows over its time, slow calls included; the estimate is the median over rounds and the
    interval that of :func:`speedup`.

    Args:
        rounds: nanoseconds of each call, one sequence a round.
        batch: rows of a call.
        seed: of the drawing.
        draws: how many bootstrap draws.
    """
    import numpy as np

    return _interval(bootstrapped([math.log(batch * 1e9 / float(np.mean(times))) for times in rounds], seed, draws))


def _interval(found: tuple[float, Sequence[float]]) -> Ratio:
    """The exponential of a median of logarithms, between the 2.5 and 97.5 percentiles of its draws."""
    import numpy as np

    middle, drawn = found
    if not drawn:
        return Ratio(math.exp(middle), 0.0, math.inf)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Ratio(math.exp(middle), math.exp(low), math.exp(high))
