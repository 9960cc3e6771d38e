"""What a route is: its path, what it takes to be let in, and what answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response

    from optimizer.serving.call import Call
    from optimizer.serving.form import Form

__all__ = ["Route", "Scope"]


class Scope(StrEnum):
    """What a key must be good for to be let in."""

    INFER = "infer"  # asks a model
    ADMIN = "admin"  # loads and unloads models
    METRICS = "metrics"  # reads what was counted
    OPEN = "open"  # anybody: is the server there, and how is it spoken to


@dataclass(frozen=True)
class Route:
    """One line of the table.

    Attributes:
        path: in Starlette's form; a part in braces is handed to the endpoint: ``/v2/models/{name}/infer``.
        methods: of HTTP.
        scope: what it asks of whoever calls it.
        endpoint: ``endpoint(call)`` → a Starlette response, or raises :class:`~optimizer.serving.problems.Problem`.
        help: one sentence, for the OpenAPI page.
        form: what it takes and answers, for the OpenAPI document; only a request that no route takes has none.
    """

    path: str
    methods: tuple[str, ...]
    scope: Scope
    endpoint: Callable[[Call], Awaitable[Response]]
    help: str = ""
    form: Form | None = None

    @property
    def openai(self) -> bool:
        """Whether its problems are said in OpenAI's form."""
        return self.path.startswith("/v1/")
