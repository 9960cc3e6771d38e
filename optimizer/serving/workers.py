"""Several processes on one port, and the parent that starts them, starts them again, and ends them.

Each worker listens by itself (``SO_REUSEPORT``), so that the kernel spreads connections over them and a worker that
loads its models again gets none before it is ready. The parent keeps the port, and answers nothing. A worker that ends
is replaced while the others go on; the longer it keeps ending at once, the longer the next one waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import MlOptError
from optimizer.serving.leftovers import clear, counts_folder
from optimizer.serving.settings import Settings
from optimizer.serving.worker import Worker

__all__ = ["supervise"]

#: Where prometheus_client's workers count together.
_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
#: Seconds until the next try after a worker that ended soon; doubled up to the second number.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
#: A worker that ran so long did not end at once.
_LIVED_S = 30.0
#: Seconds beyond the grace period before a worker is killed.
_SLACK_S = 10.0


def supervise(
    words: Sequence[str], settings: Settings, listening: socket.socket, log: Callable[[Mapping[str, Any]], None]
) -> None:
    """Run workers until SIGTERM or SIGINT.

    Args:
        words: the command line of this server, without the program.
        settings: of it.
        listening: bound to its port, and not listening; it keeps the port.
        log: takes an event: ``ready`` when every worker is, ``worker`` when one ended.

    Raises:
        MlOptError: what the first worker that could not begin says.
    """
    clear()
    ports = [listening.getsockname()[1], *([] if settings.grpc_port is None else [settings.grpc_port])]
    with listening, counts_folder(*ports) as counts:
        asyncio.run(_Parent([*words], settings, listening, log, counts).run())


def _failed(event: Mapping[str, Any]) -> MlOptError:
    """The error that a worker ended with, of the same name and exit code."""
    kind: type[MlOptError] = type(str(event["type"]), (MlOptError,), {"exit_code": int(event["exit_code"])})
    return kind(str(event["message"]), str(event["hint"]))


class _Parent:
    def __init__(
        self,
        words: list[str],
        settings: Settings,
        listening: socket.socket,
        log: Callable[[Mapping[str, Any]], None],
        counts: Path,
    ) -> None:
        self._words, self._settings, self._listening, self._log = words, settings, listening, log
        self._counts = counts
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ready: dict[int, Mapping[str, Any]] = {}
        self._open: set[int] = set()
        self._opened = False
        self._ending = asyncio.Event()
        self._began = time.perf_counter()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._end)
        keeping = [asyncio.ensure_future(self._kept(number)) for number in range(self._settings.workers)]
        try:
            done, _ = await asyncio.wait(keeping, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            if not self._ending.is_set():
                self._end()
            _, late = await asyncio.wait(keeping, timeout=self._settings.grace + _SLACK_S)
            for process in self._running.values() if late else ():
                process.kill()
            await asyncio.gather(*keeping, return_exceptions=True)

    def _end(self) -> None:
        """Pass the signal on: workers finish what is under way; asked again, they end at once."""
        self._ending.set()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    async def _kept(self, number: int) -> None:
        """One worker after the other in a place, until the server ends."""
        pause, late, restarts = _FIRST_PAUSE, False, 0
        while not self._ending.is_set():
            began = time.perf_counter()
            process, said = await self._ran(number, late)
            if self._ending.is_set():
                return
            if not self._opened:
                message = f"a worker ended with code {process.returncode} before it was ready"
                raise _failed(said) if said else MlOptError(message, "try it without --workers")
            restarts += 1
            self._log({"event": "worker", "number": number, "pid": process.pid, "code": process.returncode,
                       "restarts": restarts, **({"error": said["message"]} if said else {})})  # fmt: skip
            pause = _FIRST_PAUSE if time.perf_counter() - began > _LIVED_S else min(2 * pause, _LONGEST_PAUSE)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            late = True

    async def _ran(self, number: int, late: bool) -> tuple[asyncio.subprocess.Process, Mapping[str, Any]]:
        """Run a worker to its end; its process, and the error that it reported."""
        reading, writing = os.pipe()
        worker = Worker(number, self._listening.getsockname()[1], writing, late)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *self._words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[writing], start_new_session=True,  # a terminal's Ctrl-C comes to the parent alone
            env={**os.environ, **worker.environment(), _COUNTS: str(self._counts)},
        )  # fmt: skip
        os.close(writing)
        self._running[number] = process
        if self._ending.is_set():
            process.terminate()
        try:
            return process, await self._heard(number, process, reading)
        finally:
            await process.wait()
            del self._running[number]
            self._ready.pop(number, None)
            self._forget(process.pid)

    async def _heard(self, number: int, process: asyncio.subprocess.Process, reading: int) -> Mapping[str, Any]:
        """Listen to a worker until it ends; the error that it reported."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
        )
        failed: Mapping[str, Any] = {}
        try:
            while line := await reader.readline():
                event = json.loads(line)
                if event["event"] == "failed":
                    failed = event
                elif event["event"] == "ready":
                    self._is_ready(number, {**event, "pid": process.pid})
                elif event["event"] == "open":
                    self._is_open(number)
        finally:
            transport.close()
        return failed

    def _is_ready(self, number: int, event: Mapping[str, Any]) -> None:
        """Let the worker, or all when it is the last of them, say that they are ready."""
        self._ready[number] = event
        if self._opened or len(self._ready) == self._settings.workers:
            for process in self._running.values():
                if process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        process.stdin.write(b"ready\n")

    def _is_open(self, number: int) -> None:
        """The worker answers that it is ready; when all do for the first time, the server is."""
        self._open.add(number)
        if len(self._open) == self._settings.workers and not self._opened:
            self._opened = True
            workers = [self._ready[each]["pid"] for each in sorted(self._ready)]
            seconds = round(time.perf_counter() - self._began, 3)
            event = {key: value for key, value in self._ready[number].items() if key != "pid"}
            self._log({**event, "seconds": seconds, "workers": workers})

    def _forget(self, pid: int) -> None:
        """What a worker that is gone has now (its active requests, its queue) is nothing any more; its counts stay."""
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid, str(self._counts))
