"""A bench report as Markdown, for pull requests and documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimizer.benching.comparing import Comparison
from optimizer.benching.facts import doubts, machine_facts, unit_of, version_text
from optimizer.benching.gates import Gate
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.shape import shape_text
from optimizer.benching.stats import brief
from optimizer.benching.writing import Format
from optimizer.types import JSON

__all__ = ["FORMAT", "comparison_to_markdown", "gate_table", "machine_lines", "md_table", "to_markdown"]

#: Libraries that the first line names; the others are at the end.
_NAMED = ("torch", "onnxruntime", "onnxruntime-gpu")


def to_markdown(report: BenchReport) -> str:
    """The verdict and its gates, what each candidate is, how fast at every shape, and what to be careful about."""
    lines = [
        f"# Benchmark: {report.verdict.value}" if report.verdict else "# Benchmark",
        "",
        _machine(report),
        "",
        *gate_table(report.gates),
        *md_table(
            ["candidate", "runs on", "MB", "load s", "first call ms", "peak MB", "cosine worst / mean", "top-1"],
            [_what(row, report.baseline) for row in report.rows],
        ),
        "",
        f"{unit_of(report)}; in brackets, times faster than `{report.baseline}` with the 95 % interval.",
        "",
        *md_table(
            ["candidate", *map(shape_text, report.shapes)],
            [_speed(row, report) for row in report.rows],
        ),
        "",
        *md_table(
            ["candidate", "shape", "samples", "mean ms", "p50", "p90", "p99", "p99.9", "rows/s", "copies ms"],
            [_detail(row, cell) for row in report.rows for cell in (*row.cells, *row.beside)],
        ),
        "",
        *_accuracy(report),
        *_arrivals(report),
        *_roofline(report),
        *_floors(report),
    ]
    failed = [f"- `{row.label}`: {row.why}" for row in report.rows if row.error]
    about = [
        ("## Failed", failed),
        ("## Careful", [f"- **{doubt}**: {words}" for doubt, words in doubts(report)]),
        ("## Machine", machine_lines(report.environment)),
    ]
    for title, entries in about:
        if entries:
            lines += [title, "", *entries, ""]
    if command := report.settings.get("command"):
        lines += ["```console", f"$ {command}", "```", ""]
    return "\n".join(lines)


def gate_table(gates: Sequence[Gate]) -> list[str]:
    """Every gate with what is known of it, the worst outcome first; nothing without gates."""
    if not gates:
        return []
    order = ("REGRESSION", "INCONCLUSIVE", "PASS")
    ordered = sorted(gates, key=lambda gate: order.index(gate.outcome.value))
    rows = [[f"**{g.outcome.value}**", f"`{g.about}`", g.title, g.says] for g in ordered]
    return [*md_table(["outcome", "candidate", "gate", "what is known"], rows), ""]


def _accuracy(report: BenchReport) -> list[str]:
    """How right each candidate is on labelled rows, where that was asked for."""
    rows = [
        [
            f"`{row.label}`",
            f"{row.accuracy.value:.4f}",
            f"{row.accuracy.rows:,}",
            "" if row.accuracy.drop is None else f"{row.accuracy.drop:+.4f}",
            "" if row.accuracy.low is None else f"{row.accuracy.low:+.4f} to {row.accuracy.high:+.4f}",
        ]
        for row in report.rows
        if row.accuracy is not None
    ]
    metric = next((row.accuracy.metric for row in report.rows if row.accuracy is not None), "")
    return [*md_table(["candidate", metric, "rows", "drop", "bounds of the drop"], rows), ""] if rows else []


def _floors(report: BenchReport) -> list[str]:
    """What a comparison with itself came to, where that was asked for."""
    rows = [
        [
            shape_text(floor.shape),
            f"`{floor.about}`",
            f"{floor.value:.3f} ×",
            floor.interval,
            floor.below,
        ]
        for floor in report.floors
    ]
    head = ["shape", "against itself", "ratio", "95 % interval", "noise floor"]
    return [*md_table(head, rows), ""] if rows else []


def machine_lines(environment: Mapping[str, JSON]) -> list[str]:
    """The machine and its versions, one line a fact."""
    return [f"- {name.replace('_', ' ')}: {text}" for name, text in machine_facts(environment).items() if text]


def _arrivals(report: BenchReport) -> list[str]:
    """Of an open loop: whether what was asked is what was measured."""
    loops = [(row, cell, cell.open_loop) for row in report.rows for cell in row.cells if cell.open_loop is not None]
    if not loops:
        return []
    rows = [
        [
            f"`{row.label}`",
            shape_text(cell.shape),
            f"{loop.qps:g}",
            f"{loop.scheduled_qps:.4g}",
            f"{loop.achieved_qps:.4g}",
            f"{loop.load:.0%}" if loop.load is not None else "",
            f"{loop.queue_max}",
            *(f"{loop.lag_ms[name]:.3f}" for name in ("p50", "p99", "max")),
            "valid" if loop.valid else f"INVALID: {loop.reason}",
        ]
        for row, cell, loop in loops
    ]
    said = [line for _, _, loop in loops for sentence in loop.sentences() for line in (f"- {sentence}", "")]
    head = ["candidate", "shape", "asked/s", "drawn/s", "answered/s", "load", "longest queue"]
    return [*md_table([*head, "lag ms p50", "p99", "max", "arrivals"], rows), "", *said]


def _roofline(report: BenchReport) -> list[str]:
    """Every call under this machine's roofs, and how high those are."""
    placed = [(row, cell, cell.position) for row in report.rows for cell in row.cells if cell.position is not None]
    if report.roofline is None or not placed:
        return []
    rows = [
        [
            f"`{row.label}`",
            cell.shape.replace("x", " × "),
            f"{at.flops / 1e9:.3g}" + (" and more" if at.is_lower_bound else ""),
            " + ".join(f"{flops / at.flops:.0%} {name}" for name, flops in at.arithmetic.items()),
            f"{at.least_bytes / 1e6:.3g}" if at.least_bytes is not None else "",
            f"{at.gflops:.4g}",
            f"{at.peak_share:.0%}" if at.peak_share is not None else "",
            at.bound,
        ]
        for row, cell, at in placed
    ]
    head = ["candidate", "shape", "GFLOP", "in", "MB at least", "GFLOP/s", "% of GEMM peak", "bound by"]
    return [*md_table(head, rows), "", f"Measured here: {'; '.join(report.roofline.sentences())}.", ""]


