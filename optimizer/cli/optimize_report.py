"""The verdict of ``optimize``, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.cli.output import Output
from optimizer.cli.tables import escape, size, table
from optimizer.search.columns import Column, filled
from optimizer.search.gates import Outcome
from optimizer.types import JSON

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from optimizer.search.report import OptimizeReport, PlanReport

__all__ = ["render_optimize", "render_plan"]

_COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def render_plan(report: PlanReport, output: Output) -> None:
    """What would be tried, and what would not."""
    console = output.console()
    made = table("candidate", "provider", "stages", "why")
    for idea in report.plan.ideas:
        made.add_row(idea.name, str(idea.provider), " → ".join(idea.chain), escape(idea.why))
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
            f" [bold]{escape(winner.ref)}[/bold] on {winner.provider} ({escape(winner.name)}): {ratio.value:.2f} × "
            f"as fast as {escape(report.original.name)} at {report.shape} ({ratio.low:.2f} to {ratio.high:.2f}), "
            f"{size(winner.speed.bytes)}"
        )
    console.print(line)
    for gate in winner.gates if winner is not None else ():
        console.print(f"  {gate.says}", style="dim")
    console.print(_numbers(report, console))
    console.print(_reasons(report))
    for note in report.notes:
        output.talk(f"note: {note}")
    console.print(_where_the_time_went(report), style="dim")
    console.print(f"verdict: {escape(report.path)}", style="dim", soft_wrap=True)
    if report.recipe:
        console.print(f"made again by: ml-opt run {escape(report.recipe)}", style="dim", soft_wrap=True)


def _numbers(report: OptimizeReport, console: Console) -> Table:
    """Every candidate's numbers; columns that matter least are left out until the rest fits."""
    lines = [each.to_json() for each in (report.original, *report.candidates)]
    columns = [column for column in filled(lines, report.metric) if column.stays]
    while True:
        made = _table_of(report, lines, columns)
        needed = console.measure(made, options=console.options.update(max_width=10_000)).maximum
        if needed <= console.width or len(columns) == 1:
            return made
        columns.remove(min(columns, key=lambda column: column.stays))


def _table_of(report: OptimizeReport, lines: Sequence[Mapping[str, JSON]], columns: Sequence[Column]) -> Table:
    heads = [column.head for column in columns]
    made = table("candidate", "", *heads, right=tuple(heads))
    for place, line in enumerate(lines):
        each = report.candidates[place - 1] if place else report.original
        mark = f"[{_COLOURS[each.outcome]}]{each.outcome.value}[/]" if each.outcome else ""
        name = escape(each.name) if place else f"[dim]{escape(each.name)}[/dim]"
        cells = [column.cell(line) or "[dim]–[/dim]" for column in columns]
        made.add_row(f"[bold]{name}[/bold]" if each is report.winner else name, mark, *cells)
    return made


def _reasons(report: OptimizeReport) -> Table:
    """Why each candidate won or lost, and why others were not tried."""
    made = table("candidate", "why")
    for each in report.candidates:
        name = escape(each.name)
        hint = f" ({each.hint})" if each.hint else ""
        made.add_row(f"[bold]{name}[/bold]" if each is report.winner else name, escape(each.reason + hint))
    for left in report.left_out:
        made.add_row(f"[dim]{escape(left['name'])}[/dim]", f"[dim]left out: {escape(left['reason'])}[/dim]")
    return made


#: Candidates that are named for the time they took.
_DEAREST = 3
_DOING = {"export": "export", "make": "making", "answer": "judging", "time": "timing"}


def _where_the_time_went(report: OptimizeReport) -> str:
    """Seconds by phase and by candidate, and how much of them the winner alone would have taken."""
    total = report.seconds["total"]
    phases = ", ".join(f"{_DOING[name]} {report.seconds[name]:.0f} s" for name in _DOING if name in report.seconds)
    dearest = sorted(report.candidates, key=lambda c: -sum(c.seconds.values()))
    spent = [(c.name, sum(c.seconds.values())) for c in dearest]
    each = ", ".join(f"{escape(name)} {seconds:.0f} s" for name, seconds in spent[:_DEAREST] if seconds >= 0.5)
    line = f"{total:.0f} s: {phases}" + (f"; most of it for {each}" if each else "")
    if report.winner_s:
        alone = f"the winner's chain alone would take {report.winner_s:.0f} s"
        line += f"\n{alone}: the search took {total / report.winner_s:.1f} times that"
    return line
