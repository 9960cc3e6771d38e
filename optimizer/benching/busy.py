"""How much of the machine others use: a time that was taken beside another job says nothing of the candidate.

Read from Linux's ``/proc``: all processor time that passed on the processors this process may use, stolen time of a
virtual machine included, less that of the processes which were being measured. The load average is no substitute: it
lags a minute behind, so that what was built just before a benchmark would spoil it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Others", "busy_now", "cores", "is_busy"]

_PROC = Path("/proc")
#: user, nice, system, irq, softirq, steal: what is not idle, by place in a line of /proc/stat (man 5 proc_stat).
_NOT_IDLE = (0, 1, 2, 5, 6, 7)
#: Beyond this share of all cores, threads of candidates and of others share cores.
_TOO_MUCH = 1.25
_GLANCE_S = 0.3
_PATIENCE_S = 10.0


def cores() -> frozenset[int]:
    """The logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def is_busy(others: float, threads: int) -> bool:
    """Whether others leave too little for these threads.

    Args:
        others: cores that they use.
        threads: of a candidate.
    """
    return others + threads > len(cores()) * _TOO_MUCH


class Others:
    """Counts what others use while our own processes have their turns.

    Args:
        proc: where the kernel's files lie.
        clock: seconds.
    """

    def __init__(self, proc: Path = _PROC, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._clock = proc, clock
        self._tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._cores = cores()
        self._used = 0.0
        self._passed = 0.0
        self._since: tuple[float, float, float] | None = None

    def begin(self, pids: Sequence[int]) -> None:
        """From now on; ``pids`` are the processes whose time is ours."""
        if (busy := self._busy()) is not None:
            self._since = (busy, self._own(pids), self._clock())

    def end(self, pids: Sequence[int]) -> None:
        """Until now; with the same processes."""
        busy = self._busy()
        if busy is None or self._since is None:
            return
        before, own, began = self._since
        self._used += (busy - before) - (self._own(pids) - own)
        self._passed += self._clock() - began
        self._since = None

    @property
    def used(self) -> float | None:
        """Cores that others used on average; None where the kernel does not say."""
        return max(0.0, self._used / self._passed) if self._passed else None

    def _busy(self) -> float | None:
        """Seconds in which one of our cores was not idle."""
        try:
            lines = (self._proc / "stat").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        ticks = 0
        for name, *numbers in (line.split() for line in lines if line.startswith("cpu")):
            if name[3:].isdigit() and int(name[3:]) in self._cores:
                ticks += sum(int(numbers[place]) for place in _NOT_IDLE)
        return ticks / self._tick

    def _own(self, pids: Sequence[int]) -> float:
        """Processor seconds of our processes and of this one; of one that died nothing."""
        ticks = 0
        for pid in (os.getpid(), *pids):
            try:
                # The name in brackets may hold spaces; what follows it does not.
                numbers = (self._proc / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            ticks += sum(int(numbers[place]) for place in (11, 12, 13, 14))  # utime, stime, and those of children
        return ticks / self._tick


def busy_now(
    threads: int, patience_s: float = _PATIENCE_S, sleep: Callable[[float], None] = time.sleep
) -> float | None:
    """Cores that others use right now, where that leaves too little for these threads; None when all is well.

    Args:
        threads: that are to be measured.
        patience_s: how long it is waited for others to come to rest.
        sleep: waits so many seconds.
    """
    waited = 0.0
    while True:
        others = Others()
        others.begin(())
        sleep(_GLANCE_S)
        others.end(())
        waited += _GLANCE_S
        used = others.used if others.used is not None else _load()
        if used is None or not is_busy(used, threads):
            return None
        if waited >= patience_s:
            return used


def _load() -> float | None:
    """The load of the last minute: all that other systems say."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
