"""Accuracy of classifiers of whole inputs: the share of rows whose largest logit is the label's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import Columns, label_of
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import Metric
from optimizer.tasks._aggregate import mean, right_or_wrong
from optimizer.tasks._measures import pick
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ACCURACY", "class_of"]


def _truths(rows: Sequence[Row], preprocessor: Preprocessor, model: Mapping[str, JSON]) -> list[int]:
    """The class of every row: a label is a class's name, or its number (written as a number or as digits)."""
    names = [str(name) for name in model.get("labels") or ()]
    columns = preprocessor.columns
    classes = [class_of(row, label_of(row, columns), names, columns) for row in rows]
    if len(set(classes)) == 1:
        only = names[classes[0]] if names else str(classes[0])
        raise BadInput(
            f"{rows[0].source}: every row has the label {only!r}: a model that always says so would be right",
            "give rows of at least two classes",
        )
    return classes


def class_of(row: Row, label: Any, names: Sequence[str], columns: Columns) -> int:
    """The number of a label's class; raises :class:`BadInput` for one that is missing or that the model has not."""
    if label is None or label == "":
        raise BadInput(
            f"{row} has no label: accuracy needs a column {' or '.join(columns.candidates('label'))}",
            "label the rows, name their column (--column label=COLUMN), or judge by fidelity: --min-agreement or "
            "--min-cosine instead of --max-drop",
        )
    if isinstance(label, str) and label in names:
        return names.index(label)
    number = int(label) if isinstance(label, str) and label.isascii() and label.isdigit() else label
    if isinstance(number, bool) or not isinstance(number, int) or number < 0 or (names and number >= len(names)):
        known = ", ".join(f"{place} ({name})" for place, name in enumerate(names[:8])) or "whole numbers from 0"
        more = ", …" if len(names) > 8 else ""
        raise BadInput(f"{row}: the model knows no label {label!r}; it knows {known}{more}")
    return number


def _score(
    outputs: Mapping[str, NDArray[np.generic]],
    feeds: Mapping[str, NDArray[np.generic]],
    truths: Sequence[int],
    model: Mapping[str, JSON],
) -> NDArray[np.float64]:
    import numpy as np

    logits = outputs[_decision(outputs, model)]
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != len(truths):
        raise BadInput(
            f"accuracy needs logits [rows, classes] of two classes or more; this model answers {list(logits.shape)}",
            "judge by fidelity to the original: --min-cosine",
        )
    if max(truths) >= logits.shape[1]:
        raise BadInput(f"a label is {max(truths)}, and the model has {logits.shape[1]} classes, counted from 0")
    # A row with a NaN has no largest logit: it is wrong, whatever argmax says.
    right = (np.argmax(logits, axis=1) == np.asarray(truths)) & (logits == logits).all(axis=1)
    scores: NDArray[np.float64] = right.astype(np.float64)
    return scores


def _decision(outputs: Mapping[str, NDArray[np.generic]], model: Mapping[str, JSON]) -> str:
    """The output that decides: ``logits``, or of a model of no known task the only one it has."""
    task = str(model.get("task") or "generic")
    if task != "generic" or "logits" in outputs:
        return pick(outputs, ("logits",), task)
    if len(outputs) != 1:
        raise BadInput(
            f"accuracy needs to know which output decides, and this model answers with {', '.join(outputs)}",
            "judge by fidelity to the original: --min-cosine or --min-agreement",
        )
    return next(iter(outputs))


ACCURACY = Metric(
    name="accuracy",
    truths=_truths,
    score=_score,
    aggregate=mean,
    one_more=right_or_wrong,
    binary=True,
    classes=True,
)
