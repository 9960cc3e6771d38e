"""Gates: what a benchmark is held to, and what is known of it. docs/benchmarks.md has the rules and their sources."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from optimizer.errors import BadInput
from optimizer.types import JSON

__all__ = ["Accuracy", "Floor", "Gate", "Limits", "Outcome", "exit_code_of", "share_of", "worst_of"]


class Outcome(StrEnum):
    """What is known of one gate, and of all of them together."""

    PASS = "PASS"
    REGRESSION = "REGRESSION"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Gate:
    """One limit that one candidate is held to.

    Attributes:
        name: ``slower``, ``worse``, ``larger``, ``nodes``, ``fused``, ``quantized``, ``fallback``, ``agreement``,
            ``cosine`` or ``measured``.
        about: the candidate's label.
        shape: where it is about a time; else empty.
        value: the estimate, in the unit of ``limit``: of ``slower`` and ``larger`` the share by which it is more than
            the baseline's (.05 is 5 %), of ``worse`` the drop of the metric, of the others a number by itself. None
            where nothing is known.
        low: lower end of its interval; None for what has no noise.
        high: upper end of it.
        limit: what it may be at most (of ``agreement`` and ``cosine`` at least).
        outcome: what is known.
        says: the same in words, for people.
    """

    name: str
    about: str
    outcome: Outcome
    says: str
    limit: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    shape: str = ""

    @property
    def title(self) -> str:
        """What names it in tables and in JUnit: ``slower at 8x128``."""
        return f"{self.name} at {self.shape}" if self.shape else self.name

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "outcome": self.outcome.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gate:
        return cls(**{**data, "outcome": Outcome(data["outcome"])})


@dataclass(frozen=True)
class Floor:
    """The noise floor at one shape: what comes out when a candidate is compared with itself.

    Attributes:
        shape: where.
        about: label of the candidate whose twin was timed.
        value: the ratio of the two, which is 1 but for noise.
        low: lower end of its interval; None where too few rounds say nothing of it.
        high: upper end.
        share: the smallest slowdown that can be told from noise here, .03 for 3 %: the farther end of the interval.
        rounds_ns: every sample of the twin, nanoseconds, one list a round.
    """

    shape: str
    about: str
    value: float
    low: float | None
    high: float | None
    share: float | None
    rounds_ns: list[list[int]] = field(default_factory=list)

    @property
    def interval(self) -> str:
        """Of the ratio, in words."""
        return "not known" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"

    @property
    def below(self) -> str:
        """The slowdown that cannot be told from noise, in words."""
        return "unknown" if self.share is None else f"{self.share:.1%}"

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Floor:
        return cls(**data)


@dataclass(frozen=True)
class Accuracy:
    """How right a candidate is on labelled rows.

    Attributes:
        metric: its name, ``accuracy``.
        value: of this candidate.
        rows: how many were answered.
        drop: how much less than the baseline's, positive when worse; None for the baseline itself.
        low: lower bound of the drop.
        high: upper bound of it.
    """

    metric: str
    value: float
    rows: int
    drop: float | None = None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Accuracy:
        return cls(**data)


@dataclass(frozen=True)
class Limits:
    """What candidates are held to; None where nothing is asked.

    Attributes:
        slower: share by which a call may take longer than the baseline's: .05 is 5 %.
        worse: how much of the metric may be lost: .005 is half a point.
        larger: share by which graph and weights may be larger than the baseline's.
        degraded: whether the graph may not have more nodes, fewer fused or quantized ones, or more that fell back.
        min_agreement: smallest share of decisions that are the baseline's.
        min_cosine: smallest cosine to the baseline's answer, of any row.
    """

    slower: float | None = None
    worse: float | None = None
    larger: float | None = None
    degraded: bool = False
    min_agreement: float | None = None
    min_cosine: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return any(value is not None and value is not False for value in vars(self).values())

    def to_json(self) -> dict[str, JSON]:
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


def share_of(text: str | None, flag: str, unit: str, example: str) -> float | None:
    """``5%`` or ``0.5pt`` as a share: .05, .005.

    Args:
        text: what was typed; None where nothing was.
        flag: what it was typed behind.
        unit: ``%`` or ``pt``, both hundredths; a bare number could mean either of two things, and is refused.
        example: that a message may show.

    Raises:
        BadInput: it is no such number, or a negative one.
    """
    if text is None:
        return None
    number = text.strip().removesuffix(unit).strip()
    try:
        value = float(number) if text.strip().endswith(unit) else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise BadInput(f"{flag} {text!r} is no number of {unit}", f"write {flag} {example}")
    return value / 100


def worst_of(gates: Iterable[Gate]) -> Outcome | None:
    """The verdict over all gates: REGRESSION when one is, else INCONCLUSIVE when one is; None without gates."""
    found = {gate.outcome for gate in gates}
    for outcome in (Outcome.REGRESSION, Outcome.INCONCLUSIVE, Outcome.PASS):
        if outcome in found:
            return outcome
    return None


def exit_code_of(outcome: Outcome | None) -> int:
    """0 when every gate held or there is none, 1 for a regression, 3 when nothing can be said."""
    return {None: 0, Outcome.PASS: 0, Outcome.REGRESSION: 1, Outcome.INCONCLUSIVE: 3}[outcome]
