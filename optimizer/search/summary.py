"""From a contest to its report: every candidate in one line, best first, and what is worth a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.benching.candidates import Entrant
from optimizer.benching.report import Doubt, Row
from optimizer.data.batching import Batching
from optimizer.search.accuracy import Measures
from optimizer.search.candidates import Idea, Plan
from optimizer.search.contest import Contender, Contest, Rules
from optimizer.search.gates import Outcome, outcome_of
from optimizer.search.rebuild import commands_of
from optimizer.search.report import CandidateReport, OptimizeReport, Speed
from optimizer.search.texts.timing import TextRow
from optimizer.search.timing import ratio_of
from optimizer.store import Store

__all__ = ["summarized"]

#: Candidates that a note about noise names.
_NOISY_NAMED = 2


def summarized(
    contest: Contest, original: Entrant, planned: Plan, more: Sequence[Idea], rules: Rules, store: Store
) -> OptimizeReport:
    """The report of a contest; who calls it adds what only they know (model, command, data, time).

    Args:
        contest: what came of it.
        original: what everything was compared with.
        planned: what was to be tried.
        more: what was thought of on the way.
        rules: what decided.
        store: where artifacts are.
    """
    ideas = {idea.name: idea for idea in (*planned.ideas, *more)}
    found = [_candidate(c, ideas[c.name], contest, rules, store) for c in contest.contenders]
    best = next((c for c in found if c.name == contest.decision.best), None)
    ordered = sorted(found, key=lambda c: _place(c, contest.decision.best, rules.objective))
    first = _original(contest, original, rules)
    return OptimizeReport(
        created="",
        command="",
        model="",
        verdict=contest.decision.verdict,
        best=best.ref if best else "",
        provider=best.provider if best else "",
        metric=rules.metric_name,
        objective=rules.objective,
        shape=str(rules.plan.shapes[0]),
        budgets=rules.budgets(),
        confidence=rules.confidence,
        original=first,
        candidates=tuple(ordered),
        left_out=tuple(each.to_json() for each in planned.left_out),
        rows_needed=contest.decision.rows_needed,
        notes=tuple(_sentences(best, ordered, first, contest, rules)),
        data={},
        environment=contest.bench.environment,
        seconds={},
        bench=contest.bench.to_json(),
        quick=contest.quick.to_json() if contest.quick else {},
        rivals=contest.rivals,
    )


def _place(candidate: CandidateReport, best: str, objective: str) -> tuple[bool, bool, float]:
    """The winner first, then by the objective; what was not timed comes last."""
    speed = candidate.speed
    if speed is None:
        return (True, True, 0.0)
    cost = {"size": float(speed.bytes), "throughput": -speed.rows_per_s}.get(objective, -speed.ratio.value)
    return (candidate.name != best, False, cost)


def _candidate(contender: Contender, idea: Idea, contest: Contest, rules: Rules, store: Store) -> CandidateReport:
    entrant, scores = contender.entrant, contender.scores
    artifact = entrant.artifact if entrant else None
    rows = scores.rows() if scores is not None else {}
    if contender.places:
        rows["places"] = list(contender.places)
    judged = bool(contender.gates) and not (contender.error or contender.skipped or contender.unjudged)
    measures = scores.measures(rules, not contender.places) if scores is not None else Measures()
    return CandidateReport(
        name=contender.name,
        ref=artifact.ref if artifact else "",
        provider=str(idea.provider),
        precision=idea.precision.value,
        outcome=outcome_of(contender.gates) if judged else None,
        reason=contest.decision.reasons[contender.name],
        hint=contender.hint,
        gates=contender.gates,
        accuracy=measures.accuracy,
        agreement=measures.agreement,
        cosine=measures.cosine,
        kl=measures.kl,
        speed=_speed(contender.row),
        seconds=contender.seconds,
        commands=commands_of(artifact, store) if artifact else (),
        rows=rows,
        seen=contender.seen,
        runs=contender.runs,
    )


def _original(contest: Contest, original: Entrant, rules: Rules) -> CandidateReport:
    row = next(row for row in contest.bench.rows if row.label == original.label)
    provider = original.candidate.provider
    precision = provider.precision or "fp32"
    return CandidateReport(
        # "source" is what one types to mean it, and says nothing to who reads a report.
        name=f"PyTorch eager {precision}" if provider.name == "torch" else original.label,
        ref=original.artifact.ref if original.artifact else "",
        provider=str(provider),
        precision=precision,
        outcome=None,
        reason="what every candidate is compared with",
        accuracy=contest.original.measures(rules, whole=True).accuracy,
        speed=_speed(row),
        rows=contest.original.rows(own=True),
    )


def _speed(row: Row | None) -> Speed | None:
    if row is None or row.error or not row.cells:
        return None
    cell = row.cells[0]
    return Speed(
        p50_ms=cell.summary.p50_ms,
        rows_per_s=cell.rows_per_s,
        ratio=ratio_of(row),
        bytes=row.bytes,
        load_s=row.load_s,
        peak_rss=row.peak_rss,
        gflops=cell.position.gflops if cell.position else None,
        peak_share=cell.position.peak_share if cell.position else None,
        batching=cell.batching,
        against=cell.against,
        texts=row.texts if isinstance(row, TextRow) else {},
    )


def _sentences(
    best: CandidateReport | None,
    ordered: Sequence[CandidateReport],
    original: CandidateReport,
    contest: Contest,
    rules: Rules,
) -> list[str]:
    said = _suspicions(contest)
    if best is not None and best.speed is not None and original.speed is not None:
        if rules.objective == "size":
            if best.speed.bytes >= original.speed.bytes:
                said.append("Nothing that keeps the budgets is smaller than the original.")
        elif best.speed.ratio.low <= 1.0:
            said.append("Nothing that keeps the budgets is faster than the original beyond doubt.")
        if best.name == "fp32":
            said.append("Nothing that keeps the budgets is better than the plain export: keep fp32.")
        said += _batches(best)
        said += _tie(best, ordered, rules)
        said += _int8(best, ordered, rules)
        said += _beside(best, contest)
    if contest.decision.verdict is Outcome.INCONCLUSIVE:
        rows = contest.decision.rows_needed
        if rows:
            said.append(f"There are too few rows for a verdict: about {rows:,} would settle it.")
        elif any(c.skipped for c in contest.contenders):
            said.append("The time budget was spent before every candidate was tried.")
        else:
            said.append("What was measured lies on the edge of the budget: more rows alone may not settle it.")
    for doubt in dict.fromkeys(caution.doubt for caution in contest.bench.cautions):
        # Answers are judged here, on more rows than those of the timing; the two others head the notes.
        if doubt not in (Doubt.DIFFERENT, Doubt.LOAD, Doubt.NOISY):
            said.append(f"Timing: {doubt.advice}.")
    return said


def _suspicions(contest: Contest) -> list[str]:
    """What makes every time of this report doubtful, before anything that is said by them."""
    said = [
        f"The times are suspect: {Doubt.LOAD.advice} ({caution.detail})."
        for caution in contest.bench.cautions
        if caution.doubt is Doubt.LOAD
    ]
    noisy = [f"{caution.about}: {caution.detail}" for caution in contest.bench.cautions if caution.doubt is Doubt.NOISY]
    if noisy:
        named = "; ".join(noisy[:_NOISY_NAMED]) + (
            f"; and {more} more" if (more := len(noisy) - _NOISY_NAMED) > 0 else ""
        )
        said.append(f"The times are suspect: {Doubt.NOISY.advice} ({named}).")
    return said


def _batches(best: CandidateReport) -> list[str]:
    """How the winner got the rows of the data, and how it stands to each way in which PyTorch did."""
    if best.speed is None or not best.speed.against:
        return []
    ways = " and ".join(
        f"{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) with {Batching.parse(way)}"
        for way, ratio in best.speed.against.items()
    )
    return [f"{best.name} ran {Batching.parse(best.speed.batching)}; it is as fast as the original {ways}."]


def _beside(best: CandidateReport, contest: Contest) -> list[str]:
    """How the winner stands to what was timed and not asked for."""
    row = contest.yardstick
    if row is None or best.speed is None:
        return []
    other, mine = ratio_of(row), best.speed.ratio
    verb = "does not beat" if mine.value <= other.value else "beats"
    return [
        f"{best.precision} {verb} bf16 here: {best.name} is {mine.value:.2f} times as fast as the original "
        f"({mine.low:.2f} to {mine.high:.2f}), the plain export on {row.provider} {other.value:.2f} times "
        f"({other.low:.2f} to {other.high:.2f}); only its time was measured, as --precision left it out."
    ]


def _tie(best: CandidateReport, ordered: Sequence[CandidateReport], rules: Rules) -> list[str]:
    if rules.objective == "size" or best.speed is None:
        return []
    close = [
        c.name
        for c in ordered
        if c is not best and c.outcome is Outcome.PASS and c.speed and c.speed.ratio.high >= best.speed.ratio.low
    ]
    return [f"Within the noise of the timing, {', '.join(close)} may be as fast as {best.name}."] if close else []


def _int8(best: CandidateReport, ordered: Sequence[CandidateReport], rules: Rules) -> list[str]:
    """Whoever expects int8 to win deserves a sentence when it does not."""
    timed = [c for c in ordered if c.precision == "int8" and c.speed]
    if rules.objective == "size" or best.precision == "int8" or not timed or best.speed is None:
        return []
    fastest = max(timed, key=lambda c: c.speed.ratio.value if c.speed else 0.0)
    assert fastest.speed is not None
    if fastest.speed.ratio.value < best.speed.ratio.value:
        return [
            f"int8 does not beat {best.precision} here: {fastest.name} is {fastest.speed.ratio.value:.2f} times as "
            f"fast as the original, {best.name} {best.speed.ratio.value:.2f} times."
        ]
    if fastest.outcome is Outcome.PASS:
        return []  # within the noise of the plain export, which is kept: said already
    return [f"{fastest.name} is faster than the best, and misses a budget: {fastest.reason}."]
