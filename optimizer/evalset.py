"""The rows that candidates are judged on: read, labelled, kept apart from calibration, and put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.calibration import describe
from optimizer.data.preprocess import Batch, Preprocessor
from optimizer.data.readers import Row, read_rows
from optimizer.errors import BadInput
from optimizer.task import Metric
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EvalSet", "histogram", "refuse_leak", "refuse_overlap", "refuse_shared"]

#: Rows in a batch; sorted by length, a larger one gains little and takes memory.
_BATCH = 16
_BINS = 24


@dataclass(frozen=True)
class EvalSet:
    """Rows that were read and found fit.

    Attributes:
        rows: every row of the file.
        truths: the right answer to each; None where fidelity is what counts.
        labels: the class of each; None where rows have none.
        lengths: of each row as the model sees it; of one that is fed as several inputs, the longest. None where rows
            have none.
        summary: what a report says of the data (sha256, rows, lengths, labels, histogram).
        fed: the inputs that each row is fed as, one after the other: most often the row itself.
    """

    rows: tuple[Row, ...]
    truths: tuple[Any, ...] | None
    labels: tuple[int, ...] | None
    lengths: tuple[int, ...] | None
    summary: dict[str, JSON]
    fed: tuple[tuple[Row, ...], ...]
    _preprocessor: Preprocessor

    @classmethod
    def open(
        cls,
        path: Path,
        preprocessor: Preprocessor,
        metric: Metric | None,
        model: Mapping[str, JSON],
        rows: list[Row] | None = None,
    ) -> EvalSet:
        """Read a data file.

        Args:
            path: the data file.
            preprocessor: what reads its rows.
            metric: what they are judged by; None where they need no labels.
            model: the manifest's ``model``.
            rows: those of the file, where they were read already.

        Raises:
            BadInput: a row cannot be fed, has no label or one that the model does not know, or all labels are one.
        """
        rows = read_rows(path) if rows is None else rows
        parts = metric.parts if metric is not None else None
        fed = tuple(parts(row, preprocessor.columns) if parts else (row,) for row in rows)
        inputs = [each for row in fed for each in row]
        preprocessor.check(inputs)
        truths = metric.truths(rows, preprocessor, model) if metric is not None else None
        classes = truths if metric is not None and metric.classes else None
        every = preprocessor.lengths(inputs)
        lengths = _longest(every, len(rows)) if every else None
        names = list(model.get("labels") or ())
        labels = [names[truth] if names else truth for truth in classes] if classes is not None else None
        summary = describe(path, rows, rows, lengths=lengths, labels=labels)
        summary["histogram"] = histogram(every) if every else None
        return cls(
            rows=tuple(rows),
            truths=tuple(truths) if truths else None,
            labels=tuple(classes) if classes else None,
            lengths=tuple(lengths) if lengths else None,
            summary=summary,
            fed=fed,
            _preprocessor=preprocessor,
        )

    @property
    def inputs(self) -> Iterator[Row]:
        """What all rows are fed as, one after the other."""
        return (each for row in self.fed for each in row)

    def feeds(self, places: Sequence[int]) -> dict[str, NDArray[np.generic]]:
        """One batch of some rows, in that order."""
        return self._preprocessor.feeds([each for place in places for each in self.fed[place]])

    def batches(self, most: int | None, places: Sequence[int] | None = None) -> Iterator[Batch]:
        """Every row once, rows of like length together: the same batches for every candidate.

        Args:
            most: inputs that the model takes at once, where it says so.
            places: only these rows [all]; :attr:`Batch.rows` are places in the whole file all the same.

        Raises:
            BadInput: a row is fed as more inputs than the model takes at once.
        """
        chosen = list(range(len(self.rows)) if places is None else places)
        parts = len(self.fed[0])
        size = min(_BATCH, most or _BATCH) // parts
        if not size:
            raise BadInput(f"a row is {parts} inputs here, and the model takes {most} at once", "export it for more")
        if self.lengths is not None:
            lengths = self.lengths
            chosen.sort(key=lambda place: -lengths[place])
        for start in range(0, len(chosen), size):
            taken = tuple(chosen[start : start + size])
            yield Batch(taken, self.feeds(taken))

    @property
    def median_length(self) -> int:
        """Of the rows as the model sees them; 0 where rows have none."""
        return sorted(self.lengths)[len(self.lengths) // 2] if self.lengths else 0


def _longest(lengths: Sequence[int], rows: int) -> list[int]:
    """Of each row's inputs."""
    parts = len(lengths) // rows
    return [max(lengths[parts * row : parts * (row + 1)]) for row in range(rows)]


def histogram(lengths: Sequence[int]) -> dict[str, JSON]:
    """``low`` (first bin's start), ``width`` of every bin, and ``counts``."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // _BINS))
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    return {"low": low, "width": width, "counts": counts}


def refuse_overlap(
    other: Path, rows: EvalSet, preprocessor: Preprocessor, of_other: Preprocessor, what: str = "calibration"
) -> None:
    """Refuse calibration or training data that holds rows which candidates are judged on.

    Ranges or weights that were fitted to a row suit that row: accuracy on it is too good.

    Args:
        other: that data.
        rows: those that are judged on.
        preprocessor: what reads those.
        of_other: what reads the other data, whose columns may have other names.
        what: it is.

    Raises:
        BadInput: naming the first such row and how many there are.
    """
    judged = {preprocessor.content(each) for each in rows.inputs}
    refuse_shared([row for row in read_rows(other) if of_other.content(row) in judged], what, "evaluation")


def refuse_leak(train: EvalSet, judged: EvalSet, preprocessor: Preprocessor) -> None:
    """Refuse to be judged on rows that were trained on.

    Args:
        train: what is learned from.
        judged: what is judged on.
        preprocessor: what reads both.

    Raises:
        BadInput: naming the first such row and how many there are.
    """
    learned = {preprocessor.content(each) for each in train.inputs}
    refuse_shared([row for row in judged.inputs if preprocessor.content(row) in learned], "evaluation", "training")


def refuse_shared(rows: Sequence[Row | str], of: str, also_in: str) -> None:
    """Refuse data that shares rows with other data.

    Args:
        rows: those that are in both, or where they stand.
        of: data that they are of.
        also_in: data that they must not be in.

    Raises:
        BadInput: there are some, naming the first.
    """
    if rows:
        raise BadInput(
            f"{len(rows)} rows of the {of} data are in the {also_in} data too; the first is {rows[0]}",
            "take them out of one of the two, or insist with --allow-overlap",
        )
