"""One vector a row, pooled as the model itself pools it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, UnknownName
from optimizer.tasks._measures import real_rows
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Arrays = Mapping[str, Array]

__all__ = ["POOLINGS", "output_name", "pooled", "vectors"]

#: How hidden states ``[sequence, hidden]`` become one vector; ``none`` compares every unpadded state.
POOLINGS = ("mean", "weightedmean", "cls", "max", "lasttoken", "none")

#: Outputs that already are one vector a row, best first, behind the hidden states that pooling needs.
_VECTORS = ("sentence_embedding", "text_embeds", "image_embeds", "embeddings")
_STATES = "last_hidden_state"


def pooled(states: Array, pooling: str) -> Array:
    """One row's vector.

    Args:
        states: ``[sequence, hidden]``, without padding.
        pooling: one of :data:`POOLINGS`.

    Raises:
        UnknownName: another pooling.
    """
    import numpy as np

    match pooling:
        case "mean":
            return np.asarray(np.add.reduce(states, axis=0, dtype=np.float64) / len(states))
        case "weightedmean":  # sentence-transformers': later tokens count more
            return np.average(states.astype(np.float64), axis=0, weights=np.arange(1, len(states) + 1))
        case "max":
            return np.asarray(np.max(states, axis=0))
        case "cls":
            return np.asarray(states[0])
        case "lasttoken":
            return np.asarray(states[-1])
        case "none":
            return states
    raise UnknownName("pooling", pooling, POOLINGS)


def vectors(outputs: Arrays, feeds: Arrays, model: Mapping[str, JSON]) -> list[Array]:
    """What stands for each row.

    ``model["pooling"]`` says how hidden states are pooled (``none`` when it says nothing). Outputs without a sequence
    (a pooled vector, a map of features) are taken as they are.

    Raises:
        UnknownName: another pooling.
        BadInput: the model has no outputs.
    """
    output = outputs[output_name(outputs)]
    pooling = str(model.get("pooling") or "none")
    if pooling not in POOLINGS:
        raise UnknownName("pooling", pooling, POOLINGS)
    if output.ndim != 3:
        return list(output)
    return [_vector(states, pooling) for states in real_rows(output, feeds)]


def _vector(states: Array, pooling: str) -> Array:
    # A row that is all padding has nothing to pool: it compares as empty, which is equal to itself.
    return pooled(states, pooling) if len(states) else states


def output_name(outputs: Arrays) -> str:
    """The output that stands for a row; raises :class:`BadInput` when there is none."""
    for name in (*_VECTORS, _STATES, *outputs):
        if name in outputs:
            return name
    raise BadInput("the model has no outputs to compare")
