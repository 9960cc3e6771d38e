"""The report itself: every sample, and what was made of it."""

from __future__ import annotations

import json

from optimizer.benching.comparison import Comparison
from optimizer.benching.generation_report import GenerationBench
from optimizer.benching.report import BenchReport
from optimizer.benching.writing import Format

__all__ = ["FORMAT", "to_json"]


def to_json(report: BenchReport | Comparison | GenerationBench) -> str:
    """The document that :meth:`BenchReport.from_json` reads again."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"


FORMAT = Format(".json", "everything, every sample in it", to_json, to_json, to_json)
