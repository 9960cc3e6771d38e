"""A process that has imported PyTorch and transformers once, and forks every worker that needs them.

Importing both takes seconds, more than most candidates are measured for, and a search needs them in the export, for
the original's answers, and for each of its timings. A worker that is forked is a process of its own like any other, and
has nothing of what another worker did. So that reports say of it what they would say of one that was started:

- The seconds of the imports are handed on, and count as its own.
- A fork leaves pages of files, such as those of libraries, to be mapped anew when they are read. A process that had
  done the imports itself would have them, and they count as its memory; so a worker reads them first.

Python's own fork server (:mod:`multiprocessing.forkserver`) has one environment and none of the pipes, so that it
cannot start these workers.

Threads do not survive a fork. After the imports there are none but those of OpenBLAS, which ends them before a fork and
starts new ones when it needs them (``pthread_atfork`` in its ``memory.c``). CUDA cannot be used after a fork at all
(https://docs.pytorch.org/docs/stable/notes/multiprocessing.html, "Poison fork"): with an NVIDIA driver, nothing is
forked.

    with fork_server():                               # nothing is started yet
        WorkerProcess(log, threads, torch=True)       # starts the server, which forks the worker
        WorkerProcess(log, threads, torch=True)       # forks another

The server is ``python -m optimizer.benching.forkserver FD``; FD is a socket that keeps messages apart. A request to
fork carries the worker's stdin, stdout and stderr:

    {"do": "fork", "module": "optimizer.benching.worker"}  → {"pid": 4711, "imports_s": 6.5}
    {"do": "wait", "pid": 4711, "block": false}            → {"code": null}: not yet; or an exit code, -9 for SIGKILL
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Protocol

from optimizer.benching.worker import die_with_parent
from optimizer.types import JSON

__all__ = ["DRIVER", "Child", "ForkServer", "Forked", "current", "fork_server", "main"]

#: What every model of PyTorch needs, and takes longest to import; what is not there is the worker's own error.
_MODULES = ("torch", "transformers", "transformers.modeling_utils")
#: There where an NVIDIA driver is loaded.
DRIVER = Path("/dev/nvidiactl")
_LONGEST = 4096
#: Seconds that an answer may take, imports among them; who waits longer starts its worker itself.
_PATIENCE = 300.0
#: Bytes of a page's entry in pagemap, and its highest bit: the page is there.
_ENTRY = 8
_PRESENT = 63
_current: ContextVar[ForkServer | None] = ContextVar("fork_server", default=None)


class Child(Protocol):
    """What is known of a worker's process, however it was started: the part of :class:`subprocess.Popen` in use."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit code, negative for a signal's number; None while it lives."""

    def wait(self) -> int:
        """The same, when it has ended."""


class Forked:
    """A worker that a server has forked; see :class:`Child`.

    Attributes:
        imports_s: seconds that the server's imports took.
    """

    def __init__(self, server: ForkServer, pid: int, imports_s: float, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.imports_s = imports_s
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._ended(block=False)

    def wait(self) -> int:
        code = self._ended(block=True)
        assert code is not None
        return code

    def _ended(self, *, block: bool) -> int | None:
        if self._code is None:
            try:
                self._code = self._server.ask({"do": "wait", "pid": self.pid, "block": block})["code"]
            except OSError:  # the server is gone, and took its workers with it
                self._code = -signal.SIGKILL
        return self._code


class ForkServer:
    """The parent's side. Nothing is started before the first worker is asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._environment: Mapping[str, str] = {}

    def start(self, module: str, stderr: IO[bytes], environment: Mapping[str, str]) -> Forked | None:
        """Fork a worker.

        Args:
            module: of ml-opt; its ``main()`` is the worker.
            stderr: where that goes.
            environment: of the worker; the first one's is the server's.

        Returns:
            None where it has to be started in another way: its environment is another, or the server has died.
        """
        if self._process is None:
            self._begin(environment)
        if self._environment != environment:
            return None
        stdin, stdout = os.pipe(), os.pipe()
        theirs, ours = (stdin[0], stdout[1]), (stdin[1], stdout[0])
        try:
            reply = self.ask({"do": "fork", "module": module}, (*theirs, stderr.fileno()))
        except OSError:
            for end in ours:
                os.close(end)
            return None
        finally:
            for end in theirs:
                os.close(end)
        return Forked(self, reply["pid"], reply["imports_s"], os.fdopen(ours[0], "wb"), os.fdopen(ours[1], "rb"))

    def ask(self, request: Mapping[str, JSON], fds: Sequence[int] = ()) -> dict[str, Any]:
        """One answer of the server.

        Raises:
            OSError: it has died, or does not answer.
        """
        assert self._channel is not None
        socket.send_fds(self._channel, [json.dumps(request).encode()], list(fds))
        if not (reply := self._channel.recv(_LONGEST)):
            raise ConnectionResetError
        return dict(json.loads(reply))

    def close(self) -> None:
        """End the server, and with it every worker that it has forked."""
        if self._process is not None and self._channel is not None:
            self._channel.close()
            self._process.kill()
            self._process.wait()

    def _begin(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_PATIENCE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )


