"""What the numbers of many rows come to, for many weightings of the rows at once.

``numbers`` is ``[rows, numbers]``, ``weights`` is ``[draws, rows]``; what comes back is ``[draws]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["mean", "pearson", "right_or_wrong", "spearman"]


def mean(numbers: Array, weights: Array) -> Array:
    """The mean of one number a row."""
    total: Array = weights.sum(axis=1)
    found: Array = (weights @ numbers[:, 0]) / total
    return found


def right_or_wrong(numbers: Array) -> tuple[Array, Array]:
    """One row more of a mean of numbers from 0 to 1."""
    import numpy as np

    return np.ones(1), np.zeros(1)


def pearson(numbers: Array, weights: Array) -> Array:
    """The correlation of two numbers a row; 0 where one of them is the same in all rows that count."""
    x, y = numbers[:, 0], numbers[:, 1]
    return _correlation(x[None, :], y[None, :], weights)


def spearman(numbers: Array, weights: Array) -> Array:
    """The correlation of ranks, equal numbers having the middle of theirs: ``scipy.stats.spearmanr`` of a sample in
    which every row stands as often as it weighs, and the same for weights that are not whole.
    """
    return _correlation(_ranks(numbers[:, 0], weights), _ranks(numbers[:, 1], weights), weights)


def _ranks(values: Array, weights: Array) -> Array:
    """Of every row, the weight of what is smaller and half of the weight of what is equal, ``[draws, rows]``."""
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    mass = np.add.reduceat(weights[:, np.argsort(place, kind="stable")], starts, axis=1)
    middle: Array = np.cumsum(mass, axis=1) - mass / 2
    return middle[:, place]


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    import numpy as np

    share = weights / weights.sum(axis=1, keepdims=True)
    # What is left of equal numbers when their mean is taken off is rounding, and no spread.
    least = [1e-24 * max(float(np.max(a * a, initial=0.0)), 1e-200) for a in (x, y)]
    x = x - (share * x).sum(axis=1, keepdims=True)
    y = y - (share * y).sum(axis=1, keepdims=True)
    both, one, other = ((share * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
    moves = (one > least[0]) & (other > least[1])
    found: Array = np.where(moves, both / np.sqrt(np.where(moves, one * other, 1.0)), 0.0)
    return np.clip(found, -1.0, 1.0)
