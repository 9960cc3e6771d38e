"""The process that one candidate lives in: ``python -m optimizer.benching.worker``.

It reads one JSON request a line from stdin and answers each with one JSON line on what was stdout when it started;
anything a library prints goes to stderr. A peer that is no part of ml-opt can take part in a benchmark by speaking
the same few requests, or by calling :func:`main` with what opens its models, in an environment of its own:

    {"do": "open", "candidate": {…}, "threads": 2}       → {"ok": true, "load_s", "inputs", "outputs", "facts"}
    {"do": "shape", "shape": "8x128", "feeds": "….npz"}  → {"ok": true, "first_s", "outputs", "facts"}
    {"do": "pass", "shape": "512 rows", "feeds": ["….npz", …]}      → {"ok": true, "first_s"}
    {"do": "warm", "shape": "8x128", "limit_s": 3.0}     → {"ok": true, "windows_ns": […], "stable": true}
    {"do": "time", "shape": "8x128", "seconds": 0.25, "samples": 8}  → {"ok": true, "ns": […]}
    {"do": "serve", "shape": "8x128", "qps": 50.0, "queries": 64, "seed": "0:1", "streams": 1}
                                                         → {"ok": true, "scheduled": […], "issued", "done", "lag"}
    {"do": "copies", "shape": "8x128", "seconds": 0.2}   → {"ok": true, "bound_ns": […], "copied_ns": […]}
    {"do": "answer", "feeds": "….npz", "out": "….npz"}   → {"ok": true}
    {"do": "runs"}                                       → {"ok": true, "runs": {"int8": 36, …} or null}
    {"do": "close"}                                      → {"ok": true}

What "pass" names is timed like a shape: one call of it feeds every file of the list, inputs and outputs copied as in
serving. "serve" is an open loop (:mod:`optimizer.benching.openloop`) over a shape, answered in nanoseconds from its
beginning. "facts" of a shape may be left out. "runs" is asked of what was opened with ``"watch": true``, after an
answer. Every answer carries ``peak_rss`` in bytes. "copies" times calls with and without the copies of inputs and
outputs in turns. A failure answers ``{"ok": false, "error", "hint"}``, and the process lives on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from optimizer.benching.candidates import candidate_from_json
from optimizer.benching.openloop import SystemClock, arrivals, drive, precise_timers
from optimizer.errors import BadInput, MlOptError
from optimizer.runtime import Candidate, Session
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Opener = Callable[[Candidate, int], Session]

__all__ = ["Worker", "die_with_parent", "main", "measure", "peak_rss", "settle", "undisturbed", "warm_up"]

#: A warm-up window: at least this many calls and this many nanoseconds.
_WINDOW_CALLS = 3
_WINDOW_NS = 30_000_000
#: Warm when the medians of this many windows in a row differ by no more than this factor.
_WINDOWS = 3
_STABLE = 1.10
#: Calls before a block whose times are thrown away.
_SETTLE_NS = 20_000_000
_PR_SET_PDEATHSIG = 1


def measure(
    call: Callable[[], None], seconds: float, samples: int, first: Callable[[], None] | None = None
) -> list[int]:
    """Time a call until both enough seconds and enough samples are there.

    The clock is read twice a sample and nothing else happens between two calls but an append and two comparisons;
    garbage is collected before and not during.

    Args:
        call: what is timed.
        seconds: at least so long.
        samples: at least so often.
        first: what is called before, until caches are this candidate's again [the call itself].

    Returns:
        nanoseconds of each call.
    """
    clock = time.perf_counter_ns
    times: list[int] = []
    add = times.append
    with undisturbed():
        settle(first or call)
        end = clock() + int(seconds * 1e9)
        while True:
            start = clock()
            call()
            stop = clock()
            add(stop - start)
            if stop >= end and len(times) >= samples:
                return times


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Collect garbage before, and not inside the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle(call: Callable[[], object]) -> int:
    """Call for 20 ms, at least once: another candidate has just had the caches.

    Returns:
        nanoseconds of the last call.
    """
    settled = time.perf_counter_ns() + _SETTLE_NS
    while True:
        start = time.perf_counter_ns()
        call()
        if (stop := time.perf_counter_ns()) >= settled:
            return stop - start


def warm_up(call: Callable[[], None], limit_s: float, calls: int = _WINDOW_CALLS) -> tuple[list[int], bool]:
    """Call until three windows in a row have the same median within 10 %, or the limit is reached.

    Args:
        call: what is to be timed.
        limit_s: seconds.
        calls: fewest calls in a window.

    Returns:
        the windows' medians in nanoseconds, and whether they became stable.
    """
    clock = time.perf_counter_ns
    medians: list[int] = []
    end = clock() + int(limit_s * 1e9)
    while True:
        window: list[int] = []
        opened = clock()
        while len(window) < calls or clock() - opened < _WINDOW_NS:
            start = clock()
            call()
            window.append(clock() - start)
        medians.append(sorted(window)[len(window) // 2])
        last = medians[-_WINDOWS:]
        if len(last) == _WINDOWS and max(last) <= _STABLE * min(last):
            return medians, True
        if clock() >= end:
            return medians, False


class Worker:
    """Answers requests about one candidate.

    Args:
        opener: opens a candidate with so many threads; None for what ml-opt's runtimes open.
    """

    def __init__(self, opener: Opener | None = None) -> None:
        self._opener = opener
        self._session: Session | None = None
        self._calls: dict[str, Callable[[], None]] = {}
        self._fed: dict[str, dict[str, NDArray[np.generic]]] = {}
        #: What makes one more call of the same, for another thread.
        self._binding: dict[str, Callable[[], Callable[[], None]]] = {}
        #: Of a pass: its first call, which is enough to settle.
        self._settling: dict[str, Callable[[], None]] = {}

    def answer(self, request: dict[str, JSON]) -> dict[str, JSON]:
        """The answer to one request; an error becomes an answer too."""
        doing = {
            "open": self._open,
            "shape": self._shape,
            "pass": self._pass,
            "warm": self._warm,
            "time": self._time,
            "serve": self._serve,
            "copies": self._copies,
            "memory": self._memory,
            "answer": self._answer,
            "runs": self._runs,
            "close": self._close,
        }
        try:
            reply = {"ok": True, **doing[request["do"]](request)}
        except MlOptError as error:
            reply = {"ok": False, "error": error.message, "hint": error.hint}
        except Exception as error:  # whatever a library raises is this candidate's row in the report
            traceback.print_exc()
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}", "hint": ""}
        return {**reply, "peak_rss": peak_rss()}

    def _open(self, request: dict[str, JSON]) -> dict[str, JSON]:
        candidate = candidate_from_json(request["candidate"])
        started = time.perf_counter()
        threads, watch = request["threads"], bool(request.get("watch"))
        opened = self._opener(candidate, threads) if self._opener else candidate.open(threads, watch=watch)
        self._session = opened
        return {
            "load_s": time.perf_counter() - started,
            "inputs": [spec.to_json() for spec in self._session.inputs],
            "outputs": [spec.to_json() for spec in self._session.outputs],
            "facts": dict(self._session.facts),
        }

    def _shape(self, request: dict[str, JSON]) -> dict[str, JSON]:
        feeds = self._feeds(request["feeds"])
        started = time.perf_counter()
        outputs = self._opened.run(feeds)
        first = time.perf_counter() - started
        self._fed[request["shape"]] = feeds
        bind = self._binding[request["shape"]] = functools.partial(self._opened.bind, feeds)
        self._calls[request["shape"]] = bind()
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        # What is bound may say more of itself: whether it is a CUDA graph, say.
        return {"first_s": first, "outputs": shapes, "facts": dict(self._opened.facts)}

    def _pass(self, request: dict[str, JSON]) -> dict[str, JSON]:
        batches = [self._feeds(path) for path in request["feeds"]]
        run = self._opened.run

        def call() -> None:
            for feeds in batches:
                run(feeds)

        def first_batch() -> None:
            run(batches[0])

        started = time.perf_counter()
        call()
        first = time.perf_counter() - started
        self._calls[request["shape"]], self._settling[request["shape"]] = call, first_batch
        return {"first_s": first}

    def _warm(self, request: dict[str, JSON]) -> dict[str, JSON]:
        # A pass is many calls by itself.
        calls = 1 if request["shape"] in self._settling else _WINDOW_CALLS
        medians, stable = warm_up(self._calls[request["shape"]], request["limit_s"], calls)
        return {"windows_ns": medians, "stable": stable}

    def _time(self, request: dict[str, JSON]) -> dict[str, JSON]:
        shape = request["shape"]
        return {"ns": measure(self._calls[shape], request["seconds"], request["samples"], self._settling.get(shape))}

    def _serve(self, request: dict[str, JSON]) -> dict[str, JSON]:
        shape, streams = request["shape"], request["streams"]
        scheduled = arrivals(request["qps"], request["queries"], request["seed"])
        # Two threads cannot share the buffers of one bound call.
        calls = [self._calls[shape], *(self._binding[shape]() for _ in range(streams - 1))]
        precise_timers()
        with undisturbed():
            for call in calls:
                settle(call)
            return drive(scheduled, calls, SystemClock() if streams == 1 else SystemClock(spin_ns=0)).to_json()

    def _copies(self, request: dict[str, JSON]) -> dict[str, JSON]:
        bound = self._calls[request["shape"]]
        feeds, run, clock = self._fed[request["shape"]], self._opened.run, time.perf_counter_ns
        times: dict[str, JSON] = {"bound_ns": [], "copied_ns": []}
        with undisturbed():
            settle(bound)
            end = clock() + int(request["seconds"] * 1e9)
            while clock() < end or len(times["bound_ns"]) < _WINDOW_CALLS:
                started = clock()
                bound()
                between = clock()
                run(feeds)
                times["copied_ns"].append(clock() - between)
                times["bound_ns"].append(between - started)
        return times

    def _memory(self, request: dict[str, JSON]) -> dict[str, JSON]:
        raise BadInput(f"{request['shape']}: memory at a size is told of texts alone")

    def _answer(self, request: dict[str, JSON]) -> dict[str, JSON]:
        import numpy as np

        np.savez(request["out"], **self._opened.run(self._feeds(request["feeds"])))  # type: ignore[arg-type]
        return {}

    def _runs(self, request: dict[str, JSON]) -> dict[str, JSON]:
        del request
        return {"runs": self._opened.runs()}

    def _close(self, request: dict[str, JSON]) -> dict[str, JSON]:
        del request
        self._calls.clear()
        self._fed.clear()
        self._binding.clear()
        self._settling.clear()
        self._opened.close()
        return {}

    @property
    def _opened(self) -> Session:
        if self._session is None:
            raise BadInput("nothing is open yet")
        return self._session

    def _feeds(self, path: str) -> dict[str, NDArray[np.generic]]:
        """The inputs that this model takes, of those in the file, in the element types that it wants."""
        import numpy as np

        with np.load(path, allow_pickle=False) as stored:
            feeds = {}
            for spec in self._opened.inputs:
                if spec.name not in stored:
                    raise BadInput(
                        f"it takes an input {spec.name!r}, which the others do not have",
                        f"the inputs are: {', '.join(stored.files)}",
                    )
                array = stored[spec.name]
                # int32 and int64 token ids are the same inputs; float and integer are not.
                if array.dtype.kind in "iu" and np.dtype(spec.dtype).kind in "iu":
                    array = array.astype(spec.dtype)
                feeds[spec.name] = np.ascontiguousarray(array)
        return feeds


def peak_rss() -> int:
    """The most memory this process ever held, in bytes (``VmHWM``); 0 where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even by ``kill -9`` and even while this one is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)


def main(opener: Opener | None = None, worker: Callable[[], Worker] | None = None) -> None:
    """Answer requests until stdin ends.

    Args:
        opener: a peer's own way to open a candidate with so many threads; None for ml-opt's runtimes.
        worker: makes what answers, where that is not ml-opt's own worker.
    """
    die_with_parent()
    channel: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answering = worker() if worker else Worker(opener)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        channel.write(json.dumps(answering.answer(request)) + "\n")
        channel.flush()
        if request["do"] == "close":
            # Thread pools of vendors are known to hang or crash while a process is torn down; all is said by now.
            os._exit(0)


if __name__ == "__main__":
    main()
