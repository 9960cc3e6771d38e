"""The OpenAPI document of a server, made from its route table, and the same as a page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from optimizer.environment import version_of
from optimizer.serving.bodies import body_of
from optimizer.serving.route import Route, Scope
from optimizer.types import JSON

__all__ = ["document", "page"]

_PART = re.compile(r"\{(\w+)\}")
#: Starlette's word for what a part takes, which OpenAPI does not have.
_TAKES = re.compile(r":\w+(?=\})")


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
        body = body_of(route.path)
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
