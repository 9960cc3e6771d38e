"""The OpenAPI document of a server, made from its route table, and the same as a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape

from optimizer.environment import version_of
from optimizer.serving.form import AS_JSON, NUMBER, TEXT, Schema, either, object_of, or_null
from optimizer.serving.route import Route, Scope
from optimizer.types import JSON

__all__ = ["document", "page"]

_PART = re.compile(r"\{(\w+)\}")
#: Starlette's word for what a part takes, which OpenAPI does not have.
_TAKES = re.compile(r":\w+(?=\})")

_ERROR = object_of("Error", {"error": TEXT})
_OPENAI_ERROR = object_of(
    "OpenAIError",
    {"error": object_of("", {"message": TEXT, "type": TEXT, "param": or_null(TEXT), "code": or_null(TEXT)})},
)
#: Status → what it means wherever it comes.
_REFUSED: Mapping[int, str] = {
    400: "The request cannot be answered as it is; the message names the field.",
    401: "It brought no key, or none that is known.",
    403: "Its key may not do this; a server without keys answers its own machine alone.",
    404: "There is no such model, version or request.",
    413: "The body is larger than --max-body, or has more rows than --max-queue.",
    415: "The body has a Content-Encoding that is neither gzip nor deflate.",
    429: "Too many wait, the wait would be too long, or the rate or budget of the key is used up.",
    500: "The model failed on these inputs, or the server did.",
    503: "The model is not ready, or who asks cannot be told now.",
    504: "Its time was over before it was answered.",
}
#: Headers of answers. Those of ``_ALWAYS`` come with every one, those of ``_ALSO`` with a status.
_HEADERS: Mapping[str, tuple[Schema, str]] = {
    "X-Request-Id": (TEXT, "The request's own id, or a new one; `ml-opt why` takes it."),
    "Server-Timing": (TEXT, "Where the time went, in milliseconds."),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds after which it is worth coming again."),
    "WWW-Authenticate": (TEXT, "What would be let in."),
    "RateLimit": (TEXT, "What is left of the rate and the budget of tokens of the key, where it has them."),
    "RateLimit-Policy": (TEXT, "The rate and the budget of tokens of the key, where it has them."),
}
_ALWAYS = ("X-Request-Id", "Server-Timing")
_ALSO: Mapping[int, str] = {401: "WWW-Authenticate", 403: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
#: Statuses whose header of ``_ALSO`` is always there.
_SURELY = (401, 429)
#: What the door takes, by name: a key in either header, a JSON Web Token too.
_SCHEMES: dict[str, JSON] = {
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `ml-opt keys create`, or a JSON Web Token where [auth.jwt] is configured.",
    },
    "ApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same in a header of its own; a request brings one of the two.",
    },
}
_SCOPES: Mapping[Scope, str] = {
    Scope.INFER: "asks models",
    Scope.ADMIN: "loads and unloads models, and tells of requests",
    Scope.METRICS: "reads what was counted",
    Scope.OPEN: "for anybody: is the server there, and how is it spoken to",
}
_TIMEOUT: dict[str, JSON] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds in which the answer is wanted; no more than --deadline.",
    "schema": {**NUMBER, "exclusiveMinimum": 0},
}


def document(routes: Iterable[Route], *, keys: bool = True) -> dict[str, JSON]:
    """OpenAPI 3.1: every route, what it takes, answers and refuses.

    Args:
        routes: each has a form.
        keys: callers need one; without them it is said that none is needed.

    Raises:
        ValueError: two different schemas have one title.
    """
    made = _Made(keys)
    paths: dict[str, dict[str, JSON]] = {}
    for route in sorted(routes, key=lambda route: route.path):
        for method in route.methods:
            paths.setdefault(_TAKES.sub("", route.path), {})[method.lower()] = made.operation(route, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ml-opt serve",
            "version": version_of("ml-opt") or "0",
            "description": "Models over the Open Inference Protocol V2, OpenAI's API, and routes of tasks.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": scope.value, "description": words} for scope, words in _SCOPES.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(made.schemas.items())),
            "responses": dict(sorted(made.responses.items())),
            "headers": {name: {"description": words, "schema": schema} for name, (schema, words) in _HEADERS.items()},
            "securitySchemes": _SCHEMES,
        },
    }


class _Made:
    """A document under way: its operations name components, which are collected here."""

    def __init__(self, keys: bool) -> None:
        self._keys = keys
        self._titled: dict[str, Schema] = {}
        self.schemas: dict[str, JSON] = {}
        self.responses: dict[str, JSON] = {}

    def operation(self, route: Route, method: str) -> dict[str, JSON]:
        path = _TAKES.sub("", route.path)
        operation: dict[str, JSON] = {
            "operationId": f"{method.lower()}_{re.sub(r'[^A-Za-z0-9]+', '_', path).strip('_')}",
            "summary": route.help,
            "description": f"Needs a key with the scope `{route.scope}`." if route.scope is not Scope.OPEN else "Open.",
            "tags": [route.scope.value],
            "security": self._security(route.scope),
            "responses": self._answers(route, method),
        }
        form = route.form
        takes = form.takes if form is not None and method != "GET" else {}
        parameters: list[JSON] = [
            {"name": name, "in": "path", "required": True, "schema": TEXT} for name in _PART.findall(path)
        ]
        if form is not None:
            parameters += [{"name": name, "in": "header", "schema": each} for name, each in form.headers.items()]
        if takes and route.scope is Scope.INFER:
            parameters.append(_TIMEOUT)
        if parameters:
            operation["parameters"] = parameters
        if takes and form is not None:
            operation["requestBody"] = {"required": not form.optional, "content": self._content(takes)}
        return operation

    def _security(self, scope: Scope) -> list[JSON]:
        """A key of the scope in either header; beside it nothing at all, where none is needed."""
        if scope is Scope.OPEN:
            return []
        return [*([] if self._keys else [{}]), *({name: [scope.value]} for name in _SCHEMES)]

    def _answers(self, route: Route, method: str) -> dict[str, JSON]:
        form, answers = route.form, dict[str, JSON]()
        limited = route.scope is not Scope.OPEN
        if form is not None:
            headers = _named([*_ALWAYS, *(("RateLimit", "RateLimit-Policy") if limited else ())])
            answers["200"] = {"description": "Answered.", "headers": headers, "content": self._content(form.says)}
        for status in _statuses(route, method):
            answers[str(status)] = {"$ref": f"#/components/responses/{self._refusal(status, route.openai)}"}
        for status, schema in (form.also if form is not None else {}).items():
            error = _OPENAI_ERROR if route.openai else _ERROR
            said = either(schema, error) if str(status) in answers else schema
            words = "As in an answer, and why it is none."
            answers[str(status)] = {
                "description": words,
                "headers": _with(status),
                "content": self._content({AS_JSON: said}),
            }
        return answers

    def _refusal(self, status: int, openai: bool) -> str:
        """The name of the component for a status, in the form of V2 or in OpenAI's."""
        name = f"{'OpenAI' if openai else ''}Error{status}"
        if name not in self.responses:
            content = self._content({AS_JSON: _OPENAI_ERROR if openai else _ERROR})
            self.responses[name] = {"description": _REFUSED[status], "headers": _with(status), "content": content}
        return name

    def _content(self, forms: Mapping[str, Schema]) -> dict[str, JSON]:
        return {media: {"schema": self._said(schema)} for media, schema in forms.items()}

    def _said(self, schema: JSON) -> JSON:
        """A schema with the name of a component in place of every part that has a title."""
        if isinstance(schema, list):
            return [self._said(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        title = schema.get("title")
        if not isinstance(title, str):  # in a list of properties a title may be one of them
            return {name: self._said(each) for name, each in schema.items()}
        if self._titled.setdefault(title, schema) != schema:
            raise ValueError(f"two schemas are called {title}")
        if title not in self.schemas:
            self.schemas[title] = {}
            self.schemas[title] = {name: self._said(each) for name, each in schema.items()}
        return {"$ref": f"#/components/schemas/{title}"}


def _statuses(route: Route, method: str) -> list[int]:
    """What a request of a route may be refused with: as it has a body, a scope, a model."""
    asks = route.scope is Scope.INFER and (method == "POST" or "{name}" in route.path)
    found = {500}
    if method == "POST":
        found |= {400, 413, 415}
    if "{" in route.path:
        found.add(404)
    if route.scope is not Scope.OPEN:
        found |= {401, 403, 429, 503}
    if asks:
        found |= {400, 404, 504}
    return sorted(found)


def _named(names: Iterable[str]) -> dict[str, JSON]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _with(status: int) -> dict[str, JSON]:
    """The headers of a refusal; those that clients may count on are required."""
    headers = _named(_ALWAYS)
    if (name := _ALSO.get(status)) is not None:
        schema, words = _HEADERS[name]
        headers[name] = (
            {"description": words, "schema": schema, "required": True} if status in _SURELY else _named([name])[name]
        )
    return headers


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
