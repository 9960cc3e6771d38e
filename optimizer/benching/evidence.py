"""What interleaved rounds say for and against "slower by more than the tolerance".

The tests are those of the interval in :func:`optimizer.benching.stats.speedup`, asked one-sidedly: how many
bootstrap draws lie on the other side of the tolerance. Whole rounds are drawn, since calls within one depend on each
other (Davison and Hinkley, *Bootstrap Methods*, 1997, ch. 2 and 8). No p-value is smaller than 2⁻ⁿ for n rounds, that
of a sign test on which all rounds agree: however far apart few rounds lie, they are few.

Several cells are several chances to be wrong. Calling any of them REGRESSION is corrected by Holm's procedure (*Scand.
J. Statist.* 6, 1979, 65-70). PASS needs no correction: all of them must pass, and a test of a union of hypotheses by
the intersection of their tests keeps its level (Berger, *Technometrics* 24, 1982, 295-300). When rounds are added
while nothing is decided, every look spends an equal part of the error (Bonferroni over looks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.benching.stats import bootstrapped, log_ratios

__all__ = ["ERROR", "Evidence", "evidence", "holm"]

#: One-sided error of a verdict: that of one end of a 95 % interval.
ERROR = 0.025
_DRAWS = 10_000


@dataclass(frozen=True)
class Evidence:
    """How much slower a candidate is than the baseline, as a share: .05 is 5 % more time a call.

    Attributes:
        value: the estimate; negative when it is faster.
        low: lower end of the 95 % interval.
        high: upper end.
        rounds: how many rounds it stands on.
        draws: bootstrap draws of the logarithm of the ratio of times, ascending; empty with fewer than three rounds.
    """

    value: float
    low: float
    high: float
    rounds: int
    draws: tuple[float, ...]

    def p_slower(self, limit: float) -> float:
        """The p-value of "it is slower by no more than ``limit``": small when it is slower than that."""
        return self._p(sum(draw <= math.log1p(limit) for draw in self.draws))

    def p_within(self, limit: float) -> float:
        """The p-value of "it is slower by at least ``limit``": small when it is not."""
        return self._p(sum(draw >= math.log1p(limit) for draw in self.draws))

    def _p(self, against: int) -> float:
        if not self.draws:
            return 1.0
        return max((against + 1) / (len(self.draws) + 1), 0.5**self.rounds)


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
    logs = [-log for log in log_ratios(baseline, candidate, of_means=of_means)]
    middle, draws = bootstrapped(logs, seed, _DRAWS)
    if not draws:
        return Evidence(math.expm1(middle), -1.0, math.inf, len(logs), ())
    low, high = draws[round(0.025 * (_DRAWS - 1))], draws[round(0.975 * (_DRAWS - 1))]
    return Evidence(math.expm1(middle), math.expm1(low), math.expm1(high), len(logs), tuple(draws))


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
