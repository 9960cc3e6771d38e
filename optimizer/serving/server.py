"""The process: a socket, the models, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.errors import MissingPiece
from optimizer.serving.app import build_app
from optimizer.serving.cache import Cache
from optimizer.serving.guard.connection import bounded_protocol
from optimizer.serving.kept import kept_in
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.rpc.server import listen as rpc_listen
from optimizer.serving.settings import Settings
from optimizer.serving.state import Guard, State
from optimizer.serving.tracing import tracing_of
from optimizer.store import Store

if TYPE_CHECKING:
    import uvicorn

__all__ = ["MODULES", "serve"]

#: Imports without which nothing is served.
MODULES = ("uvicorn", "httptools", "uvloop", "starlette", "orjson", "prometheus_client", "numpy")
#: Seconds that the port stays open after SIGTERM, so that who balances the load sees the 503 before it meets no one.
_LINGER = 1.0


def serve(
    refs: Sequence[str],
    settings: Settings,
    store: Store,
    log: Callable[[Mapping[str, Any]], None],
    guard: Guard | None = None,
) -> None:
    """Serve models until SIGTERM or SIGINT; it answers ``/v2/health/live`` at once, and loads meanwhile.

    Args:
        refs: references, artifacts' folders, ``.onnx`` files.
        settings: of the server.
        store: where references are looked up.
        log: takes an event: ``ready`` once every model is, and one for each request.
        guard: who is let in; everybody where it is left out.

    Raises:
        MissingPiece: the port is taken.
        MlOptError: a model cannot be served, and why.
    """
    import uvloop

    uvloop.run(_serve(list(refs), settings, store, log, guard))


async def _serve(
    refs: list[str],
    settings: Settings,
    store: Store,
    log: Callable[[Mapping[str, Any]], None],
    guard: Guard | None,
) -> None:
    started = time.perf_counter()
    metrics = Metrics()
    repository = Repository(store, settings, metrics)
    tracing = tracing_of(settings, lambda text: log({"event": "otel", "error": text}))
    state = State(settings, repository, metrics, log=log, tracing=tracing)
    if guard is not None:
        state.guard = guard
    if settings.cache:
        state.cache = Cache(kept_in(settings.cache, lambda text: log({"event": "cache", "error": text})), metrics)
    listening = _listen(settings)
    rpc = await rpc_listen(state, settings.host, settings.grpc_port) if settings.grpc_port is not None else None
    server = _server(state)
    running = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        loading = asyncio.ensure_future(repository.start(refs))
        await asyncio.wait([running, loading], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # ended before it was ready
            loading.cancel()
            return
        loading.result()
        host, port = listening.getsockname()[:2]
        log(
            {
                "event": "ready",
                "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
                **({"grpc": rpc.address} if rpc is not None else {}),
                "seconds": round(time.perf_counter() - started, 3),
                "models": [
                    {"name": s.name, "version": s.version, "ref": s.ref, "provider": s.facts.get("provider", "")}
                    for s in repository
                ],
            }
        )
        await running
    finally:
        server.should_exit = True
        await running
        if rpc is not None:
            await rpc.close()
        await repository.close()
        if state.cache is not None:
            await state.cache.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        raise MissingPiece(f"cannot listen on {where}: {error.strerror}", "take another one: --port 0") from None
    listening.setblocking(False)
    return listening


def _server(state: State) -> uvicorn.Server:
    import uvicorn

    loop = asyncio.get_running_loop()

    def drain() -> None:
        state.drainer = loop.create_task(_drained(state, server))

    def handle_exit(sig: int, frame: object) -> None:
        """Not ready any more and still answering, then closed when nothing is under way; asked again, at once."""
        if state.draining:
            server.force_exit = server.should_exit = True
            return
        state.draining = True
        loop.call_soon_threadsafe(drain)

    config = uvicorn.Config(
        build_app(state),
        http=bounded_protocol(),
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,  # what was under way had its time before (_drained)
        backlog=2048,
    )
    server = uvicorn.Server(config)
    server.handle_exit = handle_exit
    return server


async def _drained(state: State, server: uvicorn.Server) -> None:
    """Wait until nothing is under way, or the time for it is over."""
    end = time.perf_counter() + state.settings.grace
    await asyncio.sleep(min(_LINGER, state.settings.grace))
    while state.in_flight and time.perf_counter() < end:
        await asyncio.sleep(0.01)
    server.should_exit = True
