"""What tables say of timed text generators: the same cells in the terminal and in Markdown."""

from __future__ import annotations

from optimizer.benching.generation_report import GenerationBench, GenerationCell, GenerationRow
from optimizer.benching.stats import Ratio, brief

__all__ = ["HEAD", "by_size", "notes", "table_of"]

HEAD = (
    "candidate", "texts", "prompt", "first token ms", "token ms", "tokens/s", "×", "prefill/s", "× prefill",
    "decode/s", "× decode", "of bandwidth", "memory MiB",
)  # fmt: skip


def table_of(report: GenerationBench) -> list[list[str]]:
    """A row a candidate and size, in the order of :data:`HEAD`; those of one size stand together."""
    sizes = dict.fromkeys(cell.load for row in report.rows for cell in row.cells)
    return [_cells(row, cell) for size in sizes for row in report.rows for cell in row.cells if cell.load == size]


def by_size(report: GenerationBench) -> dict[tuple[str, str], list[list[str]]]:
    """The same rows by how many texts, and the length of their prompts."""
    found: dict[tuple[str, str], list[list[str]]] = {}
    for row in table_of(report):
        found.setdefault((row[1], row[2]), []).append(row)
    return found


def _cells(row: GenerationRow, cell: GenerationCell) -> list[str]:
    def times(name: str) -> str:
        ratio: Ratio | None = cell.faster.get(name)
        return "–" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"

    def known(value: float | None) -> str:
        return "–" if value is None else brief(value)

    share = cell.bandwidth_share
    return [
        row.label,
        str(cell.load.batch),
        str(cell.load.prompt),
        brief(cell.first_token_ms),
        known(cell.token_ms),
        brief(cell.tokens_per_s),
        times("whole"),
        brief(cell.prefill_per_s),
        times("prefill"),
        known(cell.decode_per_s),
        times("decode"),
        "–" if share is None else f"{share:.0%}",
        brief(cell.peak_rss / 2**20),
    ]


def notes(report: GenerationBench) -> list[str]:
    """What the numbers mean, and what they were measured against."""
    new = next((cell.load.new for row in report.rows for cell in row.cells), 0)
    said = [
        f"{new} new tokens a text, {report.settings['ends']}; {report.settings['prompts']}; "
        f"× is times faster than {report.baseline}, with the 95 % interval"
    ]
    for each in report.bandwidths:
        if each.runs:
            slow, kernel = max(
                [(each.runs[-1], "copy"), *((run, "read") for run in each.reads[-1:])], key=lambda pair: pair[0].rate
            )
            said.append(
                f"of bandwidth: what a step reads, at the {slow.rate:.1f} GB/s of a {kernel} of {slow.size} MiB on "
                f"{each.device} (or of the size that the step's bytes have), over the time that it took"
            )
    return said
