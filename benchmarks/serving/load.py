"""Clients that cost as little as one can: one event loop, a connection each, the same bytes sent again and again."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

__all__ = ["Answer", "Loaded", "closed", "post"]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        asked: which of the requests it is to.
        status: of HTTP; 0 where the connection ended before it.
        seconds: from sending the request, or from when it should have been sent, to its last byte.
        body: what it said; empty unless bodies are kept.
    """

    asked: int
    status: int
    seconds: float
    body: bytes = b""


@dataclass
class Loaded:
    """What came of a run.

    Attributes:
        answers: in the order that they came.
        seconds: from the first request to the last answer.
    """

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers with status 200 a second."""
        return sum(answer.status == 200 for answer in self.answers) / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers with status 200 came."""
        times = sorted(answer.seconds for answer in self.answers if answer.status == 200)
        return times[min(len(times) - 1, int(share * len(times)))]


def post(port: int, path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection.

    Args:
        answered: told of every answer; returns the number and bytes of the next request, or None to end.
        keep: keep bodies.
    """

    def __init__(self, answered: Answered, keep: bool) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answered, self._keep = answered, keep
        self._got, self._length, self._sent, self._asked = b"", -1, 0.0, -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has its methods, and not its class
        self._next(None)

    def _next(self, answer: Answer | None) -> None:
        following = self._answered(answer)
        if following is None:
            self._transport.close()
            return
        self._asked, request = following
        self._got, self._length, self._sent = b"", -1, time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._length < 0:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._got[:end].lower()
            place = head.find(b"content-length:")
            assert place > 0, f"an answer without a length: {head!r}"
            self._length = end + 4 + int(head[place + 15 :].split(b"\r\n", 1)[0])
            self._start = end + 4
        if len(self._got) >= self._length:
            body = self._got[self._start :] if self._keep else b""
            self._next(Answer(self._asked, int(self._got[9:12]), time.perf_counter() - self._sent, body))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Answered:
    """Hands out requests, and collects answers, until the time is over or all are answered.

    Args:
        requests: to send, over and over.
        seconds: after which no more are sent; None for each request once.
    """

    def __init__(self, requests: Sequence[bytes], seconds: float | None) -> None:
        self.loaded = Loaded()
        self._requests = requests
        places: Iterable[int] = range(len(requests))
        self._places = iter(places) if seconds is None else itertools.cycle(places)
        self._begin = time.perf_counter()
        self._end = float("inf") if seconds is None else self._begin + seconds

    def __call__(self, answer: Answer | None) -> tuple[int, bytes] | None:
        """Take an answer, and give the next request."""
        now = time.perf_counter()
        if answer is not None:
            self.loaded.answers.append(answer)
            self.loaded.seconds = now - self._begin
        place = next(self._places, None) if now < self._end else None
        return None if place is None else (place, self._requests[place])


def closed(port: int, requests: Sequence[bytes], clients: int, seconds: float | None, keep: bool = False) -> Loaded:
    """Clients that each send their next request when the last one is answered.

    Args:
        port: of the server, on this machine.
        requests: what they send, in turn.
        clients: connections.
        seconds: after which no more is sent; None for each request once.
        keep: keep the answers' bodies.
    """
    import uvloop

    async def run() -> Loaded:
        loop = asyncio.get_running_loop()
        answered = Answered(requests, seconds)
        made = [await loop.create_connection(lambda: Client(answered, keep), "127.0.0.1", port) for _ in range(clients)]
        await asyncio.gather(*(client.over for _, client in made))
        return answered.loaded

    return uvloop.run(run())
