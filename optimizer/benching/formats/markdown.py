"""A bench report as Markdown, for pull requests and documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimizer.benching.cells import about, arrivals, at_shapes, changed, metric_of, times, worst_first
from optimizer.benching.comparison import Comparison
from optimizer.benching.facts import doubts, machine_facts, unit_of, version_text
from optimizer.benching.gates import Gate
from optimizer.benching.generation_cells import HEAD, notes, table_of
from optimizer.benching.generation_report import GenerationBench
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.shape import shape_text
from optimizer.benching.writing import Format
from optimizer.types import JSON

__all__ = [
    "FORMAT",
    "comparison_to_markdown",
    "gate_table",
    "generation_to_markdown",
    "machine_lines",
    "md_table",
    "to_markdown",
]

#: Libraries that the first line names; the others are at the end.
_NAMED = ("torch", "onnxruntime", "onnxruntime-gpu")
#: The cells of a time, and of a change, in the order of their columns.
_TIMES = ("shape", "calls", "mean ms", "p50", "p90", "p99", "p99.9", "rows/s", "copies ms")
_CHANGE = ("before ms", "after ms", "time a call", "interval", "compared through")


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
            ["candidate", *("samples" if head == "calls" else head for head in _TIMES)],
            [_detail(row, cell) for row in report.rows for cell in (*row.cells, *row.beside)],
        ),
        "",
        *_accuracy(report),
        *_arrivals(report),
        *_roofline(report),
        *_floors(report),
    ]
    failed = [f"- `{row.label}`: {row.why}" for row in report.rows if row.error]
    sections = [
        ("## Failed", failed),
        ("## Careful", [f"- **{doubt}**: {words}" for doubt, words in doubts(report)]),
        ("## Machine", machine_lines(report.environment)),
    ]
    for title, entries in sections:
        if entries:
            lines += [title, "", *entries, ""]
    if command := report.settings.get("command"):
        lines += ["```console", f"$ {command}", "```", ""]
    return "\n".join(lines)


def gate_table(gates: Sequence[Gate]) -> list[str]:
    """Every gate with what is known of it, the worst outcome first; nothing without gates."""
    if not gates:
        return []
    rows = [[f"**{g.outcome.value}**", f"`{g.about}`", g.title, g.says] for g in worst_first(gates)]
    return [*md_table(["outcome", "candidate", "gate", "what is known"], rows), ""]


def _accuracy(report: BenchReport) -> list[str]:
    """How right each candidate is on labelled rows, where that was asked for."""
    heads = ("metric", "rows judged", "drop", "bounds of the drop")
    judged = [(f"`{row.label}`", about(row)) for row in report.rows if row.accuracy is not None]
    rows = [[label, *(cells[head] for head in heads)] for label, cells in judged]
    head = ["candidate", metric_of(report), "rows", "drop", "bounds of the drop"]
    return [*md_table(head, rows), ""] if rows else []


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
    lines = [(row, cell, arrivals(loop)) for row, cell, loop in loops]
    rows = [[f"`{row.label}`", shape_text(cell.shape), *cells.values()] for row, cell, cells in lines]
    said = [line for _, _, loop in loops for sentence in loop.sentences() for line in (f"- {sentence}", "")]
    return [*md_table(["candidate", "shape", *lines[0][2]], rows), "", *said]


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
    cells = about(row)
    known = [f"`{row.label}`", cells["runs on"], cells["MB"]]
    if row.error:
        return [*known, *["failed"] * 3, "", ""]
    cosines = " / ".join(filter(None, (cells["worst cosine"], cells["mean cosine"])))
    likeness = cosines or _dash(row.label == baseline)
    top1 = f"{row.agreement.top1:.4f}" if row.agreement and row.agreement.top1 is not None else ""
    return [*known, cells["load s"], cells["first call ms"], cells["peak MB"], likeness, top1]


def _dash(is_baseline: bool) -> str:
    return "baseline" if is_baseline else ""


def _speed(row: Row, report: BenchReport) -> list[str]:
    cells = []
    for cell in at_shapes(row, report):
        if cell is None:
            cells.append("failed")
            continue
        ratio = cell.speedup if cell.valid else None
        faster = f" ({ratio.value:.2f} ×, {ratio.low:.2f} to {ratio.high:.2f})" if ratio else ""
        cells.append(f"{cell.figure}{faster}")
    return [f"`{row.label}`", *cells]


def _detail(row: Row, cell: Cell) -> list[str]:
    cells = times(cell)
    return [f"`{row.label}`", *(cells[head] for head in _TIMES)]


def comparison_to_markdown(report: Comparison) -> str:
    """The verdict and its gates, every change, and what to be careful about."""
    rows = []
    for change in report.changes:
        cells = changed(change, "{:.4g}".format)
        cells["time a call"] = f"**{cells['time a call']}**"
        if change.through:
            cells["compared through"] = f"`{change.through}`"
        rows.append([f"`{change.label}`", change.shape, *(cells[head] for head in _CHANGE)])
    head = ["candidate", "shape", *_CHANGE]
    failed = [f"- `{row.label}`: {row.why}" for row in report.failed]
    sections = [
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
    for title, entries in sections:
        if entries:
            lines += [title, "", *entries, ""]
    return "\n".join(lines)


def generation_to_markdown(report: GenerationBench) -> str:
    """How fast each text generator is at every size, and what to be careful about."""
    failed = [f"- `{row.label}`: {row.why}" for row in report.failed]
    careful = [
        f"- **{each.about or 'all'}**: {each.doubt.advice}" + (f" ({each.detail})" if each.detail else "")
        for each in report.cautions
    ]
    lines = ["# Benchmark of text generation", "", *md_table(list(HEAD), table_of(report)), ""]
    lines += [f"{note}.  " for note in notes(report)] + [""]
    sections = [
        ("## Failed", failed),
        ("## Careful", careful),
        ("## Machine", machine_lines(report.environment)),
    ]
    for title, entries in sections:
        if entries:
            lines += [title, "", *entries, ""]
    return "\n".join(lines)


FORMAT = Format(
    ".md",
    "Markdown, for pull requests and documentation",
    to_markdown,
    comparison_to_markdown,
    generation_to_markdown,
)
