"""Requests that no route takes: another path, or another method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimizer.serving.problems import Problem
from optimizer.serving.route import Route, Scope

if TYPE_CHECKING:
    from starlette.responses import Response

    from optimizer.serving.call import Call

__all__ = ["unmatched"]


def unmatched(path: str, status: int, headers: Mapping[str, str] | None = None) -> Route:
    """The route of a request that has none: refused at the same door, so that it is counted and logged as all are.

    Args:
        path: that was asked for; no metric has it, as there are as many as clients think of.
        status: 404 no such path, 405 no such method there.
        headers: of the answer.
    """

    async def refused(call: Call) -> Response:
        if status == 404:
            raise Problem(404, f"there is nothing at {path[:100]}", headers, reason="unknown_path")
        message = f"{call.request.method[:20]} is not what {path[:100]} takes"
        raise Problem(status, message, headers, reason="wrong_method")

    # Two names in the metrics, as errors of OpenAI's routes have a form of their own.
    return Route("/v1/(unmatched)" if path.startswith("/v1/") else "(unmatched)", (), Scope.OPEN, refused)
