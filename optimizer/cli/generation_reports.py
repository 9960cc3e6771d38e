"""Reports about text generators, drawn for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optimizer.cli.output import Output
from optimizer.cli.tables import escape

if TYPE_CHECKING:
    from optimizer.evaluate.generation_report import GenerationReport

__all__ = ["render_verify_generation"]


def render_verify_generation(report: GenerationReport, output: Output) -> None:
    """The verdict, the numbers, and what is beyond a limit."""
    console = output.console()
    verdict = "[red]FAIL[/red]" if report.failures else "[yellow]?[/yellow]" if report.doubts else "[green]PASS[/green]"
    found = report.compared
    console.print(
        f"{verdict} [bold]{escape(report.ref)}[/bold] against [bold]{escape(report.against)}[/bold]: "
        f"{report.precision}, {len(found.documents)} documents, {found.tokens:,} tokens scored"
    )
    high = f"{found.ratio.high:.4f}" if math.isfinite(found.ratio.high) else "∞"
    console.print(
        f"perplexity {found.candidate:.4g}, the original's {found.original:.4g}: "
        f"{found.ratio.value:.4f} times ({found.ratio.low:.4f} to {high})"
    )
    console.print(f"divergence {found.kl:.3g} nats a token; the same likeliest token in {found.top1:.2%}")
    if found.match is not None and found.match_whole is not None:
        longest = max(each.length for each in found.continuations)
        console.print(
            f"greedy texts are the same for {found.match:g} of {longest} tokens (median of "
            f"{len(found.continuations)}), to the end in {found.match_whole:.0%}"
        )
    sliding = found.sliding
    allowed = {name: value for name, value in vars(report.limits).items() if value is not None}
    console.print(
        f"windows of {sliding.window} tokens, {sliding.stride} apart; allowed: "
        + ", ".join(f"{name} {value:g}" for name, value in allowed.items()),
        style="dim",
    )
    for failure in report.failures:
        console.print(f"[red]✗[/red] {escape(failure)}", soft_wrap=True)
    for doubt in report.doubts:
        console.print(f"[yellow]?[/yellow] {escape(doubt)}", soft_wrap=True)
