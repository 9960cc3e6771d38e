"""What goes wrong for one request, in the form that its protocol has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, MissingPiece, MlOptError
from optimizer.types import JSON

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["Problem", "answer", "as_problem"]

#: OpenAI's ``type`` of an error, by status; every other one is ``invalid_request_error`` or ``server_error``.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Problem(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP.
        message: what is wrong, naming the field.
        headers: beside the usual ones (``Retry-After``).
        param: the field, where there is one (OpenAI's ``param``).
        code: a word for programs (OpenAI's ``code``), e.g. ``model_not_found``.
        reason: a word for the metrics; the status where it is left out.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.param = param
        self.code = code
        self.reason = reason or str(status)

    def document(self, openai: bool) -> dict[str, JSON]:
        """As V2 says it, ``{"error": "…"}``, or as OpenAI does."""
        if not openai:
            return {"error": self.message}
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def answer(problem: Problem, openai: bool) -> Response:
    """The response to a problem."""
    from optimizer.serving.answers import json_answer

    return json_answer(problem.document(openai), problem.status, problem.headers)


def as_problem(error: Exception) -> Problem:
    """What an exception that no endpoint expected is to the client: words for our own errors, none for bugs."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadInput):
        return Problem(400, str(error).replace("\n", "; "))
    if isinstance(error, MissingPiece):
        return Problem(503, error.message)
    if isinstance(error, MlOptError):
        return Problem(500, error.message)
    return Problem(500, "the server failed to answer this request; its log says why", reason="bug")
