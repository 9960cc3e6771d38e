"""Whole calls of text generators as cells like any other: prompts read, and every text written to its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.benching.generation_report import REPORT, GenerationBench, GenerationCell, GenerationRow
from optimizer.benching.reading import read_json
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.stats import summarize

__all__ = ["read_calls", "whole_calls"]


def read_calls(path: Path) -> BenchReport:
    """A bench report's JSON file; of text generators, their whole calls.

    Raises:
        BadInput: it is neither, or a newer ml-opt wrote it.
    """
    data = read_json(path)
    if isinstance(data, Mapping) and data.get("report") == REPORT:
        return whole_calls(GenerationBench.from_json(data, str(path)))
    return BenchReport.from_json(data, str(path))


def whole_calls(report: GenerationBench) -> BenchReport:
    """The report as one of calls at shapes such as ``8x128+64``; what prefill and decode took is not in it."""
    return BenchReport(
        created=report.created,
        settings={**report.settings, "shapes": report.settings["loads"]},
        inputs={},
        environment=report.environment,
        baseline=report.baseline,
        rows=tuple(_row(row) for row in report.rows),
        cautions=report.cautions,
        path=report.path,
    )


def _row(row: GenerationRow) -> Row:
    return Row(
        label=row.label,
        path=row.path,
        provider=row.provider,
        key=row.key,
        bytes=row.bytes,
        load_s=row.load_s,
        peak_rss=max((cell.peak_rss for cell in row.cells), default=0),
        facts=row.facts,
        cells=tuple(_cell(cell) for cell in row.cells),
        error=row.error,
        hint=row.hint,
    )


def _cell(cell: GenerationCell) -> Cell:
    return Cell(
        shape=str(cell.load),
        batch=cell.load.batch,
        first_s=cell.first_s,
        warm_ns=[],
        rounds_ns=cell.rounds_ns,
        summary=summarize(cell.rounds_ns),
        speedup=cell.faster.get("whole"),
    )
