"""The verdict of ``optimize``, drawn for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.cli.output import Output
from optimizer.cli.tables import escape, size, table
from optimizer.search.verdict import Outcome

if TYPE_CHECKING:
    from optimizer.search.report import CandidateReport, OptimizeReport, PlanReport

__all__ = ["render_optimize", "render_plan"]

_COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def render_plan(report: PlanReport, output: Output) -> None:
    """What would be tried, and what would not."""
    console = output.console()
    made = table("candidate", "provider", "stages", "why")
    for idea in report.plan.ideas:
        steps = " → ".join(["export-onnx", *(step.stage for step in idea.steps)])
        made.add_row(idea.name, str(idea.provider), steps, escape(idea.why))
    console.print(made)
    for each in report.plan.left_out:
        console.print(f"left out: {each.name}: {escape(each.reason)}", style="dim", soft_wrap=True)
    console.print(f"timing alone takes about {report.timing_s:.0f} s", style="dim")


def render_optimize(report: OptimizeReport, output: Output) -> None:
    """The verdict, every candidate sorted by the objective, and why each won or lost."""
    console = output.console()
    colour = _COLOURS[report.verdict]
    winner = report.winner
    line = f"[{colour}]{report.verdict.value}[/{colour}]"
    if winner is not None and winner.speed is not None:
        ratio = winner.speed.ratio
        line += (
            f" [bold]{escape(winner.ref)}[/bold] on {winner.provider}: {ratio.value:.2f} × as fast as "
            f"{escape(report.original.name)} at {report.shape} ({ratio.low:.2f} to {ratio.high:.2f}), "
            f"{size(winner.speed.bytes)}"
        )
    console.print(line, soft_wrap=True)
    decided = bool(report.original.accuracy) or any(each.agreement for each in report.candidates)
    judged = ("accuracy" if report.original.accuracy else "same decision",) if decided else ()
    right = (*judged, "worst cosine", "ms", "speed-up", "rows/s", "size")
    made = table("candidate", "", *right, right=right)
    made.add_row(f"[dim]{escape(report.original.name)}[/dim]", "", *_numbers(report.original, decided))
    for each in report.candidates:
        mark = f"[{_COLOURS[each.outcome]}]{each.outcome.value}[/]" if each.outcome else "[dim]–[/dim]"
        name = f"[bold]{each.name}[/bold]" if each is winner else each.name
        made.add_row(name, mark, *_numbers(each, decided))
    console.print(made)
    for each in report.candidates:
        hint = f" ({each.hint})" if each.hint else ""
        console.print(f"{each.name}: {escape(each.reason + hint)}", soft_wrap=True)
    for left in report.left_out:
        console.print(f"{left['name']}: left out: {escape(str(left['reason']))}", style="dim", soft_wrap=True)
    for note in report.notes:
        output.talk(f"note: {note}")
    console.print(_where_the_time_went(report), style="dim", soft_wrap=True)
    console.print(f"verdict: {escape(report.path)}", style="dim", soft_wrap=True)
    if report.recipe:
        console.print(f"made again by: ml-opt run {escape(report.recipe)}", style="dim", soft_wrap=True)


_DOING = {"export": "export", "make": "making", "answer": "judging", "time": "timing"}


def _where_the_time_went(report: OptimizeReport) -> str:
    """Seconds by phase and by candidate, and how much of them the winner alone would have taken."""
    total = report.seconds["total"]
    phases = ", ".join(f"{_DOING[name]} {report.seconds[name]:.0f} s" for name in _DOING if name in report.seconds)
    dearest = sorted(report.candidates, key=lambda c: -sum(c.seconds.values()))
    each = ", ".join(f"{c.name} {sum(c.seconds.values()):.0f} s" for c in dearest if sum(c.seconds.values()) >= 0.5)
    line = f"{total:.0f} s: {phases}" + (f"; made and judged: {escape(each)}" if each else "")
    if report.winner_s:
        line += f"; {total / report.winner_s:.1f} times what the winner alone would have taken"
    return line


def _numbers(each: CandidateReport, decided: bool) -> list[str]:
    judged = each.accuracy or each.agreement
    cells = [f"{judged.value:.2%}" if judged else "–"] if decided else []
    cells.append(f"{each.cosine['worst']:.5f}" if each.cosine else "–")
    speed = each.speed
    if speed is None:
        return [*cells, "–", "–", "–", "–"]
    return [
        *cells,
        f"{speed.p50_ms:.2f}",
        f"{speed.ratio.value:.2f} ×",
        f"{speed.rows_per_s:.0f}",
        size(speed.bytes),
    ]
