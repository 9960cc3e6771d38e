"""The dynamic batcher of one model: a bounded queue, and threads that run what waits in it.

It never waits while the model has nothing to do (unless ``delay`` says so): batches form of what comes while the model
is busy, which is when they are worth something. Threads take their next batch by themselves, so that a loop that is
busy with HTTP does not hold the model up.

A run that is alone has all cores. Where more waits than one run takes, several run side by side instead, each on cores
of its own: threads of one run wait for each other at every product, and for whichever of them had to give its core to
the event loop. While fewer rows wait than there are free cores, each of them goes the way that is over first.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.errors import MlOptError
from optimizer.serving.curve import Curve
from optimizer.serving.joining import Plan, choose
from optimizer.serving.priority import give_way
from optimizer.serving.problems import Problem
from optimizer.serving.tickets import Limits, Run, Ticket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["Batcher"]

#: How much the newest run counts in what is known of padding.
_FADES = 0.05

#: Ids of requests that a run remembers: a record of it has to stay small.
_OWNERS = 64


@dataclass(eq=False)
class _Lane:
    """A way to run the model, and how long that takes."""

    run: Callable[[Arrays], dict[str, Any]]
    curve: Curve = field(default_factory=Curve)


class Batcher:
    """The queue of one model. :meth:`submit_all` is for the event loop's thread alone.

    Args:
        run: ``run(feeds)`` → outputs, for a run that is alone; never called by two threads at once.
        plan: how requests are joined.
        limits: of queue and runs.
        name: of the threads.
        watch: is told of every run, on the event loop.
        beside: the same on a share of the cores, for runs side by side; called by as many threads at once.
        threads: so many. With one, ``beside`` is never called.
        told: makes of a runtime's message what a client may read.

    Attributes:
        always_beside: run as if more waited than one run takes; for those who want to see what ``beside`` answers.
    """

    def __init__(
        self,
        run: Callable[[Arrays], dict[str, Any]],
        plan: Plan,
        limits: Limits,
        name: str = "model",
        watch: Callable[[Run], None] | None = None,
        beside: Callable[[Arrays], dict[str, Any]] | None = None,
        threads: int = 1,
        told: Callable[[str], str] = str,
    ) -> None:
        self.plan = plan
        self._told = told
        self.limits = limits
        self.always_beside = False
        self._alone_lane = _Lane(run)
        self._beside_lane = _Lane(beside) if beside is not None and threads > 1 else self._alone_lane
        self._watch = watch
        self._waiting: list[Ticket] = []
        self._rows = self._tokens = 0  # of those that wait and were not dropped
        #: Thread → what it runs: tokens, padding included, since when, and how.
        self._running: dict[int, tuple[int, float, _Lane]] = {}
        self._waste = 1.0  # tokens computed for each that was asked, of late
        self._closed = self._held = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        # Waits without a line of Python: a thread that still works on going to sleep keeps the loop from the answers.
        # Each waits by itself, and the last to do so is woken first: its core still knows the model.
        self._woken: list[queue.SimpleQueue[None]] = []
        self._idle: list[int] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"batcher {name}", daemon=True)
            for number in range(threads if self.lanes > 1 else 1)
        ]
        self._woken += [queue.SimpleQueue() for _ in self._threads]
        for thread in self._threads:
            thread.start()

    # ---------------------------------------------------------------- on the event loop

    @property
    def lanes(self) -> int:
        """In how many ways the model is run: alone, and beside others."""
        return 1 if self._beside_lane is self._alone_lane else 2

    @property
    def threads(self) -> int:
        """How many runs there may be at once."""
        return len(self._threads)

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self._rows

    def predicted(self) -> float:
        """Seconds until a request that came now would begin, by what runs have taken so far."""
        with self._lock:
            left = self._left()
        running = min(left) if len(left) == self.threads else 0.0
        if not self._tokens:
            return running
        lane = self._beside_lane
        tokens, budget = self._tokens * self._waste, self._budget(lane)
        runs = max(1.0, tokens / budget, self._rows / self.limits.rows)
        return running + runs * lane.curve.seconds(tokens / runs) / self.threads

    def begin_with(self, limits: Limits, curve: Curve | None = None) -> None:
        """Keep to other limits, and to what is known of runs that are alone; before anybody asks."""
        with self._lock:
            self.limits = limits
            if curve is not None:
                self._alone_lane.curve = curve

    @property
    def longest_wait(self) -> float:
        """Seconds that a request may be predicted to wait; infinite where nobody has said."""
        limits = self.limits
        if limits.wait_s is None:
            return math.inf
        if limits.total_s is None:
            return limits.wait_s
        run = max(lane.curve.seconds(self._budget(lane)) for lane in (self._alone_lane, self._beside_lane))
        return max(limits.wait_s, limits.total_s - run)

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
        if wait > self.longest_wait:
            raise _busy(f"the wait is predicted to be {wait:.3f} s, too long for --slo", wait, "slo")
        if time.perf_counter() + wait > deadline:
            raise _busy(f"the wait is predicted to be {wait:.2f} s, beyond this request's time", wait, "deadline")

    def pieces(self, feeds: Arrays) -> tuple[int, list[dict[str, Any]]]:
        """A request as requests that no run is too small for, by rows; one row is never too large.

        Returns:
            rows of the request, and its pieces.

        Raises:
            Problem: 400: its rows are longer than the model takes.
        """
        size, plan = self.plan.size(feeds), self.plan
        if plan.longest and size.length > plan.longest:
            message = f"a row has {size.length} steps, and the model takes at most {plan.longest}"
            raise Problem(400, message, param="inputs", code="too_long")
        rows = max(1, min(self.limits.rows, self.limits.tokens // plan.padded(size.length)))
        if not plan.joins or size.rows <= rows:
            return size.rows, [dict(feeds)]
        starts = range(0, size.rows, rows)
        return size.rows, [{name: array[at : at + rows] for name, array in feeds.items()} for at in starts]

    def submit_all(self, requests: Sequence[Arrays], deadline: float = math.inf, owner: str = "") -> list[Ticket]:
        """Put requests into the queue at once, all or none; raises as :meth:`need_room` does."""
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """No run begins inside: for those who want to see who shares one, however they come."""
        with self._lock:
            self._held = True
        try:
            yield
        finally:
            with self._lock:
                self._held = False
                for _ in self._threads:
                    self._wake()

    def _wake(self) -> None:
        """Let a thread look at the queue again, if one waits; the lock is held."""
        if self._idle:
            self._woken[self._idle.pop()].put(None)

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            ticket.dropped = True
            self._count_waiting()

    def _count_waiting(self) -> None:
        """Anew, where some have left: counted at every change, as everyone who comes asks. The lock is held."""
        sizes = [ticket.size for ticket in self._waiting if not ticket.dropped]
        self._rows, self._tokens = sum(size.rows for size in sizes), sum(size.tokens for size in sizes)

    def close(self) -> None:
        """Answer what waits with 503, and end the threads when their runs are over."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._count_waiting()
            for _ in self._threads:
                self._wake()
        self._deliver([(ticket, Problem(503, "the model is being unloaded", reason="unloading")) for ticket in left])

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the threads have ended, or so long; whether they have. Not for the event loop's thread."""
        end = None if seconds is None else time.perf_counter() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.perf_counter()))
        return not any(thread.is_alive() for thread in self._threads)

    def _deliver(self, outcomes: list[tuple[Ticket, Any]], run: Run | None = None) -> None:
        for ticket, outcome in outcomes:
            if ticket.answer.done():
                continue
            if isinstance(outcome, Exception):
                ticket.answer.set_exception(outcome)
            else:
                ticket.answer.set_result(outcome)
        if run is not None and self._watch is not None:
            self._loop.call_soon(self._watch, run)  # whoever waits for an answer goes first

    # ---------------------------------------------------------------- in the threads

    def _work(self, me: int) -> None:
        give_way()
        while (taken := self._take(me)) is not None:
            late, batch, lane = taken
            run, outcomes = self._ran(batch, lane) if batch else (None, [])
            outcomes += [(ticket, Problem(504, "its time was over before it began", reason="late")) for ticket in late]
            try:
                self._loop.call_soon_threadsafe(self._deliver, outcomes, run)
            except RuntimeError:  # the loop is closed: nobody waits for answers any more
                return

    def _take(self, me: int) -> tuple[list[Ticket], list[Ticket], _Lane] | None:
        """Those that are too late, those that run next, and how; None when the batcher is closed."""
        while True:
            rest = None
            with self._lock:
                self._running.pop(me, None)
                if self._closed:
                    return None
                if self._waiting and not self._held and (rest := self._worth_waiting()) <= 0:
                    if self._worth_beside():
                        picked = self._picked(me)
                        if self._waiting:
                            self._wake()
                        return picked
                    rest = None  # whoever runs looks at the queue when that is over
                self._idle.append(me)
            try:
                self._woken[me].get(timeout=rest)
            except queue.Empty:
                with self._lock:
                    if me in self._idle:
                        self._idle.remove(me)
                    else:  # it was woken just now
                        self._woken[me].get()

    def _worth_waiting(self) -> float:
        """Seconds that the oldest may still wait for others; none when a batch is full."""
        if not self.limits.delay or self._rows >= self.limits.rows:
            return 0.0
        return self._waiting[0].arrived + self.limits.delay - time.perf_counter()

    def _worth_beside(self) -> bool:
        """Whether to run now beside what runs, and not with all cores when that is over; the lock is held."""
        if not self._running or self._rows >= self.threads - len(self._running):
            return True
        tokens = self._tokens * self._waste
        beside = self._beside_lane.curve.seconds(tokens / max(1, self._rows))
        return beside <= max(self._left()) + self._alone_lane.curve.seconds(tokens)

    def _left(self) -> list[float]:
        """Of each run that is under way, the seconds that it is predicted to take yet; the lock is held."""
        now = time.perf_counter()
        return [max(0.0, lane.curve.seconds(n) - (now - began)) for n, began, lane in self._running.values()]

    def _picked(self, me: int) -> tuple[list[Ticket], list[Ticket], _Lane]:
        now = time.perf_counter()
        alive = [ticket for ticket in self._waiting if not ticket.dropped]
        late = [ticket for ticket in alive if ticket.deadline < now]
        alive = [ticket for ticket in alive if ticket.deadline >= now] if late else alive
        sizes = [self.plan.as_run(ticket.size) for ticket in alive]
        lane, most = self._alone_lane, self.limits.rows
        rows, longest = sum(size.rows for size in sizes), max((size.length for size in sizes), default=0)
        one_run = rows <= most and rows * longest <= self._budget(lane)
        if self._running or self.always_beside or not one_run:
            lane = self._beside_lane
            # Every thread that is free gets its part.
            most = min(most, -(-rows // (self.threads - len(self._running))))
        places = choose(sizes, most, self._budget(lane), lane.curve.overhead) if alive else []
        batch = [alive[place] for place in places]
        chosen = [sizes[place] for place in places]
        picked = set(places)
        self._waiting = [ticket for place, ticket in enumerate(alive) if place not in picked]
        self._count_waiting()
        if chosen:
            self._running[me] = (sum(size.rows for size in chosen) * max(size.length for size in chosen), now, lane)
        return late, batch, lane

    def _budget(self, lane: _Lane) -> int:
        """Tokens of the next run: what is allowed, or what fits into the time that a run should take."""
        if self.limits.run_s is None:
            return self.limits.tokens
        return int(max(1, min(self.limits.tokens, lane.curve.tokens(self.limits.run_s))))

    def _ran(self, batch: list[Ticket], lane: _Lane) -> tuple[Run, list[tuple[Ticket, Any]]]:
        """One run, and what each of its requests is answered."""
        sizes = [ticket.size for ticket in batch]
        start = joined = time.perf_counter()
        ran = 0.0
        for ticket in batch:
            ticket.begun, ticket.mates = start, len(batch)
        try:
            feeds = self.plan.join([t.feeds for t in batch])
            joined = time.perf_counter()
            outputs = lane.run(feeds)
            ran = time.perf_counter()
            answers: list[Any] = self.plan.split(outputs, sizes)
        except Exception as error:
            # One of them may be at fault: each is asked alone, so that only that one fails.
            one = len(batch) == 1
            answers = [self._problem(error)] if one else [self._asked_alone(lane, ticket) for ticket in batch]
        end = time.perf_counter()
        seconds = end - start
        rows = sum(size.rows for size in sizes)
        computed = rows * self.plan.padded(max(size.length for size in sizes))
        tokens = sum(size.tokens for size in sizes)
        with self._lock:
            lane.curve.add(computed, seconds)
            self._waste += _FADES * (computed / max(1, tokens) - self._waste)
        owners = tuple(ticket.owner for ticket in batch[:_OWNERS])
        run = Run(
            len(batch), rows, tokens, computed, seconds, owners, lane is not self._alone_lane,
            joining=joined - start, splitting=end - ran if ran else 0.0,
        )  # fmt: skip
        for ticket in batch:
            ticket.seconds, ticket.run = seconds, run
        return run, list(zip(batch, answers, strict=True))

    def _asked_alone(self, lane: _Lane, ticket: Ticket) -> Any:
        try:
            return dict(lane.run(ticket.feeds))
        except Exception as error:
            return self._problem(error)

    def _problem(self, error: Exception) -> Problem:
        """What a run that failed is to the client; a bug's own words are for the log."""
        if isinstance(error, MlOptError):
            # The arrays were compared with the inputs before: what the model still refuses is in their values.
            return Problem(400 if error.exit_code == 2 else 500, self._told(error.message), reason="model")
        problem = Problem(500, "the model failed to answer this request", reason="model")
        problem.__cause__ = error
        return problem


def _busy(message: str, wait: float, reason: str) -> Problem:
    after = max(0.001, wait)
    headers = {"Retry-After": str(math.ceil(after)), "Retry-After-Ms": str(math.ceil(after * 1000))}
    return Problem(429, message, headers, reason=reason)
