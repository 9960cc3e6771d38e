"""Searching for the likeliest text, and not for the likeliest token each time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.generating.penalties import Penalties
from optimizer.generating.sampler import check_top
from optimizer.generator import Finish, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BeamSearch"]


@dataclass(frozen=True)
class _Beam:
    """A text that is under way.

    Attributes:
        tokens: of it.
        score: the logarithm of its probability, in nats; less what penalties took off it.
        penalties: what bends its next choice.
    """

    tokens: tuple[int, ...]
    score: float
    penalties: Penalties | None


@dataclass(frozen=True)
class _Ended:
    """A text that is over, without the token that ended it; its score is by its length."""

    tokens: tuple[int, ...]
    score: float
    finish: Finish


class BeamSearch:
    """Beam search over the answers to one prompt, step by step, by the rules of ``transformers``.

    The ``num_beams`` likeliest texts are kept. One that ends is scored by the logarithm of its probability over its
    length to the power of ``length_penalty``, the end token counted (Wu et al. 2016, §7, with the simpler length
    normalization). With ``early_stopping`` the search ends when as many texts have ended as there are beams; without,
    when the likeliest one under way, scored as it is, is no better than the worst of those.

    Args:
        sampling: ``num_beams``, ``length_penalty``, ``early_stopping``, ``min_tokens``.
        penalties: what bends the first choice; each beam has its own from then on.
        ends: tokens that end a text.
        never: tokens that never come.
        start: tokens that an answer begins with where an encoder read the prompt; all but the first count in its
            length.
        most: most tokens of a text.
    """

    def __init__(
        self,
        sampling: Sampling,
        penalties: Penalties | None,
        ends: Collection[int],
        never: Collection[int],
        start: Sequence[int],
        most: int,
    ) -> None:
        self._sampling, self._ends, self._never = sampling, frozenset(ends), list(never)
        self._start, self._most = tuple(start), most
        self._beams = [_Beam((), 0.0, penalties)]
        self._ended: list[_Ended] = []

    def token(self, beam: int) -> int:
        """The last token of a beam; the first beam is the likeliest one."""
        tokens = self._beams[beam].tokens
        return tokens[-1] if tokens else self._start[-1]

    def step(self, logits: NDArray[np.float32]) -> list[int] | None:
        """Take the next token of every beam.

        Args:
            logits: ``[beams, vocabulary]``, of one beam in the first step.

        Returns:
            for each new beam, the place of the one that it goes on from; None when the search is over.

        Raises:
            GateFailed: the model answered no number.
        """
        import numpy as np

        asked, beams = self._sampling, self._beams
        scores = np.stack([beam.score + self._bent(beam, row) for beam, row in zip(beams, logits, strict=True)]).ravel()
        # So many that as many as there are beams do not end, whatever the others do.
        count = min(max(2, 1 + len(self._ends)) * asked.num_beams, scores.size)
        likeliest = np.argpartition(scores, scores.size - count)[scores.size - count :]
        likeliest = likeliest[np.argsort(-scores[likeliest], kind="stable")]
        check_top(float(scores[likeliest[0]]))
        written = len(beams[0].tokens) + 1
        length, full = len(self._start[1:]) + written, written == self._most
        parents: list[int] = []
        self._beams = []
        for rank, place in enumerate(likeliest.tolist()):
            parent, token = divmod(place, logits.shape[1])
            score, before = float(scores[place]), beams[parent]
            if full or token in self._ends:
                if rank < asked.num_beams and math.isfinite(score):
                    self._end(before.tokens, token, score / length**asked.length_penalty)
            elif len(self._beams) < asked.num_beams:
                taken = before.penalties.after(token) if before.penalties else None
                self._beams.append(_Beam((*before.tokens, token), score, taken))
                parents.append(parent)
        return None if full or self._over(length) else parents

    def best(self) -> tuple[tuple[int, ...], Finish]:
        """The best text, without the token that ended it, and why it ended."""
        return self._ended[0].tokens, self._ended[0].finish

    def _bent(self, beam: _Beam, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logarithms of the chances of the next tokens, in nats, and what was asked to bend them."""
        import numpy as np

        top = logits.max()  # not a number, where one of them is none
        check_top(float(top))
        chances: NDArray[np.float32] = logits - top - np.float32(np.log(np.exp(logits - top, dtype=np.float64).sum()))
        if beam.penalties:
            chances = beam.penalties.apply(chances)
        chances[self._never] = -math.inf
        if len(beam.tokens) < self._sampling.min_tokens:
            chances[list(self._ends)] = -math.inf
        return chances

    def _end(self, tokens: tuple[int, ...], token: int, score: float) -> None:
        """Keep a text that has ended, if it is one of the best."""
        stopped = token in self._ends
        ended = _Ended(tokens if stopped else (*tokens, token), score, Finish.STOP if stopped else Finish.LENGTH)
        kept = sorted([*self._ended, ended], key=lambda each: -each.score)  # of equal ones the earlier first
        self._ended = kept[: self._sampling.num_beams]

    def _over(self, length: int) -> bool:
        """Whether no text under way is worth going on with."""
        if len(self._ended) < self._sampling.num_beams:
            return False
        best = self._beams[0].score / length**self._sampling.length_penalty
        return self._sampling.early_stopping or best <= self._ended[-1].score