def current() -> ForkServer | None:
    """The server that workers may be forked by, where there is one."""
    return _current.get()


@contextlib.contextmanager
def fork_server(driver: Path | None = None) -> Iterator[None]:
    """Inside the block, workers that need PyTorch are forked, where a fork can do.

    Args:
        driver: the file instead of :data:`DRIVER`.
    """
    if not sys.platform.startswith("linux") or (driver or DRIVER).exists():
        yield
        return
    server = ForkServer()
    token = _current.set(server)
    try:
        yield
    finally:
        _current.reset(token)
        server.close()


def main() -> None:
    """Import, then fork workers until the parent closes its end."""
    die_with_parent()
    channel = socket.socket(fileno=int(sys.argv[1]))
    began = time.perf_counter()
    for module in _MODULES:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    imports_s = time.perf_counter() - began
    # What is there now is no garbage, and its pages stay shared while the workers collect theirs.
    gc.collect()
    gc.freeze()
    pages = _file_pages()
    while True:
        message, fds, _, _ = socket.recv_fds(channel, _LONGEST, 3)
        if not message:
            return
        request = json.loads(message)
        if request["do"] == "fork":
            reply: dict[str, JSON] = {"pid": _fork(request["module"], fds, channel, pages), "imports_s": imports_s}
        else:
            pid, status = os.waitpid(request["pid"], 0 if request["block"] else os.WNOHANG)
            reply = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        channel.send(json.dumps(reply).encode())


def _file_pages() -> list[int]:
    """Addresses of the pages of files that this process has in memory: a bit of /proc/self/pagemap says so for each
    (https://docs.kernel.org/admin-guide/mm/pagemap.html).
    """
    size = os.sysconf("SC_PAGESIZE")
    pages: list[int] = []
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in maps:
            span, rights, _, _, inode, *_ = line.split()
            begin, end = (int(address, 16) for address in span.split("-"))
            if inode == "0" or not rights.startswith("r"):
                continue
            pagemap.seek(begin // size * _ENTRY)
            entries = array.array("Q", pagemap.read((end - begin) // size * _ENTRY))
            pages += [begin + place * size for place, entry in enumerate(entries) if entry >> _PRESENT]
    return pages


def _fork(module: str, fds: Sequence[int], channel: socket.socket, pages: Sequence[int]) -> int:
    """Fork a worker, which has a process group of its own before anyone may signal it."""
    pid = os.fork()
    if not pid:
        _work(module, fds, channel, pages)
    with contextlib.suppress(OSError):  # the child was faster, or has ended
        os.setpgid(pid, pid)
    for fd in fds:
        os.close(fd)
    return pid


def _work(module: str, fds: Sequence[int], channel: socket.socket, pages: Sequence[int]) -> None:
    """The child's life; it never returns into the server's."""
    code = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        channel.close()
        for place, fd in enumerate(fds):
            os.dup2(fd, place)
            os.close(fd)
        for page in pages:
            ctypes.string_at(page, 1)
        importlib.import_module(module).main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
