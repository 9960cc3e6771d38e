"""Timing contenders beside the original, and what an objective makes of it: costs, and who is known to be worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.benching.candidates import Entrant
from optimizer.benching.measure import Plan
from optimizer.benching.report import BenchReport, Row
from optimizer.benching.run import bench
from optimizer.benching.stats import Ratio, speedup
from optimizer.benching.workload import Workload, Writing
from optimizer.data.batching import Batching, budgets
from optimizer.errors import BadInput
from optimizer.search.contender import Contender, Rules
from optimizer.search.texts.timing import bench_texts
from optimizer.stage import Progress

__all__ = [
    "behind",
    "compared",
    "cost",
    "in_batches",
    "is_better",
    "joined",
    "quick_cost",
    "ratio_of",
    "timed",
    "timed_quickly",
]


def timed(
    original: Entrant,
    contenders: Sequence[Contender],
    plan: Plan,
    progress: Progress,
    yardstick: Entrant | None = None,
) -> BenchReport:
    """Time contenders beside the original; one that fails at it is out, unless it is out already.

    Raises:
        BadInput: the original itself cannot be timed.
    """
    taking_part = [original] if yardstick is None else [original, yardstick]
    for contender in contenders:
        if not contender.is_original and contender.entrant is not None:
            taking_part.append(contender.entrant)
    measured = bench_texts if isinstance(plan.shapes[0], Writing) else bench
    report = measured(taking_part, original.label, plan, progress)
    by_label = {row.label: row for row in report.rows}
    if error := by_label[original.label].error:
        raise BadInput(f"the original, {original.label}, cannot be timed: {error}", by_label[original.label].hint)
    for contender in contenders:
        if contender.entrant is None:
            continue
        contender.row = by_label[contender.entrant.label]
        if not contender.cut:
            contender.error, contender.hint = contender.row.error, contender.row.hint
    return report


def timed_quickly(original: Entrant, contenders: Sequence[Contender], rules: Rules, progress: Progress) -> BenchReport:
    """Time contenders for so long only as it takes to sort them; a pass over data in the batches that suit each."""
    batched = in_batches(rules)
    if batched:
        load = rules.plan.shapes[0]
        assert isinstance(load, Workload)
        _batch(contenders, budgets(max(load.lengths)))
    report = timed(original, contenders, rules.quick, progress)
    for contender in contenders:
        contender.quick = contender.row
        if batched:
            _keep_best_batching(contender)
    return report


def in_batches(rules: Rules) -> bool:
    """Whether each candidate gets the rows of a data file in batches of its own."""
    return rules.objective == "throughput" and isinstance(rules.plan.shapes[0], Workload)


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


def joined(earlier: BenchReport | None, later: BenchReport) -> BenchReport:
    """Both reports as one; the original, which stands in both, is ``original #2`` where it was timed anew."""
    if earlier is None:
        return later
    rows = list(earlier.rows)
    for row in later.rows:
        times = 1 + sum(each.label.partition(" #")[0] == row.label for each in rows)
        rows.append(replace(row, label=f"{row.label} #{times}") if times > 1 else row)
    cautions = tuple(dict.fromkeys((*earlier.cautions, *later.cautions)))
    return replace(earlier, rows=tuple(rows), cautions=cautions)


def ratio_of(row: Row) -> Ratio:
    """How many times faster than the original at the objective's shape; 1 for the original itself."""
    return row.cells[0].speedup or Ratio(1.0, 1.0, 1.0)


def cost(row: Row | None, objective: str) -> float | None:
    """What the objective counts: lower is better; None for what was not measured."""
    if row is None or row.error:
        return None
    if objective == "size":
        return float(row.bytes)
    if objective == "throughput":
        return row.cells[0].summary.mean_ms / row.cells[0].batch
    return 1.0 / ratio_of(row).value


def quick_cost(contender: Contender, objective: str) -> float | None:
    """The same before the timing that counts: from the quick one, or from the files where size counts."""
    if objective == "size":
        return float(contender.bytes) if contender.entrant else None
    return cost(contender.quick, objective)


def behind(contender: Contender, leader: Contender, objective: str) -> str:
    """By how much one is worse than another, if that is beyond the noise of the quick timing; else empty."""
    if objective == "size":
        times = contender.bytes / max(1, leader.bytes)
        return compared(times, objective) if times > 1 else ""
    if contender.quick is None or leader.quick is None or contender.quick.error or leader.quick.error:
        return ""
    slow, fast = ratio_of(contender.quick), ratio_of(leader.quick)
    if slow.high >= fast.low:
        return ""
    return compared(fast.value / slow.value, "latency")


def is_better(contender: Contender, plain: Contender, objective: str) -> bool:
    """Whether one is known to be better than the plain export: for times, by the interval of their own ratio."""
    if contender.row is None or plain.row is None or contender.row.error or plain.row.error:
        return True
    if objective == "size":
        return contender.row.bytes < plain.row.bytes
    return speedup(plain.row.cells[0].rounds_ns, contender.row.cells[0].rounds_ns).low > 1


def compared(times: float, objective: str, other: str = "the best") -> str:
    """``times`` its cost, in words."""
    if objective == "size":
        return f"is {times:.2f} times as large as {other}"
    if objective == "throughput":
        return f"takes {times:.2f} times as long a row as {other}"
    return f"takes {times:.2f} times as long as {other}"
