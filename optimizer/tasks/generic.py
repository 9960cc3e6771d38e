"""Bring-your-own models: nothing is known but the names, types and shapes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.task import Task
from optimizer.tasks._accuracy import ACCURACY
from optimizer.tasks._measures import cosine, cosines, lowest, pair, top1
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Arrays = Mapping[str, Array]


def _agree(reference: Arrays, candidate: Arrays, feeds: Arrays, model: Mapping[str, JSON]) -> dict[str, NDArray[Any]]:
    """The worst cosine over all outputs of floating point, and ``top1`` where the first of them is ``[rows, classes]``.

    An output whose first axis does not count the rows is compared whole and speaks for every row. A model that answers
    with nothing but integers or strings agrees where they are equal: its cosine is 1 or 0.
    """
    import numpy as np

    if not reference:
        raise BadInput("the model has no outputs to compare")
    rows = _rows(feeds)
    names = [name for name, output in reference.items() if np.issubdtype(output.dtype, np.floating)]
    if not names:
        return {"cosine": lowest([_equal(*pair(reference, candidate, name), rows) for name in reference])}
    pairs = [pair(reference, candidate, name) for name in names]
    measures = {"cosine": lowest([_cosines(a, b, feeds, rows) for a, b in pairs])}
    a, b = pairs[0]
    if a.ndim == 2 and len(a) == rows and a.shape[1] > 1:
        measures["top1"] = top1(a, b, {})
    return measures


def _rows(feeds: Arrays) -> int:
    return max((len(array) for array in feeds.values() if array.ndim), default=1)


def _cosines(a: Array, b: Array, feeds: Arrays, rows: int) -> NDArray[np.float64]:
    import numpy as np

    if a.ndim == 0 or len(a) != rows:
        return np.full(rows, cosine(a, b))
    # Two axes are rows and classes; only a third makes the second a sequence that could be padded.
    return cosines(a, b, feeds if a.ndim > 2 else {})


def _equal(a: Array, b: Array, rows: int) -> NDArray[np.float64]:
    import numpy as np

    same = np.asarray(a == b)
    if same.ndim == 0 or len(same) != rows:
        return np.full(rows, float(same.all()))
    return np.array([float(row.all()) for row in same])


TASK = Task(
    name="generic",
    help="Any model, fed with arrays by input name.",
    modalities=("tensor",),
    agree=_agree,
    metrics=(ACCURACY,),
)
