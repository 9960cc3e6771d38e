"""The contest: candidates are made, judged on every row, timed against each other, and one of them is best, or none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.benching.candidates import Entrant
from optimizer.benching.inputs import save
from optimizer.benching.measure import Plan
from optimizer.benching.process import CandidateFailed
from optimizer.benching.report import BenchReport, Row
from optimizer.benching.run import bench
from optimizer.benching.stats import Ratio
from optimizer.errors import BadInput, MlOptError
from optimizer.search.accuracy import Answers, Batches, Scores, answer, score
from optimizer.search.evalset import EvalSet
from optimizer.search.verdict import (
    Decision,
    Gate,
    Standing,
    agreement_gate,
    cosine_gate,
    decide,
    drop_gate,
    same_gate,
)
from optimizer.stage import Progress
from optimizer.task import Metric
from optimizer.types import JSON

__all__ = ["Contender", "Contest", "Rules", "hold", "ratio_of"]

#: What timing one candidate takes beside the seconds asked for: its warm-up, and the overrun of small samples.
_WARM_S = 3.0
_OVERRUN = 1.5


@dataclass(frozen=True)
class Rules:
    """What decides.

    Attributes:
        objective: ``latency``, ``throughput`` or ``size``.
        plan: how candidates are timed; its first shape is the objective's.
        metric: how right answers are; None when fidelity is judged.
        max_drop: budgets; None where nothing is asked.
        min_agreement: see ``max_drop``.
        min_cosine: see ``max_drop``.
        confidence: of every bound.
        budget_s: seconds for everything; None for as long as it takes.
        started: when those began, by ``time.monotonic``.
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

    def budgets(self) -> dict[str, JSON]:
        """The budgets that were given."""
        named = {"max_drop": self.max_drop, "min_agreement": self.min_agreement, "min_cosine": self.min_cosine}
        return {name: value for name, value in named.items() if value is not None}

    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.budget_s is None else self.budget_s - (time.monotonic() - self.started)

    def timing_s(self, lanes: int, call_s: float = 0.0) -> float:
        """About how long it takes to time so many candidates, if a call takes ``call_s``."""
        return lanes * (max(self.plan.seconds, self.plan.samples * call_s) * _OVERRUN + _WARM_S)


@dataclass
class Contender:
    """One candidate, and what is learnt of it.

    Attributes:
        name: unique among them.
        make: builds it; may raise :class:`CandidateFailed` or :class:`MlOptError`.
        entrant: what was built.
        scores: its answers, row by row.
        gates: one a budget.
        row: its line in the benchmark.
        error: why it is out; empty while it is not.
        hint: what to do about that.
        skipped: it was not tried, for want of time.
        seconds: that making it and answering took.
    """

    name: str
    make: Callable[[], Entrant]
    entrant: Entrant | None = None
    scores: Scores | None = None
    gates: tuple[Gate, ...] = ()
    row: Row | None = None
    error: str = ""
    hint: str = ""
    skipped: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def standing(self) -> bool:
        return not self.error and not self.skipped


@dataclass(frozen=True)
class Contest:
    """What it came to.

    Attributes:
        contenders: every candidate.
        original: the original's own scores.
        bench: the timing, every sample in it.
        decision: the verdict.
        seconds: where the time went.
    """

    contenders: tuple[Contender, ...]
    original: Scores
    bench: BenchReport
    decision: Decision
    seconds: Mapping[str, float]


def hold(
    original: Entrant,
    contenders: Sequence[Contender],
    rows: EvalSet,
    model: Mapping[str, JSON],
    rules: Rules,
    progress: Progress,
) -> Contest:
    """Judge every candidate against the original.

    A candidate that cannot be made, dies, hangs or answers NaN is out, with its reason, and the others go on.

    Args:
        original: what everything is compared with.
        contenders: in the order in which they are tried while there is time.
        rows: what they answer.
        model: the manifest's ``model``.
        rules: what decides.
        progress: told of every step.

    Raises:
        BadInput: the original itself cannot answer, or the time budget is too small for one candidate.
    """
    seconds = {"make": 0.0, "answer": 0.0, "time": 0.0}
    least = rules.timing_s(2)
    if rules.budget_s is not None and rules.left() < least:
        raise _too_small(rules, least)
    with tempfile.TemporaryDirectory(prefix="ml-opt-optimize-") as name:
        scratch = Path(name)
        made = list(rows.batches(model.get("max_batch")))
        batches = Batches(
            tuple(save(scratch, "feeds", [batch.feeds for batch in made])), tuple(batch.rows for batch in made)
        )
        first = _original_answers(original, batches, scratch, rules, progress)
        seconds["answer"] += first.seconds
        known = score(first, first, batches, model, rules.metric, rows.truths)
        for number, contender in enumerate(contenders):
            lanes = 2 + sum(c.standing for c in contenders[:number])
            need = first.seconds + rules.timing_s(lanes, _call_s(first, rows, rules))
            if rules.left() < need:
                if number == 0:
                    raise _too_small(rules, rules.budget_s - rules.left() + need if rules.budget_s else need)
                contender.skipped = True
                continue
            try:
                _judge(contender, original, first, known, batches, rows, model, rules, scratch / str(number), progress)
            except (CandidateFailed, MlOptError) as failed:
                contender.error, contender.hint = failed.message, failed.hint
            for doing, taken in contender.seconds.items():
                seconds[doing] += taken
    began = time.monotonic()
    report = _timed(original, contenders, rules, progress)
    seconds["time"] = time.monotonic() - began
    decision = decide(
        [Standing(c.name, c.gates, _cost(c, rules), c.error, c.skipped) for c in contenders],
        lambda cost, best: _compared(cost / best, rules.objective),
    )
    return Contest(tuple(contenders), known, report, decision, seconds)


