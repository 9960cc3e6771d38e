"""The dynamic batcher of one model: a bounded queue, and a thread that runs what waits in it.

It never waits while the model has nothing to do (unless ``delay`` says so): batches form of what comes while the model
is busy, which is when they are worth something. The thread takes its next batch by itself, so that a loop that is busy
with HTTP does not hold the model up.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.errors import MlOptError
from optimizer.serving.curve import Curve
from optimizer.serving.joining import Plan, Size, choose
from optimizer.serving.priority import give_way
from optimizer.serving.problems import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["Batcher", "Limits", "Run", "Ticket"]

#: How much the newest run counts in what is known of padding.
_FADES = 0.05

#: Ids of requests that a run remembers: a record of it has to stay small.
_OWNERS = 64


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
    """

    queue: int = 256
    rows: int = 32
    tokens: int = 2048
    delay: float = 0.0
    run_s: float | None = None
    wait_s: float | None = None


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
    """

    requests: int
    rows: int
    tokens: int
    computed: int
    seconds: float
    owners: tuple[str, ...] = ()


class Batcher:
    """The queue of one model. :meth:`submit` is for the event loop's thread alone.

    Args:
        run: ``run(feeds)`` → outputs; called from one thread.
        plan: how requests are joined.
        limits: of queue and runs.
        name: of the thread.
        watch: is told of every run, on the event loop.
    """

    def __init__(
        self,
        run: Callable[[Arrays], dict[str, Any]],
        plan: Plan,
        limits: Limits,
        name: str = "model",
        watch: Callable[[Run], None] | None = None,
    ) -> None:
        self.plan = plan
        self.limits = limits
        self.sizes: Counter[int] = Counter()
        self._run = run
        self._watch = watch
        self._waiting: list[Ticket] = []
        self._rows = self._tokens = 0  # of those that wait and were not dropped
        self._busy = 0  # tokens that run now, padding included
        self._began = 0.0
        self._waste = 1.0  # tokens computed for each that was asked, of late
        self._curve = Curve()
        self._closed = False
        self._lock = threading.Lock()
        # Waits without a line of Python: a thread that still works on going to sleep keeps the loop from the answers.
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"batcher {name}", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- on the event loop

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self._rows

    def predicted(self) -> float:
        """Seconds until a request that came now would begin, by what runs have taken so far."""
        running = max(0.0, self._curve.seconds(self._busy) - (time.perf_counter() - self._began)) if self._busy else 0.0
        if not self._tokens:
            return running
        tokens, budget = self._tokens * self._waste, self._budget()
        runs = max(1.0, tokens / budget, self._rows / self.limits.rows)
        return running + runs * self._curve.seconds(tokens / runs)

    def need_room(self, rows: int, deadline: float = math.inf) -> None:
        """Refuse before work is put into a request that has no place.

        Raises:
            Problem: 413: more rows than the queue ever takes; 429: it is full, or nothing would be answered before
                ``deadline`` (by ``time.perf_counter()``), with the seconds after which it is worth coming again.
        """
        limit = self.limits.queue
        if rows > limit:
            raise Problem(413, f"{rows} rows are more than the queue takes: {limit} (--max-queue)", reason="too_large")
        wait = self.predicted()
        if (depth := self.depth) + rows > limit:
            raise _busy(f"the queue is full: {depth} of {limit} rows wait", wait, "queue_full")
        if self.limits.wait_s is not None and wait > self.limits.wait_s:
            raise _busy(f"the wait is predicted to be {wait:.3f} s, too long for --slo", wait, "slo")
        if time.perf_counter() + wait > deadline:
            raise _busy(f"the wait is predicted to be {wait:.2f} s, beyond this request's time", wait, "deadline")

    def submit(self, feeds: Arrays, deadline: float = math.inf, owner: str = "") -> Ticket:
        """Put a request into the queue; raises as :meth:`need_room` does."""
        (ticket,) = self.submit_all([feeds], deadline, owner)
        return ticket

    def submit_all(self, requests: Sequence[Arrays], deadline: float = math.inf, owner: str = "") -> list[Ticket]:
        """Put several into the queue at once, all or none; raises as :meth:`need_room` does."""
        sizes = [self.plan.size(feeds) for feeds in requests]
        self.need_room(sum(size.rows for size in sizes), deadline)
        tickets = [
            Ticket(feeds, size, deadline, self._loop.create_future(), owner=owner, leave=self._leave)
            for feeds, size in zip(requests, sizes, strict=True)
        ]
        with self._lock:
            if self._closed:
                raise Problem(503, "the model is being unloaded", reason="unloading")
            self._waiting += tickets
            self._rows += sum(size.rows for size in sizes)
            self._tokens += sum(size.tokens for size in sizes)
            self._wake()
        return tickets

    def _wake(self) -> None:
        """Let the thread look at the queue again, if it waits; the lock is held."""
        if self._idle:
            self._idle = False
            self._woken.put(None)

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            ticket.dropped = True
            self._count_waiting()

    def _count_waiting(self) -> None:
        """Anew, where some have left: counted at every change, as everyone who comes asks. The lock is held."""
        sizes = [ticket.size for ticket in self._waiting if not ticket.dropped]
        self._rows, self._tokens = sum(size.rows for size in sizes), sum(size.tokens for size in sizes)

    def close(self) -> None:
        """Answer what waits with 503, and end the thread when its run is over."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._count_waiting()
            self._wake()
        self._deliver([(ticket, Problem(503, "the model is being unloaded", reason="unloading")) for ticket in left])

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the thread has ended, or so long; whether it has. For another thread than the event loop's."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _deliver(self, outcomes: list[tuple[Ticket, Any]], run: Run | None = None) -> None:
        for ticket, outcome in outcomes:
            if ticket.answer.done():
                continue
            if isinstance(outcome, Exception):
                ticket.answer.set_exception(outcome)
            else:
                ticket.answer.set_result(outcome)
        if run is not None:
            self.sizes[run.rows] += 1
            if self._watch is not None:
                self._loop.call_soon(self._watch, run)  # whoever waits for an answer goes first

    # ---------------------------------------------------------------- in the thread

    def _work(self) -> None:
        give_way()
        while (taken := self._take()) is not None:
            late, batch = taken
            run, outcomes = self._ran(batch) if batch else (None, [])
            outcomes += [(ticket, Problem(504, "its time was over before it began", reason="late")) for ticket in late]
            try:
                self._loop.call_soon_threadsafe(self._deliver, outcomes, run)
            except RuntimeError:  # the loop is closed: nobody waits for answers any more
                return

    def _take(self) -> tuple[list[Ticket], list[Ticket]] | None:
        """Those that are too late and those that run next; None when the batcher is closed."""
        while True:
            rest = None
            with self._lock:
                self._busy = 0
                if self._closed:
                    return None
                if self._waiting and (rest := self._worth_waiting()) <= 0:
                    return self._picked()
                self._idle = True
            with contextlib.suppress(queue.Empty):
                self._woken.get(timeout=rest)

    def _worth_waiting(self) -> float:
        """Seconds that the oldest may still wait for others; none when a batch is full."""
        if not self.limits.delay or sum(t.size.rows for t in self._waiting) >= self.limits.rows:
            return 0.0
        return self._waiting[0].arrived + self.limits.delay - time.perf_counter()

    def _picked(self) -> tuple[list[Ticket], list[Ticket]]:
        now = time.perf_counter()
        alive = [ticket for ticket in self._waiting if not ticket.dropped]
        late = [ticket for ticket in alive if ticket.deadline < now]
        alive = [ticket for ticket in alive if ticket.deadline >= now] if late else alive
        sizes = [ticket.size for ticket in alive]
        places = choose(sizes, self.limits.rows, self._budget(), self._curve.overhead) if alive else []
        batch = [alive[place] for place in places]
        chosen = [ticket.size for ticket in batch]
        picked = set(places)
        self._waiting = [ticket for place, ticket in enumerate(alive) if place not in picked]
        self._count_waiting()
        self._busy = sum(size.rows for size in chosen) * max((size.length for size in chosen), default=0)
        self._began = now
        return late, batch

    def _budget(self) -> int:
        """Tokens of the next run: what is allowed, or what fits into the time that a run should take."""
        if self.limits.run_s is None:
            return self.limits.tokens
        return int(max(1, min(self.limits.tokens, self._curve.tokens(self.limits.run_s))))

    def _ran(self, batch: list[Ticket]) -> tuple[Run, list[tuple[Ticket, Any]]]:
        """One run, and what each of its requests is answered."""
        sizes = [ticket.size for ticket in batch]
        start = time.perf_counter()
        for ticket in batch:
            ticket.begun, ticket.mates = start, len(batch)
        try:
            answers: list[Any] = self.plan.split(self._run(self.plan.join([t.feeds for t in batch])), sizes)
        except Exception as error:
            # One of them may be at fault: each is asked alone, so that only that one fails.
            answers = [_problem(error)] if len(batch) == 1 else [self._alone(ticket) for ticket in batch]
        seconds = time.perf_counter() - start
        rows = sum(size.rows for size in sizes)
        computed = rows * max(size.length for size in sizes)
        self._curve.add(computed, seconds)
        tokens = sum(size.tokens for size in sizes)
        self._waste += _FADES * (computed / max(1, tokens) - self._waste)
        owners = tuple(ticket.owner for ticket in batch[:_OWNERS])
        run = Run(len(batch), rows, tokens, computed, seconds, owners)
        for ticket in batch:
            ticket.seconds, ticket.run = seconds, run
        return run, list(zip(batch, answers, strict=True))

    def _alone(self, ticket: Ticket) -> Any:
        try:
            return dict(self._run(ticket.feeds))
        except Exception as error:
            return _problem(error)


def _busy(message: str, wait: float, reason: str) -> Problem:
    after = max(0.001, wait)
    headers = {"Retry-After": str(math.ceil(after)), "Retry-After-Ms": str(math.ceil(after * 1000))}
    return Problem(429, message, headers, reason=reason)


def _problem(error: Exception) -> Problem:
    """What a run that failed is to the client; a bug's own words are for the log."""
    if isinstance(error, MlOptError):
        # The arrays were compared with the inputs before: what the model still refuses is in their values.
        return Problem(400 if error.exit_code == 2 else 500, error.message, reason="model")
    problem = Problem(500, "the model failed to answer this request", reason="model")
    problem.__cause__ = error
    return problem
