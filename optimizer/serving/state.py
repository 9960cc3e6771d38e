"""What all requests share: the models, the counts, the settings, and who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from optimizer.serving.guard.redaction import Redactor
from optimizer.serving.guard.scopes import Admitted, Principal, Reservation
from optimizer.serving.metrics import Metrics
from optimizer.serving.record import Records
from optimizer.serving.repository import Repository
from optimizer.serving.route import Route, Scope
from optimizer.serving.settings import Settings

if TYPE_CHECKING:
    from optimizer.serving.cache import Cache
    from optimizer.serving.call import Call
    from optimizer.serving.served import Served
    from optimizer.serving.tracing import Tracing

__all__ = ["Anybody", "Guard", "State"]


class Guard(Protocol):
    """Who is let in."""

    @property
    def configured(self) -> bool:
        """Whether callers need a key, but for what is open."""

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Admitted:
        """Decide before anything of the body is read.

        Args:
            scope: what the route asks for.
            headers: of the request; names are found in any case.
            client: its address; empty where there is none (a Unix socket).

        Returns:
            who it is, and what its answer says beside the rest.

        Raises:
            Problem: what it is answered instead: 401, 403, 429, 503.
        """

    async def reserve(self, who: Principal, tokens: int) -> Reservation:
        """Take the tokens that a request may at most come to from its caller's budget; settled when it is over.

        Raises:
            Problem: 429: so much is not left; 400: it is more than the whole budget.
        """

    def screen(self, text: str, model: str, param: str) -> str:
        """A text that is about to be given to a model, as the model may see it.

        Raises:
            Problem: 400, naming ``param``: the model is not given such texts.
        """

    def screen_tokens(self, decode: Callable[[], str], model: str, param: str) -> None:
        """Token ids that are about to be given to a model in place of a text.

        Args:
            decode: the text that they stand for; called where somebody looks at it.
            model: the model's name.
            param: where in the request they stand.

        Raises:
            Problem: 400, naming ``param``: the model is not given such texts, or only changed, as ids cannot be.
        """

    def output(self, model: str) -> Redactor | None:
        """What a text that the model writes goes through, piece by piece; None where it is left as it is."""


class Anybody:
    """Lets everybody in and every text through."""

    configured = False

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Admitted:
        return Admitted()

    async def reserve(self, who: Principal, tokens: int) -> Reservation:
        return Reservation()

    def screen(self, text: str, model: str, param: str) -> str:
        return text

    def screen_tokens(self, decode: Callable[[], str], model: str, param: str) -> None:
        """Let them through."""

    def output(self, model: str) -> Redactor | None:
        return None


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
        held: other workers are not ready yet.
        in_flight: requests that are not answered yet.
        drainer: waits for them after SIGTERM.
        cache: answers that are kept; None where none are.
        tracing: makes OpenTelemetry's spans; None where none are made.
        records: what is kept of the last requests.
        proving: the model that is asked through here before it is ready (:mod:`optimizer.serving.loopback`); None where
            clients ask.
        watchers: each is told of a request that is over: its call, route, status and seconds.
    """

    settings: Settings
    models: Repository
    metrics: Metrics
    guard: Guard = field(default_factory=Anybody)
    log: Callable[[Mapping[str, Any]], None] = _no_log
    draining: bool = False
    held: bool = False
    in_flight: int = 0
    drainer: asyncio.Task[None] | None = None
    cache: Cache | None = None
    tracing: Tracing | None = None
    records: Records = field(default_factory=Records)
    proving: Served | None = None
    watchers: list[Callable[[Call, Route, int, float], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watchers.append(self.records.add)
        if self.tracing is not None:
            self.watchers.append(self.tracing.over)

    @property
    def ready(self) -> bool:
        """Whether every model that was asked for at the start is ready, and nobody has asked the server to end."""
        return not (self.draining or self.held) and self.models.ready
