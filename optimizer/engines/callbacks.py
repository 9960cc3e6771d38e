"""What TensorRT and TensorRT-RTX call back while they work: a logger, and a progress monitor that can stop the builder.

Both are classes of the vendor's own that are derived from here, so that names of its package are used in this file too;
they are listed in :data:`optimizer.engines.vendor.USED`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["BAD", "Tell", "interruptible", "logger", "progress_monitor"]

#: Told what is being done, how far it is, and of how much.
Tell = Callable[[str, float | None, float | None], None]

#: Log lines that say why something failed.
BAD = ("ERROR", "INTERNAL_ERROR")
#: So many lines are kept while an engine runs.
_KEPT = 200
#: Progress is told at most so often, seconds: a network's hundreds of layers are cloned in a moment.
_TELL_EVERY = 0.1


def logger(trt: Any) -> tuple[Any, list[str]]:
    """The vendor's logger, and the list where it keeps what it is told as ``SEVERITY text``.

    While ``everything`` is True it keeps every line; otherwise the latest 200, and of them only what says why something
    failed.

    Args:
        trt: the vendor's module.
    """
    lines: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.everything = True

        def log(self, severity: Any, message: str) -> None:
            word = severity.name
            if self.everything or word.startswith(BAD):
                lines.append(f"{word} {message}")
            if not self.everything:
                del lines[:-_KEPT]

    return Log(), lines


def progress_monitor(trt: Any, tell: Tell) -> Any:
    """The vendor's progress monitor: tells phases, and stops the builder once its ``stop`` is True.

    Args:
        trt: the vendor's module.
        tell: told the phase, and how many of its steps are done of how many.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stop = False
            self.phases: dict[str, tuple[int, int]] = {}
            self.told = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = (0, steps)
            self.say()

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                self.phases[name] = (step + 1, self.phases[name][1])
                self.say()
            return not self.stop

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def say(self) -> None:
            now = time.perf_counter()
            if self.phases and now - self.told >= _TELL_EVERY:
                self.told = now
                name, (done, steps) = list(self.phases.items())[-1]
                tell(f"building the engine: {name[:1].lower() + name[1:]}", done, steps or None)

    return Monitor()


def interruptible(call: Callable[[], Any], monitor: Any) -> Any:
    """Run the builder in another thread, so that this one hears of Ctrl-C, and stop it then.

    Args:
        call: runs the builder.
        monitor: the one of :func:`progress_monitor` that this builder was given.

    Returns:
        what ``call`` returns; what it raises is raised here.
    """
    answer: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as error:  # handed on to whoever waits
            failure.append(error)

    worker = threading.Thread(target=work, name="engine-builder", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(0.2)
    except BaseException:
        monitor.stop = True
        worker.join()
        raise
    if failure:
        raise failure[0]
    return answer[0]
