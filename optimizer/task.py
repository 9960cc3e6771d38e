"""What a task is: what a model of it answers, and how two answers are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import Columns
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.discovery import members
from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FIDELITY", "Metric", "Task", "discover", "get_task"]


#: The name of what is judged where there are no labels: likeness to the original's answers.
FIDELITY = "fidelity"


def _fits(model: Mapping[str, JSON]) -> str:
    return ""


@dataclass(frozen=True)
class Metric:
    """How right answers are, by labels: numbers a row, and what many rows of such numbers come to.

    Attributes:
        name: as ``--metric`` takes it (``accuracy``, ``f1``, …).
        truths: ``truths(rows, preprocessor, model)``: rows of a data file, what turns them into inputs, and the
            manifest's ``model`` → the right answer to each row. Raises :class:`BadInput` for rows without labels,
            labels that the model does not know, and labels that nothing can be told from.
        score: ``score(outputs, feeds, truths, model)``: one batch's outputs and inputs by name, and the right answers
            to its rows → ``[rows]`` or ``[rows, numbers]``: all of an answer that :attr:`aggregate` needs (1 or 0 for
            accuracy; entities found, said and there for F1). A batch has ``parts`` inputs a row, one after the other.
        aggregate: ``aggregate(numbers, weights)``: ``[rows, numbers]`` and how often each row counts,
            ``[draws, rows]`` → the metric of each draw, ``[draws]``, at most 1. Weights need not be whole.
        one_more: ``one_more(numbers)``: ``[rows, numbers]`` → the numbers of one row more, of usual weight, answered
            all right, and of the same row answered all wrong: what a row that was not seen may do.
        binary: one number a row, 1 or 0, whose mean is the metric: the bounds of shares hold for it.
        classes: truths are numbers of classes.
        unfit: ``unfit(model)`` → why a model of the task cannot be judged by it; empty when it can.
        parts: ``parts(row, columns)``: the inputs that are made of one row, where that is not one: as many for each.
    """

    name: str
    truths: Callable[[Sequence[Row], Preprocessor, Mapping[str, JSON]], list[Any]]
    score: Callable[
        [
            Mapping[str, NDArray[np.generic]],
            Mapping[str, NDArray[np.generic]],
            Sequence[Any],
            Mapping[str, JSON],
        ],
        NDArray[np.float64],
    ]
    aggregate: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    one_more: Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
    binary: bool = False
    classes: bool = False
    unfit: Callable[[Mapping[str, JSON]], str] = _fits
    parts: Callable[[Row, Columns], tuple[Row, ...]] | None = None

    def value(self, numbers: Any) -> float:
        """The metric of all rows: what :attr:`score` gave for each."""
        import numpy as np

        table = np.asarray(numbers, np.float64).reshape(len(numbers), -1)
        return float(self.aggregate(table, np.ones((1, len(table))))[0])


@dataclass(frozen=True)
class Task:
    """One sort of question that models answer.

    Attributes:
        name: the field's own word (``text-classification``).
        help: one sentence.
        modalities: what its inputs can be: ``text``, ``image``, ``audio``, ``tensor``.
        agree: ``agree(reference, candidate, feeds, model)``: both outputs by name, the inputs they answer, and the
            manifest's ``model`` → measures by name, each an array with one number a row: always ``cosine``, and where
            the task has a decision ``top1`` (1.0 or 0.0) and ``kl`` (nats, 0 for the same). Padding
            (``attention_mask`` 0) never counts.
        metrics: how right answers are, for tasks whose rows can have labels: the first that fits a model is its own.
    """

    name: str
    help: str
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
    metrics: tuple[Metric, ...] = ()

    def metric(self, name: str | None, model: Mapping[str, JSON]) -> Metric:
        """The metric of that name, or the one that is usual for such a model.

        Args:
            name: as it was typed; None for the usual one.
            model: the manifest's ``model``.

        Raises:
            BadInput: the task has no such metric, or the model cannot be judged by it.
        """
        reasons = {metric.name: metric.unfit(model) for metric in self.metrics}
        fitting = [metric for metric in self.metrics if not reasons[metric.name]]
        for metric in fitting:
            if name in (None, metric.name):
                return metric
        known = ", ".join(metric.name for metric in fitting)
        name = name or next(iter(reasons), "accuracy")
        why = reasons.get(name) or f"the task {self.name} has {known or 'no metric'}"
        raise BadInput(
            f"{name} cannot be measured here: {why}",
            f"judge by --metric {fitting[0].name}"
            if fitting
            else "judge by fidelity to the original: --min-cosine 0.999 or --min-agreement 0.98",
        )


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
