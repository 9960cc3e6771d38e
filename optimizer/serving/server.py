"""The process: a socket, the models, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, MissingPiece, MlOptError
from optimizer.serving.app import build_app
from optimizer.serving.cache import Cache
from optimizer.serving.guard.connection import http_config
from optimizer.serving.kept import kept_in
from optimizer.serving.leftovers import after_the_dying
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.rpc.server import listen as rpc_listen
from optimizer.serving.settings import Settings
from optimizer.serving.state import Guard, State
from optimizer.serving.tracing import tracing_of
from optimizer.serving.worker import Worker, shared
from optimizer.serving.workers import supervise
from optimizer.store import Store

if TYPE_CHECKING:
    import uvicorn

__all__ = ["MODULES", "serve"]

#: Imports without which nothing is served.
MODULES = ("uvicorn", "httptools", "uvloop", "starlette", "orjson", "prometheus_client", "numpy")
#: Seconds that the port stays open after SIGTERM, so that who balances the load sees the 503 before it meets no one.
_LINGER = 1.0
#: Seconds that whoever connected before the port was closed has to say what it wants.
_LAST_WORDS = 0.1
#: ``SO_ATTACH_FILTER`` of Linux, which Python has no name for.
_ATTACH_FILTER = 26
#: Seconds between two looks at this worker's queues.
_MOMENT = 0.5


def serve(
    refs: Sequence[str],
    settings: Settings,
    store: Store,
    log: Callable[[Mapping[str, Any]], None],
    guard: Guard | None = None,
    words: Sequence[str] = (),
) -> None:
    """Serve models until SIGTERM or SIGINT; it answers ``/v2/health/live`` at once, and loads meanwhile.

    With several workers this process starts them, and each of them comes here too (:class:`Worker`).

    Args:
        refs: references, artifacts' folders, ``.onnx`` files.
        settings: of the server.
        store: where references are looked up.
        log: takes an event: ``ready`` once every model is, and one for each request.
        guard: who is let in; everybody where it is left out.
        words: this server's command line behind the interpreter, by which workers are started.

    Raises:
        BadInput: several workers, and no port of gRPC that they could share.
        MissingPiece: the port is taken.
        MlOptError: a model cannot be served, and why.
    """
    # Before there are threads: one that loads a model and one that answers cannot both be the first to import numpy,
    # whose parts import each other, and the first requests come while models are loaded.
    for name in MODULES:
        importlib.import_module(name)
    worker = Worker.inherited()
    if worker is None and settings.workers > 1:
        if settings.grpc_port == 0:
            raise BadInput(
                "--grpc-port 0 would give each worker a port of its own", "name one that is free: --grpc-port 8001"
            )
        supervise(words, settings, _bound(settings, shared=True), log)
        return
    if worker is None:
        _run(_serve(list(refs), settings, store, log, guard))
        return
    try:
        _run(_serve(list(refs), shared(settings), store, log, guard, worker))
    except MlOptError as error:
        worker.failed(error)
        raise SystemExit(error.exit_code) from None


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """Serve on a loop of its own. Nothing is collected until it is ready: nearly all that is made until then stays."""
    import uvloop

    gc.disable()
    try:
        uvloop.run(serving)
    finally:
        gc.enable()


async def _serve(
    refs: list[str],
    settings: Settings,
    store: Store,
    log: Callable[[Mapping[str, Any]], None],
    guard: Guard | None,
    worker: Worker | None = None,
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
    others: list[Callable[[float], Coroutine[Any, Any, None]]] = []
    server = _server(state, others)
    told = [] if worker is None else [_one_of_several(worker, state, server)]
    if worker is not None and worker.late:
        await repository.start(refs)  # nobody finds it before it is ready; the others answer
        metrics.restarts.inc()
    listening = _bound(settings, worker.port if worker else None, shared=worker is not None)
    rpc = None
    if settings.grpc_port is not None:
        rpc = await rpc_listen(state, settings.host, settings.grpc_port, shared=worker is not None)
        others.append(rpc.close)
    running = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        loading = asyncio.ensure_future(_started(repository, refs))
        await asyncio.wait([running, loading], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # ended before it was ready
            loading.cancel()
            return
        loading.result()
        gc.enable()
        ready = {**_ready(repository, listening), **({"grpc": rpc.address} if rpc is not None else {})}
        ready |= {"seconds": round(time.perf_counter() - started, 3)}
        (log if worker is None else worker.tell)(ready)
        await running
    finally:
        server.should_exit = True
        await running
        for task in told:
            task.cancel()
        if rpc is not None:
            await rpc.close()
        await repository.close()
        if state.cache is not None:
            await state.cache.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


async def _started(repository: Repository, refs: list[str]) -> None:
    if not repository.ready:
        await repository.start(refs)


def _ready(repository: Repository, listening: socket.socket) -> dict[str, Any]:
    host, port = listening.getsockname()[:2]
    return {
        "event": "ready",
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "models": [
            {
                "name": s.name,
                "version": s.version,
                "ref": s.ref,
                "provider": s.facts.get("provider", ""),
                "proof": s.proof,
                "limits_from": s.limits_from,
                **({"why": s.why} if s.why else {}),
            }
            for s in repository
        ],
    }


def _one_of_several(worker: Worker, state: State, server: uvicorn.Server) -> asyncio.Task[None]:
    """Not ready before all are, gone when the parent is; and its queues are counted again every moment."""
    loop = asyncio.get_running_loop()
    state.held = True

    def all_ready() -> None:
        state.held = False
        worker.tell({"event": "open"})

    def alone() -> None:
        """Not draining for a while, as after SIGTERM: whoever starts the server again is not to find the port taken."""
        state.draining = server.should_exit = True

    worker.listen(lambda: loop.call_soon_threadsafe(all_ready), lambda: loop.call_soon_threadsafe(alone))

    async def counting() -> None:
        while True:
            state.metrics.queues(state.models)
            await asyncio.sleep(_MOMENT)

    return asyncio.ensure_future(counting())


def _bound(settings: Settings, port: int | None = None, *, shared: bool = False) -> socket.socket:
    """A socket with the server's address; ``shared`` with other workers."""
    if shared and port is None:
        _await_free(settings.host, settings.port)
        if settings.grpc_port is not None:
            _await_free(settings.host, settings.grpc_port, "gRPC")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((settings.host, settings.port if port is None else port))
    except OSError as error:
        listening.close()
        raise _taken(settings.host, settings.port, error) from None
    listening.setblocking(False)
    return listening


