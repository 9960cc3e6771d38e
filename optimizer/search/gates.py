"""Gates: what the rows that were seen say about all rows like them. docs/verdict.md explains the arithmetic.

Sources:

- Drop in accuracy: the score interval for a difference of paired proportions, Tango, *Statistics in Medicine* 17
  (1998) 891-908; at a difference of 0 its test is McNemar's. Newcombe compares it with nine others in the same volume,
  2635-2650.
- Agreement: the score interval of Wilson, *J. Am. Stat. Assoc.* 22 (1927) 209-212.
- Worst cosine: the distribution-free tolerance limit of Wilks, *Ann. Math. Stat.* 12 (1941) 91-96.
- Rows needed: for paired proportions Nam, *Biometrics* 53 (1997) 1422-1430, and for one proportion Fleiss, Levin and
  Paik, *Statistical Methods for Rates and Proportions* (2003), chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from optimizer.types import JSON

__all__ = [
    "POWER",
    "RISE",
    "Bounded",
    "Gate",
    "Outcome",
    "agreement_gate",
    "cosine_gate",
    "drop_gate",
    "drop_outcome",
    "drop_says",
    "is_drop",
    "misses",
    "outcome_of",
    "paired_drop",
    "same_gate",
    "share",
]

#: Chance that the rows which an inconclusive gate asks for do settle it, if shares stay as they were seen.
POWER = 0.8
#: How a gate's name ends whose metric is the better the lower it is: a share of the original's.
RISE = " rise"
#: Share of rows that must be known to reach ``--min-cosine`` when the worst row that was seen does.
_COVERED = 0.95


class Outcome(StrEnum):
    """What can be said of a gate, of a candidate, and in the end of the whole search."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Bounded:
    """An estimate with two one-sided bounds, each of which holds with the confidence that was asked for."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gate:
    """One budget and how a candidate stands to it.

    Attributes:
        name: ``accuracy drop`` (or that of another metric), ``perplexity rise``, ``agreement`` or ``worst cosine``.
        value: the estimate.
        low: lower bound.
        high: upper bound.
        limit: the budget.
        outcome: PASS when the bound keeps the budget, FAIL when the bound on the other side shows that it does not.
        says: the same in words.
        rows_needed: of an inconclusive gate: about how many rows would settle it; None where no number would.
    """

    name: str
    value: float
    low: float
    high: float
    limit: float
    outcome: Outcome
    says: str
    rows_needed: int | None = None

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "outcome": self.outcome.value}


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(confidence)


def paired_drop(lost: int, won: int, rows: int, confidence: float = 0.95) -> Bounded:
    """How much less often a candidate is right than the original, over the same rows.

    Args:
        lost: rows that the original has right and the candidate wrong.
        won: rows that the candidate has right and the original wrong.
        rows: all rows.
        confidence: of each bound.

    Returns:
        (lost - won) / rows, positive when the candidate is worse, with Tango's score bounds.
    """
    if not 0 <= lost + won <= rows or rows < 1 or min(lost, won) < 0:
        raise ValueError(f"{lost} lost and {won} won of {rows} rows")
    z = _z(confidence)
    return Bounded((lost - won) / rows, -_highest(won, lost, rows, z), _highest(lost, won, rows, z))


def _highest(lost: int, won: int, rows: int, z: float) -> float:
    """The largest drop that the score test does not reject: the root of the falling function ``score + z``."""
    low, high = (lost - won) / rows, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(lost, won, rows, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _score(lost: int, won: int, rows: int, drop: float) -> float:
    """Tango's statistic of the hypothesis that the true drop is ``drop``: standard normal when it is."""
    variance = rows * _variance(lost / rows, won / rows, drop)
    distance = lost - won - rows * drop
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def _variance(lost: float, won: float, drop: float) -> float:
    """Of one row's difference, if the true drop is ``drop`` and these shares of rows were seen lost and won."""
    b = (2 - lost + won) * drop - lost - won
    c = -won * drop * (1 - drop)
    # The likeliest share of rows that are won under the hypothesis; those that are lost are ``drop`` more.
    likeliest = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
    return max(2 * likeliest + drop * (1 - drop), 0.0)


