"""The verdict over candidates whose gates are known: the best that keeps every budget, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.search.gates import Gate, Outcome, misses, outcome_of

__all__ = ["Decision", "Standing", "decide"]


@dataclass(frozen=True)
class Standing:
    """One candidate before the verdict.

    Attributes:
        name: unique among them.
        gates: one a budget.
        cost: what the objective counts, lower is better; None when it could not be measured.
        error: why it was not measured to the end; empty when it was.
        skipped: it was never tried, for want of time.
        unjudged: why it did not answer every row though nothing spoke against it; empty when it did.
        tied: the plain export keeps every budget too, and this one is not known to be better.
    """

    name: str
    gates: tuple[Gate, ...] = ()
    cost: float | None = None
    error: str = ""
    skipped: bool = False
    unjudged: str = ""
    tied: bool = False


@dataclass(frozen=True)
class Decision:
    """The verdict.

    Attributes:
        verdict: PASS when something keeps every budget, FAIL when it is known that nothing does, else INCONCLUSIVE.
        best: the cheapest candidate that passes; empty without one.
        reasons: why each candidate won or lost.
        rows_needed: of an inconclusive verdict: about how many rows would settle it; None where no number would.
    """

    verdict: Outcome
    best: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    rows_needed: int | None = None


def decide(standings: Sequence[Standing], compared: Callable[[float, float], str]) -> Decision:
    """Choose the cheapest candidate whose bounds keep every budget.

    Args:
        standings: every candidate.
        compared: ``compared(cost, best cost)`` in words, for a candidate that passes and is not the cheapest.
    """
    whole = [s for s in standings if not s.error and not s.skipped and not s.unjudged]
    passing = [s for s in whole if outcome_of(s.gates) is Outcome.PASS and s.cost is not None]
    apart = [s for s in passing if not s.tied]
    best = min(apart, key=lambda s: s.cost or 0.0, default=None)
    open_ones = [s for s in whole if outcome_of(s.gates) is Outcome.INCONCLUSIVE]
    reasons = {s.name: _reason(s, best, compared) for s in standings}
    if best is not None:
        return Decision(Outcome.PASS, best.name, reasons)
    if not open_ones and not any(s.skipped or s.unjudged for s in standings):
        return Decision(Outcome.FAIL, "", reasons)
    return Decision(Outcome.INCONCLUSIVE, "", reasons, _rows_for_verdict(open_ones))


def _rows_for_verdict(open_ones: Sequence[Standing]) -> int | None:
    """Rows that would settle the verdict, if shares stay as they were seen; None when no number would.

    One candidate that comes to pass is enough for that, and nothing short of all of them coming to fail is.
    """
    hopeful = [s for s in open_ones if not any(misses(gate) for gate in s.gates)]
    needed = [_rows_needed(s) for s in hopeful or open_ones]
    known = [rows for rows in needed if rows is not None]
    if hopeful:
        return min(known, default=None)
    return max(known) if known and len(known) == len(needed) else None


def _rows_needed(standing: Standing) -> int | None:
    """Rows that would settle every open gate of a candidate; None when no number would."""
    needed = [gate.rows_needed for gate in standing.gates if gate.outcome is Outcome.INCONCLUSIVE]
    known = [rows for rows in needed if rows is not None]
    return max(known) if len(known) == len(needed) else None


def _reason(standing: Standing, best: Standing | None, compared: Callable[[float, float], str]) -> str:
    if standing.error or standing.skipped:
        return standing.error or "not tried: the time budget was spent"
    if standing.unjudged:
        return standing.unjudged
    outcome = outcome_of(standing.gates)
    if outcome is Outcome.PASS and standing.cost is not None:
        if best is None or standing is best:
            return "keeps every budget, and nothing that does is better"
        if standing.tied:
            return "keeps every budget, but is not known to be better than the plain export"
        assert best.cost is not None
        return f"keeps every budget, but {compared(standing.cost, best.cost)}"
    says = "; ".join(gate.says for gate in standing.gates if gate.outcome is outcome)
    if outcome is Outcome.INCONCLUSIVE:
        rows = _rows_needed(standing)
        says += f"; about {rows:,} rows would settle it" if rows else "; more rows alone may not settle it"
    return says
