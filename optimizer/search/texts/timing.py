"""Timing text generators in a contest: what the generators' benchmark found, as the rows that every contest reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.benching.candidates import Entrant
from optimizer.benching.generation import bench_generation
from optimizer.benching.generation_calls import whole_calls
from optimizer.benching.generation_report import GenerationCell
from optimizer.benching.measure import Plan
from optimizer.benching.report import BenchReport, Row
from optimizer.search.report import TextSpeed
from optimizer.stage import Progress
from optimizer.types import JSON

__all__ = ["TextBench", "TextRow", "bench_texts"]


@dataclass(frozen=True)
class TextRow(Row):
    """A generator's row, whose cells are its whole calls.

    Attributes:
        texts: by how many texts were written at once, how fast.
    """

    texts: Mapping[str, TextSpeed] = field(default_factory=dict)


@dataclass(frozen=True)
class TextBench(BenchReport):
    """What a contest reads of the timing of generators; what is kept is the generators' own report.

    Attributes:
        of_texts: that report, as JSON.
    """

    of_texts: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        return dict(self.of_texts)


def bench_texts(taking_part: Sequence[Entrant], baseline: str, plan: Plan, progress: Progress) -> TextBench:
    """Time generators against the baseline among them, at every load of the plan; its first one is the objective's."""
    found = bench_generation(taking_part, baseline, plan, progress, memory=False)  # what is asked of it is the most
    calls = whole_calls(found)
    rows = tuple(
        TextRow(**vars(row), texts={str(cell.load.batch): _speed(cell) for cell in own.cells})
        for row, own in zip(calls.rows, found.rows, strict=True)
    )
    of_texts = {name: value for name, value in found.to_json().items() if name != "path"}
    return TextBench(**{**vars(calls), "rows": rows, "of_texts": of_texts})


def _speed(cell: GenerationCell) -> TextSpeed:
    return TextSpeed(
        load=str(cell.load),
        tokens_per_s=cell.tokens_per_s,
        first_token_ms=cell.first_token_ms,
        prefill_per_s=cell.prefill_per_s,
        decode_per_s=cell.decode_per_s,
        bandwidth_share=cell.bandwidth_share,
    )
