"""The port of gRPC, in the event loop of the server: each message goes through the door of its route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from optimizer.errors import MissingPiece
from optimizer.serving.answers import parsed
from optimizer.serving.app import Door, routes
from optimizer.serving.guard.connection import HEAD_BYTES
from optimizer.serving.problems import Problem
from optimizer.serving.route import Route
from optimizer.serving.rpc.messages import message
from optimizer.serving.rpc.methods import METHODS, Method
from optimizer.serving.rpc.statuses import code_of, metadata_of
from optimizer.serving.state import State

if TYPE_CHECKING:
    from starlette.responses import Response

    from optimizer.serving.call import Call

__all__ = ["MODULES", "Listening", "listen"]

#: Imports without which there is no gRPC.
MODULES = ("grpc", "google.protobuf")
_MIB = 1 << 20
#: A message is a little larger than the tensors in it: names, shapes, parameters.
_AROUND = 1 << 16
#: Calls under way at once; more are RESOURCE_EXHAUSTED before their message is looked at.
_MOST_CALLS = 4096
#: Seconds that calls have to be told that the server ends.
_LAST_WORDS = 1.0
#: Most characters of an error, which travels in a header.
_MOST_WORDS = 1000
#: Metadata that would say of the body what is not so: this translation makes the body, and says what it is.
_OURS = ("content-", "inference-", "grpc-")
_HOPS = frozenset({"connection", "expect", "host", "te", "transfer-encoding", "upgrade", "user-agent"})
_SCOPE = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "2", "scheme": "http", "query_string": b"",
          "root_path": "", "server": None}  # fmt: skip


@dataclass
class _Exchange:
    """One call: what ASGI asks of a server, without a socket.

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

    async def send(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event["headers"]}
        elif event.get("body"):
            self.parts.append(bytes(event["body"]))


def _endpoint(method: Method, table: Sequence[Route]) -> Any:
    """Reads the message when its sender has been let in, and asks the route that it means."""
    kind = message(method.request)

    async def endpoint(call: Call) -> Response:
        from google.protobuf.message import DecodeError
        from starlette.requests import Request

        exchange: _Exchange = call.request.scope["exchange"]
        try:
            request = kind.FromString(exchange.message)
        except DecodeError:
            raise Problem(400, f"the message is no {method.request} of the package inference") from None
        asked = method.asked(request)
        exchange.message, exchange.body = b"", asked.body
        headers = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
        params = {name: value for name, value in asked.params.items() if value or name != "version"}
        scope = {**call.request.scope, "path_params": params, "headers": [*call.request.headers.raw, *headers]}
        call.request = Request(scope, exchange.receive)
        return await table[method.choose(request)].endpoint(call)

    return endpoint


class _Handler:
    """What answers one method."""

    def __init__(self, method: Method, every: Mapping[str, Route], state: State) -> None:
        table = [every[name] for name in method.routes]
        scopes = {route.scope for route in table}
        assert len(scopes) == 1, f"{method.name} stands for routes of several scopes"
        self._method = method
        # The same door, by another name: who is let in, what is counted and logged is one code.
        self._door = Door(replace(table[0], path=method.path, endpoint=_endpoint(method, table)), state)
        self._going: set[asyncio.Task[None]] = set()

    async def __call__(self, data: bytes, context: Any) -> bytes:
        exchange = _Exchange(data)
        scope = {**_SCOPE, "method": "POST", "path": self._method.path, "raw_path": self._method.path.encode(),
                 "headers": _headers(context), "client": _client(context.peer()), "exchange": exchange}  # fmt: skip
        # In a task of its own: a client that cancels is one that hung up, and the door counts it as such.
        asking = asyncio.ensure_future(self._door(scope, exchange.receive, exchange.send))
        self._going.add(asking)
        asking.add_done_callback(self._going.discard)
        try:
            await asyncio.shield(asking)
        except asyncio.CancelledError:
            exchange.gone.set()
            raise
        body = b"".join(exchange.parts)
        if exchange.status == 200 or exchange.status in self._method.also:
            context.set_trailing_metadata(metadata_of(exchange.headers))
            made: bytes = self._method.said(exchange.status, exchange.headers, body).SerializeToString()
            return made
        words = str(parsed(body).get("error", ""))[:_MOST_WORDS]
        found = metadata_of(exchange.headers, exchange.status, words)
        await context.abort(code_of(exchange.status), words, found)
        raise AssertionError("abort raises")

    def give_up(self) -> None:
        """Answer what is under way that the server ends."""
        for asking in self._going:
            asking.cancel()


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


@dataclass
class Listening:
    """A port that is open.

    Attributes:
        address: ``host:port``.
    """

    address: str
    _server: Any
    _handlers: Sequence[_Handler]

    async def close(self, grace: float = 1.0) -> None:
        """Take no more calls; those under way have so many seconds, and are UNAVAILABLE then."""
        stopping = asyncio.ensure_future(self._server.stop(grace + _LAST_WORDS))
        await asyncio.wait({stopping}, timeout=grace)
        for handler in self._handlers:
            handler.give_up()
        await stopping


async def listen(state: State, host: str, port: int, *, shared: bool = False) -> Listening:
    """Open the port, on the running event loop.

    Args:
        state: of the server.
        host: address to listen on.
        port: 0 takes a free one.
        shared: with other processes of the same server, each of which gets some of the connections.

    Raises:
        MissingPiece: it is taken.
    """
    import grpc

    most = state.settings.max_body * _MIB + _AROUND
    options = [
        ("grpc.max_receive_message_length", min(most, 2**31 - 1)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", HEAD_BYTES),
        ("grpc.so_reuseport", int(shared)),  # gRPC's usual is 1: two servers on a port, and nobody is told
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MOST_CALLS)
    every = {f"{verb} {route.path}": route for route in routes(state) for verb in route.methods}
    services: dict[str, dict[str, Any]] = {}
    handling = [_Handler(method, every, state) for method in METHODS]
    for method, each in zip(METHODS, handling, strict=True):
        handler = grpc.unary_unary_rpc_method_handler(each.__call__)
        services.setdefault(method.service, {})[method.name] = handler
    found = tuple(grpc.method_handlers_generic_handler(name, handlers) for name, handlers in services.items())
    server.add_generic_rpc_handlers(found)
    where = f"[{host}]" if ":" in host else host
    try:
        taken = server.add_insecure_port(f"{where}:{port}")
    except RuntimeError:
        taken = 0
    if not taken:
        hint = "take another one: --grpc-port 0"
        raise MissingPiece(f"cannot listen on {where}:{port} for gRPC", hint) from None
    await server.start()
    return Listening(f"{where}:{taken}", server, handling)