def share(successes: float, rows: int, confidence: float = 0.95) -> Bounded:
    """A share with Wilson's score bounds.

    ``successes`` may be a sum of shares (tokens of a row that agree): numbers between 0 and 1 vary no more than zeros
    and ones of the same mean, so that the bounds are then wider than they need be, never narrower.
    """
    if rows < 1 or not 0 <= successes <= rows:
        raise ValueError(f"{successes} of {rows} rows")
    z = _z(confidence)
    value = successes / rows
    middle = (value + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(value * (1 - value) / rows + z * z / (4 * rows * rows))
    return Bounded(value, max(0.0, middle - half), min(1.0, middle + half))


def drop_gate(
    original: Sequence[float],
    candidate: Sequence[float],
    max_drop: float,
    confidence: float = 0.95,
    metric: str = "accuracy",
) -> Gate:
    """Whether a metric of right rows falls by no more than ``max_drop``; both hold 1 (right) or 0 (wrong) a row."""
    pairs = list(zip(original, candidate, strict=True))
    lost, won = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    rows = len(pairs)
    found = paired_drop(lost, won, rows, confidence)
    outcome = drop_outcome(found, max_drop)
    needed = None
    if outcome is Outcome.INCONCLUSIVE:
        needed = _rows_for_drop(lost / rows, won / rows, max_drop, confidence)
    says = drop_says(metric, found, max_drop, confidence, outcome)
    return Gate(f"{metric} drop", found.value, found.low, found.high, max_drop, outcome, says, needed)


def drop_outcome(found: Bounded, max_drop: float) -> Outcome:
    """PASS when no more can be lost than is allowed, FAIL when more must be."""
    if found.high <= max_drop:
        return Outcome.PASS
    if found.low > max_drop:
        return Outcome.FAIL
    return Outcome.INCONCLUSIVE


def drop_says(metric: str, found: Bounded, max_drop: float, confidence: float, outcome: Outcome) -> str:
    """The same in words."""
    bound = f"at least {_points(found.low)}" if outcome is Outcome.FAIL else f"at most {_points(found.high)}"
    return (
        f"{metric} falls by {_points(found.value)} points, {bound} with {confidence:.0%} confidence; "
        f"{_points(max_drop)} are allowed"
    )


def is_drop(name: str) -> bool:
    """Whether a gate of this name is about what may be lost: low is good, and the original itself has 0."""
    return name.endswith((" drop", RISE))


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def _rows_for_drop(lost: float, won: float, limit: float, confidence: float) -> int | None:
    """Nam's formula; with no row lost or won it comes down to z² (1 - limit) / limit."""
    drop = lost - won
    if drop == limit:
        return None
    supposed, seen = _variance(lost, won, limit), lost + won - drop * drop
    spread = _z(confidence) * math.sqrt(supposed) + _z(POWER) * math.sqrt(max(seen, 0.0))
    return math.ceil((spread / (limit - drop)) ** 2)


def agreement_gate(same: Sequence[float], least: float, confidence: float = 0.95) -> Gate:
    """Whether decisions are the original's in at least this share of rows."""
    rows = len(same)
    found = share(min(float(sum(same)), rows), rows, confidence)
    outcome, needed = Outcome.INCONCLUSIVE, None
    if found.low >= least:
        outcome = Outcome.PASS
    elif found.high < least:
        outcome = Outcome.FAIL
    else:
        needed = _rows_for_share(found.value, least, confidence)
    bound = f"at most {found.high:.2%}" if outcome is Outcome.FAIL else f"at least {found.low:.2%}"
    says = (
        f"{found.value:.2%} of decisions are the original's, {bound} with {confidence:.0%} confidence; "
        f"{least:.2%} are asked for"
    )
    return Gate("agreement", found.value, found.low, found.high, least, outcome, says, needed)


def _rows_for_share(value: float, limit: float, confidence: float) -> int | None:
    if value == limit:
        return None
    spread = _z(confidence) * math.sqrt(limit * (1 - limit)) + _z(POWER) * math.sqrt(value * (1 - value))
    return math.ceil((spread / (value - limit)) ** 2) or None


def cosine_gate(cosines: Sequence[float], least: float, confidence: float = 0.95) -> Gate:
    """Whether every row's answer points where the original's does.

    One row below is a proof that it does not. None below is one that 95 % of all rows like these reach it, with the
    confidence asked for, once there are enough of them (59 for 95 %): the smallest of n rows lies below the 5 %
    quantile with probability 1 - 0.95ⁿ.
    """
    worst = min(cosines)
    needed = math.ceil(math.log(1 - confidence) / math.log(_COVERED))
    if worst < least:
        outcome = Outcome.FAIL
        below = sum(c < least for c in cosines)
        says = f"worst cosine {worst:.5f}, {below} of {len(cosines)} rows below {least:g}"
    elif len(cosines) >= needed:
        outcome = Outcome.PASS
        says = f"worst cosine {worst:.5f} of {len(cosines)} rows; {least:g} is asked for"
    else:
        outcome = Outcome.INCONCLUSIVE
        says = f"worst cosine {worst:.5f} of only {len(cosines)} rows; {least:g} is asked for"
    rows_needed = needed if outcome is Outcome.INCONCLUSIVE else None
    # What was seen is the upper bound of the worst there is; below it lies whatever was not seen.
    return Gate("worst cosine", worst, -1.0, worst, least, outcome, says, rows_needed)


def misses(gate: Gate) -> bool:
    """Whether the estimate itself, without regard to its bounds, lies beyond the budget."""
    return gate.value > gate.limit if is_drop(gate.name) else gate.value < gate.limit


def same_gate(name: str, limit: float) -> Gate:
    """The gate of a candidate that *is* the original: nothing to estimate."""
    value = 0.0 if is_drop(name) else 1.0
    return Gate(name, value, value, value, limit, Outcome.PASS, "it is the original itself")


def outcome_of(gates: Sequence[Gate]) -> Outcome:
    """A candidate fails by one gate that fails, and passes by all that pass."""
    outcomes = {gate.outcome for gate in gates}
    for each in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        if each in outcomes:
            return each
    return Outcome.PASS
