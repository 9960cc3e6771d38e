"""What the routes of models that read take and say; names are those of the pipelines of ``transformers``."""

from __future__ import annotations

from optimizer.serving.form import COUNT, NUMBER, TEXT, Form, Schema, either, listed, object_of, one_of, spoken
from optimizer.serving.forms.tasks import HOW, answers
from optimizer.serving.reading.entities import AGGREGATIONS

__all__ = ["NER"]

_TEXT_ROW = either(TEXT, {**object_of("", {"text": TEXT}), "additionalProperties": False})
_TEXTS: dict[str, Schema] = {"input": either(_TEXT_ROW, listed(_TEXT_ROW, 1))}
#: Where something stands in its text, as the model was given it: its first character, and the one behind its last.
_PLACE: dict[str, Schema] = {"start": COUNT, "end": COUNT}

_GROUP = object_of("Entity", {"entity_group": TEXT, "score": NUMBER, "word": TEXT, **_PLACE})
_TOKEN = object_of("TokenEntity", {"entity": TEXT, "index": COUNT, "score": NUMBER, "word": TEXT, **_PLACE})
NER: Form = spoken(
    answers("Entities", object_of("Tagged", {"index": COUNT, "entities": listed(either(_GROUP, _TOKEN))})),
    object_of(
        "NerRequest",
        _TEXTS,
        {
            **HOW,
            "aggregation_strategy": {
                "anyOf": [one_of(*AGGREGATIONS), {"type": "null"}],
                "description": "simple (the default): neighbours of a kind are one entity; none: one for each token.",
            },
            "ignore_labels": {**listed(TEXT), "default": ["O"]},
        },
    ),
)
