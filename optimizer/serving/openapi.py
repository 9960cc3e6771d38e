"""The OpenAPI document of a server, made from its route table, and the same as a page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from optimizer.environment import version_of
from optimizer.serving.route import Route, Scope
from optimizer.types import JSON

__all__ = ["document", "page"]

_PART = re.compile(r"\{(\w+)\}")
#: Starlette's word for what a part takes, which OpenAPI does not have.
_TAKES = re.compile(r":\w+(?=\})")

_TENSOR: dict[str, JSON] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
_ROWS: dict[str, JSON] = {
    "type": "object",
    "required": ["input"],
    "properties": {"model": {"type": "string"}, "input": {}, "truncate": {"type": "boolean"}},
}
_TEXT_INPUT: dict[str, JSON] = {
    "type": "object",
    "required": ["text_input"],
    "properties": {"id": {"type": "string"}, "text_input": {"type": "string"}, "parameters": {"type": "object"}},
}


def _text(prompt: dict[str, JSON]) -> dict[str, JSON]:
    """A body that asks for a text; its dialect takes more fields."""
    properties: dict[str, JSON] = {
        "model": {"type": "string"},
        **prompt,
        "max_tokens": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "seed": {"type": "integer"},
        "stop": {},
        "stream": {"type": "boolean"},
    }
    return {"type": "object", "required": [*prompt], "properties": properties}


#: What a body is, by the end of the path; every other one is an object.
_BODIES: dict[str, dict[str, JSON]] = {
    "/infer": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
            "parameters": {"type": "object"},
        },
    },
    "/v1/completions": _text({"prompt": {}}),
    "/v1/chat/completions": _text({"messages": {"type": "array", "items": {"type": "object"}}}),
    "}/generate": _TEXT_INPUT,
    "/generate_stream": _TEXT_INPUT,
    "/generate": _text({"prompt": {"type": "string"}}),
    "/v1/embeddings": _ROWS,
    "/v1/classify": _ROWS,
}


def document(routes: Iterable[Route]) -> dict[str, JSON]:
    """OpenAPI 3.1: every route, its parameters, and the form of its errors."""
    paths: dict[str, dict[str, JSON]] = {}
    for route in sorted(routes, key=lambda route: route.path):
        for method in route.methods:
            paths.setdefault(_TAKES.sub("", route.path), {})[method.lower()] = _operation(route, method)
    error = {"type": "object", "required": ["error"], "properties": {"error": {}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ml-opt serve", "version": version_of("ml-opt") or "0"},
        "paths": paths,
        "components": {"schemas": {"Error": error}},
    }


def _operation(route: Route, method: str) -> dict[str, JSON]:
    words = re.sub(r"\W+", "_", _TAKES.sub("", route.path)).strip("_")
    operation: dict[str, JSON] = {
        "operationId": f"{method.lower()}_{words}",
        "summary": route.help,
        "tags": [route.scope.value],
        "responses": {
            "200": {"description": "Answered."},
            "default": {
                "description": "Not answered, and why.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if names := _PART.findall(_TAKES.sub("", route.path)):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if method == "POST":
        body = next((body for end, body in _BODIES.items() if route.path.endswith(end)), {"type": "object"})
        asks = route.scope is not Scope.ADMIN
        operation["requestBody"] = {"required": asks, "content": {"application/json": {"schema": body}}}
    return operation


def page(routes: Iterable[Route]) -> str:
    """A table of the routes, which loads nothing."""
    rows = "".join(
        f"<tr><td>{escape(' '.join(route.methods))}</td><td><code>{escape(route.path)}</code></td>"
        f"<td>{escape(route.scope.value)}</td><td>{escape(route.help)}</td></tr>"
        for route in sorted(routes, key=lambda route: route.path)
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>ml-opt serve</title>'
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
        "td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}</style>"
        '<h1>ml-opt serve</h1><p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>'
        f"<table><tr><th>method</th><th>path</th><th>scope</th><th></th></tr>{rows}</table></html>"
    )
