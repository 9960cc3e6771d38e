"""One of several processes that answer on one port: what it knows of the others, and what it tells the parent.

The parent hands it a pipe to report by, and its standard input to be told by: ``ready`` when all are, and its end when
the parent is gone. Everything else a worker reads from the same command line as the parent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.environment import cpu_threads
from optimizer.errors import MlOptError
from optimizer.options import parse_size
from optimizer.serving import kept
from optimizer.serving.settings import Settings

__all__ = ["VARIABLE", "Worker", "shared"]

#: How the parent says what a worker is.
VARIABLE = "ML_OPT_SERVE_WORKER"
#: Seconds that a worker whose parent is gone has for what is under way, a model that is loaded included.
_LAST_S = 2.0


@dataclass(frozen=True)
class Worker:
    """This process, where it is one of several.

    Attributes:
        number: from 0.
        port: that all listen on.
        report: the pipe to the parent.
        late: it takes the place of one that ended: the others answer meanwhile, and it listens when it is ready.
    """

    number: int
    port: int
    report: int
    late: bool

    @classmethod
    def inherited(cls) -> Worker | None:
        """What the parent said; None for a server of one process."""
        said = os.environ.pop(VARIABLE, "")  # none of its own children is a worker
        return cls(**json.loads(said)) if said else None

    def environment(self) -> dict[str, str]:
        """What says so to the child."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self))}

    def tell(self, event: Mapping[str, Any]) -> None:
        """Report an event to the parent."""
        os.write(self.report, json.dumps(event, default=str).encode() + b"\n")

    def failed(self, error: MlOptError) -> None:
        """Report why nothing can be served; the parent says it, once."""
        kind = type(error).__name__
        self.tell({"event": "failed", "type": kind, "message": error.message, "hint": error.hint,
                   "exit_code": error.exit_code})  # fmt: skip

    def listen(self, ready: Callable[[], object], gone: Callable[[], object]) -> None:
        """Hear, in a thread, what the parent says.

        Args:
            ready: called when it says that all workers are.
            gone: called when it is no more, however it ended. Nobody would replace this process then, and who starts
                the server again wants its port and its memory: it ends within two seconds, whatever is under way.
        """

        def heard() -> None:
            while line := os.read(0, 4096):
                if b"ready" in line:
                    ready()
            gone()
            time.sleep(_LAST_S)
            os._exit(1)

        threading.Thread(target=heard, name="parent", daemon=True).start()


def shared(settings: Settings) -> Settings:
    """The settings of one of several workers: its share of the cores, of the models' memory, and of the kept answers'.

    Threads that were asked for by number are each worker's own.
    """
    count = settings.workers
    threads = settings.threads or max(1, cpu_threads() // count)
    memory = str(max(1, parse_size(settings.memory, "--memory") // count)) if settings.memory else ""
    cache = settings.cache
    if cache and "://" not in cache:
        cache = f"{max(1, kept.memory_of(cache) // count // 1024)}KiB"
    return dataclasses.replace(settings, threads=threads, memory=memory, cache=cache)
