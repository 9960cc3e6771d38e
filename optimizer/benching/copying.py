"""The process that memory bandwidth is measured in: ``python -m optimizer.benching.copying [read]``.

It speaks the lines of :mod:`optimizer.benching.worker`, as a peer does. Its "shapes" are working sets in MiB: half of
it is read and half of it written, by numpy, with as many threads as every candidate has (numpy lets go of Python's lock
while it copies). With ``read`` all of it is read and nothing written, as weights are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import IO, Any

from optimizer.benching.worker import die_with_parent, measure, peak_rss, warm_up
from optimizer.types import JSON

__all__ = ["copier", "main", "reader"]


def copier(mebibytes: int, threads: int) -> Callable[[], None]:
    """A call that copies half of a working set into its other half.

    Args:
        mebibytes: both halves together.
        threads: that share the work, each with a part of its own.
    """
    import numpy as np

    count = mebibytes * 2**20 // 2 // 8
    source, target = np.ones(count), np.zeros(count)  # both written to, so that every page is there
    ends = [count * number // threads for number in range(threads + 1)]
    return _shared(np.copyto, [(target[a:b], source[a:b]) for a, b in pairwise(ends)])


def reader(mebibytes: int, threads: int) -> Callable[[], None]:
    """A call that reads a working set and writes nothing.

    It looks for the largest number, which numpy does with vector instructions and in less time than memory takes to
    bring it.

    Args:
        mebibytes: that are read.
        threads: that share the work, each with a part of its own.
    """
    import numpy as np

    count = mebibytes * 2**20 // 4
    source = np.ones(count, np.float32)
    ends = [count * number // threads for number in range(threads + 1)]
    return _shared(np.max, [(source[a:b],) for a, b in pairwise(ends)])


def _shared(work: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> Callable[[], None]:
    """A call that does each part in a thread of its own; one part alone in the thread of the caller."""
    if len(parts) == 1:
        return lambda: work(*parts[0])
    pool = ThreadPoolExecutor(len(parts))

    def call() -> None:
        for done in [pool.submit(work, *part) for part in parts]:
            done.result()

    return call


class _Copies:
    """Answers requests; what is there to open is memory."""

    def __init__(self, kernel: Callable[[int, int], Callable[[], None]]) -> None:
        self._kernel = kernel
        self._threads = 1
        self._calls: dict[str, Callable[[], None]] = {}

    def answer(self, request: dict[str, JSON]) -> dict[str, JSON]:
        return {"ok": True, **self._done(request), "peak_rss": peak_rss()}

    def _done(self, request: dict[str, JSON]) -> dict[str, JSON]:
        match request["do"]:
            case "open":
                self._threads = int(request["threads"])
                return {"load_s": 0.0, "inputs": [], "outputs": [], "facts": {"threads": self._threads}}
            case "shape":
                call = self._calls[request["shape"]] = self._kernel(int(request["shape"]), self._threads)
                started = time.perf_counter()
                call()
                return {"first_s": time.perf_counter() - started, "outputs": {}}
            case "warm":
                medians, stable = warm_up(self._calls[request["shape"]], request["limit_s"])
                return {"windows_ns": medians, "stable": stable}
            case "time":
                return {"ns": measure(self._calls[request["shape"]], request["seconds"], request["samples"])}
        return {}


def main() -> None:
    """Answer requests until stdin ends."""
    die_with_parent()
    channel: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    copies = _Copies(reader if sys.argv[1:] == ["read"] else copier)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        channel.write(json.dumps(copies.answer(request)) + "\n")
        channel.flush()
        if request["do"] == "close":
            return


if __name__ == "__main__":
    main()
