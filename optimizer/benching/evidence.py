"""What interleaved rounds say for and against "slower by more than the tolerance".

The tests are those of the interval in :func:`optimizer.benching.stats.speedup`, asked one-sidedly: how many
bootstrap draws lie on the other side of the tolerance. Whole rounds are drawn, since calls within one depend on each
other (Davison and Hinkley, *Bootstrap Methods*, 1997, ch. 2 and 8). However far apart few rounds lie, they are few: no
p-value is smaller than 2⁻ⁿ for n rounds that measured both, that of a sign test on which all rounds agree, or than
1 / C(n + m, n) for n and m rounds of two runs, the least that a rank test can give (Mann and Whitney, *Ann. Math.
Stat.* 18, 1947).

Several cells are several chances to be wrong. Calling any of them REGRESSION is corrected by Holm's procedure (*Scand.
J. Statist.* 6, 1979, 65-70). PASS needs no correction: all of them must pass, and a test of a union of hypotheses by
the intersection of their tests keeps its level (Berger, *Technometrics* 24, 1982, 295-300). When rounds are added
while nothing is decided, every look spends an equal part of the error (Bonferroni over looks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.benching.gates import Outcome
from optimizer.benching.stats import bootstrapped, log_ratios

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ERROR", "Evidence", "apart", "decided", "evidence", "holm"]

#: One-sided error of a verdict: that of one end of a 95 % interval.
ERROR = 0.025
_DRAWS = 10_000


@dataclass(frozen=True)
class Evidence:
    """How much slower a candidate is than what it is held against, as a share: .05 is 5 % more time a call.

    Attributes:
        value: the estimate; negative when it is faster.
        low: lower end of the 95 % interval, the allowance in it; -1 where nothing is known.
        high: upper end; infinite where nothing is known.
        draws: bootstrap draws of the logarithm of the ratio of times; empty with fewer than three rounds.
        least: the smallest p-value that so few rounds can give.
        allowance: logarithm by which a slowdown must be beyond a limit, or within it, to be called so.
    """

    value: float
    low: float
    high: float
    draws: NDArray[np.float64]
    least: float
    allowance: float = 0.0

    @classmethod
    def of(cls, middle: float, draws: NDArray[np.float64], least: float, allowance: float = 0.0) -> Evidence:
        """From the logarithm of the ratio and the draws of it; see the attributes."""
        import numpy as np

        if not draws.size:
            return cls(math.expm1(middle), -1.0, math.inf, draws, least, allowance)
        low, high = (float(end) for end in np.percentile(draws, (2.5, 97.5)))
        return cls(
            math.expm1(middle), math.expm1(low - allowance), math.expm1(high + allowance), draws, least, allowance
        )

    def p_slower(self, limit: float) -> float:
        """The p-value of "it is slower by no more than ``limit``": small when it is slower than that."""
        return self._p(int((self.draws - self.allowance <= math.log1p(limit)).sum()))

    def p_within(self, limit: float) -> float:
        """The p-value of "it is slower by at least ``limit``": small when it is not."""
        return self._p(int((self.draws + self.allowance >= math.log1p(limit)).sum()))

    def _p(self, against: int) -> float:
        return max((against + 1) / (self.draws.size + 1), self.least) if self.draws.size else 1.0


def evidence(
    baseline: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], *, seed: int = 0, of_means: bool = False
) -> Evidence:
    """Evidence from rounds that measured both.

    Args:
        baseline: samples in nanoseconds, one sequence a round.
        candidate: the same rounds of the candidate.
        seed: of the drawing.
        of_means: compare the rounds' means, which throughput is made of, and not their medians.
    """
    import numpy as np

    logs = [-log for log in log_ratios(baseline, candidate, of_means=of_means)]
    middle, draws = bootstrapped(logs, seed, _DRAWS)
    return Evidence.of(middle, np.asarray(draws), 0.5 ** len(logs))


def apart(before: Sequence[float], after: Sequence[float], *, seed: int, allowance: float) -> Evidence:
    """Evidence from rounds of two runs, which were drawn independently of each other.

    Args:
        before: logarithm of speed, or of the speed-up to what both runs measured, of each round of the first run.
        after: the same of the second, which may have another number of rounds.
        seed: of the drawing.
        allowance: see :class:`Evidence`.
    """
    import numpy as np

    (middle, first), (other, second) = (
        bootstrapped(each, seed + place, _DRAWS) for place, each in enumerate((before, after))
    )
    draws = np.empty(0)
    if first and second:
        # Draws come sorted: one of them is shuffled, or the smallest would always meet the smallest.
        draws = np.asarray(np.asarray(first) - np.random.default_rng(seed).permutation(second))
    least = 1 / math.comb(len(before) + len(after), len(before))
    return Evidence.of(middle - other, draws, least, allowance)


def decided(is_slower: bool, is_within: bool, tolerance: str, advice: str) -> tuple[Outcome, str]:
    """What is known of one time, and the end of the sentence about it.

    Args:
        is_slower: it is known to be slower by more than is allowed.
        is_within: it is known not to be.
        tolerance: what is allowed, in words.
        advice: how more could be known, where neither is.
    """
    if is_slower:
        return Outcome.REGRESSION, f"where {tolerance} more is allowed"
    if is_within:
        return Outcome.PASS, f"within {tolerance}"
    return Outcome.INCONCLUSIVE, f"which does not tell whether it is within {tolerance}: {advice}"


def holm(p_values: Sequence[float], error: float) -> list[bool]:
    """Which hypotheses are rejected, so that any false rejection at all has at most this probability.

    Holm's step-down procedure: the smallest p-value is held against error / m, the next one against error / (m - 1), …,
    until the first that is not below.

    Args:
        p_values: of the hypotheses, however they depend on each other.
        error: probability of one or more false rejections.
    """
    rejected = [False] * len(p_values)
    for step, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] > error / (len(p_values) - step):
            break
        rejected[place] = True
    return rejected
