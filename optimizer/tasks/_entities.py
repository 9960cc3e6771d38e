"""F1 of entities and accuracy of words, for models that classify tokens.

A row brings one tag a word (``tokens``, or a text whose words are what stands between spaces), or one a token of the
model's own tokenizer, with or without the special ones; the tag -100 leaves a place out. A word's answer is that of its
first token, as in ``transformers``' own examples; a word that was cut off, or that the tokenizer drops, is answered
with "O". Entities are those of ``seqeval`` in its usual mode, which is that of CoNLL-2000's ``conlleval``; F1 is over
all rows (micro).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.data.preprocess import Preprocessor, RowTexts
from optimizer.data.readers import Row
from optimizer.errors import BadInput, missing_package
from optimizer.task import Metric
from optimizer.tasks._measures import pick
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["ENTITY_F1", "WORD_ACCURACY", "Tagged"]

#: What a word is answered with that no token stands for, and the tag of a place that is left out.
_OUTSIDE, _IGNORED = "O", -100
#: Tags that say where an entity begins and ends: IOB, IOB2, IOE, IOBES.
_SCHEME = re.compile(r"O|[BIES]-.+")


@dataclass(frozen=True)
class Tagged:
    """The right answer to a row.

    Attributes:
        tags: one a word.
        places: of each word's first token among the row's tokens; None where it has none.
    """

    tags: tuple[str, ...]
    places: tuple[int | None, ...]


def _truths(rows: Sequence[Row], preprocessor: Preprocessor, model: Mapping[str, JSON]) -> list[Tagged]:
    names = [str(name) for name in model.get("labels") or ()]
    tags = [_tags(row, preprocessor, names) for row in rows]
    texts = preprocessor.texts(rows)
    ways = [_ways(text) for text in texts]
    by = next((name for name in ways[0] if all(len(w[name]) == len(t) for w, t in zip(ways, tags, strict=True))), None)
    if by is None:
        # The first row that is not tagged by words, or by nothing at all, is the one to look at.
        fits = [any(len(t) == len(places) for places in w.values()) for w, t in zip(ways, tags, strict=True)]
        bad = fits.index(False) if False in fits else _first_unlike(ways, tags)
        counts = ", ".join(f"{len(places)} {name}" for name, places in ways[bad].items())
        raise BadInput(
            f"{rows[bad]} has {len(tags[bad])} tags, and {counts}",
            "give one tag a word (or one a token) in every row; words are those of the column tokens, or what stands "
            "between the spaces of the text",
        )
    return [Tagged(*_kept(tag, way[by])) for tag, way in zip(tags, ways, strict=True)]


def _first_unlike(ways: Sequence[Mapping[str, Sequence[Any]]], tags: Sequence[Sequence[Any]]) -> int:
    """The first row that is not tagged word by word, where every row is tagged in some way and not all in one."""
    return next(row for row, (w, t) in enumerate(zip(ways, tags, strict=True)) if len(w["words"]) != len(t))


def _kept(tags: Sequence[str | None], places: Sequence[int | None]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    pairs = [(tag, place) for tag, place in zip(tags, places, strict=True) if tag is not None]
    return tuple(tag for tag, _ in pairs), tuple(place for _, place in pairs)


def _tags(row: Row, preprocessor: Preprocessor, names: Sequence[str]) -> list[str | None]:
    """A row's tags by name; None for a place that is left out."""
    columns = preprocessor.columns
    column = columns.find(row, "tags")
    if column is None:
        raise columns.missing(row, "tags")
    values = row.values[column]
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, str):
        values = values.split()
    if not isinstance(values, list | tuple):
        raise BadInput(f"{row}: {column} should be a list of tags, and is {values!r}")
    return [_tag(row, value, names) for value in values]


def _tag(row: Row, value: Any, names: Sequence[str]) -> str | None:
    if isinstance(value, str) and value in names:
        return value
    number = int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) else value
    if number == _IGNORED and not isinstance(number, bool):
        return None
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names):
        return names[number]
    known = ", ".join(f"{place} ({name})" for place, name in enumerate(names[:12]))
    raise BadInput(f"{row}: the model knows no tag {value!r}; it knows {known}{', …' if len(names) > 12 else ''}")


def _ways(text: RowTexts) -> dict[str, list[int | None]]:
    """How a row may be tagged: what is counted → the token that answers for each."""
    own = [place for place, token in enumerate(text.tokens) if token.text == 0]
    return {
        "words": [_first(text, own, *span) for span in _spans(text)],
        "tokens": list[int | None](own),
        "tokens with the special ones": list[int | None](range(len(text.tokens))),
    }


