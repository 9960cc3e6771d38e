"""The contest: a first look at every candidate, a quick timing of those that are left, all rows for as few of them as
will do, and a precise timing of those that pass. docs/verdict.md says why that is sound.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.benching.candidates import Entrant
from optimizer.benching.report import BenchReport, Row
from optimizer.evalset import EvalSet
from optimizer.search import timing
from optimizer.search.contender import Contender, Rules, Scored
from optimizer.search.gates import Outcome, outcome_of
from optimizer.search.judge import Judge, Judging
from optimizer.search.race import Escalate, Race, too_small
from optimizer.search.verdict import Decision, Standing, decide
from optimizer.stage import Progress
from optimizer.types import JSON

__all__ = ["Contender", "Contest", "Rules", "contested", "hold"]


@dataclass(frozen=True)
class Contest:
    """What it came to.

    Attributes:
        contenders: every candidate.
        original: the original's own scores.
        bench: the timing that counts, every sample in it.
        quick: the timing that sorted candidates; None where there was nothing to sort.
        decision: the verdict.
        yardstick: the line of what was timed beside the winner, and not judged; None where nothing was.
        rivals: candidates that the confidence of the verdict was shared among.
        seconds: where the time went: ``make``, ``answer`` and ``time``.
        winner_s: how much of it making, judging and timing the winner alone took; None without a winner.
        held_back: by family: why what was left of ``escalate`` and ``resort`` was not tried though none of its members
            keeps the budgets.
    """

    contenders: tuple[Contender, ...]
    original: Scored
    bench: BenchReport
    quick: BenchReport | None
    decision: Decision
    yardstick: Row | None
    rivals: int
    seconds: Mapping[str, float]
    winner_s: float | None = None
    held_back: Mapping[str, str] = field(default_factory=dict)


def hold(
    original: Entrant,
    contenders: Sequence[Contender],
    rows: EvalSet,
    model: Mapping[str, JSON],
    rules: Rules,
    progress: Progress,
    escalate: Mapping[str, Escalate] | None = None,
    yardstick: Entrant | None = None,
    resort: Mapping[str, Escalate] | None = None,
) -> Contest:
    """Judge candidates against the original until it is known which is best.

    A candidate that cannot be made, dies, hangs or answers NaN is out, with its reason, and the others go on.

    Args:
        original: what everything is compared with.
        contenders: in the order in which they are tried while there is time.
        rows: what they answer.
        model: the manifest's ``model``.
        rules: what decides.
        progress: told of every step.
        escalate: by family: what may be tried next while none of its members keeps the budgets.
        yardstick: timed beside those that pass, to say what was not asked for; it cannot win.
        resort: as ``escalate``, when that has nothing left for any family.

    Raises:
        BadInput: the original itself cannot answer, or the time budget is too small for one candidate.
    """

    def judge(scratch: Path) -> Judge:
        return Judge(original, rows, model, rules, scratch, progress)

    return contested(judge, contenders, rules, progress, escalate, yardstick, resort)


def contested(
    judging: Callable[[Path], Judging],
    contenders: Sequence[Contender],
    rules: Rules,
    progress: Progress,
    escalate: Mapping[str, Escalate] | None = None,
    yardstick: Entrant | None = None,
    resort: Mapping[str, Escalate] | None = None,
) -> Contest:
    """As :func:`hold`, whoever judges: ``judging(scratch)`` makes what has the original's answers."""
    least = rules.timing_s(2)
    if rules.budget_s is not None and rules.left() < least:
        raise too_small(rules, least)
    with tempfile.TemporaryDirectory(prefix="ml-opt-optimize-") as name:
        judge = judging(Path(name))
        race = Race(judge, rules, progress, escalate or {}, resort or {})
        race.run(contenders)
    found, rivals = race.tried, race.rivals
    began = time.monotonic()
    passing = [c for c in rivals if c.standing and outcome_of(c.gates) is Outcome.PASS and not c.unjudged]
    report = race.quick
    if passing or report is None:
        left = passing or [c for c in rivals if c.standing]
        report = timing.timed(judge.original, left, rules.plan, progress, yardstick if passing else None)
    final_s = time.monotonic() - began
    plain = next((c for c in passing if c.plain and c.standing), None)
    decision = decide(
        # Only what was timed beside it in the same rounds can be held against the plain export.
        [_standing(c, plain if any(c is each for each in passing) else None, rules.objective) for c in found],
        lambda cost, best: timing.compared(cost / best, rules.objective),
    )
    seconds = {
        "make": sum(c.seconds.get("make", 0.0) for c in found),
        "answer": judge.seconds + sum(c.seconds.get("answer", 0.0) for c in found),
        "time": race.timing_s + final_s,
    }
    best = next((c for c in found if c.name == decision.best), None)
    beside = next((row for row in report.rows if yardstick and row.label == yardstick.label and not row.error), None)
    winner_s = None
    if best is not None:
        winner_s = judge.seconds + sum(best.seconds.values()) + final_s * min(1.0, 2 / len(report.rows))
    return Contest(
        tuple(found),
        judge.known,
        report,
        race.quick,
        decision,
        beside,
        race.sharing,
        seconds,
        winner_s,
        race.held_back,
    )


def _standing(contender: Contender, plain: Contender | None, objective: str) -> Standing:
    tied = plain is not None and contender is not plain and not timing.is_better(contender, plain, objective)
    cost = timing.cost(contender.row, objective)
    return Standing(
        contender.name, contender.gates, cost, contender.error, contender.skipped, contender.unjudged, tied
    )  # fmt: skip
