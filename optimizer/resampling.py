"""Drawing rows again and again, by weights: what every interval over rows, and over documents, begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["draws_for", "exponential_weights"]

#: Draws that lie beyond a bound: as many make it known to a seventh of its error (1 / √50).
_BEYOND = 50
_FEWEST = 2000
#: Numbers that are held at once.
_AT_ONCE = 2_000_000


def draws_for(confidence: float) -> int:
    """How many draws a bound of this confidence takes."""
    return max(_FEWEST, math.ceil(_BEYOND / (1 - confidence)))


def exponential_weights(counts: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Weights of the Bayesian bootstrap (Rubin, *Ann. Stat.* 9, 1981, 130-134): a row's is exponentially distributed.

    Args:
        counts: how many rows each number stands for, ``[rows]``: a sum of exponential weights is a gamma.
        draws: how many.
        seed: of the drawing.

    Yields:
        ``[some draws, rows]`` at a time.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    shapes = counts.astype(np.float64)
    some = max(1, _AT_ONCE // len(shapes))
    for start in range(0, draws, some):
        yield random.standard_gamma(shapes, size=(min(some, draws - start), len(shapes)))
