"""The parent's side of one worker: start it, ask it, let it run only when it is its turn, and survive its death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from optimizer.benching.busy import cores
from optimizer.benching.forkserver import Child, Forked, current
from optimizer.runtime import Candidate
from optimizer.types import JSON

__all__ = ["WORKER", "CandidateFailed", "WorkerProcess", "pinned_to", "worker_environment"]

#: The command of ml-opt's own worker; a peer brings one of its own that speaks the same lines.
WORKER = (sys.executable, "-m", "optimizer.benching.worker")

#: Every library that makes threads is told the same number, before it is imported.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TBB_NUM_THREADS",
)


_TOPOLOGY = Path("/sys/devices/system/cpu")


class CandidateFailed(Exception):
    """A candidate cannot go on: it said why, died, or did not answer. The others go on without it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of every worker: this one, with equal thread counts, offline and without progress bars."""
    environment = dict(os.environ)
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    environment.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    here = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH", ""))))
    return environment


def pinned_to(threads: int, topology: Path = _TOPOLOGY, allowed: frozenset[int] | None = None) -> frozenset[int]:
    """The logical processors that so many threads are pinned to: one a physical core, the same ones for everyone.

    Args:
        threads: of a candidate.
        topology: where the kernel says which processors share a core.
        allowed: those that may be used [this process's own].

    Returns:
        every allowed one where there are not that many physical cores, or the kernel does not say.
    """
    allowed = cores() if allowed is None else allowed
    firsts: dict[str, int] = {}
    for cpu in sorted(allowed):
        try:
            siblings = (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            return allowed
        firsts.setdefault(siblings.strip(), cpu)
    chosen = sorted(firsts.values())[:threads]
    return frozenset(chosen) if len(chosen) == threads else allowed


def _pin(pid: int, threads: int) -> None:
    """Threads that wander between cores lose their caches, and two of them on one core wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, pinned_to(threads))


def _forked(command: Sequence[str], stderr: IO[bytes], environment: Mapping[str, str]) -> Child | None:
    """The same by :mod:`optimizer.benching.forkserver`, where one runs and the command is a module of ml-opt."""
    server = current()
    if server is None or len(command) != 3 or tuple(command[:2]) != WORKER[:2]:
        return None
    return server.start(command[2], stderr, environment)


class WorkerProcess:
    """A child process that holds one candidate.

    Between its turns it is stopped (SIGSTOP), so that no spinning thread or garbage collector of one candidate takes
    time from another.

    Args:
        log: the file that its stderr goes to.
        threads: what the thread variables are set to.
        command: what to start.
        torch: it will import PyTorch, and may be forked by what has done so.
    """

    def __init__(self, log: Path, threads: int, command: Sequence[str] = WORKER, *, torch: bool = False) -> None:
        self._log = log
        environment = worker_environment(threads)
        with open(log, "wb") as stderr:
            forked = _forked(command, stderr, environment) if torch else None
            self._process: Child = forked or subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                # Ctrl-C reaches the parent only, which then ends its children in its own order.
                start_new_session=True,
            )
        self._buffer = b""
        _pin(self._process.pid, threads)

    @classmethod
    def of(cls, candidate: Candidate, log: Path, threads: int, command: Sequence[str] = WORKER) -> WorkerProcess:
        """The process of a candidate, started by its own command where it has one; see the class."""
        provider = candidate.provider
        torch = provider.name == "torch" and not provider.precision.startswith("cuda")
        return cls(log, threads, candidate.command or command, torch=torch)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def imports_s(self) -> float:
        """Seconds of imports that were done before it was forked; 0 for one that does its own."""
        return self._process.imports_s if isinstance(self._process, Forked) else 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let the process run inside the block, and stop it again after."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def ask(
        self, request: Mapping[str, JSON], timeout: float, heard: Callable[..., None] | None = None
    ) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Args:
            request: see :mod:`optimizer.benching.worker`.
            timeout: seconds of silence after which the process counts as hung, and is killed.
            heard: called with what a line before the answer says, ``{"progress": […]}``; whatever it raises ends the
                wait.

        Raises:
            CandidateFailed: it answered with an error, died, or did not answer in time.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise CandidateFailed(self._epitaph()) from None
        try:
            reply = json.loads(self._line(time.monotonic() + timeout))
            while heard is not None and "progress" in reply:
                heard(*reply["progress"])
                reply = json.loads(self._line(time.monotonic() + timeout))
        except TimeoutError:
            self.kill()
            raise CandidateFailed(
                f"hung: no answer to {request['do']!r} within {timeout:g} s{self._tail()}",
                "raise --timeout if it is slow",
            ) from None
        except ValueError:
            self.kill()
            raise CandidateFailed(f"its process answered with something that is not JSON{self._tail()}") from None
        if not reply.get("ok"):
            raise CandidateFailed(str(reply.get("error", "failed")), str(reply.get("hint", "")))
        return dict(reply)

    def kill(self) -> None:
        """End the process and everything it started; a second call does nothing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                raise CandidateFailed(self._epitaph())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _epitaph(self) -> str:
        """How the process ended, and the last thing it said."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            why = " (the system kills with it when memory runs out)" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{why}{self._tail()}"
        return f"its process ended with exit code {code}{self._tail()}"

    def _tail(self) -> str:
        """The last words on stderr, as the end of a sentence; nothing when it said nothing."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "; last words: " + " | ".join(line.strip()[:200] for line in lines[-3:]) if lines else ""

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
