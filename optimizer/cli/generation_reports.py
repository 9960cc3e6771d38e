"""Reports about text generators, drawn for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optimizer.cli.output import Output
from optimizer.cli.tables import escape, table
from optimizer.evaluate.bounds import FEWEST, Bounds

if TYPE_CHECKING:
    from optimizer.benching.generation_report import GenerationBench
    from optimizer.evaluate.generation_report import GenerationReport
    from optimizer.evaluate.replay import ReplayReport

__all__ = ["render_bench_generation", "render_replay", "render_verify_generation"]

#: Columns of the terminal, and the one with the ratio that stands beside a number there.
_SHOWN = ("first token ms", "token ms", "tokens/s", "prefill/s", "decode/s", "of bandwidth", "memory MiB")
_RATIOS = {"tokens/s": "×", "prefill/s": "× prefill", "decode/s": "× decode"}


def _with_ratio(name: str, cells: dict[str, str]) -> str:
    """A cell, with how many times faster that is than the baseline."""
    ratio = cells.get(_RATIOS.get(name, ""), "–")
    return cells[name] if ratio == "–" else f"{cells[name]}  {ratio}×"


def render_bench_generation(report: GenerationBench, output: Output) -> None:
    """A row a candidate and size, and what the numbers mean."""
    from optimizer.benching.generation_cells import HEAD, by_size, notes
    from optimizer.cli.reports import render_end

    console = output.console()
    cpu = report.environment["cpu"]
    console.print(
        f"[bold]{cpu['model']}[/bold], {report.settings['threads']} threads, "
        f"{report.settings['rounds']} interleaved rounds, one process a candidate"
    )
    for (texts, prompt), rows in by_size(report).items():
        console.print(f"{texts} {'text' if texts == '1' else 'texts at once'}, prompts of {prompt} tokens")
        made = table("candidate", *_SHOWN, right=_SHOWN)
        for cells_of in rows:
            # Intervals are in the report; a terminal has no room for them.
            cells = dict(zip(HEAD[1:], (cell.partition(" (")[0] for cell in cells_of[1:]), strict=True))
            made.add_row(escape(cells_of[0]), *(_with_ratio(name, cells) for name in _SHOWN))
        console.print(made)
    for note in notes(report):
        console.print(note, style="dim", soft_wrap=True)
    render_end(report, report.failed, output)


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
    kl, top1 = found.kl_bounds, found.top1_bounds
    few = len(found.documents) < FEWEST
    spread = ["", ""] if few else [f" ({kl.low:.3g} to {kl.high:.3g})", f" ({top1.low:.2%} to {top1.high:.2%})"]
    console.print(
        f"divergence {kl.value:.3g} nats a token{spread[0]}; the same likeliest token in {top1.value:.2%}{spread[1]}"
    )
    if few:
        console.print(f"how documents differ is not known from fewer than {FEWEST} of them: no intervals", style="dim")
    if found.match is not None and found.match_whole is not None:
        longest = max(each.length for each in found.continuations)
        console.print(
            f"greedy texts are the same for {found.match:g} of {longest} tokens (median of "
            f"{len(found.continuations)}{_between(found.match_bounds)}), to the end in {found.match_whole:.0%}"
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


def _between(bounds: Bounds | None) -> str:
    """The bounds of a median, or that there are too few texts for them."""
    if bounds is None:
        return ""
    if math.isinf(bounds.high):
        return ", too few for an interval"
    return f", {bounds.low:g} to {bounds.high:g}"


def render_replay(report: ReplayReport, output: Output) -> None:
    """The verdict, and how far every continuation was written again."""
    console = output.console()
    verdict = "[red]FAIL[/red]" if report.failures else "[green]PASS[/green]"
    console.print(
        f"{verdict} [bold]{escape(report.ref)}[/bold] against [bold]golden[/bold]: {report.precision}, "
        f"{len(report.rows)} continuations"
    )
    made = table("prompt", "tokens", "held to", "written alike", right=("tokens", "held to", "written alike"))
    for row in report.rows:
        made.add_row(escape(repr(row.text)), str(row.tokens), str(row.held), str(row.alike))
    console.print(made)
    console.print(
        f"a text is held to PyTorch's up to the first token that was ahead by {report.reach:.2g} nats or less, where "
        "rounding may choose another",
        style="dim",
        soft_wrap=True,
    )
    for failure in report.failures:
        console.print(f"[red]✗[/red] {escape(failure)}", soft_wrap=True)
