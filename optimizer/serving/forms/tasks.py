"""What the routes of tasks take and say, and OpenAI's embeddings and list of models."""

from __future__ import annotations

from optimizer.serving.form import (
    COUNT,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    Form,
    Schema,
    either,
    listed,
    object_of,
    one_of,
    spoken,
)

__all__ = ["CLASSIFY", "EMBEDDINGS", "HOW", "MODEL", "MODELS", "answers"]

#: The only one that fits where it is left out or null.
_MODEL: Schema = {"type": ["string", "null"]}
#: A text, or a text with the one that it goes with, or an image in base64.
_ROW = either(
    TEXT,
    {
        **object_of("", {}, {"text": TEXT, "text_pair": TEXT, "image": TEXT}),
        "minProperties": 1,
        "additionalProperties": False,
    },
)
_ROWS: dict[str, Schema] = {"input": either(_ROW, listed(_ROW, 1))}
#: What every task route has beside its rows.
HOW: dict[str, Schema] = {"model": _MODEL, "truncate": TRUTH}
_USAGE = object_of("Usage", {"prompt_tokens": COUNT, "total_tokens": COUNT})


def answers(title: str, each: Schema) -> Schema:
    """One object for each row, in the form of OpenAI's lists."""
    return object_of(title, {"object": one_of("list"), "data": listed(each), "model": TEXT, "usage": _USAGE})


_VECTOR = either(listed(NUMBER), {**TEXT, "description": "Base64 of little-endian float32."})
EMBEDDINGS: Form = spoken(
    answers(
        "Embeddings",
        object_of("Embedding", {"object": one_of("embedding"), "index": COUNT, "embedding": _VECTOR}),
    ),
    object_of("EmbeddingsRequest", _ROWS, {**HOW, "encoding_format": one_of("float", "base64")}),
)

_CLASS = object_of("Class", {"label": TEXT, "score": NUMBER})
CLASSIFY: Form = spoken(
    answers(
        "Classes", object_of("Classified", {"index": COUNT, "label": TEXT, "score": NUMBER, "classes": listed(_CLASS)})
    ),
    object_of("ClassifyRequest", _ROWS, {**HOW, "top_k": {"type": "integer", "minimum": 1}}),
)

_CARD = object_of(
    "Model",
    {"id": TEXT, "object": one_of("model"), "created": WHOLE, "owned_by": TEXT, "task": TEXT},
)
MODELS: Form = spoken(object_of("Models", {"object": one_of("list"), "data": listed(_CARD)}))
MODEL: Form = spoken(_CARD)
