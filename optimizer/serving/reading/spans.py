"""Answers to a question out of its context, as the question-answering pipeline of ``transformers`` found them.

That pipeline is gone since version 5; the rules are those of its last, in 4.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.data.preprocess import RowTexts
from optimizer.serving.asking import Answered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["spans"]


def spans(
    windows: Sequence[Answered], first_token: int | None, *, top: int, longest: int, may_be_none: bool
) -> list[dict[str, Any]]:
    """The likeliest answers to one question, the best first; at least one.

    A span's score is the share of its first token among the starts of its window, times that of its last among the
    ends. Answers that differ in nothing but their place and case are one, and their scores are added up, so that a sum
    may be over 1.

    Args:
        windows: of the context, in order; ``start_logits`` and ``end_logits`` are ``[1, tokens]``.
        first_token: the id of the token that stands for "no answer" (``[CLS]``), where there is one.
        top: most answers.
        longest: tokens of the longest answer.
        may_be_none: an empty answer is one too, with the least score that any window gives it.
    """
    found: dict[str, dict[str, Any]] = {}
    nothing = 1.0
    for window in windows:
        texts = window.texts
        assert texts is not None
        start, end, none = _shares(window, first_token)
        words = _words(texts)
        nothing = min(nothing, none)
        for first, last, score in _best(start, end, top * 2 + 10, longest):
            begins, ends = _characters(texts, words, first, last)
            answer = texts.texts[1][begins:ends]
            known = found.setdefault(answer.lower(), {"answer": answer, "score": 0.0, "start": begins, "end": ends})
            known["score"] += score
    answers = list(found.values())
    if may_be_none:
        answers.append({"answer": "", "score": nothing, "start": 0, "end": 0})
    return sorted(answers, key=lambda each: each["score"], reverse=True)[:top]


def _shares(window: Answered, first_token: int | None) -> tuple[Array, Array, float]:
    """How likely each token of a window begins and ends the answer, and how likely there is none.

    What is no part of the context has no share; what stands for no answer has one, which is then taken from it.
    """
    import numpy as np

    texts = window.texts
    assert texts is not None
    ids = window.feeds["input_ids"][0][window.real]
    own = np.array([token.text == 1 for token in texts.tokens])
    counts = own | (ids == first_token) if first_token is not None else own
    shares = []
    for name in ("start_logits", "end_logits"):
        logits = np.where(counts, window.outputs[name][0][window.real].astype(np.float64), -np.inf)
        likely = np.exp(logits - logits.max())
        shares.append(likely / likely.sum())
    start, end = shares
    none = float(start[0] * end[0])
    return np.where(own, start, 0.0), np.where(own, end, 0.0), none


def _best(start: Array, end: Array, most: int, longest: int) -> Iterator[tuple[int, int, float]]:
    """First and last token of the likeliest spans and their scores, the best first."""
    import numpy as np

    longest = min(longest, len(start))
    padded = np.concatenate([end, np.zeros(longest - 1)])
    scores = (start[:, None] * np.lib.stride_tricks.sliding_window_view(padded, longest)).ravel()
    order = np.argpartition(-scores, most)[:most] if most < len(scores) else np.arange(len(scores))
    for place in order[np.argsort(-scores[order], kind="stable")]:
        if scores[place] > 0:
            first, more = divmod(int(place), longest)
            yield first, first + more, float(scores[place])


def _words(texts: RowTexts) -> dict[int | None, tuple[int, int]]:
    """Where each word of the context stands, as far as it is in this window."""
    found: dict[int | None, tuple[int, int]] = {}
    for token in texts.tokens:
        if token.text == 1:
            start, end = found.get(token.word, (token.start, token.end))
            found[token.word] = min(start, token.start), max(end, token.end)
    return found


def _characters(texts: RowTexts, words: Mapping[int | None, tuple[int, int]], first: int, last: int) -> tuple[int, int]:
    """Where a span stands in the context, from the beginning of its first word to the end of its last."""
    begins, ends = texts.tokens[first], texts.tokens[last]
    if begins.word is None or ends.word is None:
        return begins.start, ends.end
    return words[begins.word][0], words[ends.word][1]
