"""The one application: every route behind the same door, which lets in, counts, times and says what went wrong."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import re
import time
import traceback
from collections.abc import Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import optimizer.serving.routes as tables
from optimizer.serving.call import Call
from optimizer.serving.guard.connection import WHOLE
from optimizer.serving.guard.scopes import ANYBODY, STRANGER
from optimizer.serving.ondemand import on_demand
from optimizer.serving.problems import Problem, answer, as_problem
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import using
from optimizer.serving.state import State
from optimizer.serving.unmatched import unmatched

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message, Receive, Send

__all__ = ["Door", "Front", "build_app", "routes"]

#: A client's own request id, as it may stand in a header and a log.
_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")
#: A browser shall take nothing for another type than it has, and show no page of ours inside another.
_BROWSERS = ((b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"))
#: The status of a request whose client went away; nobody is sent it (nginx' number).
_HUNG_UP = 499
#: What is under way is told when the server ends before it is answered.
_GIVEN_UP = Problem(503, "the server ended before this request was answered", reason="ended")


def _ids() -> Iterator[str]:
    """Ids of requests that nobody can guess: a system call for many of them."""
    while True:
        many = os.urandom(16 * 256)
        yield from (many[place : place + 16].hex() for place in range(0, len(many), 16))


def routes(state: State) -> tuple[Route, ...]:
    """Every route of :mod:`optimizer.serving.routes`: of each file its ``ROUTES``, or what its ``routes(state)`` says.

    Those that models are asked by come first, as each request looks through the table from its beginning.
    """
    found: list[Route] = []
    for info in pkgutil.iter_modules(tables.__path__):
        module = importlib.import_module(f"{tables.__name__}.{info.name}")
        found += module.routes(state) if hasattr(module, "routes") else module.ROUTES
    return tuple(
        sorted(on_demand(found, state), key=lambda route: route.scope is not Scope.INFER or "POST" not in route.methods)
    )


def build_app(state: State) -> Front:
    """The ASGI application of a server."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route as StarletteRoute

    async def unknown(request: Request, error: Exception) -> Door:
        assert isinstance(error, HTTPException)
        return Door(unmatched(request.url.path, error.status_code, error.headers), state)

    doors = [Door(route, state) for route in routes(state)]
    table = [StarletteRoute(door.route.path, door, methods=door.route.methods) for door in doors]
    app = Starlette(routes=table, exception_handlers={HTTPException: unknown})
    # Starlette would answer a path with a slash too many by itself: uncounted, and with an address out of `Host`.
    app.router.redirect_slashes = False
    return Front(app, doors)


class Front:
    """Finds the door of a request: the paths that models are asked by in one look, all others as Starlette does.

    Args:
        others: the application with every route.
        doors: of all of them.
    """

    def __init__(self, others: Starlette, doors: Sequence[Door]) -> None:
        from starlette.routing import compile_path

        self._others = others
        asked = [door for door in doors if door.route.scope is Scope.INFER and "POST" in door.route.methods]
        self._exact = {door.route.path: door for door in asked if "{" not in door.route.path}
        self._patterns = [(compile_path(d.route.path)[0].match, d) for d in asked if "{" in d.route.path]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Hand a request to its door."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"]
            if (door := self._exact.get(path)) is not None:
                scope["path_params"] = {}
                return await door(scope, receive, send)
            for match, door in self._patterns:
                if (found := match(path)) is not None:
                    scope["path_params"] = found.groupdict()
                    return await door(scope, receive, send)
        await self._others(scope, receive, send)


