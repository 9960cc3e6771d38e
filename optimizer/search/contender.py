"""Who takes part in the contest, what is learnt of each, and by which rules it is decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from optimizer.benching.candidates import Entrant, file_bytes
from optimizer.benching.gemm import ARITHMETICS
from optimizer.benching.measure import Plan
from optimizer.benching.report import Row
from optimizer.benching.roofline import roofline_s
from optimizer.errors import GateFailed
from optimizer.search.accuracy import Answers, Measures
from optimizer.search.gates import Gate
from optimizer.task import FIDELITY, Metric
from optimizer.types import JSON

__all__ = ["Contender", "Rules", "Scored"]

#: What timing one candidate takes beside the seconds asked for: its warm-up, and the overrun of small samples.
_WARM_S = 3.0
_OVERRUN = 1.5
#: The quick timing, which only sorts candidates, takes this share of the time of the one that counts.
_QUICK = 4


class Scored(Protocol):
    """What is known of the answers to rows that were seen, one by one."""

    def rows(self, own: bool = False) -> dict[str, JSON]:
        """For a report: of each row, every number by which it was judged; ``own`` for the original itself."""

    def measures(self, rules: Rules, whole: bool) -> Measures:
        """What they come to together; bounds only where every row was answered."""


@dataclass(frozen=True)
class Rules:
    """What decides.

    Attributes:
        objective: ``latency``, ``throughput`` or ``size``.
        plan: how candidates are timed; its first shape is the objective's.
        metric: how right answers are; None when fidelity is judged, or what ``judged_by`` says.
        max_drop: budgets; None where nothing is asked.
        min_agreement: see ``max_drop``.
        min_cosine: see ``max_drop``.
        confidence: of the verdict; each candidate's bounds hold with more, see docs/verdict.md.
        budget_s: seconds for everything; None for as long as it takes.
        started: when those began, by ``time.monotonic``.
        judged_by: the name of what is judged where there is no metric of rows.
    """

    objective: str
    plan: Plan
    metric: Metric | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    confidence: float = 0.95
    budget_s: float | None = None
    started: float = field(default_factory=time.monotonic)
    judged_by: str = FIDELITY

    @property
    def metric_name(self) -> str:
        """What a report says that was judged."""
        return self.metric.name if self.metric else self.judged_by

    def budgets(self) -> dict[str, JSON]:
        """The budgets that were given."""
        named = {"max_drop": self.max_drop, "min_agreement": self.min_agreement, "min_cosine": self.min_cosine}
        return {name: value for name, value in named.items() if value is not None}

    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.budget_s is None else self.budget_s - (time.monotonic() - self.started)

    def timing_s(self, lanes: int, call_s: float = 0.0) -> float:
        """About how long it takes to time so many candidates, quickly and at length, if a call takes ``call_s``.

        With this machine's peaks, of which there is no more than one a candidate and one an arithmetic.
        """
        quickly = self._lane_s(self.quick, call_s, _WARM_S / _QUICK)
        roofs = roofline_s(min(lanes, len(ARITHMETICS))) if self.plan.roofline else 0.0
        return lanes * (quickly + len(self.plan.shapes) * self._lane_s(self.plan, call_s, _WARM_S)) + roofs

    @staticmethod
    def _lane_s(plan: Plan, call_s: float, warm_s: float) -> float:
        return max(plan.seconds, plan.samples * call_s) * _OVERRUN + warm_s

    @property
    def quick(self) -> Plan:
        """The plan of the timing that only sorts candidates: three rounds, the fewest that have an interval."""
        plan = self.plan
        return replace(
            plan,
            shapes=plan.shapes[:1],
            rounds=3,
            seconds=plan.seconds / _QUICK,
            samples=max(3, 3 * plan.samples // plan.rounds),
            warm_limit_s=plan.warm_limit_s / _QUICK,
            roofline=False,
        )


@dataclass
class Contender:
    """One candidate, and what is learnt of it.

    Attributes:
        name: unique among them.
        make: builds it; may raise :class:`CandidateFailed` or :class:`MlOptError`.
        family: those that differ only in how they were calibrated; empty for one that stands alone.
        asked: the precision that products are to run in, where that can be told from what ran; else empty.
        plain: it is the export itself, which is kept where nothing is known to be better.
        entrant: what was built.
        is_original: what was built is the very thing that everything is compared with.
        parts: its answers, look by look.
        runs: what its products ran in at its first look; None where nobody can say.
        seen: rows that it answered.
        places: which rows those were, ascending; empty for all of them.
        scores: of those rows, one by one, in that order.
        gates: one a budget, over those rows.
        cut: a look before the last showed that it misses a budget.
        quick: its line in the timing that sorts candidates.
        row: its line in the timing that counts, or else in the quick one.
        unjudged: why it did not answer every row though nothing spoke against it.
        error: why it is out; empty while it is not.
        hint: what to do about that.
        skipped: it was not tried, for want of time.
        seconds: that making it and answering took.
    """

    name: str
    make: Callable[[], Entrant]
    family: str = ""
    asked: str = ""
    plain: bool = False
    entrant: Entrant | None = None
    is_original: bool = False
    parts: list[Answers] = field(default_factory=list)
    runs: Mapping[str, JSON] | None = None
    seen: int = 0
    places: tuple[int, ...] = ()
    scores: Scored | None = None
    gates: tuple[Gate, ...] = ()
    cut: bool = False
    quick: Row | None = None
    row: Row | None = None
    unjudged: str = ""
    error: str = ""
    hint: str = ""
    skipped: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def check_runs(self) -> None:
        """Hold what ran to what was asked: quantizers, files and providers may all say int8 while kernels multiply in
        float.

        Raises:
            GateFailed: not one product ran in the precision that was asked for.
        """
        if not self.asked or self.runs is None:
            return
        ran = {name: count for name, count in self.runs.items() if name != "fell_back"}
        if ran and not any(name.partition("-")[0] == self.asked for name in ran):
            said = ", ".join(f"{count} in {name}" for name, count in ran.items())
            raise GateFailed(
                f"asked for {self.asked} and got none: of its {sum(ran.values())} products {said}",
                "its provider has no kernel for this form: try another provider",
            )

    @cached_property
    def bytes(self) -> int:
        """Size of what was built: graph and weights."""
        if self.entrant is None:
            raise ValueError(f"{self.name} was not built")
        return file_bytes(self.entrant)

    @property
    def standing(self) -> bool:
        """Nothing is known that puts it out."""
        return not self.error and not self.skipped and not self.cut
