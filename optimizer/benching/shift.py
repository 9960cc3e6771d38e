"""Where a series of measurements shifted, if it did.

The statistic is Pettitt's (*A non-parametric approach to the change-point problem*, Applied Statistics 28, 1979): the
largest distance of a running sum of ranks from what it would be without a shift. It is made of ranks, so that one wild
run is one rank and no more. Its p-value is taken from permutations of the series and not from Pettitt's approximation,
which is poor for the ten or twenty runs that there are (Good, *Permutation, Parametric and Bootstrap Tests of
Hypotheses*, 2005).

It holds for runs that do not depend on their order but for a shift. A machine that slowly warms up over a day of runs
has such a dependence, and is then found as the shift that it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Shift", "find_shift", "least_p"]

_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Shift:
    """The most likely place of a shift.

    Attributes:
        at: index of the first value behind it.
        share: by how much the median behind it is above that before it: .05 is 5 %.
        p: how often a series without any shift would show one as clear.
    """

    at: int
    share: float
    p: float


def find_shift(values: Sequence[float], seed: int = 0) -> Shift | None:
    """The shift of a series that is most evident, however evident that is.

    Args:
        values: positive numbers, oldest first.
        seed: of the permutations.

    Returns:
        None for fewer than two values.
    """
    import numpy as np

    count = len(values)
    if count < 2:
        return None
    ranks = _ranks(np.asarray(values, np.float64))
    distances = _distances(ranks[np.newaxis])[0]
    at = int(distances.argmax()) + 1
    shuffled = np.random.default_rng(seed).permuted(np.tile(ranks, (_PERMUTATIONS, 1)), axis=1)
    # Ranks may be halves: what is equal up to rounding is as extreme.
    as_clear = int((_distances(shuffled).max(axis=1) >= distances.max() - 1e-9).sum())
    share = float(np.median(values[at:]) / np.median(values[:at]) - 1)
    return Shift(at, share, (as_clear + 1) / (_PERMUTATIONS + 1))


def least_p(count: int) -> float:
    """The smallest p-value that any series of so many values can have: the first half below the second, or above it."""
    return min(1.0, 2 / math.comb(count, count // 2))


def _distances(ranks: NDArray[np.float64]) -> NDArray[Any]:
    """For each place between two values, of each series of ranks, Pettitt's |U|."""
    import numpy as np

    count = ranks.shape[1]
    sums = np.cumsum(ranks, axis=1)[:, :-1]
    return np.asarray(np.abs(2 * sums - np.arange(1, count) * (count + 1)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)
