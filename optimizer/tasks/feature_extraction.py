"""Feature extraction: a vector a row, pooled as the model itself pools it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.task import Task
from optimizer.tasks._measures import cosine, pair
from optimizer.tasks._similarity import PEARSON, SPEARMAN
from optimizer.tasks._vectors import POOLINGS, output_name, pooled, vectors
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Arrays = Mapping[str, Array]

__all__ = ["POOLINGS", "TASK", "pooled", "vectors"]


def _agree(reference: Arrays, candidate: Arrays, feeds: Arrays, model: Mapping[str, JSON]) -> dict[str, NDArray[Any]]:
    """Cosine of the vectors; see :func:`~optimizer.tasks._vectors.vectors`."""
    import numpy as np

    name = output_name(reference)
    pairs = (vectors({name: side}, feeds, model) for side in pair(reference, candidate, name))
    return {"cosine": np.array([cosine(x, y) for x, y in zip(*pairs, strict=True)])}


TASK = Task(
    name="feature-extraction",
    help="Vectors that stand for texts, images or sounds.",
    modalities=("text", "image", "audio"),
    agree=_agree,
    metrics=(SPEARMAN, PEARSON),
)
