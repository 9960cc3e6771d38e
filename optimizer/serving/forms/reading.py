"""What the routes of models that read take and say; names are those of the pipelines of ``transformers``."""

from __future__ import annotations

from optimizer.serving.form import COUNT, NUMBER, TEXT, TRUTH, Form, Schema, either, listed, object_of, one_of, spoken
from optimizer.serving.forms.tasks import HOW, answers
from optimizer.serving.reading.entities import AGGREGATIONS

__all__ = ["ANSWER", "FILL", "NER"]

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

_QUESTION = object_of("Question", {"question": TEXT, "context": TEXT})
_SPAN = {
    "answer": TEXT,
    "score": {**NUMBER, "description": "Answers that differ in their place and case alone are one, with one sum."},
    **_PLACE,
}
_MANY: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 1000}
ANSWER: Form = spoken(
    answers(
        "Answers",
        object_of("AnsweredQuestion", {"index": COUNT, **_SPAN, "answers": listed(object_of("Answer", _SPAN), 1)}),
    ),
    {
        **object_of(
            "AnswerRequest",
            {},
            {
                "model": HOW["model"],
                "input": either(_QUESTION, listed(_QUESTION, 1)),
                "question": TEXT,
                "context": TEXT,
                "top_k": {**_MANY, "default": 1},
                "max_answer_len": {**_MANY, "default": 15, "description": "Tokens of the longest answer."},
                "handle_impossible_answer": {**TRUTH, "description": "An empty answer is one too."},
            },
        ),
        "oneOf": [{"required": ["input"]}, {"required": ["question", "context"]}],
    },
)

_FILL = object_of("Fill", {"score": NUMBER, "token": COUNT, "token_str": TEXT, "sequence": TEXT})
_MASK = object_of("Mask", {**_PLACE, "fills": listed(_FILL, 1)})
FILL: Form = spoken(
    answers("Fills", object_of("Filled", {"index": COUNT, "masks": listed(_MASK, 1)})),
    object_of(
        "FillRequest",
        _TEXTS,
        {
            **HOW,
            "top_k": {**_MANY, "default": 5},
            "targets": {
                "anyOf": [listed(TEXT, 1), {"type": "null"}],
                "description": "The only tokens that are looked at, as the vocabulary has them.",
            },
        },
    ),
)
