"""How the server is spoken to: ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.serving import app
from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.form import AS_JSON, OBJECT, TEXT, Form, listed, object_of
from optimizer.serving.openapi import document, page
from optimizer.serving.route import Route, Scope
from optimizer.serving.state import State

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["routes"]

_DOCUMENT = object_of(
    "OpenAPI",
    {"openapi": TEXT, "info": OBJECT, "servers": listed(OBJECT), "tags": listed(OBJECT), "paths": OBJECT,
     "components": OBJECT},
)  # fmt: skip


def routes(state: State) -> tuple[Route, ...]:
    """Both routes of one server, which makes its document when it is first asked for, and keeps it."""
    kept: dict[bool, bytes] = {}  # with keys, and without

    async def openapi(call: Call) -> Response:
        from starlette.responses import Response

        keys = state.guard.configured
        if keys not in kept:
            kept[keys] = bytes(json_answer(document(app.routes(state), keys=keys)).body)
        return Response(kept[keys], 200, {"content-type": AS_JSON})

    async def docs(call: Call) -> Response:
        from starlette.responses import HTMLResponse

        return HTMLResponse(page(app.routes(state)))

    return (
        Route(
            "/openapi.json", ("GET",), Scope.OPEN, openapi, "Every route, as OpenAPI 3.1.", Form({AS_JSON: _DOCUMENT})
        ),
        Route("/docs", ("GET",), Scope.OPEN, docs, "Every route, as a page.", Form({"text/html": TEXT})),
    )
