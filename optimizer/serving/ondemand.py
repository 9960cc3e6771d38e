"""Requests for models that are not loaded: they wait for the load, and are answered then."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from optimizer.serving.call import Call
from optimizer.serving.problems import Problem
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import NotLoaded, using
from optimizer.serving.state import State
from optimizer.serving.waiting import deadline

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["on_demand"]


def on_demand(routes: list[Route], state: State) -> list[Route]:
    """The routes, those of models with an endpoint that waits; as they are where the server has no budget of memory."""
    if not state.settings.memory:
        return routes
    return [
        dataclasses.replace(route, endpoint=_waiting(route.endpoint)) if route.scope is Scope.INFER else route
        for route in routes
    ]


def _waiting(endpoint: Callable[[Call], Awaitable[Response]]) -> Callable[[Call], Awaitable[Response]]:
    async def waits(call: Call) -> Response:
        from starlette.requests import Request

        scope, heard, end = call.request.scope, _Heard(call.request.receive), None
        while True:
            call.request = Request(scope, heard.again())
            try:
                with using():
                    return await endpoint(call)
            except NotLoaded as missing:
                served = missing.served
            end = deadline(call) if end is None else end
            with call.timed("load"):
                await _unless(heard.gone(call.state.settings.max_body << 20), call.state.models.wake(served, end))

    return waits


async def _unless(gone: Awaitable[None], work: Awaitable[None]) -> None:
    """Work that is given up when the client goes away: :class:`Problem` 499."""
    working, going = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem(499, "the client hung up", reason="disconnected")
        working.result()
    finally:
        working.cancel()
        going.cancel()


class _Heard:
    """What a client has sent so far, which an endpoint that begins anew hears again."""

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        self._receive = receive
        self._kept: list[MutableMapping[str, Any]] = []

    def again(self) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
        """The request from its beginning."""
        place = 0

        async def receive() -> MutableMapping[str, Any]:
            nonlocal place
            if place < len(self._kept):
                place += 1
                return self._kept[place - 1]
            message = await self._receive()
            if message["type"] == "http.request":
                self._kept.append(message)
                place += 1
            return message

        return receive

    async def gone(self, most: int) -> None:
        """Returns when the client goes away. A body is kept meanwhile; beyond so many bytes nothing is listened to."""
        size = sum(len(message.get("body", b"")) for message in self._kept)
        while size <= most:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            self._kept.append(message)
            size += len(message.get("body", b""))
        await asyncio.Event().wait()
