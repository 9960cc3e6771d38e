"""Whether texts that people call alike lie near each other: correlation of cosines with scores, over pairs of texts.

Spearman's is the usual one for sentence embeddings (Reimers, Beyer and Gurevych, COLING 2016, 87-96, say why Pearson's
misleads); both are there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import Columns
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import Metric
from optimizer.tasks._aggregate import pearson, spearman
from optimizer.tasks._measures import cosine
from optimizer.tasks._vectors import vectors
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["PEARSON", "SPEARMAN"]

#: Fewer pairs than this lie on a line, or nearly so.
_LEAST = 3


def _truths(rows: Sequence[Row], preprocessor: Preprocessor, model: Mapping[str, JSON]) -> list[float]:
    scores = [_number(row, preprocessor.columns) for row in rows]
    if len(scores) < _LEAST:
        raise BadInput(f"{rows[0].source}: a correlation needs {_LEAST} pairs or more, and here are {len(scores)}")
    if len(set(scores)) == 1:
        raise BadInput(
            f"{rows[0].source}: every pair has the score {scores[0]:g}: nothing can go up and down with it",
            "give pairs of different scores",
        )
    return scores


def _number(row: Row, columns: Columns) -> float:
    value: Any = columns.get(row, "score")
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{row}: {columns.find(row, 'score')} should be a number, and is {value!r}")
    return number


def _parts(row: Row, columns: Columns) -> tuple[Row, ...]:
    """Both texts of a pair, each as a row of its own."""
    first = columns.find(row, "text")
    if first is None:
        raise columns.missing(row, "text")
    return tuple(dataclasses.replace(row, values={first: columns.get(row, role)}) for role in ("text", "text_pair"))


def _score(outputs: Arrays, feeds: Arrays, truths: Sequence[float], model: Mapping[str, JSON]) -> Array:
    """Of each pair its score and the cosine of its vectors."""
    import numpy as np

    found = vectors(outputs, feeds, model)
    if any(vector.ndim != 1 for vector in found):
        raise BadInput(
            f"alike is what lies near in one vector a text, and this model answers {list(found[0].shape)} a text",
            "export a folder that says how it pools (1_Pooling), or judge by fidelity: --min-cosine",
        )
    cosines = [cosine(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
    return np.stack([np.asarray(truths, np.float64), np.array(cosines)], axis=1)


def _one_more(numbers: Array) -> tuple[Array, Array]:
    """A pair as far above the middle as an average one is off it, put as far above it or as far below."""
    import numpy as np

    off = 1 / math.sqrt(12)  # the standard deviation of what is spread evenly from 0 to 1, as ranks are
    high, low = (np.quantile(numbers, 0.5 + side, axis=0, method="nearest") for side in (off, -off))
    return np.array([high[0], high[1]]), np.array([high[0], low[1]])


SPEARMAN = Metric(name="spearman", truths=_truths, score=_score, aggregate=spearman, one_more=_one_more, parts=_parts)
PEARSON = Metric(name="pearson", truths=_truths, score=_score, aggregate=pearson, one_more=_one_more, parts=_parts)
