"""Gates over documents: how far perplexity rises, and how often the likeliest token is the original's.

Tokens of one document are not independent of each other, so that documents are what is drawn again and again, the same
for both (:func:`~optimizer.evaluate.generation.paired_ratio`). What the bounds of a few documents would promise too
much by, is taken back by Student's distribution (*Biometrika* 6, 1908, 1-25) in place of the normal one; its
probabilities for whole degrees of freedom are those of Abramowitz and Stegun, *Handbook of Mathematical Functions*,
26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from optimizer.evaluate.generation import Score, paired_ratio
from optimizer.resampling import draws_for, exponential_weights
from optimizer.search.gates import POWER, RISE, Bounded, Gate, Outcome, drop_outcome

__all__ = ["FEWEST", "PERPLEXITY", "agreement", "agreement_gate", "perplexity_of", "rise", "rise_gate", "student"]

#: What is judged, as ``--metric`` has it.
PERPLEXITY = "perplexity"
#: Of fewer documents nothing is known of how they differ.
FEWEST = 3
#: Of a number that has an exponential.
_HIGHEST = 700.0


def student(confidence: float, degrees: int) -> float:
    """The quantile of Student's distribution: below it lies ``confidence`` of it.

    Args:
        confidence: .5 to below 1.
        degrees: of freedom, 1 or more.
    """
    low, high = 0.0, 1.0
    while _below(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, degrees) < confidence else (low, middle)
    return high


def _below(t: float, degrees: int) -> float:
    """The probability of less than ``t``, which is not negative: half of 1 + A(t | degrees)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for place in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (place - 1) / place
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + inside) / 2


def _wider(confidence: float, count: int) -> float:
    """How many times wider bounds of so many documents are than the normal distribution has them."""
    return student(confidence, count - 1) / NormalDist().inv_cdf(confidence)


def rise(documents: Sequence[Score], confidence: float, seed: int = 0) -> Bounded:
    """By what share the candidate's perplexity is higher than the original's, with its bounds.

    Args:
        documents: scored by both, three at least.
        confidence: of each bound.
        seed: of the draws; the same for every candidate.
    """
    if len(documents) < FEWEST:
        raise ValueError(f"{len(documents)} documents")
    found = paired_ratio(documents, confidence, seed)
    wider = _wider(confidence, len(documents))
    middle = math.log(found.value)
    low, high = (middle + wider * (math.log(bound) - middle) for bound in (found.low, found.high))
    return Bounded(found.value - 1, math.expm1(low), math.expm1(min(high, _HIGHEST)))


def rise_gate(documents: Sequence[Score], limit: float, confidence: float, seed: int = 0) -> Gate:
    """Whether perplexity rises by no more than ``limit``: .02 for 2 %."""
    found = rise(documents, confidence, seed)
    outcome = drop_outcome(found, limit)
    bound = f"at least {found.low:.2%}" if outcome is Outcome.FAIL else f"at most {found.high:.2%}"
    says = (
        f"perplexity rises by {found.value:.2%}, {bound} with {_percent(confidence)} confidence; "
        f"{limit:.2%} are allowed"
    )
    needed = None
    if outcome is Outcome.INCONCLUSIVE:
        needed = _documents_needed(found, limit, len(documents), confidence)
    return Gate(PERPLEXITY + RISE, found.value, found.low, found.high, limit, outcome, says, needed)


def _percent(confidence: float) -> str:
    """``99.38%``: shared among rivals, it is no whole number."""
    return f"{100 * confidence:.4g}%"


def _documents_needed(found: Bounded, limit: float, count: int, confidence: float) -> int | None:
    """About how many would settle it, if the estimate stays and the bounds shrink like 1/√documents."""
    room = math.log1p(limit) - math.log1p(found.value)
    if room == 0:
        return None
    reach = abs(math.log1p(found.high if room > 0 else found.low) - math.log1p(found.value))
    z = NormalDist().inv_cdf(confidence)
    times = (1 + NormalDist().inv_cdf(POWER) / z) * reach / abs(room)
    return max(count + 1, math.ceil(count * times * times))


def perplexity_of(documents: Sequence[Score], confidence: float, seed: int = 0) -> Bounded:
    """The candidate's perplexity by itself, with its bounds."""
    alone = [Score(each.name, each.tokens, 0.0, each.candidate) for each in documents]
    found = rise(alone, confidence, seed)
    return Bounded(found.value + 1, found.low + 1, found.high + 1)


def agreement(documents: Sequence[Score], confidence: float, seed: int = 0) -> Bounded:
    """Share of tokens where both find the same one likeliest, with bounds over documents, as those of :func:`rise`."""
    import numpy as np

    same = np.array([each.same for each in documents], np.float64)
    tokens = np.array([each.tokens for each in documents], np.float64)
    value, count = float(same.sum() / tokens.sum()), len(documents)
    weights = exponential_weights(np.ones(count, np.int64), draws_for(confidence), seed)
    drawn = np.concatenate([(each @ same) / (each @ tokens) for each in weights])
    low, high = np.quantile(drawn, (1 - confidence, confidence)) - value
    wider = math.sqrt((count + 1) / (count - 1)) * _wider(confidence, count)
    return Bounded(
        value, max(0.0, value + wider * min(0.0, float(low))), min(1.0, value + wider * max(0.0, float(high)))
    )


def agreement_gate(documents: Sequence[Score], least: float, confidence: float, seed: int = 0) -> Gate:
    """Whether the likeliest token is the original's in at least this share of tokens."""
    found = agreement(documents, confidence, seed)
    outcome = Outcome.INCONCLUSIVE
    if found.low >= least:
        outcome = Outcome.PASS
    elif found.high < least:
        outcome = Outcome.FAIL
    bound = f"at most {found.high:.2%}" if outcome is Outcome.FAIL else f"at least {found.low:.2%}"
    says = (
        f"the likeliest token is the original's in {found.value:.2%}, {bound} with {_percent(confidence)} confidence; "
        f"{least:.2%} are asked for"
    )
    needed = None
    if outcome is Outcome.INCONCLUSIVE and found.value != least:
        reach = found.value - found.low if found.value > least else found.high - found.value
        times = (1 + NormalDist().inv_cdf(POWER) / NormalDist().inv_cdf(confidence)) * reach
        needed = max(len(documents) + 1, math.ceil(len(documents) * (times / (found.value - least)) ** 2))
    return Gate("agreement", found.value, found.low, found.high, least, outcome, says, needed)
