"""Many requests on one stream of gRPC: each goes through the door of its route, and answers come in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.serving.answers import parsed
from optimizer.serving.route import Route
from optimizer.serving.rpc.exchange import MOST_WORDS, Exchange, door_of, scope_of
from optimizer.serving.rpc.messages import message
from optimizer.serving.rpc.methods import Method
from optimizer.serving.rpc.statuses import code_of, metadata_of
from optimizer.serving.rpc.texts import text_said
from optimizer.serving.state import State

__all__ = ["Streams"]

#: Requests of one stream that are under way at once; the next is read when the first of them is answered.
_AT_ONCE = 64
#: Triton's names: a client asks for one more answer at the end of many, and an answer says whether it is the last.
_TELL_THE_END, _LAST = "triton_enable_empty_final_response", "triton_final_response"
#: Statuses after which no other request of the stream would be answered either.
_STRANGERS = (401, 403)


@dataclass
class _Asked(Exchange):
    """One request of a stream.

    Attributes:
        id: of the request, once it is read.
        known: whether it was read.
        told: whether its end is told by an answer of its own.
        heard: parts of the route's body as they come; None at its end.
    """

    id: str = ""
    known: bool = False
    told: bool = False
    heard: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    def read(self, request: Any) -> None:
        super().read(request)
        self.id, self.known = request.id, True
        if _TELL_THE_END in request.parameters:
            self.told = request.parameters[_TELL_THE_END].bool_param
            del request.parameters[_TELL_THE_END]

    async def send(self, event: Mapping[str, Any]) -> None:
        await super().send(event)
        while self.parts:
            self.heard.put_nowait(self.parts.pop(0))

    @property
    def writes(self) -> bool:
        """Whether a text comes, in events."""
        return self.status == 200 and self.headers.get("content-type", "").startswith("text/event-stream")


class _Turned(Exception):
    """The stream is over for its client, and why is in the request whose answer said so."""


class Streams:
    """What answers a method of many messages.

    Args:
        method: which.
        every: route, as ``METHOD path``.
        state: of the server.
    """

    def __init__(self, method: Method, every: Mapping[str, Route], state: State) -> None:
        self._method = method
        self._door = door_of(method, every, state)
        self._reading: set[asyncio.Task[None]] = set()
        self._going: set[asyncio.Task[None]] = set()

    async def __call__(self, requests: Any, context: Any) -> None:
        """Answer one stream."""
        pending: asyncio.Queue[_Asked | None] = asyncio.Queue()
        places = asyncio.Semaphore(_AT_ONCE)
        reading = asyncio.ensure_future(self._read(requests, context, pending, places))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        asked: _Asked | None = None
        try:
            while (asked := await pending.get()) is not None:
                async for answer in self._answers(asked):
                    await context.write(answer.SerializeToString())
                places.release()
            if reading.cancelled() or reading.cancelling():
                await context.abort(code_of(503), "the server ends; the requests that it read were answered")
        except _Turned as turned:
            assert asked is not None
            words = str(turned)
            await context.abort(code_of(asked.status), words, metadata_of(asked.headers, asked.status, words))
        finally:
            # Whoever is gone is told to all that is under way: it leaves the queue, and the doors count it.
            reading.cancel()
            while asked is not None:
                asked.gone.set()
                asked = None if pending.empty() else pending.get_nowait()

    async def _read(
        self, requests: Any, context: Any, pending: asyncio.Queue[_Asked | None], places: asyncio.Semaphore
    ) -> None:
        """Begin each request as it comes, so that those of one stream share runs."""
        number = 0
        try:
            async for data in requests:
                await places.acquire()
                number += 1
                pending.put_nowait(self._begin(data, context, number))
        finally:
            pending.put_nowait(None)

    def _begin(self, data: bytes, context: Any, number: int) -> _Asked:
        asked = _Asked(data)
        scope = scope_of(self._method, context, asked)
        scope["headers"] = [
            (name, value + f"-{number}".encode() if name == b"x-request-id" else value)
            for name, value in scope["headers"]
        ]
        asking = asyncio.ensure_future(self._door(scope, asked.receive, asked.send))
        self._going.add(asking)

        def over(task: asyncio.Task[None]) -> None:
            self._going.discard(task)
            asked.heard.put_nowait(None)

        asking.add_done_callback(over)
        return asked

    async def _answers(self, asked: _Asked) -> AsyncIterator[Any]:
        """The messages that answer one request.

        Raises:
            _Turned: whoever asks is not let in, or speaks another protocol.
        """
        held = b""
        while (part := await asked.heard.get()) is not None:
            held += part
            if asked.writes:
                *events, held = held.split(b"\n\n")
                for event in events:
                    yield _part(asked, parsed(event.removeprefix(b"data: ")))
        if asked.writes:
            if asked.told:
                yield _answer(message("ModelInferResponse")(id=asked.id), last=True)
        elif asked.status == 200:
            yield _answer(self._method.said(200, asked.headers, held), last=True)
        else:
            words = str(parsed(held).get("error", "")) if held else "the request was given up"
            if asked.status in _STRANGERS or (asked.status == 400 and not asked.known):
                raise _Turned(words[:MOST_WORDS])
            yield _fault(asked, words)

    def finish(self) -> None:
        """Read no more requests: every stream ends when those that it has are answered."""
        for reading in self._reading:
            reading.cancel()

    def give_up(self) -> None:
        """Answer what is under way that the server ends."""
        for asking in self._going:
            asking.cancel()


def _part(asked: _Asked, document: dict[str, Any]) -> Any:
    """One event of a text. An error in the middle is the last of them."""
    if "error" in document:
        return _fault(asked, str(document["error"]))
    return _answer(text_said(document), last=False)


def _answer(response: Any, *, last: bool) -> Any:
    response.parameters[_LAST].bool_param = last
    return message("ModelStreamInferResponse")(infer_response=response)


def _fault(asked: _Asked, words: str) -> Any:
    """Why a request has no answer; with the time after which it is worth coming again, where that is known."""
    if after := asked.headers.get("retry-after-ms"):
        words += f" (come again in {after} ms)"
    return message("ModelStreamInferResponse")(error_message=words, infer_response={"id": asked.id})