def _spans(text: RowTexts) -> Iterator[tuple[int, int]]:
    """Where each word stands in the text."""
    if text.words is None:
        for found in re.finditer(r"\S+", text.texts[0]):
            yield found.span()
        return
    start = 0
    for word in text.words:
        yield start, start + len(word)
        start += len(word) + 1


def _first(text: RowTexts, own: Sequence[int], start: int, end: int) -> int | None:
    """The first token that has a character of a word."""
    for place in own:
        token = text.tokens[place]
        if token.start < end and token.end > start and token.start < token.end:
            return place
    return None


def _answers(
    outputs: Arrays, feeds: Arrays, truths: Sequence[Tagged], model: Mapping[str, JSON]
) -> Iterator[tuple[Tagged, list[str]]]:
    """Row by row what is right and what was answered."""
    import numpy as np

    names = [str(name) for name in model.get("labels") or ()]
    logits = outputs[pick(outputs, ("logits",), str(model.get("task", "token-classification")))]
    if logits.ndim != 3 or logits.shape[-1] != len(names):
        raise BadInput(f"tags need logits [rows, tokens, {len(names)}]; this model answers {list(logits.shape)}")
    mask = feeds.get("attention_mask")
    for row, truth in enumerate(truths):
        real = np.arange(logits.shape[1]) if mask is None else np.flatnonzero(mask[row])
        said = np.argmax(logits[row], axis=-1)
        sound = (logits[row] == logits[row]).all(axis=-1)
        yield (
            truth,
            [
                names[said[real[place]]] if place is not None and sound[real[place]] else _OUTSIDE
                for place in truth.places
            ],
        )


def _score(outputs: Arrays, feeds: Arrays, truths: Sequence[Tagged], model: Mapping[str, JSON]) -> Array:
    """Of each row the entities that were found, that were said, and that there are."""
    import numpy as np

    counts = []
    for truth, said in _answers(outputs, feeds, truths, model):
        right, answered = _entities(truth.tags), _entities(said)
        counts.append((len(right & answered), len(answered), len(right)))
    return np.array(counts, np.float64)


def _entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Sort, first and last word of every entity."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError as error:
        raise missing_package(error.name or "seqeval", "F1 of entities") from None
    return set(get_entities(list(tags)))


def _f1(numbers: Array, weights: Array) -> Array:
    """2 found / (said + there); 0 where there is neither, as seqeval has it."""
    import numpy as np

    found, said, there = (weights @ numbers).T
    f1: Array = np.where(said + there > 0, 2 * found / np.where(said + there > 0, said + there, 1.0), 0.0)
    return f1


def _f1_of_one(numbers: Array) -> tuple[Array, Array]:
    """A row with as many entities as that of an average entity: all of them found, or others said in their places."""
    import numpy as np

    most = _usual(numbers[:, 2])
    return np.array([most, most, most]), np.array([0.0, most, most])


def _usual(counts: Array) -> float:
    """The size of the row in which an average entity (or word) stands: larger than that of an average row."""
    total = float(counts.sum())
    return float((counts * counts).sum()) / total if total else 1.0


def _no_scheme(model: Mapping[str, JSON]) -> str:
    names = [str(name) for name in model.get("labels") or ()]
    odd = [name for name in names if not _SCHEME.fullmatch(name)]
    if not names or odd:
        return f"entities need tags such as O, B-PER and I-PER, and this model's are {', '.join(odd[:3]) or 'unnamed'}"
    return ""


def _unnamed(model: Mapping[str, JSON]) -> str:
    return "" if model.get("labels") else "the model's tags have no names"


def _right(outputs: Arrays, feeds: Arrays, truths: Sequence[Tagged], model: Mapping[str, JSON]) -> Array:
    """Of each row the words that were tagged right, and all of them."""
    import numpy as np

    counts = [
        (sum(a == b for a, b in zip(truth.tags, said, strict=True)), len(said))
        for truth, said in _answers(outputs, feeds, truths, model)
    ]
    return np.array(counts, np.float64)


def _share(numbers: Array, weights: Array) -> Array:
    import numpy as np

    right, words = (weights @ numbers).T
    share: Array = np.where(words > 0, right / np.where(words > 0, words, 1.0), 0.0)
    return share


def _share_of_one(numbers: Array) -> tuple[Array, Array]:
    """A row with as many words as that of an average word, all right or all wrong."""
    import numpy as np

    most = _usual(numbers[:, 1])
    return np.array([most, most]), np.array([0.0, most])


ENTITY_F1 = Metric(name="f1", truths=_truths, score=_score, aggregate=_f1, one_more=_f1_of_one, unfit=_no_scheme)
WORD_ACCURACY = Metric(
    name="accuracy", truths=_truths, score=_right, aggregate=_share, one_more=_share_of_one, unfit=_unnamed
)