def _taken(host: str, port: int, error: OSError, protocol: str = "") -> MissingPiece:
    if protocol:
        where, option = f"{host}:{port} for {protocol}", f"--{protocol.lower()}-port"
        return MissingPiece(f"cannot listen on {where}: {error.strerror}", f"name one that is free: {option} 8001")
    return MissingPiece(f"cannot listen on {host}:{port}: {error.strerror}", "take another one: --port 0")


def _await_free(host: str, port: int, protocol: str = "") -> None:
    """Raise :class:`MissingPiece` where another server listens: with workers too it would share its port with ours."""

    def alone() -> None:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))

    try:
        after_the_dying(alone, port)
    except OSError as error:
        raise _taken(host, port, error, protocol) from None


def _server(state: State, others: Sequence[Callable[[float], Coroutine[Any, Any, None]]]) -> uvicorn.Server:
    """The server of HTTP; ``others`` close the other ports, within so many seconds, when it is asked to end."""
    import uvicorn

    loop = asyncio.get_running_loop()

    def drain() -> None:
        state.drainer = loop.create_task(_drained(state, server, others))

    def handle_exit(sig: int, frame: object) -> None:
        """Not ready any more and still answering, then closed but for what is under way; asked again, at once."""
        if state.draining:
            server.force_exit = server.should_exit = True
            return
        state.draining = True
        loop.call_soon_threadsafe(drain)

    server = uvicorn.Server(http_config(build_app(state)))
    server.handle_exit = handle_exit
    return server


async def _drained(
    state: State, server: uvicorn.Server, others: Sequence[Callable[[float], Coroutine[Any, Any, None]]]
) -> None:
    """Close the port, and wait until nothing is under way, or the time for it is over.

    The port is closed first: clients that come again as soon as they are answered would hold the end up for good.
    Whoever connected before that is still taken in and heard, as its request was sent to a server that listened.
    """
    end = time.perf_counter() + state.settings.grace
    await asyncio.sleep(min(_LINGER, state.settings.grace))
    left = max(0.0, end - time.perf_counter())
    closing = [asyncio.ensure_future(close(left)) for close in others]
    for listening in server.servers:
        for each in listening.sockets:
            _refuse_more(each)
    await asyncio.sleep(min(_LAST_WORDS, left))
    for listening in server.servers:
        listening.close()
    while state.in_flight and time.perf_counter() < end:
        await asyncio.sleep(0.01)
    await asyncio.gather(*closing)
    server.should_exit = True


def _refuse_more(listening: socket.socket) -> None:
    """Let nobody connect any more who has not yet, on Linux; those who have can still be accepted.

    Closing alone would reset connections that the system has made and this process has not taken, with the requests
    that were sent on them. A filter of one instruction (``BPF_RET`` 0) lets no packet through to the socket: whoever
    comes now tries again after a second, by when the port is closed.
    """
    if not sys.platform.startswith("linux"):
        return
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    with contextlib.suppress(OSError):  # forbidden: the port is closed without it
        listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
