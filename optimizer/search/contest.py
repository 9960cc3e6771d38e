"""The contest: a first look at every candidate, a quick timing of those that are left, all rows for as few of them as
will do, and a precise timing of those that pass. docs/verdict.md says why that is sound.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.benching.candidates import Entrant, file_bytes
from optimizer.benching.measure import Plan
from optimizer.benching.process import CandidateFailed
from optimizer.benching.report import BenchReport, Row
from optimizer.benching.run import bench
from optimizer.benching.stats import Ratio, speedup
from optimizer.benching.workload import Workload
from optimizer.data.batching import Batching, budgets
from optimizer.errors import BadInput, MlOptError
from optimizer.search.accuracy import Scores
from optimizer.search.contender import Contender, Rules
from optimizer.search.evalset import EvalSet
from optimizer.search.judge import Judge
from optimizer.search.verdict import Decision, Outcome, Standing, decide, misses, outcome_of
from optimizer.stage import Progress
from optimizer.types import JSON

__all__ = ["Contender", "Contest", "Rules", "hold", "ratio_of"]

#: ``escalate(tried members)``: the next, milder member of a family of which none keeps the budgets so far, or None.
Escalate = Callable[[Sequence[Contender]], Contender | None]


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
    """

    contenders: tuple[Contender, ...]
    original: Scores
    bench: BenchReport
    quick: BenchReport | None
    decision: Decision
    yardstick: Row | None
    rivals: int
    seconds: Mapping[str, float]
    winner_s: float | None = None


