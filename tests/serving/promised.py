"""Answers of a server, held to what its own OpenAPI document says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema

__all__ = ["Promised", "closed"]


def closed(schema: Any) -> Any:
    """The same schema with nothing allowed that it does not name: what an answer has and no schema says is a fault."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(each) for name, each in schema.items()}
    if made.get("type") == "object" and "properties" in made:
        made.setdefault("additionalProperties", False)
    return made


class Promised:
    """What a document says of answers.

    Args:
        document: of ``/openapi.json``.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._components = closed(document["components"])
        self._paths = {re.compile(re.sub(r"\{\w+\}", "[^/]+", path)): path for path in document["paths"]}
        #: Each operation and status that was held to its schema.
        self.seen: set[tuple[str, str, str]] = set()

    def operation(self, method: str, path: str) -> tuple[str, dict[str, Any]]:
        """The path of a route, and what is said of it; one without parts comes before one with them."""
        fits = [name for pattern, name in self._paths.items() if pattern.fullmatch(path)]
        found = min(fits, key=lambda name: name.count("{"))
        return found, self.document["paths"][found][method.lower()]

    def check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> Any:
        """Hold an answer to its schema and headers; returns the body, parsed where it is JSON."""
        route, operation = self.operation(method, path)
        assert str(status) in operation["responses"], (method, route, status, body)
        response = self._of(operation["responses"][str(status)])
        sent = {name.lower(): value for name, value in headers.items()}
        for name, said in response["headers"].items():
            header = self._of(said)
            if name.lower() in sent:
                self._validate(header["schema"], _parsed(header["schema"], sent[name.lower()]))
            else:
                assert not header.get("required"), (route, status, name)
        media = sent["content-type"].partition(";")[0]
        assert media in response["content"], (route, media)
        schema, found = response["content"][media]["schema"], body.decode("utf-8", "replace")
        self.seen.add((method, route, str(status)))
        if media == "text/event-stream":
            events = [line.removeprefix("data: ") for line in found.split("\n\n") if line]
            parts = [json.loads(event) for event in events if event != "[DONE]"]
            for part in parts:
                self._validate(schema, part)
            return parts
        value = json.loads(found) if media == "application/json" else found
        self._validate(schema, value)
        return value

    def _of(self, said: dict[str, Any]) -> dict[str, Any]:
        """What a reference names."""
        if "$ref" not in said:
            return said
        found: Any = self.document
        for part in said["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return dict(found)

    def _validate(self, schema: Any, value: Any) -> None:
        whole = {**closed(schema), "components": self._components}
        jsonschema.validate(value, whole, cls=jsonschema.Draft202012Validator)


def _parsed(schema: Mapping[str, Any], text: str) -> Any:
    return json.loads(text) if schema.get("type") in ("integer", "number") else text
