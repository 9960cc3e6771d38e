"""What a route takes and what it answers, as JSON schemas: for the OpenAPI document, and whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optimizer.types import JSON

__all__ = [
    "AS_JSON", "COUNT", "EVENTS", "NUMBER", "OBJECT", "TEXT", "TRUTH", "WHOLE", "Form", "Schema", "either", "listed",
    "object_of", "one_of", "or_null", "spoken",
]  # fmt: skip

#: A JSON schema. One with a ``title`` is a component of the document under that name, and named wherever it stands.
Schema = dict[str, JSON]

AS_JSON = "application/json"
EVENTS = "text/event-stream"

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TRUTH: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}


@dataclass(frozen=True)
class Form:
    """The two sides of a route. What any route may be refused with is not in it: that follows from the route.

    Attributes:
        says: media type → schema of an answer with status 200.
        takes: media type → schema of a body; empty where none is read.
        optional: the body may be left out.
        also: status → what is answered with it beside an error, as JSON.
        headers: name → schema of headers that the route reads.
    """

    says: Mapping[str, Schema]
    takes: Mapping[str, Schema] = field(default_factory=dict)
    optional: bool = False
    also: Mapping[int, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)


def spoken(answer: Schema, body: Schema | None = None) -> Form:
    """The form of a route that speaks JSON alone."""
    return Form({AS_JSON: answer}, {} if body is None else {AS_JSON: body})


def object_of(title: str, needed: Mapping[str, Schema], possible: Mapping[str, Schema] | None = None) -> Schema:
    """An object.

    Args:
        title: what it is called in the document; empty for one that stands in a single place.
        needed: schema of each property that is always there.
        possible: of each that may be.
    """
    found: Schema = {"type": "object", "required": [*needed], "properties": {**needed, **(possible or {})}}
    return {"title": title, **found} if title else found


def listed(items: Schema, least: int = 0) -> Schema:
    """A list of at least so many."""
    return {"type": "array", "items": items, "minItems": least} if least else {"type": "array", "items": items}


def either(*schemas: Schema) -> Schema:
    """One of several forms."""
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    """A form, or null."""
    return either(schema, {"type": "null"})


def one_of(*words: str) -> Schema:
    """One of several words."""
    return {"type": "string", "enum": list(words)}
