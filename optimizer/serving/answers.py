"""Responses, and JSON in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.serving.guard.depth import MOST, too_deep
from optimizer.serving.problems import Problem
from optimizer.types import JSON

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["json_answer", "parsed"]


def json_answer(document: JSON, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response; numpy's arrays and numbers may stand in it, and floats that are not finite become ``null``."""
    import orjson
    from starlette.responses import Response

    body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    # Exactly this content type: a charset behind it makes the kserve client give up.
    return Response(body, status, {"content-type": "application/json", **(headers or {})})


def parsed(body: bytes | memoryview, what: str = "the body") -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
        Problem: 400: it is no JSON, not UTF-8, nested too deeply, or another sort of value than an object.
    """
    import orjson

    if too_deep(body):
        raise Problem(400, f"{what} is nested too deeply; {MOST} levels are the most", reason="too_deep")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Problem(400, f"{what} should be a JSON object, not {type(document).__name__}")
    return document