def _call_s(first: Answers, rows: EvalSet, rules: Rules) -> float:
    """About how long a timed call of the original takes, from the time that it took to answer every row."""
    shape = rules.plan.shapes[0]
    longer = shape.sequence / rows.median_length if shape.sequence and rows.median_length else 1.0
    return first.seconds / len(rows.rows) * shape.batch * longer


def _too_small(rules: Rules, need: float) -> BadInput:
    return BadInput(
        f"the time budget of {rules.budget_s:g} s is too small for one candidate, which takes about {need:.0f} s",
        f"give it more (--time-budget {need * 2:.0f}s), or time for less (--duration)",
    )


def _original_answers(original: Entrant, batches: Batches, scratch: Path, rules: Rules, progress: Progress) -> Answers:
    try:
        return answer(
            original.candidate,
            batches,
            scratch / "original",
            threads=rules.plan.threads,
            timeout=rules.plan.timeout,
            progress=progress,
        )
    except CandidateFailed as failed:
        raise BadInput(f"the original, {original.label}, cannot answer: {failed.message}", failed.hint) from None


def _judge(
    contender: Contender,
    original: Entrant,
    first: Answers,
    known: Scores,
    batches: Batches,
    rows: EvalSet,
    model: Mapping[str, JSON],
    rules: Rules,
    scratch: Path,
    progress: Progress,
) -> None:
    """Make a candidate, let it answer, and hold its answers against the budgets."""
    progress(f"{contender.name}: making it")
    began = time.monotonic()
    try:
        contender.entrant = contender.make()
    finally:
        contender.seconds["make"] = time.monotonic() - began
    if contender.entrant.label == original.label:
        contender.scores = known
        contender.gates = tuple(same_gate(name, limit) for name, limit in _gate_names(rules))
        return
    began = time.monotonic()
    try:
        answers = answer(
            contender.entrant.candidate,
            batches,
            scratch,
            threads=rules.plan.threads,
            timeout=rules.plan.timeout,
            progress=progress,
        )
    finally:
        contender.seconds["answer"] = time.monotonic() - began
    contender.scores = score(first, answers, batches, model, rules.metric, rows.truths)
    contender.gates = tuple(_gates(known, contender.scores, rules))


def _gate_names(rules: Rules) -> list[tuple[str, float]]:
    names = {"max_drop": "accuracy drop", "min_agreement": "agreement", "min_cosine": "worst cosine"}
    return [(names[key], limit) for key, limit in rules.budgets().items()]


def _gates(known: Scores, scores: Scores, rules: Rules) -> list[Gate]:
    gates = []
    if rules.max_drop is not None:
        if known.right is None or scores.right is None:
            raise ValueError("accuracy without labels")
        gates.append(drop_gate(known.right, scores.right, rules.max_drop, rules.confidence))
    if rules.min_agreement is not None:
        if scores.top1 is None:
            raise BadInput("--min-agreement asks for decisions, and this model has none", "use --min-cosine")
        gates.append(agreement_gate(scores.top1, rules.min_agreement, rules.confidence))
    if rules.min_cosine is not None:
        gates.append(cosine_gate(scores.cosine, rules.min_cosine, rules.confidence))
    return gates


def _timed(original: Entrant, contenders: Sequence[Contender], rules: Rules, progress: Progress) -> BenchReport:
    """Time whatever still stands, those that fail a gate too: a report says what they would have gained."""
    taking_part = [original]
    for contender in contenders:
        if contender.standing and contender.entrant is not None and contender.entrant.label != original.label:
            taking_part.append(contender.entrant)
    report = bench(taking_part, original.label, rules.plan, progress)
    by_label = {row.label: row for row in report.rows}
    if error := by_label[original.label].error:
        raise BadInput(f"the original, {original.label}, cannot be timed: {error}", by_label[original.label].hint)
    for contender in contenders:
        if contender.standing and contender.entrant is not None:
            contender.row = by_label[contender.entrant.label]
            contender.error, contender.hint = contender.row.error, contender.row.hint
    return report


def _cost(contender: Contender, rules: Rules) -> float | None:
    """What the objective counts: lower is better."""
    row = contender.row
    if row is None or row.error:
        return None
    if rules.objective == "size":
        return float(row.bytes)
    if rules.objective == "throughput":
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
