"""What the tables of a report say, cell by cell, by the heads of their columns.

Markdown, the page and the terminal draw different tables of the same cells; an empty text is what is not known or does
not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.benching.gates import Gate, Outcome
from optimizer.benching.shape import shape_text
from optimizer.benching.stats import PERCENTILES, brief

if TYPE_CHECKING:
    from optimizer.benching.comparison import Change
    from optimizer.benching.openloop import OpenLoop
    from optimizer.benching.report import BenchReport, Cell, Row

__all__ = ["about", "arrivals", "at_shapes", "changed", "filled", "metric_of", "place_of", "times", "worst_first"]

_ORDER = (Outcome.REGRESSION, Outcome.INCONCLUSIVE, Outcome.PASS)


def about(row: Row) -> dict[str, str]:
    """What one candidate is: where it runs, its size and memory, how like the baseline it is, and how right."""
    agreement, accuracy = row.agreement, row.accuracy
    bounded = accuracy is not None and accuracy.low is not None
    return {
        "runs on": row.provider,
        "MB": f"{row.bytes / 1e6:.1f}",
        "load s": f"{row.load_s:.2f}",
        "first call ms": f"{row.first_s * 1e3:.1f}",
        "peak MB": f"{row.peak_rss / 1e6:.0f}" if row.peak_rss else "",
        "GPU MB": f"{row.peak_vram / 1e6:.0f}" if row.peak_vram is not None else "",
        "worst cosine": f"{agreement.cosine_worst:.5f}" if agreement else "",
        "mean cosine": f"{agreement.cosine_mean:.5f}" if agreement else "",
        "top-1": f"{agreement.top1:.2%}" if agreement and agreement.top1 is not None else "",
        "rows compared": f"{agreement.rows:,}" if agreement else "",
        "metric": f"{accuracy.value:.4f}" if accuracy else "",
        "rows judged": f"{accuracy.rows:,}" if accuracy else "",
        "drop": f"{accuracy.drop:+.4f}" if accuracy and accuracy.drop is not None else "",
        "bounds of the drop": f"{accuracy.low:+.4f} to {accuracy.high:+.4f}" if accuracy and bounded else "",
    }


def metric_of(report: BenchReport) -> str:
    """The name of what was judged on labelled rows; empty where nothing was."""
    return next((row.accuracy.metric for row in report.rows if row.accuracy is not None), "")


def at_shapes(row: Row, report: BenchReport) -> list[Cell | None]:
    """A candidate's cells in the order of the report's shapes; None where it was not measured."""
    cells = {cell.shape: cell for cell in row.cells}
    return [cells.get(shape) for shape in report.shapes]


def place_of(cell: Cell) -> str:
    """Where a time was taken: ``8 × 128``, and of a pass over a file in which batches."""
    return " in ".join(filter(None, (shape_text(cell.shape), cell.batching)))


def times(cell: Cell) -> dict[str, str]:
    """How long calls took at one shape; a percentile that too few of them were made for is empty."""
    summary, found = cell.summary, cell.summary.percentiles_ms
    names = [f"p{percentile:g}" for percentile in PERCENTILES]
    return {
        "shape": place_of(cell),
        "calls": f"{summary.samples:,}",
        "mean ms": brief(summary.mean_ms),
        "p50": brief(summary.p50_ms),
        **{name: brief(found[name]) if name in found else "" for name in names},
        "rows/s": f"{cell.rows_per_s:,.4g}",
        "copies ms": "" if cell.copy_ms is None else f"{cell.copy_ms:.2g}",
    }


def arrivals(loop: OpenLoop) -> dict[str, str]:
    """Of an open loop: whether what was asked is what was measured."""
    return {
        "asked/s": f"{loop.qps:g}",
        "drawn/s": f"{loop.scheduled_qps:.4g}",
        "answered/s": f"{loop.achieved_qps:.4g}",
        "load": f"{loop.load:.0%}" if loop.load is not None else "",
        "longest queue": f"{loop.queue_max}",
        **{f"lag ms {name}": f"{loop.lag_ms[name]:.3f}" for name in ("p50", "p99", "max")},
        "arrivals": "valid" if loop.valid else f"INVALID: {loop.reason}",
    }


def changed(change: Change, form: Callable[[float], str] = brief) -> dict[str, str]:
    """How one time of a comparison changed; ``form`` writes milliseconds."""
    return {
        "shape": shape_text(change.shape),
        "before ms": form(change.base_ms),
        "after ms": form(change.head_ms),
        "time a call": f"{change.value:+.1%}",
        "interval": change.interval,
        "compared through": change.through or "as they are",
    }


def worst_first(gates: Iterable[Gate]) -> list[Gate]:
    """Gates in the order in which they are read."""
    return sorted(gates, key=lambda gate: _ORDER.index(gate.outcome))


def filled(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The heads of the columns that any of these lines fills, in the order of the lines."""
    heads = dict.fromkeys(head for line in lines for head in line)
    return [head for head in heads if any(line.get(head) for line in lines)]
