"""Choosing the next token from a model's logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optimizer.errors import GateFailed
from optimizer.generator import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Sampler", "check_top", "logprob", "top_logprobs"]


class Sampler:
    """Draws tokens for one text; the same seed and logits give the same tokens.

    Temperature first, then the ``top_k`` likeliest, then the smallest set of those whose probability is at least
    ``top_p`` (nucleus sampling, Holtzman et al. 2020), then those at least ``min_p`` times as likely as the likeliest
    (Nguyen et al. 2024): the order of ``transformers``.
    """

    def __init__(self, sampling: Sampling) -> None:
        import numpy as np

        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """One token.

        Args:
            logits: ``[vocabulary]``; -inf where a token must not come.

        Raises:
            GateFailed: the model answered no number.
        """
        import numpy as np

        likeliest = int(np.argmax(logits))  # the place of a NaN, where there is one
        top = logits[likeliest]
        check_top(float(top))
        asked = self._sampling
        if asked.temperature == 0 or asked.top_k == 1:
            return likeliest
        kept = None
        if 0 < asked.top_k < logits.size:
            kept = np.argpartition(logits, logits.size - asked.top_k)[logits.size - asked.top_k :]
            logits = logits[kept]
        # The largest is taken off first, so that no temperature, however low, overflows.
        chances = np.exp((logits - top) / np.float32(max(asked.temperature, 1e-30)), dtype=np.float64)
        # The likeliest one has the chance 1 here, before they are made to sum up to it.
        enough = chances >= asked.min_p if asked.min_p else None
        if asked.top_p < 1:
            order = np.argsort(-chances, kind="stable")
            upto = np.cumsum(chances[order])
            # Of rounded sums the last one counts as all of it.
            size = min(int(np.searchsorted(upto, asked.top_p * upto[-1])) + 1, order.size)
            if enough is not None:
                size = min(size, int(np.count_nonzero(enough)))
            return self._of(kept, int(order[self._place(upto[:size])]))
        if enough is not None:
            chances[~enough] = 0
        return self._of(kept, self._place(np.cumsum(chances)))

    def _place(self, upto: NDArray[np.float64]) -> int:
        """Draw by the inverse of the cumulated chances."""
        drawn = self._random.random() * upto[-1]
        return min(int(upto.searchsorted(drawn, side="right")), upto.size - 1)

    @staticmethod
    def _of(kept: NDArray[np.intp] | None, place: int) -> int:
        return place if kept is None else int(kept[place])


def check_top(logit: float) -> None:
    """Refuse the largest of a model's logits where it is no number; raises :class:`GateFailed`."""
    if not math.isfinite(logit):
        raise GateFailed(
            f"the model answered {logit} in its logits", "its precision may be too low: export it in fp32 and compare"
        )


def logprob(logits: NDArray[np.float32], token: int) -> float:
    """The logarithm of a token's probability, in nats, as the model has it: without temperature and limits."""
    return float(logits[token]) - _log_total(logits)


def top_logprobs(logits: NDArray[np.float32], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens with their logprobs, the likeliest first; those that must not come (-inf) are left out."""
    import numpy as np

    count = min(count, logits.size)
    found = np.argpartition(logits, logits.size - count)[logits.size - count :]
    found = found[np.argsort(-logits[found], kind="stable")]
    total = _log_total(logits)
    return tuple((int(token), float(logits[token]) - total) for token in found if np.isfinite(logits[token]))


def _log_total(logits: NDArray[np.float32]) -> float:
    """The logarithm of the sum of exp(logits)."""
    import numpy as np

    top = float(logits.max())
    return top + float(np.log(np.exp(logits - np.float32(top), dtype=np.float64).sum()))
