"""The rows that a quantizer sees: opened for an artifact, and what stands in a stage's key for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.artifact import Artifact
from optimizer.stage import Content

if TYPE_CHECKING:
    from optimizer.data.calibration import CalibrationSet

__all__ = ["calibration_rows", "few_rows", "rows_content"]


def calibration_rows(source: Artifact, options: Any, usual: int) -> CalibrationSet:
    """The rows that options choose for an artifact.

    Args:
        source: whose tokenizer or processor reads them.
        options: with ``calib``, ``column``, ``samples`` and ``seed``.
        usual: how many rows of a file are taken where ``samples`` is None.

    Raises:
        BadInput: the data cannot be read, or a row of it cannot be fed.
    """
    from optimizer.data.calibration import CalibrationSet

    return CalibrationSet.of(
        source, options.calib, options.column, samples=options.samples, usual=usual, seed=options.seed
    )


def rows_content(usual: int) -> Content:
    """``calib``, ``column``, ``samples`` and ``seed`` do nothing but choose rows: those stand in the key."""

    def digest(options: Any, source: Artifact) -> str:
        return str(calibration_rows(source, options, usual).summary["rows_sha256"])

    return Content(("calib", "column", "samples", "seed"), digest)


def few_rows(data: CalibrationSet, name: str) -> list[str]:
    """A warning where there are fewer rows than were asked for."""
    if len(data.rows) == data.asked:
        return []
    return [f"calibrated on {len(data.rows)} rows, all that {name} has; {data.asked} were asked for"]
