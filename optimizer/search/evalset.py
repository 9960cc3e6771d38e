"""The rows that candidates are judged on: read, labelled, kept apart from calibration, and put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.data.calibration import describe
from optimizer.data.preprocess import Batch, Preprocessor
from optimizer.data.readers import Row, read_rows
from optimizer.errors import BadInput
from optimizer.task import Metric
from optimizer.types import JSON

__all__ = ["EvalSet", "refuse_overlap"]

#: Rows in a batch; sorted by length, a larger one gains little and takes memory.
_BATCH = 16
_BINS = 24


@dataclass(frozen=True)
class EvalSet:
    """Rows that were read and found fit.

    Attributes:
        rows: every row of the file.
        truths: the right answer to each; None where fidelity is what counts.
        lengths: of each row as the model sees it; None where rows have none.
        summary: what a report says of the data (sha256, rows, lengths, labels, histogram).
    """

    rows: tuple[Row, ...]
    truths: tuple[int, ...] | None
    lengths: tuple[int, ...] | None
    summary: dict[str, JSON]
    _preprocessor: Preprocessor

    @classmethod
    def open(cls, path: Path, preprocessor: Preprocessor, metric: Metric | None, model: Mapping[str, JSON]) -> EvalSet:
        """Read a data file.

        Raises:
            BadInput: a row cannot be fed, has no label or one that the model does not know, or all labels are one.
        """
        rows = read_rows(path)
        preprocessor.check(rows)
        truths = metric.truths(rows, model) if metric is not None else None
        lengths = preprocessor.lengths(rows)
        names = list(model.get("labels") or ())
        labels = [names[truth] if names else truth for truth in truths] if truths is not None else None
        summary = describe(path, rows, rows, lengths=lengths, labels=labels)
        summary["histogram"] = _histogram(lengths) if lengths else None
        return cls(
            tuple(rows), tuple(truths) if truths else None, tuple(lengths) if lengths else None, summary, preprocessor
        )

    def batches(self, most: int | None, places: Sequence[int] | None = None) -> Iterator[Batch]:
        """Every row once, rows of like length together: the same batches for every candidate.

        Args:
            most: rows that the model takes at once, where it says so.
            places: only these rows [all]; :attr:`Batch.rows` are places in the whole file all the same.
        """
        chosen = range(len(self.rows)) if places is None else places
        rows = [self.rows[place] for place in chosen]
        for batch in self._preprocessor.batches(rows, min(_BATCH, most or _BATCH), sort=True):
            yield replace(batch, rows=tuple(chosen[row] for row in batch.rows))

    @property
    def median_length(self) -> int:
        """Of the rows as the model sees them; 0 where rows have none."""
        return sorted(self.lengths)[len(self.lengths) // 2] if self.lengths else 0


def _histogram(lengths: Sequence[int]) -> dict[str, JSON]:
    """``low`` (first bin's start), ``width`` of every bin, and ``counts``."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // _BINS))
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    return {"low": low, "width": width, "counts": counts}


def refuse_overlap(calib: Path, rows: Sequence[Row], preprocessor: Preprocessor) -> None:
    """Refuse calibration data that holds rows which candidates are judged on.

    Ranges that were fitted to a row suit that row: accuracy on it is too good.

    Raises:
        BadInput: naming the first such row and how many there are.
    """
    judged = {preprocessor.content(row) for row in rows}
    leaked = [row for row in read_rows(calib) if preprocessor.content(row) in judged]
    if leaked:
        raise BadInput(
            f"{len(leaked)} rows of the calibration data are in the evaluation data too; the first is {leaked[0]}",
            "take them out of one of the two, or insist with --allow-overlap",
        )
