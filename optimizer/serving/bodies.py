"""What the bodies of requests are, as JSON schemas: for the OpenAPI document, and whoever makes requests from it."""

from __future__ import annotations

from optimizer.serving.tensors import DATATYPES
from optimizer.types import JSON

__all__ = ["body_of"]

_STRING: dict[str, JSON] = {"type": "string"}
#: The only one that fits where it is left out or null.
_MODEL: dict[str, JSON] = {"type": ["string", "null"]}
_TRUTH: dict[str, JSON] = {"type": "boolean"}
_OBJECT: dict[str, JSON] = {"type": "object"}


def _either(*schemas: JSON) -> dict[str, JSON]:
    return {"anyOf": list(schemas)}


def _object(required: tuple[str, ...], properties: dict[str, JSON]) -> dict[str, JSON]:
    return {"type": "object", "required": [*required], "properties": properties}


def _list(items: JSON, least: int = 1) -> dict[str, JSON]:
    return {"type": "array", "items": items, "minItems": least}


_TENSOR = _object(
    ("name", "shape", "datatype"),
    {
        "name": _STRING,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32},
        "datatype": {"type": "string", "enum": [*DATATYPES]},
        "data": {"type": "array"},
        "parameters": _OBJECT,
    },
)
_INFER = _object(
    ("inputs",),
    {
        "id": _STRING,
        "inputs": _list(_TENSOR),
        "outputs": _list(_object(("name",), {"name": _STRING, "parameters": _OBJECT}), 0),
        "parameters": _OBJECT,
    },
)
#: A text, or a text with the one that it goes with, or an image in base64.
_ROW = _either(
    _STRING,
    {
        **_object((), {"text": _STRING, "text_pair": _STRING, "image": _STRING}),
        "minProperties": 1,
        "additionalProperties": False,
    },
)
_ROWS: dict[str, JSON] = {"model": _MODEL, "input": _either(_ROW, _list(_ROW)), "truncate": _TRUTH}
_TEXT_INPUT = _object(("text_input",), {"id": _STRING, "text_input": _STRING, "parameters": _OBJECT})
_TOKENS = _list({"type": "integer", "minimum": 0})
_SAMPLING: dict[str, JSON] = {
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "repetition_penalty": {"type": "number", "minimum": 0.01, "maximum": 100},
    "no_repeat_ngram_size": {"type": "integer", "minimum": 0, "maximum": 1000},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "min_tokens": {"type": "integer", "minimum": 0},
    "num_beams": {"type": "integer", "minimum": 1, "maximum": 64},
    "length_penalty": {"type": "number", "minimum": -10, "maximum": 10},
    "early_stopping": _TRUTH,
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "stop": _either(_STRING, _list(_STRING, 0), {"type": "null"}),
    "stream": _TRUTH,
}
_MESSAGE = _object(
    ("role", "content"),
    {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": _either(
            _STRING,
            _list(_object(("type", "text"), {"type": {"type": "string", "enum": ["text"]}, "text": _STRING}), 0),
        ),
    },
)

#: By the end of the path; every other body is an object.
_BODIES: dict[str, dict[str, JSON]] = {
    "/infer": _INFER,
    "/v1/completions": _object(
        ("prompt",),
        {"model": _MODEL, "prompt": _either(_STRING, _TOKENS, _list(_either(_STRING, _TOKENS))), **_SAMPLING},
    ),
    "/v1/chat/completions": _object(("messages",), {"model": _MODEL, "messages": _list(_MESSAGE), **_SAMPLING}),
    "}/generate": _TEXT_INPUT,
    "/generate_stream": _TEXT_INPUT,
    "/generate": _object(("prompt",), {"model": _MODEL, "prompt": _STRING, **_SAMPLING}),
    "/v1/embeddings": _object(
        ("input",), {**_ROWS, "encoding_format": {"type": "string", "enum": ["float", "base64"]}}
    ),
    "/v1/classify": _object(("input",), {**_ROWS, "top_k": {"type": "integer", "minimum": 1}}),
}


def body_of(path: str) -> dict[str, JSON]:
    """The schema of what is sent to a route's path."""
    return next((body for end, body in _BODIES.items() if path.endswith(end)), _OBJECT)
