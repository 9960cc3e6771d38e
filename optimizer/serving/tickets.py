"""What passes through a batcher: requests that wait, the runs that answer them, and what both may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optimizer.serving.joining import Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["Limits", "Run", "Ticket"]


@dataclass(frozen=True)
class Limits:
    """What a batcher may do.

    Attributes:
        queue: most rows that wait.
        rows: most rows in a run.
        tokens: most tokens in a run, padding included.
        delay: seconds that a request may wait for others while the model has nothing to do.
        run_s: seconds that a run should not be predicted to take longer than; None for no such wish.
        wait_s: seconds that a request is not let into the queue to wait longer than; None for no such wish.
        total_s: seconds that waiting and the run may be predicted to take together: a request may wait longer than
            ``wait_s`` where runs leave the time for it. None where runs are not known well enough.
    """

    queue: int = 256
    rows: int = 32
    tokens: int = 2048
    delay: float = 0.0
    run_s: float | None = None
    wait_s: float | None = None
    total_s: float | None = None


@dataclass(eq=False)
class Ticket:
    """One request in the queue.

    Attributes:
        feeds: its arrays.
        size: its rows and length.
        deadline: by ``time.perf_counter()``; what has not begun by then does not begin.
        answer: resolves to its outputs, or to the :class:`Problem` it met.
        arrived: when it was put into the queue.
        begun: when its run began.
        seconds: how long its run took.
        mates: requests in its run, itself included.
        owner: id of the request that it is of.
        run: its run, once that is over.
        dropped: nobody waits for it any more.
        leave: tells its queue so.
    """

    feeds: Arrays
    size: Size
    deadline: float
    answer: asyncio.Future[dict[str, NDArray[np.generic]]]
    arrived: float = field(default_factory=time.perf_counter)
    begun: float = 0.0
    seconds: float = 0.0
    mates: int = 0
    owner: str = ""
    run: Run | None = None
    dropped: bool = False
    leave: Callable[[Ticket], None] | None = None

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return max(0.0, self.begun - self.arrived)

    def drop(self) -> None:
        """Take it out of the queue, if it is still there; what already runs is finished and thrown away."""
        if self.leave is not None:
            self.leave(self)
        self.dropped = True
        self.answer.cancel()


@dataclass(frozen=True)
class Run:
    """One run of the model, for whoever counts.

    Attributes:
        requests: that shared it.
        rows: of all of them.
        tokens: of all of them, without the padding that joining them cost.
        computed: tokens with it.
        seconds: of the run alone.
        owners: ids of the requests, as many as are kept.
        beside: it had a share of the cores, for others to run side by side with it.
        joining: seconds of it in which the requests' arrays became the run's.
        splitting: seconds of it in which the run's answers became the requests'.
    """

    requests: int
    rows: int
    tokens: int
    computed: int
    seconds: float
    owners: tuple[str, ...] = ()
    beside: bool = False
    joining: float = 0.0
    splitting: float = 0.0
