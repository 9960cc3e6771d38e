"""What a task is: what a model of it answers, and how two answers are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.data.readers import Row
from optimizer.discovery import members
from optimizer.errors import UnknownName
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Metric", "Task", "discover", "get_task"]


@dataclass(frozen=True)
class Metric:
    """How right answers are, by labels.

    Attributes:
        name: ``accuracy``.
        truths: ``truths(rows, model)``: rows of a data file and the manifest's ``model`` → the right answer to each.
            Raises :class:`BadInput` for rows without labels, labels that the model does not know, and labels that
            are all the same.
        score: ``score(outputs, truths, model)``: outputs by name and the right answers, row by row → 1 (right) or
            0 (wrong) for each row.
        aggregate: the scores of all rows → one number, from 0 to 1.
    """

    name: str
    truths: Callable[[Sequence[Row], Mapping[str, JSON]], list[int]]
    score: Callable[[Mapping[str, NDArray[np.generic]], Sequence[int], Mapping[str, JSON]], NDArray[Any]]
    aggregate: Callable[[NDArray[Any]], float]


@dataclass(frozen=True)
class Task:
    """One sort of question that models answer.

    Attributes:
        name: the field's own word (``text-classification``).
        help: one sentence.
        auto_class: the ``transformers`` class that loads such a model; empty for ``generic``.
        modalities: what its inputs can be: ``text``, ``image``, ``audio``, ``tensor``.
        agree: ``agree(reference, candidate, feeds, model)``: both outputs by name, the inputs they answer, and the
            manifest's ``model`` → measures by name, each an array with one number a row: always ``cosine``, and
            ``top1`` (1.0 or 0.0) where the task has a decision. Padding (``attention_mask`` 0) never counts.
        metric: how right answers are, for tasks whose rows can have labels.
    """

    name: str
    help: str
    auto_class: str
    modalities: tuple[str, ...]
    agree: Callable[
        [
            Mapping[str, NDArray[np.generic]],
            Mapping[str, NDArray[np.generic]],
            Mapping[str, NDArray[np.generic]],
            Mapping[str, JSON],
        ],
        dict[str, NDArray[Any]],
    ]
    metric: Metric | None = None


@functools.cache
def discover() -> dict[str, Task]:
    """Every task of :mod:`optimizer.tasks`, by name."""
    return members("optimizer.tasks", "TASK")


def get_task(name: str) -> Task:
    """The task of that name, or :class:`UnknownName`."""
    tasks = discover()
    if name not in tasks:
        raise UnknownName("task", name, tasks)
    return tasks[name]
