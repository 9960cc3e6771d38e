"""Threads that compute give way to the event loop: who asks is let in, or refused, while a model runs.

On a machine whose cores all compute, the loop would wait for its turn behind the model's threads at every request. A
higher nice value has them interrupted as soon as there is something to read, and costs the model nothing else: what
the loop does has to be done anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["give_way", "in_the_background"]

T = TypeVar("T")

#: Of nice: threads of the same process with 5 more get a third of the time where both want all of it (sched(7)).
_BEHIND = 5


def give_way() -> None:
    """Put the calling thread, and those that it will start, behind the process' others; on Linux, where nice is a
    thread's own.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _BEHIND))


async def in_the_background(work: Callable[[], T]) -> T:
    """What some work returns that is done in a thread of its own which gives way; so do threads that it starts."""
    alone = ThreadPoolExecutor(1, thread_name_prefix="opens a model", initializer=give_way)
    try:
        return await asyncio.get_running_loop().run_in_executor(alone, work)
    finally:
        alone.shutdown(wait=False)  # who is cancelled meanwhile does not wait for the work
