"""What a connection may take before there is a request: bytes and time.

The parser under uvicorn keeps every header it is sent, however long, and waits for the end of one however long that
takes. A stranger without a key could fill our memory, or our sockets, before the door is reached. So the head of a
request has a size and a time, and a body that stops coming is not waited for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["HEAD_BYTES", "LINE", "WHOLE", "Line", "bounded_protocol", "http_config"]

#: In ``scope["extensions"]``: the connection's :class:`Line`.
LINE = "ml-opt.line"
#: In ``scope["extensions"]``: ``send(status, headers, body)`` → whether it was sent, all in one piece.
WHOLE = "ml-opt.whole"

#: Bytes of a request's line and headers together, and how many headers. Keys and tokens need a twentieth of it.
HEAD_BYTES = 65536
_HEADERS = 128
#: Seconds for a head to come whole, and for the next piece of a body.
_HEAD_SECONDS = 10.0
_STALL_SECONDS = 30.0
_LOOK_EVERY = 2.0  # seconds


@dataclass
class Line:
    """Whether a connection is still there, for those who wait: a task for each that listens costs a tenth of a request.

    Attributes:
        lost: the client has gone.
        told: are called, once, when it goes; whoever adds one takes it away again.
    """

    lost: bool = False
    told: set[Callable[[], None]] = field(default_factory=set)

    def lose(self) -> None:
        """The client has gone."""
        self.lost = True
        for each in tuple(self.told):
            each()


@functools.cache
def bounded_protocol(head_seconds: float = _HEAD_SECONDS, stall_seconds: float = _STALL_SECONDS) -> type[Any]:
    """Uvicorn's protocol with these bounds.

    Args:
        head_seconds: from the connection, or the first byte of a request, to the end of its headers.
        stall_seconds: between two pieces of a body.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    look_every = min(_LOOK_EVERY, head_seconds / 2, stall_seconds / 2)

    class Bounded(HttpToolsProtocol):  # type: ignore[misc]  # mypy does not follow uvicorn
        """Refuses a head that is too large (431) and ends connections on which nothing comes."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._in_head, self._in_body, self._too_large = True, False, False
            self._received, self._headers = 0, 0
            self._line = Line()
            self._since = self.loop.time()
            self._timer = self.loop.call_later(look_every, self._look)

        def connection_lost(self, error: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(error)
            self._line.lose()

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                # Counted before it is parsed: of a header that has no end the parser says nothing.
                self._received += len(data)
            elif self._in_body:
                self._since = self.loop.time()
            super().data_received(data)
            if self._in_head and self._received > HEAD_BYTES and not self.transport.is_closing():
                self._too_large = True
                self.send_400_response("")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._headers = True, 0
            self._since = self.loop.time()

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._count(len(self.url), 0)

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._headers += len(name) + len(value)
            self._count(len(self.url) + self._headers, len(self.headers))

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._in_head, self._in_body, self._received = False, True, 0
            self._since = self.loop.time()
            # What is whole goes out in one piece: head and body of their own would wake the client twice.
            self.scope["extensions"] = {WHOLE: functools.partial(_whole, self.cycle), LINE: self._line}

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_body = False

        def send_400_response(self, msg: str) -> None:
            """What cannot be parsed, in the form that every other answer has."""
            status, said = (b"431 Request Header Fields Too Large", b"the headers are too large")
            if not self._too_large:
                status, said = b"400 Bad Request", b"this is no request of HTTP/1.1"
            body = b'{"error": "%b"}' % said
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(head % (status, len(body)) + body)
            self.transport.close()

        def _count(self, size: int, headers: int) -> None:
            if size > HEAD_BYTES or headers > _HEADERS:
                self._too_large = True
                raise ValueError("the head is too large")  # the parser makes a bad request of it

        def _look(self) -> None:
            waited = self.loop.time() - self._since
            # Between two requests of a connection uvicorn's own time for keeping it counts, and a request that is being
            # answered is not interrupted by a half of the next one.
            free = self.cycle is None or self.cycle.response_complete
            if (self._in_head and free and waited > head_seconds) or (self._in_body and waited > stall_seconds):
                self.transport.abort()
                return
            self._timer = self.loop.call_later(look_every, self._look)

    return Bounded


def http_config(app: Any) -> uvicorn.Config:
    """How an application is spoken to by HTTP, at the port and by whatever else is to be no different."""
    import uvicorn

    return uvicorn.Config(
        app,
        http=bounded_protocol(),
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,  # what was under way had its time before
        backlog=2048,
    )


def _whole(cycle: RequestResponseCycle, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Send a response that is all there, as :meth:`RequestResponseCycle.send` would; whether it could be done.

    Args:
        cycle: of the request.
        status: of HTTP.
        headers: in lower case, with the ``content-length``.
        body: all of it.

    Uvicorn looks through every header with two expressions and writes the head before it is given the body. Here it
    is looked through once.
    """
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE

    if cycle.disconnected or cycle.flow.write_paused or cycle.response_started or cycle.scope["method"] == "HEAD":
        return False
    every = [*cycle.default_headers, *headers]
    closes = (b"connection", b"close") in every
    cycle.keep_alive = cycle.keep_alive and not closes
    if not cycle.keep_alive and not closes:
        every.append((b"connection", b"close"))
    lines = [part for name, value in every for part in (name, b": ", value, b"\r\n")]
    head = b"".join((STATUS_LINE[status], *lines, b"\r\n"))
    if head.count(b"\n") != len(every) + 2:
        return False  # a line that ends within a header would be a header of somebody else's: uvicorn refuses it
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(head + body)
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True
