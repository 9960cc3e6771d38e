"""Exact match and F1 of answers out of a text, as SQuAD measures them.

Normalization and scores are those of the official script (Rajpurkar, Zhang, Lopyrev and Liang, EMNLP 2016, 2383-2392;
version 2.0 for rows without an answer): lower case, no punctuation, no articles, one space; the best over all answers
that were given. A row's answer is the likeliest span of at most :data:`_LONGEST` tokens of its context. Where the data
holds rows without an answer, "none" is the answer if the first token (``[CLS]``) is likelier than any span. A context
that was cut is answered from what is left of it.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.data.preprocess import Preprocessor, RowTexts
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import Metric
from optimizer.tasks._aggregate import mean, right_or_wrong
from optimizer.tasks._measures import pick
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["ANSWER_F1", "EXACT_MATCH", "Asked", "exact", "normalized", "overlap"]

#: Tokens of the longest answer, the default of ``transformers``' question-answering examples.
_LONGEST = 30
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Asked:
    """The right answers to a row, and where the model's own can stand.

    Attributes:
        context: the text.
        spans: place among the row's tokens, first character and the one behind the last, of each token of the context.
        answers: any of these is right; empty where the context has none.
        may_be_none: some row of the data has no answer, so that this one may be answered with none.
    """

    context: str
    spans: tuple[tuple[int, int, int], ...]
    answers: tuple[str, ...]
    may_be_none: bool


def normalized(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact(said: str, right: str) -> float:
    """1 if both are the same when normalized, else 0."""
    return float(normalized(said) == normalized(right))


def overlap(said: str, right: str) -> float:
    """F1 of the words of two normalized answers; of an empty one, whether the other is empty too."""
    a, b = normalized(said).split(), normalized(right).split()
    if not a or not b:
        return float(a == b)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b))


def _truths(rows: Sequence[Row], preprocessor: Preprocessor, model: Mapping[str, JSON]) -> list[Asked]:
    answers = [_answers(row, preprocessor) for row in rows]
    may_be_none = not all(answers)
    if not any(answers):
        raise BadInput(f"{rows[0].source}: no row has an answer", "give rows with answers")
    texts = preprocessor.texts(rows)
    return [_asked(text, given, may_be_none) for text, given in zip(texts, answers, strict=True)]


def _asked(text: RowTexts, answers: tuple[str, ...], may_be_none: bool) -> Asked:
    spans = tuple((place, token.start, token.end) for place, token in enumerate(text.tokens) if token.text == 1)
    return Asked(text.texts[1], spans, answers, may_be_none)


def _answers(row: Row, preprocessor: Preprocessor) -> tuple[str, ...]:
    """``{"text": […], …}`` as SQuAD has it, a list of texts, or a text; those that are empty are none."""
    columns = preprocessor.columns
    column = columns.find(row, "answers")
    if column is None:
        raise columns.missing(row, "answers")
    given: Any = row.values[column]
    if isinstance(given, Mapping):
        given = given.get("text")
    given = given.tolist() if hasattr(given, "tolist") else given
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise BadInput(
            f'{row}: {column} should be {{"text": ["…"], …}}, a list of texts or a text, and is {row.values[column]!r}',
            "an unanswerable question has an empty list",
        )
    texts = tuple(text for text in given if text)
    # Answers of nothing but punctuation and articles are dropped, as the official script does, if others are left.
    return tuple(text for text in texts if normalized(text)) or texts


def _scores(same: Callable[[str, str], float], outputs: Arrays, feeds: Arrays, truths: Sequence[Asked]) -> Array:
    import numpy as np

    start, end = (outputs[pick(outputs, (name,), "question-answering")] for name in ("start_logits", "end_logits"))
    mask = feeds.get("attention_mask")
    found = []
    for row, asked in enumerate(truths):
        real = np.arange(start.shape[1]) if mask is None else np.flatnonzero(mask[row])
        said = _said(start[row, real].astype(np.float64), end[row, real].astype(np.float64), asked)
        # An answer out of NaN is no answer, and not even the right one to a question that has none.
        found.append(0.0 if said is None else max(same(said, right) for right in asked.answers or ("",)))
    return np.array(found, np.float64)


def _said(start: Array, end: Array, asked: Asked) -> str | None:
    """The likeliest span's text; empty for "none"; None where numbers are NaN.

    Args:
        start: of a row's tokens, padding left out.
        end: the same.
        asked: which of them are the context's.
    """
    import numpy as np

    if np.isnan(start).any() or np.isnan(end).any():
        return None
    if not asked.spans:
        return ""
    places = [place for place, _, _ in asked.spans]
    sums = start[places][:, None] + end[places][None, :]
    allowed = np.triu(np.ones(sums.shape, bool)) & ~np.triu(np.ones(sums.shape, bool), _LONGEST)
    sums = np.where(allowed, sums, -np.inf)
    first, last = np.unravel_index(int(np.argmax(sums)), sums.shape)
    if asked.may_be_none and start[0] + end[0] > sums[first, last]:
        return ""
    return asked.context[asked.spans[int(first)][1] : asked.spans[int(last)][2]]


def _exact(outputs: Arrays, feeds: Arrays, truths: Sequence[Asked], model: Mapping[str, JSON]) -> Array:
    return _scores(exact, outputs, feeds, truths)


def _overlap(outputs: Arrays, feeds: Arrays, truths: Sequence[Asked], model: Mapping[str, JSON]) -> Array:
    return _scores(overlap, outputs, feeds, truths)


ANSWER_F1 = Metric(name="f1", truths=_truths, score=_overlap, aggregate=mean, one_more=right_or_wrong)
EXACT_MATCH = Metric(
    name="exact-match", truths=_truths, score=_exact, aggregate=mean, one_more=right_or_wrong, binary=True
)
