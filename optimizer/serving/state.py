"""What all requests share: the models, the counts, the settings, and who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from optimizer.serving.metrics import Metrics
from optimizer.serving.problems import Problem
from optimizer.serving.repository import Repository
from optimizer.serving.route import Scope
from optimizer.serving.settings import Settings

__all__ = ["Anybody", "Guard", "State"]


class Guard(Protocol):
    """Who is let in."""

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Problem | None:
        """Decide before anything of the body is read.

        Args:
            scope: what the route asks for.
            headers: of the request; names are found in any case.
            client: its address; empty where there is none (a Unix socket).

        Returns:
            None to let it in; else what it is answered (401, 403, 429).
        """

    def screen(self, text: str, model: str, param: str) -> str:
        """A text that is about to be given to a model, as the model may see it.

        Raises:
            Problem: 400, naming ``param``: the model is not given such texts.
        """


class Anybody:
    """Lets everybody in and every text through."""

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Problem | None:
        return None

    def screen(self, text: str, model: str, param: str) -> str:
        return text


def _no_log(event: Mapping[str, Any]) -> None:
    """Say nothing."""


@dataclass
class State:
    """One server.

    Attributes:
        settings: what was asked for.
        models: what it serves.
        metrics: what it counts.
        guard: who is let in.
        log: takes one event, as a flat mapping; the command line writes it as a line of JSON.
        draining: SIGTERM has come: not ready any more, and what is under way finishes.
        in_flight: requests that are not answered yet.
        drainer: waits for them after SIGTERM.
    """

    settings: Settings
    models: Repository
    metrics: Metrics
    guard: Guard = field(default_factory=Anybody)
    log: Callable[[Mapping[str, Any]], None] = _no_log
    draining: bool = False
    in_flight: int = 0
    drainer: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether every model that was asked for at the start is ready, and nobody has asked the server to end."""
        return not self.draining and self.models.ready
