"""Extractive question answering: ``start_logits`` and ``end_logits``, each ``[rows, sequence]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.task import Task
from optimizer.tasks._measures import cosines, divergences, highest, lowest, pair, pick, top1
from optimizer.tasks._squad import ANSWER_F1, EXACT_MATCH
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


def _agree(reference: Arrays, candidate: Arrays, feeds: Arrays, model: Mapping[str, JSON]) -> dict[str, NDArray[Any]]:
    """The worse of start and end: their cosine over unpadded positions, whether both point at the same token, and how
    far apart the shares are that positions get (KL divergence).
    """
    pairs = [pair(reference, candidate, pick(reference, (name,), TASK.name)) for name in ("start_logits", "end_logits")]
    return {
        "cosine": lowest([cosines(a, b, feeds) for a, b in pairs]),
        "top1": lowest([top1(a, b, feeds) for a, b in pairs]),
        "kl": highest([divergences(a, b, feeds) for a, b in pairs]),
    }


TASK = Task(
    name="question-answering",
    help="Where in a text the answer to a question stands.",
    modalities=("text",),
    agree=_agree,
    metrics=(ANSWER_F1, EXACT_MATCH),
)
