"""What a task is: what a model of it answers, and how two answers are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.discovery import members
from optimizer.errors import UnknownName
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Task", "discover", "get_task"]


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
