"""A model asked as clients ask it, over a pair of sockets of this process: for what has to be true before it is ready.

What is sent are bytes of HTTP, which the server's own protocol takes from a socket. Behind it stand the same routes
and doors as behind the port. No port is needed, so that no other worker can be the one that answers. The model is asked
although it is not ready, without a key, and nothing of it is counted, logged or kept.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from optimizer.errors import GateFailed
from optimizer.serving.guard.connection import http_config

if TYPE_CHECKING:
    from optimizer.serving.metrics import Metrics
    from optimizer.serving.repository import Repository
    from optimizer.serving.served import Served
    from optimizer.serving.settings import Settings

__all__ = ["Loopback", "Reply"]

#: Seconds and MiB that a proof may take: what is set for clients is theirs.
_LONG, _LARGE = 86400.0, 65536


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP.
        headers: by name, in lower case.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Loopback:
    """The way to one model. To be made on the event loop.

    Args:
        served: the model, opened; it need not be ready.
        settings: of the server.
    """

    def __init__(self, served: Served, settings: Settings) -> None:
        from optimizer.serving.app import build_app
        from optimizer.serving.state import State

        self._served = served
        #: What would be in the log: a failure's traceback.
        self._said: list[Mapping[str, Any]] = []
        own = replace(settings, deadline=_LONG, max_body=_LARGE, access_log=True, log_text=False)
        models = cast("Repository", _Only(served))
        state = State(own, models, cast("Metrics", _Uncounted()), log=self._said.append, proving=served)
        self._config = http_config(build_app(state))
        self._config.load()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request on a connection of its own.

        Args:
            path: of the route.
            body: all of it.
            headers: beside those that every request has.

        Raises:
            GateFailed: what came back is no answer, or none that says 200, and why.
        """
        from uvicorn.server import ServerState

        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)

        def protocol() -> Any:
            return self._config.http_protocol_class(
                config=self._config, server_state=ServerState(), app_state={}, _loop=loop
            )

        transport, _ = await loop.create_unix_connection(protocol, sock=theirs)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                writer.write(_request(path, body, headers or {}))
                reply = await _reply(reader)
            finally:
                writer.close()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise self._failed(f"with no answer ({type(error).__name__}: {error})") from None
        finally:
            transport.close()
        if reply.status != 200:
            raise self._failed(f"{reply.status}: {_message(reply.body)}")
        return reply

    def _failed(self, how: str) -> GateFailed:
        traceback = next((str(each["traceback"]) for each in reversed(self._said) if "traceback" in each), "")
        why = f" ({traceback.strip().splitlines()[-1]})" if traceback else ""
        return GateFailed(
            f"{self._served.ref} is answered {how}{why}, asked over HTTP for what was kept beside it",
            f"look at it: ml-opt verify {self._served.ref} --against golden; to serve it all the same: --no-verify",
        )


def _request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = {"host": "localhost", **headers, "content-length": str(len(body)), "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def _reply(reader: asyncio.StreamReader) -> Reply:
    """An answer whose length is told, as those that are no stream have it."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "")))
    return Reply(int(first.split(" ")[1]), headers, body)


def _message(body: bytes) -> str:
    """What an error says: V2's, or OpenAI's."""
    try:
        said = json.loads(body)["error"]
        return str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, KeyError, TypeError):
        return "an answer that says nothing"


class _Only:
    """A repository of the one model."""

    ready = False
    degraded = ()

    def __init__(self, served: Served) -> None:
        self._served = served

    def get(self, name: str, version: str = "") -> Served:
        return self._served

    def versions(self, name: str) -> list[str]:
        return []

    def __iter__(self) -> Iterator[Served]:
        yield self._served


class _Uncounted:
    """Metrics, and each of their children, that count nothing."""

    shared = False

    def __getattr__(self, name: str) -> _Uncounted:
        return self

    def labels(self, *labels: str) -> _Uncounted:
        return self

    def inc(self, amount: float = 1) -> None: ...

    def dec(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...
