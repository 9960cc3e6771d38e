"""Logits bent against what a text has said already, and for or against single tokens, before one is chosen."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.generator import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Penalties", "penalties"]


def penalties(sampling: Sampling, before: Sequence[int]) -> Penalties | None:
    """What bends the logits of one text; None where nothing is asked for.

    Args:
        sampling: what is asked.
        before: tokens that the text goes on from, or begins with where an encoder reads the prompt.
    """
    asked = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
    return Penalties(sampling, before) if asked or sampling.logit_bias or sampling.no_repeat_ngram_size else None


class Penalties:
    """The penalties of one text, which keep in mind what it has said.

    ``logit_bias`` first, then ``repetition_penalty`` (Keskar et al. 2019, §4.1; a negative logit is multiplied where
    theirs would be divided, as ``transformers`` does it) of all tokens in sight, then ``presence_penalty`` and
    ``frequency_penalty`` of those that were written, by the formula in OpenAI's documentation: a logit less
    ``frequency_penalty`` for each time, and less ``presence_penalty`` once. ``no_repeat_ngram_size`` n forbids the
    token that would end a sequence of n that is in sight already (Paulus et al. 2017).
    """

    def __init__(self, sampling: Sampling, before: Sequence[int]) -> None:
        import numpy as np

        self._sampling = sampling
        self._biased = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._seen = dict.fromkeys(int(token) for token in before)
        self._written: Counter[int] = Counter()
        #: What followed each run of n - 1 tokens, and the run that the text ends in.
        self._followed: dict[tuple[int, ...], frozenset[int]] = {}
        self._end: tuple[int, ...] = ()
        if sampling.no_repeat_ngram_size:
            for token in before:
                self._run_on(int(token))

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits by which the next token is chosen, ``[vocabulary]``; those given stay as they are."""
        import numpy as np

        asked, bent = self._sampling, logits.copy()
        np.add.at(bent, self._biased, self._bias)
        if asked.repetition_penalty != 1:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            factor = np.float32(asked.repetition_penalty)
            bent[seen] = np.where(bent[seen] < 0, bent[seen] * factor, bent[seen] / factor)
        if self._written and (asked.presence_penalty or asked.frequency_penalty):
            written = np.fromiter(self._written, np.int64, len(self._written))
            times = np.fromiter(self._written.values(), np.float32, len(self._written))
            bent[written] -= np.float32(asked.presence_penalty) + np.float32(asked.frequency_penalty) * times
        if asked.no_repeat_ngram_size and len(self._end) == asked.no_repeat_ngram_size - 1:
            bent[list(self._followed.get(self._end, ()))] = -math.inf
        return bent

    def take(self, token: int) -> None:
        """Go on by a token that was chosen."""
        self._seen[token] = None
        self._written[token] += 1
        if self._sampling.no_repeat_ngram_size:
            self._run_on(token)

    def after(self, token: int) -> Penalties:
        """Another one that has gone on by a token; this one stays where it is."""
        other = copy.copy(self)
        other._seen, other._written = dict(self._seen), Counter(self._written)
        other._followed = dict(self._followed)
        other.take(token)
        return other

    def _run_on(self, token: int) -> None:
        length = self._sampling.no_repeat_ngram_size - 1
        if len(self._end) == length:
            self._followed[self._end] = self._followed.get(self._end, frozenset()) | {token}
        self._end = (*self._end, token)[-length:] if length else ()
