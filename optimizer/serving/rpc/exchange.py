"""One request of gRPC on its way through the door of a route: what ASGI asks of a server, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from optimizer.serving.app import Door
from optimizer.serving.problems import Problem
from optimizer.serving.route import Route
from optimizer.serving.rpc.messages import message
from optimizer.serving.rpc.methods import Method
from optimizer.serving.state import State

if TYPE_CHECKING:
    from starlette.responses import Response

    from optimizer.serving.call import Call

__all__ = ["MOST_WORDS", "Exchange", "door_of", "scope_of"]

#: Most characters of an error, which travels in a header.
MOST_WORDS = 1000
#: Metadata that would say of the body what is not so: this translation makes the body, and says what it is.
_OURS = ("content-", "inference-", "grpc-")
_HOPS = frozenset({"connection", "expect", "host", "te", "transfer-encoding", "upgrade", "user-agent"})
_SCOPE = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "2", "scheme": "http", "query_string": b"",
          "root_path": "", "server": None}  # fmt: skip


@dataclass
class Exchange:
    """One request: what ASGI asks of a server, without a socket.

    Attributes:
        message: the bytes that came.
        gone: set when the client is.
        body: of the request to the route, once it is known.
        status: of the route's answer.
        headers: of it.
        parts: of its body.
    """

    message: bytes
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    body: bytes | None = None
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    async def receive(self) -> dict[str, Any]:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def read(self, request: Any) -> None:
        """Told of the message when it is read."""
        self.message = b""

    async def send(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event["headers"]}
        elif event.get("body"):
            self.parts.append(bytes(event["body"]))


def door_of(method: Method, every: Mapping[str, Route], state: State) -> Door:
    """The door of a method: that of its routes, by another name. Who is let in, what is counted and logged is one code.

    Args:
        method: whose messages come.
        every: route, as ``METHOD path``.
        state: of the server.
    """
    table = [every[name] for name in method.routes]
    scopes = {route.scope for route in table}
    assert len(scopes) == 1, f"{method.name} stands for routes of several scopes"
    return Door(replace(table[0], path=method.path, endpoint=_endpoint(method, table)), state)


def scope_of(method: Method, context: Any, exchange: Exchange) -> dict[str, Any]:
    """What ASGI says of a request: the call's metadata are its headers."""
    return {**_SCOPE, "method": "POST", "path": method.path, "raw_path": method.path.encode(),
            "headers": _headers(context), "client": _client(context.peer()), "exchange": exchange}  # fmt: skip


def _endpoint(method: Method, table: Sequence[Route]) -> Any:
    """Reads the message when its sender has been let in, and asks the route that it means."""
    kind = message(method.request)

    async def endpoint(call: Call) -> Response:
        from google.protobuf.message import DecodeError
        from starlette.requests import Request

        exchange: Exchange = call.request.scope["exchange"]
        try:
            request = kind.FromString(exchange.message)
        except DecodeError:
            raise Problem(400, f"the message is no {method.request} of the package inference") from None
        exchange.read(request)
        place = method.choose(request, call.state)
        asked = method.asked[place](request)
        exchange.body = asked.body
        headers = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
        params = {name: value for name, value in asked.params.items() if value or name != "version"}
        scope = {**call.request.scope, "path_params": params, "headers": [*call.request.headers.raw, *headers]}
        call.request = Request(scope, exchange.receive)
        return await table[place].endpoint(call)

    return endpoint


def _headers(context: Any) -> list[tuple[bytes, bytes]]:
    """The call's metadata as headers, and the time that its client gives it."""
    found = [
        (name.encode(), value.encode("latin-1", "replace"))
        for name, value in context.invocation_metadata() or ()
        if isinstance(value, str) and not name.startswith(_OURS) and name not in _HOPS
    ]
    left = context.time_remaining()
    if left is not None and not any(name == b"x-request-timeout" for name, _ in found):
        found.append((b"x-request-timeout", f"{max(left, 0.001):.6f}".encode()))
    return found


def _client(peer: str) -> tuple[str, int] | None:
    """Address and port of ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``; None for a Unix socket."""
    family, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    return (host.strip("[]"), int(port)) if family in ("ipv4", "ipv6") and port.isdigit() else None
