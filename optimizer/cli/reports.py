"""Reports of checks, and artifacts that are no models, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimizer.benching.cells import about, arrivals, at_shapes, changed, filled, metric_of, place_of
from optimizer.benching.facts import unit_of
from optimizer.benching.gates import Outcome
from optimizer.benching.shape import shape_text
from optimizer.cli.output import Output
from optimizer.cli.tables import escape, size, table

if TYPE_CHECKING:
    from optimizer.artifact import Artifact
    from optimizer.benching.comparison import Comparison
    from optimizer.benching.history import History
    from optimizer.benching.report import BenchReport, Row
    from optimizer.evaluate.report import VerifyReport

__all__ = [
    *("render_bench", "render_comparison", "render_coverage", "render_end", "render_history"),
    *("render_ranking", "render_verify"),
]

_FAILURES_SHOWN = 8
_NODES_SHOWN = 15
_COLOURS = {"PASS": "green", "REGRESSION": "red", "INCONCLUSIVE": "yellow"}


def render_verify(report: VerifyReport, output: Output) -> None:
    """The verdict, the worst of every output, and what is beyond the tolerance."""
    console = output.console()
    verdict = "[red]FAIL[/red]" if report.failures else "[green]PASS[/green]"
    console.print(
        f"{verdict} [bold]{escape(report.ref)}[/bold] against [bold]{escape(report.against)}[/bold]: "
        f"{report.precision}, {report.task}, {len(report.cases)} cases"
    )
    worst = report.worst()
    decisions = any("top1" in entry for entry in worst["outputs"].values())
    right = ("max", "99.9 %", "mean", "worst cosine", "top-1")
    made = table("output", *(right if decisions else right[:-1]), right=right)
    for name, entry in worst["outputs"].items():
        cells = [f"{entry[key]:.2e}" for key in ("max_abs", "p999_abs", "mean_abs")] + [f"{entry['cosine']:.6f}"]
        if decisions:
            cells.append(f"{entry['top1']:.1%}" if "top1" in entry else "")
        made.add_row(name, *cells)
    console.print(made)
    lines = []
    if cosine := worst.get("cosine"):
        lines.append(f"cosine over {cosine['rows']} rows: worst {cosine['worst']:.6f}, mean {cosine['mean']:.6f}")
    if top1 := worst.get("top1"):
        lines.append(f"same decision in {top1['share']:.2%} of {top1['rows']} rows")
    allowed = {k: v for k, v in vars(report.tolerance).items() if v is not None}
    lines.append("allowed: " + ", ".join(f"{name} {value:g}" for name, value in allowed.items()))
    for line in lines:
        console.print(line, style="dim")
    for failure in report.failures[:_FAILURES_SHOWN]:
        console.print(f"[red]✗[/red] {escape(failure)}")
    if len(report.failures) > _FAILURES_SHOWN:
        console.print(f"  … and {len(report.failures) - _FAILURES_SHOWN} more (--json has them all)", style="dim")


def render_bench(report: BenchReport, output: Output) -> None:
    """One row a candidate: size, faithfulness, and latency with its speed-up at every shape."""
    console = output.console()
    cpu = report.environment["cpu"]
    console.print(
        f"[bold]{cpu['model']}[/bold], {report.settings['threads']} threads, scenario {report.scenario}, "
        f"{report.rounds} interleaved rounds, one process a candidate"
    )
    known = [_what_cells(row, report) for row in report.rows]
    what, speed = filled(known), [shape_text(shape) for shape in report.shapes]
    labels = [escape(row.label) for row in report.rows]
    what_cells = [[cells.get(head) or "–" for head in what] for cells in known]
    times = [_speed_cells(row, report) for row in report.rows]
    whole = table("candidate", *what, *speed, right=(*what, *speed))
    for label, left, right in zip(labels, what_cells, times, strict=True):
        whole.add_row(label, *left, *right)
    if console.measure(whole, options=console.options.update(max_width=10_000)).maximum <= console.width:
        console.print(whole)
    else:
        for head, cells in ((what, what_cells), (speed, times)):
            made = table("candidate", *head, right=tuple(head))
            for label, entries in zip(labels, cells, strict=True):
                made.add_row(label, *entries)
            console.print(made)
    if report.roofline is not None and report.roofline.peaks:
        said = "; ".join(report.roofline.sentences())
        console.print(f"% is of the GEMM peak that was measured here: {said}", style="dim", soft_wrap=True)
    ratio = f"; × is times faster than {escape(report.baseline)}, median of rounds" if len(report.rows) > 1 else ""
    console.print(unit_of(report) + ratio, style="dim", soft_wrap=True)
    for line in (*_batchings(report), *_arrivals(report)):
        console.print(line, style="dim", soft_wrap=True)
    for floor in report.floors:
        said = f"{floor.below}; {floor.about} against itself {floor.value:.3f}× ({floor.interval})"
        console.print(f"noise floor at {shape_text(floor.shape)}: {escape(said)}", style="dim", soft_wrap=True)
    _render_gates(report, output)
    render_end(report, [row for row in report.rows if row.error], output)


def render_end(report: Any, failed: Sequence[Any], output: Output) -> None:
    """What ends every report of times: candidates that failed, doubts, and where the report was written."""
    console = output.console()
    for row in failed:
        console.print(f"[red]✗[/red] {escape(row.label)}: {escape(row.why)}")
    for doubt in dict.fromkeys(caution.doubt for caution in report.cautions):
        named = [c.about for c in report.cautions if c.doubt is doubt and c.about]
        where = ", ".join(named[:2]) + (f" and {len(named) - 2} more" if len(named) > 2 else "")
        output.talk(f"careful: {doubt.advice}" + (f" ({where})" if where else ""))
    if report.path:
        console.print(f"report: {escape(report.path)}", soft_wrap=True)


def render_comparison(report: Comparison, output: Output) -> None:
    """The verdict, every change with its interval, and why it may be doubted."""
    console = output.console()
    if report.verdict:
        console.print(f"[{_COLOURS[report.verdict.value]}]{report.verdict.value}[/]")
    right = ("before ms", "after ms", "time a call", "95 % interval")
    made = table("candidate", "shape", *right, "compared through", "", right=right)
    for change in report.changes:
        outcome = report.outcomes.get((change.label, change.shape))
        made.add_row(
            escape(change.label),
            *map(escape, changed(change, "{:.4g}".format).values()),
            f"[{_COLOURS[outcome]}]{outcome}[/]" if outcome else "",
        )
    console.print(made)
    for shape, share in report.drift.items():
        said = f"{escape(report.reference)} itself took {share:+.1%} at {shape_text(shape)}, which is taken out"
        console.print(said, style="dim")
    for row in report.failed:
        console.print(f"[red]✗[/red] {escape(row.label)}: {escape(row.why)}")
    for caution in report.cautions:
        output.talk(f"careful: {caution}")


_MARKS = {
    Outcome.PASS: "[green]✓[/green]",
    Outcome.REGRESSION: "[red]✗[/red]",
    Outcome.INCONCLUSIVE: "[yellow]?[/yellow]",
}


def _render_gates(report: BenchReport, output: Output) -> None:
    """The verdict, and why."""
    if report.verdict is None:
        return
    console = output.console()
    for gate in report.gates:
        console.print(
            f"{_MARKS[gate.outcome]} {escape(gate.about)} [bold]{escape(gate.title)}[/bold]: {escape(gate.says)}",
            soft_wrap=True,
        )
    color = _COLOURS[report.verdict.value]
    against = f" against [bold]{escape(report.baseline)}[/bold]" if len(report.rows) > 1 else ""
    console.print(f"[{color}]{report.verdict.value}[/{color}]{against}")


def render_history(report: History, output: Output) -> None:
    """A table a machine: for each candidate and shape how its time went, the last one, and where it shifted."""
    from optimizer.benching.history import ALARM, sparkline

    console = output.console()
    right = ("runs", "last ms", "to the one before")
    for machine in dict.fromkeys(each.machine for each in report.series):
        console.print(f"[bold]{escape(machine)}[/bold]")
        made = table("candidate", "shape", "scenario", "over time", *right, "shift", right=right)
        for each in report.series:
            if each.machine == machine:
                made.add_row(
                    escape(each.label),
                    escape(shape_text(each.shape)),
                    each.scenario,
                    sparkline([run.ms for run in each.runs]),
                    str(len(each.runs)),
                    f"{each.last_ms:.4g}",
                    "–" if each.change is None else f"{each.change:+.1%}",
                    each.note,
                )
        console.print(made)
    console.print(
        f"a shift is noted where chance alone would make any of these notes in {ALARM:.0%} of histories", style="dim"
    )
    for said in report.unreadable:
        output.talk(f"careful: left out: {said}")


def render_ranking(artifact: Artifact, output: Output) -> None:
    """The nodes that lose most in int8, and how much of it is the activation's, how much the weight's."""
    console = output.console()
    facts = artifact.manifest.facts
    nodes = facts["ranking"]
    console.print(f"{len(nodes)} nodes, each in int8 by itself, on {facts['calibration']['rows_used']} rows")
    right = ("noise", "activation", "weight", "size")
    made = table("node", "type", *right, right=right)
    for node in nodes[:_NODES_SHOWN]:
        parts = (f"{node[part]:.2e}" for part in ("noise", "activation", "weight"))
        made.add_row(escape(node["node"]), node["op_type"], *parts, size(node["bytes"]))
    console.print(made)
    if len(nodes) > _NODES_SHOWN:
        console.print(f"… and {len(nodes) - _NODES_SHOWN} more (--json has them all)", style="dim")
    console.print("noise is the power of the error over the power of the node's answer", style="dim")


def render_coverage(artifact: Artifact, output: Output) -> None:
    """How much of the data a calibration set covers, by length and by label."""
    facts = artifact.manifest.facts
    coverage = facts["coverage"]
    strata = {f"length {each['from']} to {each['to']}": each for each in coverage["strata"] or ()}
    labels = {f"label {name}": each for name, each in (coverage["labels"] or {}).items()}
    made = table("rows", "in the data", "chosen", right=("in the data", "chosen"))
    for name, each in {**strata, **labels}.items():
        made.add_row(escape(name), str(each["offered"]), str(each["used"]))
    if strata or labels:
        output.console().print(made)


def _what_cells(row: Row, report: BenchReport) -> dict[str, str]:
    """What decides between candidates besides their times; sizes in powers of 1024."""
    known = about(row)
    return {
        "size": size(row.bytes),
        metric_of(report): known["metric"],
        "worst cosine": known["worst cosine"],
        "mean": known["mean cosine"],
        "top-1": known["top-1"],
        "memory": size(row.peak_rss) if row.peak_rss else "",
        "GPU memory": size(row.peak_vram) if row.peak_vram is not None else "",
    }


def _speed_cells(row: Row, report: BenchReport) -> list[str]:
    cells = []
    for cell in at_shapes(row, report):
        if cell is None:
            cells.append("failed" if row.error else "–")
        else:
            times = f"  {cell.speedup.value:.2f}×" if cell.speedup is not None and cell.valid else "       "
            share = cell.position.peak_share if cell.position is not None else None
            of_peak = f"  {share:4.0%}" if share is not None else "      " if report.roofline is not None else ""
            in_ms = cell.valid and not cell.workload and not cell.throughput
            figure = f"{cell.summary.p50_ms:.2f}" if in_ms else cell.figure
            cells.append(f"{figure}{times}{of_peak}")
    return cells


def _batchings(report: BenchReport) -> list[str]:
    """Of passes over data: how each got its rows, and how it stands to the baseline's other ways."""
    lines = []
    for row in report.rows:
        for cell in (*row.cells, *row.beside):
            if cell.workload is None:
                continue
            against = ", ".join(f"{ratio.value:.2f}× its {way}" for way, ratio in cell.against.items())
            padding = f"{cell.workload['padding']:.2f} steps computed a step"
            line = f"{row.label}: {cell.batching}, {padding}, {cell.rows_per_s:.0f} rows/s"
            if (prepare_ms := cell.workload.get("prepare_ms")) is not None:
                line += f", and {prepare_ms / cell.batch:.2g} ms a row to make its inputs"
            lines.append(escape(f"{line}; {against}" if against else line))
    return lines


def _arrivals(report: BenchReport) -> list[str]:
    """Of an open loop: the tail, and whether what was asked is what was measured."""
    lines = []
    for row in report.rows:
        for cell in row.cells:
            if (loop := cell.open_loop) is None:
                continue
            tail = "".join(f", {name} {value:.3g} ms" for name, value in cell.summary.percentiles_ms.items())
            cells = arrivals(loop)
            load = f", load {cells['load']}" if cells["load"] else ""
            lag = ", ".join(f"{name} {cells[f'lag ms {name}']}" for name in ("p50", "p99", "max"))
            said = (
                f"asked {cells['asked/s']}/s, answered {cells['answered/s']}/s{load}, "
                f"queue up to {cells['longest queue']}, lag {lag} ms"
            )
            verdict = "" if loop.valid else f"; INVALID, {loop.reason}"
            lines.append(escape(f"{row.label} at {place_of(cell)}{tail}: {said}{verdict}"))
            lines += map(escape, loop.sentences())
    return lines
