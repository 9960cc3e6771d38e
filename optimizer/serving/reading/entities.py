"""Entities of a text, as the token-classification pipeline of ``transformers`` finds them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.serving.asking import Answered

if TYPE_CHECKING:
    from optimizer.data.text import TextEncoder

__all__ = ["AGGREGATIONS", "entities"]

#: Ways to make entities of tokens: one of each, or one of neighbours of a kind.
AGGREGATIONS = ("simple", "none")


def entities(
    answered: Answered, labels: Sequence[str], encoder: TextEncoder, aggregation: str, ignored: Collection[str]
) -> list[dict[str, Any]]:
    """The entities of one text.

    Args:
        answered: its first output is ``[1, tokens, labels]``.
        labels: by number; a number stands for itself where it has none.
        encoder: of the model; nobody else may use it meanwhile.
        aggregation: one of :data:`AGGREGATIONS`. With ``simple`` neighbours of one kind are one entity, whatever
            stands between them, unless a label begins with ``B-``; its score is the mean of theirs.
        ignored: labels, or kinds, that are left out.
    """
    import numpy as np

    texts = answered.texts
    assert texts is not None
    logits = answered.outputs["logits" if "logits" in answered.outputs else next(iter(answered.outputs))][0]
    scores = np.exp((wide := logits[answered.real].astype(np.float64)) - wide.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    ids = answered.feeds["input_ids"][0][answered.real]
    unknown = encoder.special("unk_token")
    found: list[dict[str, Any]] = []
    for place, token in enumerate(texts.tokens):
        if token.text < 0:
            continue
        best = int(scores[place].argmax())
        is_unknown = unknown is not None and int(ids[place]) == unknown[1]
        found.append(
            {
                "entity": str(labels[best]) if best < len(labels) else str(best),
                "index": place,
                "score": float(scores[place, best]),
                "word": texts.texts[0][token.start : token.end] if is_unknown else encoder.piece(int(ids[place])),
                "start": token.start,
                "end": token.end,
            }
        )
    if aggregation == "none":
        return [each for each in found if each["entity"] not in ignored]
    return [each for each in _grouped(found, encoder) if each["entity_group"] not in ignored]


def _grouped(found: Sequence[dict[str, Any]], encoder: TextEncoder) -> list[dict[str, Any]]:
    groups: list[list[dict[str, Any]]] = []
    for each in found:
        if groups and _kind(each) == _kind(groups[-1][-1]) and not each["entity"].startswith("B-"):
            groups[-1].append(each)
        else:
            groups.append([each])
    return [
        {
            # Of a label that stands alone all behind its first hyphen is the name, as the pipeline has it.
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": sum(each["score"] for each in group) / len(group),
            "word": encoder.joined([each["word"] for each in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _kind(entity: dict[str, Any]) -> str:
    label: str = entity["entity"]
    return label[2:] if label.startswith(("B-", "I-")) else label
