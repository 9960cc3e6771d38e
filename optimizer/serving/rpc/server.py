"""The port of gRPC, in the event loop of the server: each message goes through the door of its route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.errors import MissingPiece
from optimizer.serving.answers import parsed
from optimizer.serving.app import routes
from optimizer.serving.guard.connection import HEAD_BYTES
from optimizer.serving.route import Route
from optimizer.serving.rpc.exchange import MOST_WORDS, Exchange, door_of, scope_of
from optimizer.serving.rpc.methods import METHODS, Method
from optimizer.serving.rpc.statuses import code_of, metadata_of
from optimizer.serving.rpc.streams import Streams
from optimizer.serving.state import State

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


class _Handler:
    """What answers one method with one message."""

    def __init__(self, method: Method, every: Mapping[str, Route], state: State) -> None:
        self._method = method
        self._door = door_of(method, every, state)
        self._going: set[asyncio.Task[None]] = set()

    async def __call__(self, data: bytes, context: Any) -> bytes:
        exchange = Exchange(data)
        scope = scope_of(self._method, context, exchange)
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
        words = str(parsed(body).get("error", ""))[:MOST_WORDS]
        found = metadata_of(exchange.headers, exchange.status, words)
        await context.abort(code_of(exchange.status), words, found)
        raise AssertionError("abort raises")

    def finish(self) -> None:
        """Take no more requests: gRPC does that by itself for calls of one message."""

    def give_up(self) -> None:
        """Answer what is under way that the server ends."""
        for asking in self._going:
            asking.cancel()


@dataclass
class Listening:
    """A port that is open.

    Attributes:
        address: ``host:port``.
    """

    address: str
    _server: Any
    _handlers: Sequence[_Handler | Streams]

    async def close(self, grace: float = 1.0) -> None:
        """Take no more calls; those under way have so many seconds, and are UNAVAILABLE then."""
        for handler in self._handlers:
            handler.finish()
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
    handling = [(Streams if method.streams else _Handler)(method, every, state) for method in METHODS]
    for method, each in zip(METHODS, handling, strict=True):
        kind = grpc.stream_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
        handler = kind(each.__call__)
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