def hold(
    original: Entrant,
    contenders: Sequence[Contender],
    rows: EvalSet,
    model: Mapping[str, JSON],
    rules: Rules,
    progress: Progress,
    escalate: Mapping[str, Escalate] | None = None,
    yardstick: Entrant | None = None,
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
        escalate: by family: what is tried next while none of its members keeps the budgets at first look.
        yardstick: timed beside those that pass, to say what was not asked for; it cannot win.

    Raises:
        BadInput: the original itself cannot answer, or the time budget is too small for one candidate.
    """
    least = rules.timing_s(2)
    if rules.budget_s is not None and rules.left() < least:
        raise _too_small(rules, least)
    with tempfile.TemporaryDirectory(prefix="ml-opt-optimize-") as name:
        judge = Judge(original, rows, model, rules, Path(name), progress)
        found = _first_looks(list(contenders), judge, rules, progress, escalate or {})
        rivals = [c for c in found if c.standing]
        began = time.monotonic()
        quick = _quickly(original, rivals, rules, progress)
        timing_s = time.monotonic() - began
        _all_rows(rivals, judge, rules)
    began = time.monotonic()
    passing = [c for c in rivals if c.standing and outcome_of(c.gates) is Outcome.PASS and not c.unjudged]
    report = quick
    if passing or quick is None:
        left = passing or [c for c in rivals if c.standing]
        report = _timed(original, left, rules.plan, progress, yardstick if passing else None)
    assert report is not None
    final_s = time.monotonic() - began
    plain = next((c for c in passing if c.plain and c.standing), None)
    decision = decide(
        # Only what was timed beside it in the same rounds can be held against the plain export.
        [_standing(c, plain if any(c is each for each in passing) else None, rules.objective) for c in found],
        lambda cost, best: _compared(cost / best, rules.objective),
    )
    seconds = {
        "make": sum(c.seconds.get("make", 0.0) for c in found),
        "answer": judge.seconds + sum(c.seconds.get("answer", 0.0) for c in found),
        "time": timing_s + final_s,
    }
    best = next((c for c in found if c.name == decision.best), None)
    beside = next((row for row in report.rows if yardstick and row.label == yardstick.label and not row.error), None)
    winner_s = None
    if best is not None:
        winner_s = judge.seconds + sum(best.seconds.values()) + final_s * min(1.0, 2 / len(report.rows))
    return Contest(tuple(found), judge.known, report, quick, decision, beside, _count(rivals), seconds, winner_s)


def _count(rivals: Sequence[Contender]) -> int:
    """Those that the confidence is shared among: the original itself cannot pass by luck."""
    return sum(not c.is_original for c in rivals)


def _too_small(rules: Rules, need: float) -> BadInput:
    return BadInput(
        f"the time budget of {rules.budget_s:g} s is too small for one candidate, which takes about {need:.0f} s",
        f"give it more (--time-budget {need * 2:.0f}s), or time for less (--duration)",
    )


def _first_looks(
    contenders: list[Contender],
    judge: Judge,
    rules: Rules,
    progress: Progress,
    escalate: Mapping[str, Escalate],
) -> list[Contender]:
    """Make every candidate and look at its first answers; those of a family that is in trouble get milder kin."""
    tried: list[Contender] = []
    for contender in contenders:
        _try(contender, tried, judge, rules, progress)
    for family, following in escalate.items():
        while not any(_promising(c) for c in tried if c.family == family):
            more = following([c for c in tried if c.family == family])
            if more is None:
                break
            _try(more, tried, judge, rules, progress)
            if more.skipped:
                break
    return tried


def _promising(contender: Contender) -> bool:
    """It stands, and so far its estimates keep every budget."""
    return contender.standing and not any(misses(gate) for gate in contender.gates)


def _try(contender: Contender, tried: list[Contender], judge: Judge, rules: Rules, progress: Progress) -> None:
    lanes = 2 + sum(c.standing for c in tried)
    need = judge.seconds + rules.timing_s(lanes, judge.call_s())
    first = not tried
    tried.append(contender)
    if rules.left() < need:
        if first:
            raise _too_small(rules, rules.budget_s - rules.left() + need if rules.budget_s else need)
        contender.skipped = True
        return
    with _surviving(contender):
        progress(f"{contender.name}: making it")
        began = time.monotonic()
        try:
            contender.entrant = contender.make()
        finally:
            contender.seconds["make"] = time.monotonic() - began
        judge.first_look(contender)


class _surviving:
    """Whatever goes wrong with a candidate inside is its reason, and not the end of the others."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, CandidateFailed | MlOptError):
            self._contender.error, self._contender.hint = error.message, error.hint
            return True
        return False


def _quickly(original: Entrant, rivals: list[Contender], rules: Rules, progress: Progress) -> BenchReport | None:
    """Sort the rivals by the objective, from a short timing where it takes one."""
    load = rules.plan.shapes[0]
    batched = rules.objective == "throughput" and isinstance(load, Workload)
    if batched or (len(rivals) > 1 and rules.objective != "size"):
        if isinstance(load, Workload) and batched:
            _batch(rivals, budgets(max(load.lengths)))
        report = _timed(original, rivals, rules.quick, progress)
        for contender in rivals:
            contender.quick = contender.row
            if batched:
                _keep_best_batching(contender)
        rivals.sort(key=lambda c: _cost(c.quick, rules.objective) or 0.0)
        return report
    if rules.objective == "size":
        rivals.sort(key=lambda c: file_bytes(c.entrant) if c.entrant else 0)
    return None


def _batch(contenders: Sequence[Contender], batchings: tuple[Batching, ...]) -> None:
    for contender in contenders:
        if contender.entrant is not None and not contender.is_original:
            contender.entrant = replace(contender.entrant, batchings=batchings)


def _keep_best_batching(contender: Contender) -> None:
    """From now on a candidate gets its rows as it was fastest with; the timing that counts is a new one."""
    if contender.row is None or contender.row.error or contender.is_original:
        return
    assert contender.entrant is not None
    best = max((*contender.row.cells, *contender.row.beside), key=lambda cell: cell.rows_per_s)
    contender.quick = replace(contender.row, cells=(best,), beside=())
    contender.entrant = replace(contender.entrant, batchings=(Batching.parse(best.batching),))


def _all_rows(rivals: Sequence[Contender], judge: Judge, rules: Rules) -> None:
    """Judge rivals on all rows, the best by the objective first, until one passes and the rest is known to be worse.

    How fast a candidate is says nothing of how right it is, so that the order costs no confidence; see docs/verdict.md.
    """
    count = _count(rivals)
    leader: Contender | None = None
    for place, contender in enumerate(rivals):
        if not contender.standing:
            continue
        # A quick timing is too rough to say that the plain export is beaten: it is timed with those that pass.
        stays = contender.plain and rules.objective != "size"
        if leader is not None and not stays and (behind := _behind(contender, leader, rules.objective)):
            if contender.is_original:
                continue
            contender.unjudged = (
                f"not judged on all rows: {contender.seen} rows do not speak against it, but it {behind}"
            )
            continue
        if place and rules.left() < judge.seconds + rules.timing_s(2, judge.call_s()):
            contender.skipped = True
            continue
        with _surviving(contender):
            judge.every_row(contender, count)
            if leader is None and contender.standing and outcome_of(contender.gates) is Outcome.PASS:
                leader = contender


def _behind(contender: Contender, leader: Contender, objective: str) -> str:
    """By how much it is worse than one that passes, if that is beyond the noise of the quick timing; else empty."""
    if objective == "size":
        assert contender.entrant is not None
        assert leader.entrant is not None
        times = file_bytes(contender.entrant) / max(1, file_bytes(leader.entrant))
        return _compared(times, objective) if times > 1 else ""
    if contender.quick is None or leader.quick is None:
        return ""
    slow, fast = ratio_of(contender.quick), ratio_of(leader.quick)
    if slow.high >= fast.low:
        return ""
    return _compared(fast.value / slow.value, "latency")


def _timed(
    original: Entrant,
    contenders: Sequence[Contender],
    plan: Plan,
    progress: Progress,
    yardstick: Entrant | None = None,
) -> BenchReport:
    """Time candidates beside the original; one that fails at it is out."""
    taking_part = [original] if yardstick is None else [original, yardstick]
    for contender in contenders:
        if not contender.is_original and contender.entrant is not None:
            taking_part.append(contender.entrant)
    report = bench(taking_part, original.label, plan, progress)
    by_label = {row.label: row for row in report.rows}
    if error := by_label[original.label].error:
        raise BadInput(f"the original, {original.label}, cannot be timed: {error}", by_label[original.label].hint)
    for contender in contenders:
        if contender.entrant is not None:
            contender.row = by_label[contender.entrant.label]
            contender.error, contender.hint = contender.row.error, contender.row.hint
    return report


def _standing(contender: Contender, plain: Contender | None, objective: str) -> Standing:
    tied = plain is not None and contender is not plain and not _better(contender, plain, objective)
    cost = _cost(contender.row, objective)
    return Standing(
        contender.name, contender.gates, cost, contender.error, contender.skipped, contender.unjudged, tied
    )  # fmt: skip


def _better(contender: Contender, plain: Contender, objective: str) -> bool:
    """Whether it is known to be better than the plain export: for times, by the interval of their own ratio."""
    if contender.row is None or plain.row is None or contender.row.error or plain.row.error:
        return True
    if objective == "size":
        return contender.row.bytes < plain.row.bytes
    return speedup(plain.row.cells[0].rounds_ns, contender.row.cells[0].rounds_ns).low > 1


def _cost(row: Row | None, objective: str) -> float | None:
    """What the objective counts: lower is better."""
    if row is None or row.error:
        return None
    if objective == "size":
        return float(row.bytes)
    if objective == "throughput":
        return row.cells[0].summary.mean_ms / row.cells[0].batch
    return 1.0 / ratio_of(row).value


def ratio_of(row: Row) -> Ratio:
    """How many times faster than the original at the objective's shape; 1 for the original itself."""
    return row.cells[0].speedup or Ratio(1.0, 1.0, 1.0)


def _compared(times: float, objective: str) -> str:
    if objective == "size":
        return f"is {times:.2f} times as large as the best"
    if objective == "throughput":
        return f"takes {times:.2f} times as long a row as the best"
    return f"takes {times:.2f} times as long as the best"