def _machine(report: BenchReport) -> str:
    cpu = report.environment["cpu"]
    settings = report.settings
    versions = {name: text for name, text in report.environment["versions"].items() if name in _NAMED}
    named = version_text({"versions": versions})
    gpus = "".join(f", {gpu['name']}" for gpu in report.environment["gpus"])
    return (
        f"{cpu['model']}, {cpu['cores']} cores ({', '.join(cpu['features']) or 'no int8 or bf16 units'}){gpus}; "
        f"{settings['threads']} threads, {settings['rounds']} interleaved rounds, one process a candidate; "
        f"{report.inputs['timed']} inputs; {named}; {report.created}."
    )


def md_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table, every cell with its bars escaped."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]


def _what(row: Row, baseline: str) -> list[str]:
    if row.error:
        return [f"`{row.label}`", row.provider, f"{row.bytes / 1e6:.1f}", *["failed"] * 3, "", ""]
    agreement = row.agreement
    return [
        f"`{row.label}`",
        row.provider,
        f"{row.bytes / 1e6:.1f}",
        f"{row.load_s:.2f}",
        f"{row.first_s * 1e3:.1f}",
        f"{row.peak_rss / 1e6:.0f}",
        f"{agreement.cosine_worst:.5f} / {agreement.cosine_mean:.5f}" if agreement else _dash(row.label == baseline),
        f"{agreement.top1:.4f}" if agreement and agreement.top1 is not None else "",
    ]


def _dash(is_baseline: bool) -> str:
    return "baseline" if is_baseline else ""


def _speed(row: Row, report: BenchReport) -> list[str]:
    by_shape = {cell.shape: cell for cell in row.cells}
    cells = []
    for shape in report.shapes:
        cell = by_shape.get(shape)
        if cell is None:
            cells.append("failed")
            continue
        ratio = cell.speedup if cell.valid else None
        times = f" ({ratio.value:.2f} ×, {ratio.low:.2f} to {ratio.high:.2f})" if ratio else ""
        cells.append(f"{cell.figure}{times}")
    return [f"`{row.label}`", *cells]


def _detail(row: Row, cell: Cell) -> list[str]:
    summary = cell.summary
    percentiles = [summary.percentiles_ms.get(name) for name in ("p90", "p99", "p99.9")]
    return [
        f"`{row.label}`",
        " in ".join(filter(None, (shape_text(cell.shape), cell.batching))),
        f"{summary.samples}",
        brief(summary.mean_ms),
        brief(summary.p50_ms),
        *("" if p is None else brief(p) for p in percentiles),
        f"{cell.rows_per_s:.4g}",
        "" if cell.copy_ms is None else f"{cell.copy_ms:.2g}",
    ]


def comparison_to_markdown(report: Comparison) -> str:
    """The verdict and its gates, every change, and what to be careful about."""
    rows = [
        [
            f"`{change.label}`",
            change.shape,
            f"{change.base_ms:.4g}",
            f"{change.head_ms:.4g}",
            f"**{change.value:+.1%}**",
            change.interval,
            f"`{change.through}`" if change.through else "as they are",
        ]
        for change in report.changes
    ]
    head = ["candidate", "shape", "before ms", "after ms", "time a call", "interval", "compared through"]
    failed = [f"- `{row.label}`: {row.why}" for row in report.failed]
    about = [
        ("## Failed", failed),
        ("## Careful", [f"- {words}" for words in report.cautions]),
        ("## Machine", machine_lines(report.head.environment)),
    ]
    lines = [
        f"# Comparison: {report.verdict.value}" if report.verdict else "# Comparison",
        "",
        *gate_table(report.gates),
        *md_table(head, rows),
        "",
    ]
    for title, entries in about:
        if entries:
            lines += [title, "", *entries, ""]
    return "\n".join(lines)


FORMAT = Format(".md", "Markdown, for pull requests and documentation", to_markdown, comparison_to_markdown)
