"""A response that is all there goes out in one piece, as uvicorn would have written it in two."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from optimizer.serving.guard.connection import _whole

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"5")]


class Wire:
    """Where a response is written to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True


class Flow:
    """A connection that takes what is written."""

    write_paused = False

    async def drain(self) -> None:
        """Nothing waits."""


def cycle(wire: Wire, method: str = "POST", keep_alive: bool = True) -> Any:
    over: list[bool] = []
    made: Any = RequestResponseCycle(
        scope={"method": method, "type": "http"}, transport=wire, flow=Flow(), logger=None, access_logger=None,
        access_log=False, default_headers=[(b"date", b"today")], message_event=asyncio.Event(),
        expect_100_continue=False, keep_alive=keep_alive, on_response=lambda: over.append(True),
    )  # type: ignore[arg-type]  # fmt: skip
    made.over = over
    return made


def by_uvicorn(made: Any, headers: list[tuple[bytes, bytes]]) -> None:
    async def send() -> None:
        await made.send({"type": "http.response.start", "status": 200, "headers": headers})
        await made.send({"type": "http.response.body", "body": b"hello"})

    asyncio.run(send())


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("more", [[], [(b"connection", b"close")]])
def test_it_is_what_uvicorn_writes(keep_alive: bool, more: list[tuple[bytes, bytes]]) -> None:
    ours, theirs = Wire(), Wire()
    one, other = cycle(ours, keep_alive=keep_alive), cycle(theirs, keep_alive=keep_alive)
    assert _whole(one, 200, [*HEADERS, *more], b"hello")
    by_uvicorn(other, [*HEADERS, *more])
    assert b"".join(theirs.pieces) == ours.pieces[0]
    assert len(ours.pieces) == 1
    assert ours.closed == theirs.closed == (not keep_alive or bool(more))
    states = [(c.response_started, c.response_complete, c.keep_alive, c.over, c.message_event.is_set())
              for c in (one, other)]  # fmt: skip
    assert states[0] == states[1]


def test_what_it_cannot_do_is_left_to_uvicorn() -> None:
    wire = Wire()
    assert not _whole(cycle(wire, "HEAD"), 200, HEADERS, b"hello")
    assert not _whole(cycle(wire), 200, [*HEADERS, (b"x-a", b"1\r\nx-b: 2")], b"hello")
    gone, slow, begun = cycle(wire), cycle(wire), cycle(wire)
    gone.disconnected = begun.response_started = True
    slow.flow.write_paused = True
    assert not any(_whole(each, 200, HEADERS, b"hello") for each in (gone, slow, begun))
    assert wire.pieces == []


def test_a_request_is_answered_so(server: Any) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        for _ in range(2):  # and the connection stays
            client.sendall(b"POST /v2/models/classes/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
            got = b""
            while b"}" not in got:
                got += client.recv(65536)
            assert got.startswith(b"HTTP/1.1 400 ")
            assert got.lower().count(b"content-length") == got.lower().count(b"x-request-id") == 1
