"""Accuracy of classifiers of whole inputs: the share of rows whose largest logit is the label's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import LABEL_COLUMNS, label_of
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import Metric
from optimizer.tasks._measures import pick
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ACCURACY"]


def _truths(rows: Sequence[Row], model: Mapping[str, JSON]) -> list[int]:
    """The class of every row: a label is a class's name, or its number (written as a number or as digits)."""
    names = [str(name) for name in model.get("labels") or ()]
    classes = [_class_of(row, label_of(row), names) for row in rows]
    if len(set(classes)) == 1:
        only = names[classes[0]] if names else str(classes[0])
        raise BadInput(
            f"{rows[0].source}: every row has the label {only!r}: a model that always says so would be right",
            "give rows of at least two classes",
        )
    return classes


def _class_of(row: Row, label: Any, names: Sequence[str]) -> int:
    if label is None or label == "":
        raise BadInput(
            f"{row} has no label: accuracy needs a column {' or '.join(LABEL_COLUMNS)}",
            "label the rows, or judge by fidelity: --min-agreement or --min-cosine instead of --max-drop",
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
    outputs: Mapping[str, NDArray[np.generic]], truths: Sequence[int], model: Mapping[str, JSON]
) -> NDArray[np.float64]:
    import numpy as np

    logits = outputs[pick(outputs, ("logits",), str(model.get("task", "classification")))]
    if logits.ndim != 2 or logits.shape[1] < 2:
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


def _aggregate(scores: NDArray[Any]) -> float:
    return float(scores.mean())


ACCURACY = Metric(name="accuracy", truths=_truths, score=_score, aggregate=_aggregate)
