"""A bench report as Markdown, for pull requests and documentation."""

from __future__ import annotations

from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.shape import shape_text

__all__ = ["to_markdown"]


def to_markdown(report: BenchReport) -> str:
    """One table of what each candidate is, one of how fast it is at every shape, and what to be careful about."""
    lines = [
        "# Benchmark",
        "",
        _machine(report),
        "",
        *_table(
            ["candidate", "runs on", "MB", "load s", "first call ms", "peak MB", "cosine worst / mean", "top-1"],
            [_what(row, report.baseline) for row in report.rows],
        ),
        "",
        f"{_unit(report)}; in brackets, times faster than `{report.baseline}` with the 95 % interval.",
        "",
        *_table(
            ["candidate", *map(shape_text, report.shapes)],
            [_speed(row, report) for row in report.rows],
        ),
        "",
        *_table(
            ["candidate", "shape", "samples", "mean ms", "p50", "p90", "p99", "p99.9", "rows/s"],
            [_detail(row, cell) for row in report.rows for cell in (*row.cells, *row.beside)],
        ),
        "",
        *_roofline(report),
    ]
    failed = [f"- `{row.label}`: {' '.join(filter(None, (row.error, row.hint)))}" for row in report.rows if row.error]
    for title, entries in (("## Failed", failed), ("## Careful", _careful(report))):
        if entries:
            lines += [title, "", *entries, ""]
    return "\n".join(lines)


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
    return [*_table(head, rows), "", f"Measured here: {'; '.join(report.roofline.sentences())}.", ""]


def _careful(report: BenchReport) -> list[str]:
    """One line a doubt, with everything that raised it."""
    lines = []
    for doubt in dict.fromkeys(caution.doubt for caution in report.cautions):
        raised = [", ".join(filter(None, (c.about, c.detail))) for c in report.cautions if c.doubt is doubt]
        named = "; ".join(filter(None, raised))
        lines.append(f"- **{doubt.value}**: {doubt.advice}" + (f" ({named})" if named else ""))
    return lines


def _machine(report: BenchReport) -> str:
    cpu = report.environment["cpu"]
    settings = report.settings
    versions = report.environment["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "onnxruntime-gpu") if name in versions
    )
    gpus = "".join(f", {gpu['name']}" for gpu in report.environment["gpus"])
    return (
        f"{cpu['model']}, {cpu['cores']} cores ({', '.join(cpu['features']) or 'no int8 or bf16 units'}){gpus}; "
        f"{settings['threads']} threads, {settings['rounds']} interleaved rounds, one process a candidate; "
        f"{report.inputs['timed']} inputs; {named}; {report.created}."
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
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


def _unit(report: BenchReport) -> str:
    passes = any(cell.workload for row in report.rows for cell in row.cells)
    return "Rows a second of a pass over the data" if passes else "Median milliseconds a call"


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
        ratio = cell.speedup
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
        f"{summary.mean_ms:.3g}",
        f"{summary.p50_ms:.3g}",
        *("" if p is None else f"{p:.3g}" for p in percentiles),
        f"{cell.rows_per_s:.4g}",
    ]
