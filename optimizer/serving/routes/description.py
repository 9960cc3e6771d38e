"""How the server is spoken to: ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.serving import app
from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.openapi import document, page
from optimizer.serving.route import Route, Scope

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _openapi(call: Call) -> Response:
    return json_answer(document(app.routes(call.state)))


async def _docs(call: Call) -> Response:
    from starlette.responses import HTMLResponse

    return HTMLResponse(page(app.routes(call.state)))


ROUTES = (
    Route("/openapi.json", ("GET",), Scope.OPEN, _openapi, "Every route, as OpenAPI 3.1."),
    Route("/docs", ("GET",), Scope.OPEN, _docs, "Every route, as a page."),
)
