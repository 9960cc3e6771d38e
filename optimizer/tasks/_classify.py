"""The comparison that every classifier of whole inputs shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.tasks._measures import cosines, divergences, pair, pick, top1
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["agree_on_class"]


def agree_on_class(
    reference: Arrays, candidate: Arrays, feeds: Arrays, model: Mapping[str, JSON]
) -> dict[str, NDArray[Any]]:
    """Cosine and KL divergence of ``logits`` ``[rows, classes]``, and whether the largest is the same.

    A model with one class is a regression: it has no decision, and so neither ``top1`` nor ``kl``.
    """
    a, b = pair(reference, candidate, pick(reference, ("logits",), str(model.get("task", "classification"))))
    # Classes are no sequence: a mask that happens to be as long must not cut them.
    measures = {"cosine": cosines(a, b, {})}
    if a.shape[-1] > 1:
        measures |= {"top1": top1(a, b, {}), "kl": divergences(a, b, {})}
    return measures
