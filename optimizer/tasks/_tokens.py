"""The comparison that every model with a decision a token shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.tasks._measures import cosines, divergences, pair, pick, top1
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["agree_on_tokens"]


def agree_on_tokens(
    reference: Arrays, candidate: Arrays, feeds: Arrays, model: Mapping[str, JSON]
) -> dict[str, NDArray[Any]]:
    """Cosine of ``logits`` ``[rows, sequence, classes]`` over the unpadded tokens of a row.

    ``top1`` is the share of a row's unpadded tokens whose class is the same: any number from 0 to 1; ``kl`` is the mean
    over those tokens.
    """
    a, b = pair(reference, candidate, pick(reference, ("logits",), str(model.get("task", "token-classification"))))
    return {"cosine": cosines(a, b, feeds), "top1": top1(a, b, feeds), "kl": divergences(a, b, feeds)}
