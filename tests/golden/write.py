"""Write the golden files of every report format anew, from the reports beside this file: look at the difference."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.benching.report import BenchReport, Cell, Row

HERE = Path(__file__).parent


def wanted() -> dict[Path, str]:
    """Every golden file that a format writes, with its content; the JSON is what they are made from."""
    from optimizer.benching.comparing import compare_reports
    from optimizer.benching.report import BenchReport
    from optimizer.benching.writing import formats

    report = BenchReport.read(HERE / "bench-3.json")
    made = [form for form in formats().values() if form.name != ".json"]
    comparison = compare_reports(*pair(report), tolerance=0.05)
    return {
        **{HERE / f"bench-3{form.name}": form.bench(report) for form in made},
        **{HERE / f"bench-comparison-1{form.name}": form.comparison(comparison) for form in formats().values()},
    }


def pair(report: BenchReport, slower: float = 1.3) -> tuple[BenchReport, BenchReport]:
    """The report with its rounds twice, as four decide little, and the same on another day.

    Everything took a tenth longer then, and the second candidate ``slower`` times that.
    """
    from optimizer.benching.stats import summarize

    def cell_of(cell: Cell, times: float) -> Cell:
        rounds = [[round(ns * times) for ns in each] for each in cell.rounds_ns] * 2
        return replace(cell, rounds_ns=rounds, summary=summarize(rounds))

    def rows_of(*times: float) -> tuple[Row, ...]:
        every = zip(report.rows, [*times, *times[:1] * len(report.rows)], strict=False)
        return tuple(replace(row, cells=tuple(cell_of(cell, factor) for cell in row.cells)) for row, factor in every)

    head = replace(report, rows=rows_of(1.1, 1.1 * slower), created="2026-02-03T04:05:06+00:00")
    return replace(report, rows=rows_of(1.0)), head


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    for path, text in wanted().items():
        path.write_text(text, encoding="utf-8")
