"""The page at ``/``: one file, which asks the same routes as everyone."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

from optimizer.serving.call import Call
from optimizer.serving.form import TEXT, Form
from optimizer.serving.route import Route, Scope

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]

#: It loads nothing from anywhere, and talks to nobody but its server.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@functools.cache
def _page() -> bytes:
    return resources.files("optimizer.serving").joinpath("page.html").read_bytes()


async def _index(call: Call) -> Response:
    from starlette.responses import Response

    headers = {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(_page(), 200, headers, "text/html")


ROUTES = (
    Route(
        "/",
        ("GET",),
        Scope.OPEN,
        _index,
        "A page to try the models and to watch the server.",
        Form({"text/html": TEXT}),
    ),
)