class Door:
    """What stands before an endpoint: a plain ASGI application of one route."""

    def __init__(self, route: Route, state: State) -> None:
        from starlette.responses import Response

        self.route = route
        self._ids = _ids()
        #: Counters that were found by their labels once, by model, version and status.
        self._counts: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._state = state
        self._whole = Response

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        from starlette.requests import Request

        start = time.perf_counter()
        state = self._state
        request = Request(scope, receive)
        asked = request.headers.get("x-request-id", "")
        call = Call(request, state, asked if _ID.match(asked) else next(self._ids))
        if state.tracing is not None:
            state.tracing.begin(call, self.route)
        status, counted = 500, False

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += self._headers(call, time.perf_counter() - start)
            await send(message)

        state.in_flight += 1
        state.metrics.active.inc()
        try:
            response = await self._answered(call)
            whole = type(response) is self._whole
            if whole and state.metrics.shared:  # a worker that is killed has counted what it answered
                counted = True
                self._count(call, response.status_code, time.perf_counter() - start)
            if not (whole and self._sent_whole(call, response, start)):
                await response(scope, receive, sent)
            else:
                status = response.status_code
        finally:
            state.in_flight -= 1
            state.metrics.active.dec()
            if not counted:
                self._count(call, status, time.perf_counter() - start)

    def _sent_whole(self, call: Call, response: Response, start: float) -> bool:
        """Send a response that is all there in one piece, where the connection can."""
        send = call.request.scope.get("extensions", {}).get(WHOLE)
        if send is None:
            return False
        extra = self._headers(call, time.perf_counter() - start)
        return bool(send(response.status_code, [*response.raw_headers, *extra], response.body))

    async def _answered(self, call: Call) -> Response:
        """The endpoint's response, or that to what went wrong."""
        request, state = call.request, self._state
        try:
            client = request.client.host if request.client else ""
            call.admitted = await state.guard.admit(self.route.scope, request.headers, client)
            with using():  # what is asked is not closed under the request
                return await self.route.endpoint(call)
        except asyncio.CancelledError:
            if not state.draining:
                raise
            # The grace period is over: who waits hears that it may ask another server, and not that this one failed.
            call.notes["error"], call.notes["reason"] = _GIVEN_UP.message, _GIVEN_UP.reason
            self._refused(call, _GIVEN_UP)
            return answer(_GIVEN_UP, self.route.openai)
        except Exception as error:
            problem = as_problem(error)
            call.notes["error"], call.notes["reason"] = problem.message, problem.reason
            cause = error.__cause__ if isinstance(error, Problem) else error
            if problem.status == 500 and cause is not None:
                call.notes["traceback"] = "".join(traceback.format_exception(cause))
            self._refused(call, problem)
            return answer(problem, self.route.openai)

    def _refused(self, call: Call, problem: Problem) -> None:
        metrics = self._state.metrics
        if problem.status == _HUNG_UP:
            counter = metrics.cancelled
        else:
            counter = metrics.failed if problem.status >= 500 else metrics.rejected
        counter.labels(call.model, call.version, problem.reason).inc()

    def _headers(self, call: Call, seconds: float) -> list[tuple[bytes, bytes]]:
        parts = [f"{part};dur={took * 1000:.3f}" for part, took in call.times.items()]
        timing = ", ".join([*parts, f"total;dur={seconds * 1000:.3f}"])
        found = [(b"x-request-id", call.id.encode()), (b"server-timing", timing.encode()), *_BROWSERS]
        found += [(name.lower().encode(), value.encode()) for name, value in call.admitted.headers.items()]
        if self._state.draining:  # the client shall take its next request elsewhere
            found.append((b"connection", b"close"))
        return found

    def _count(self, call: Call, status: int, seconds: float) -> None:
        state = self._state
        of = (call.model, call.version, status)
        if (counts := self._counts.get(of)) is None:
            labels = (call.model, call.version, self.route.path, str(status))
            counts = state.metrics.requests.labels(*labels), state.metrics.duration.labels(*labels)
            self._counts[of] = counts
        counts[0].inc()
        counts[1].observe(seconds)
        for told in state.watchers:
            told(call, self.route, status, seconds)
        if not state.settings.access_log:
            return
        event: dict[str, Any] = {
            "event": "request",
            "id": call.id,
            "method": call.request.method,
            "path": call.request.url.path,
            "status": status,
            "ms": round(seconds * 1000, 3),
        }
        if call.admitted.who not in (ANYBODY, STRANGER):
            event["who"] = call.admitted.who.id
        if call.model:
            event |= {"model": call.model, "version": call.version}
        event |= {f"{part}_ms": round(took * 1000, 3) for part, took in call.times.items()}
        if call.texts:
            event["texts"] = call.texts
        state.log({**event, **call.notes})
