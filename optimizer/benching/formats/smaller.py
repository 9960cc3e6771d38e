"""Numbers of which a smaller one is better, for github-action-benchmark (``tool: customSmallerIsBetter``).

That action draws them over commits and comments where one grows. Its format is an array of ``name``, ``unit`` and
``value``, and optionally ``range`` and ``extra``: https://github.com/benchmark-action/github-action-benchmark
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping

from optimizer.benching.comparison import Comparison
from optimizer.benching.facts import machine_facts
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.writing import Format
from optimizer.types import JSON

__all__ = ["FORMAT", "comparison_to_smaller", "to_smaller"]


def to_smaller(report: BenchReport) -> str:
    """Median milliseconds a call of every candidate at every shape, and its size in megabytes."""
    return json.dumps(list(_entries(report)), indent=2, ensure_ascii=False) + "\n"


def _entries(report: BenchReport) -> Iterator[dict[str, JSON]]:
    about = _about(report.environment)
    for row in report.rows:
        if row.error:
            continue
        for cell in (*row.cells, *row.beside):
            yield _time(row, cell, about)
        yield {"name": f"{row.label}: size", "unit": "MB", "value": row.bytes / 1e6, "extra": about}


def _about(environment: Mapping[str, JSON]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in machine_facts(environment).items() if text)


def _time(row: Row, cell: Cell, about: str) -> dict[str, JSON]:
    medians = [statistics.median(ns) / 1e6 for ns in cell.rounds_ns]
    place = ", ".join(filter(None, (cell.shape, cell.batching)))
    faster = ""
    if ratio := cell.speedup:
        faster = f"{ratio.value:.3f} times as fast as the baseline ({ratio.low:.3f} to {ratio.high:.3f})\n"
    return {
        "name": f"{row.label} at {place}",
        "unit": "ms",
        "value": cell.summary.p50_ms,
        "range": f"{min(medians):.4g} to {max(medians):.4g}",
        "extra": f"{faster}median of {cell.summary.samples} calls; range of the rounds' medians\n{about}",
    }


def comparison_to_smaller(report: Comparison) -> str:
    """Time a call as a percentage of what it was, of every candidate at every shape."""
    about = _about(report.head.environment)
    entries = [
        {
            "name": f"{change.label} at {change.shape}",
            "unit": "% of before",
            "value": 100 * (1 + change.value),
            "range": change.interval,
            "extra": f"{change.base_ms:.4g} ms before, {change.head_ms:.4g} ms after\n{about}",
        }
        for change in report.changes
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


FORMAT = Format(".smaller.json", "github-action-benchmark's customSmallerIsBetter", to_smaller, comparison_to_smaller)
