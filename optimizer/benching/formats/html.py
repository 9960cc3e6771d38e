"""One HTML file that loads nothing, for a browser, a phone and paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optimizer.benching.cells import about, arrivals, at_shapes, changed, filled, metric_of, times, worst_first
from optimizer.benching.comparison import Comparison, Side
from optimizer.benching.facts import doubts, setting_facts, unit_of
from optimizer.benching.gates import Gate
from optimizer.benching.plots import batch_plots, change_plot, color_of, latency_plots, roof_names, roofline_plot
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.shape import shape_text
from optimizer.benching.writing import Format
from optimizer.drawing.page import bullets, document, escape, facts, machine, number_cell, prose, section

__all__ = ["FORMAT", "comparison_to_html", "gate_list", "to_html"]

#: The cells of an open loop that stand beside its times.
_ARRIVALS = ("asked/s", "lag ms p99", "arrivals")


def to_html(report: BenchReport) -> str:
    """The verdict and its gates, every candidate, its times, throughput, the roofline and what to be careful about."""
    title = " against ".join([", ".join(r.label for r in report.rows if r.label != report.baseline), report.baseline])
    body = [
        _head(report),
        section("Gates", gate_list(report.gates)),
        section("Every candidate", _table(_candidates(report)) + _about(report)),
        section("Load, memory and likeness", _table(_particulars(report))),
        section("Careful", bullets(f"{doubt}: {words}" for doubt, words in doubts(report))),
        section("How the times lie", _explained(latency_plots(report), _LANES)),
        section("Every time", _table(_times(report))),
        section("Throughput against batch", batch_plots(report)),
        section("Under this machine's roofs", _roofs(report)),
        section("Compared with itself", bullets(_floors(report))),
        section("The machine", machine(report.environment)),
        section("How it was measured", _settings(report)),
    ]
    verdict = f"{report.verdict.value}: " if report.verdict else ""
    return document(f"{verdict}{title.removeprefix(' against ')}", body)


def _head(report: BenchReport) -> str:
    verdict = report.verdict
    said = f'<span class="verdict {verdict.value}">{verdict.value}</span> ' if verdict else ""
    boxes = []
    for shape in report.shapes:
        timed = [(row, cell) for row in report.rows for cell in row.cells if cell.shape == shape and cell.speedup]
        if not timed:
            continue
        row, cell = max(timed, key=lambda each: each[1].speedup.value if each[1].speedup else 0.0)
        ratio = cell.speedup
        if ratio is not None:
            place = f"at {shape_text(shape)} by {row.label}, {ratio.low:.2f} to {ratio.high:.2f}"
            boxes.append((f"{ratio.value:.2f} ×", f"as fast as {report.baseline} {place}"))
    line = (
        f"{report.scenario}; against {report.baseline}; {report.settings['threads']} threads, "
        f"{report.settings['rounds']} interleaved rounds, one process a candidate; "
        f"{report.created[:16].replace('T', ' ')} UTC"
    )
    return f'<h1>{said}Benchmark</h1>\n<p class="dim">{escape(line)}</p>\n{facts(boxes)}'


def gate_list(gates: Sequence[Gate]) -> str:
    """Every gate with what is known of it, the worst outcome first; nothing without gates."""
    lines = [
        f'<li><b class="{gate.outcome.value}">{gate.outcome.value}</b> <b>{escape(gate.about)}</b> {escape(gate.title)}'
        f'<br><span class="dim">{prose(gate.says)}</span></li>'
        for gate in worst_first(gates)
    ]
    return f'<ul class="plain">{"".join(lines)}</ul>' if lines else ""


#: A table's line: the number of the candidate, its name, columns by their heads, and a sentence below.
_Line = tuple[int, str, dict[str, str], str]


def _table(lines: Sequence[_Line]) -> str:
    """Lines with the columns that any of them fills."""
    heads = filled([cells for _, _, cells, _ in lines])
    if not heads:
        return ""
    head = "<th>candidate</th>" + "".join(f'<th class="n">{escape(head)}</th>' for head in heads)
    rows = []
    for number, name, cells, below in lines:
        label = f'<th class="name" scope="row"><i class="{color_of(number)}">{number}</i>{escape(name)}</th>'
        numbers = "".join(number_cell(head, cells.get(head, "")) for head in heads)
        why = f'<tr><td class="why" colspan="{1 + len(heads)}">{prose(below)}</td></tr>' if below else ""
        rows.append(f'<tbody><tr class="of">{label}{numbers}</tr>{why}</tbody>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _candidates(report: BenchReport) -> list[_Line]:
    """What decides between candidates: how fast at every shape, how faithful, how large."""
    lines = []
    for number, row in enumerate(report.rows):
        known = about(row)
        cells = {
            **_speed(row, report),
            **{head: known[head] for head in ("worst cosine", "top-1")},
            metric_of(report): known["metric"],
            "MB": known["MB"],
        }
        lines.append((number, row.label, cells, row.why))
    return lines


def _particulars(report: BenchReport) -> list[_Line]:
    """The rest of what is known of each candidate that was measured."""
    heads = ("runs on", "load s", "first call ms", "peak MB", "GPU MB", "mean cosine", "rows compared")
    lines = []
    for number, row in enumerate(report.rows):
        known = about(row)
        drop, bounds = known["drop"], known["bounds of the drop"]
        cells = {
            **{head: known[head] for head in heads},
            f"drop of {metric_of(report)}": f"{drop} ({bounds})" if drop and bounds else drop,
        }
        if row.cells:
            lines.append((number, row.label, cells, ""))
    return lines


def _speed(row: Row, report: BenchReport) -> dict[str, str]:
    found = {}
    for shape, cell in zip(report.shapes, at_shapes(row, report), strict=True):
        ratio = f" ({cell.speedup.value:.2f} ×)" if cell and cell.speedup else ""
        found[shape_text(shape)] = f"{cell.figure}{ratio}" if cell else "failed" if row.error else ""
    return found


def _about(report: BenchReport) -> str:
    words = f"{unit_of(report)}; × is times faster than {report.baseline}."
    return f'<p class="dim">{escape(words)}</p>'


_LANES = (
    "Each shape is a histogram of one candidate's calls on a shared logarithmic axis; the long line in it is the "
    "median, the short ones are p90, p99 and p99.9, where there are enough calls for them."
)


def _explained(drawn: str, words: str) -> str:
    return f'<p class="dim">{escape(words)}</p>{drawn}' if drawn else ""


def _times(report: BenchReport) -> list[_Line]:
    """Every cell by itself, those in other batches too."""
    lines = []
    for shape in report.shapes:
        for number, row in enumerate(report.rows):
            for cell in row.cells:
                if cell.shape == shape:
                    lines.append((number, row.label, _time(cell), ""))
    lines += [(number, row.label, _time(cell), "") for number, row in enumerate(report.rows) for cell in row.beside]
    return lines


def _time(cell: Cell) -> dict[str, str]:
    ratio, loop = cell.speedup, arrivals(cell.open_loop) if cell.open_loop else {}
    share = cell.position.peak_share if cell.position is not None else None
    return {
        **times(cell),
        "× baseline": f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "",
        **{head: loop.get(head, "") for head in _ARRIVALS},
        "% of GEMM peak": f"{share:.0%}" if share is not None else "",
    }


def _roofs(report: BenchReport) -> str:
    if report.roofline is None or not report.roofline.peaks:
        return ""
    drawn = roofline_plot(report)
    words = (
        "Both axes are logarithmic. A level line is the GEMM peak of an arithmetic, a sloping one the bandwidth of a "
        "copy, all measured in this run; each dot is a candidate at a shape. What has no graph of its own has no "
        "bytes, and no dot."
    )
    return _explained(drawn, words) + bullets(roof_names(report.roofline))


def _floors(report: BenchReport) -> Iterator[str]:
    for floor in report.floors:
        yield (
            f"{floor.about} at {shape_text(floor.shape)}: {floor.value:.3f} times itself, {floor.interval}; "
            f"a slowdown below {floor.below} cannot be told from noise."
        )


def _settings(report: BenchReport | Side) -> str:
    settings = setting_facts(report)
    command = settings.pop("command", "")
    said = bullets(f"{name.replace('_', ' ')}: {text}" for name, text in settings.items())
    return said + (f"<pre>{escape(command)}</pre>" if command else "")


def comparison_to_html(report: Comparison) -> str:
    """The verdict and its gates, every change, and what to be careful about."""
    said = f'<span class="verdict {report.verdict.value}">{report.verdict.value}</span> ' if report.verdict else ""
    allowed = f"; {report.tolerance:.1%} more time is allowed" if report.tolerance is not None else ""
    runs = " and ".join(each.created[:16].replace("T", " ") for each in (report.base, report.head))
    line = f"{runs} UTC{allowed}"
    drift = [f"{report.reference} at {shape_text(at)}: {share:+.1%}" for at, share in report.drift.items()]
    body = [
        f'<h1>{said}Comparison</h1>\n<p class="dim">{escape(line)}</p>',
        section("Gates", gate_list(report.gates)),
        section("Every change", change_plot(report) + _table(_changes(report))),
        section("Failed", bullets(f"{row.label}: {row.why}" for row in report.failed)),
        section("Careful", bullets(report.cautions)),
        section("What drifted, and is taken out", bullets(drift)),
        section("The machine", machine(report.head.environment)),
        section("How the second was measured", _settings(report.head)),
    ]
    return document(f"{report.verdict.value}: comparison" if report.verdict else "Comparison", body)


def _changes(report: Comparison) -> list[_Line]:
    return [(number, change.label, changed(change), "") for number, change in enumerate(report.changes)]


FORMAT = Format(".html", "one page that loads nothing", to_html, comparison_to_html)
