"""Queries that arrive by a schedule, whether or not the ones before are answered: MLPerf's Server scenario.

A closed loop sends the next query when the last one is answered, so that a server that stalls for a second is asked
nothing during it, and one slow sample stands for the hundred queries that would have waited: Gil Tene's *coordinated
omission* (*How NOT to Measure Latency*, 2015). Here arrivals are drawn before the run, and the latency of a query
counts from the moment it was **scheduled** for, as MLPerf's rules have it (*Inference Rules*, "Scenarios").

The queue is first come, first served, with one server a stream and no bound. Such a queue needs no thread that fills
it: each stream takes the next query off the schedule, waits for its time if that has not come, and answers it. Queries
whose time has come before a stream is free have waited in the queue for exactly as long as they would have with a
thread that puts them there (Lindley, *The theory of queues with a single server*, 1952), and nothing runs beside the
model but the model.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from optimizer.types import JSON

__all__ = ["Clock", "OpenLoop", "Served", "SystemClock", "arrivals", "drive", "judge", "precise_timers", "queue_max"]

#: A query counts as late when it was issued later than this share of the median latency after it could have been.
_LATE = 0.10
#: Of so many queries one may be late, or part of so many: 1 in 100, below which a 99th percentile still holds.
_LATE_ONE_IN = 100
#: Nanoseconds before a query's time at which one stream stops sleeping and watches the clock.
_SPIN_NS = 300_000
_PR_SET_TIMERSLACK = 29


class Clock(Protocol):
    """Time in nanoseconds, from any beginning."""

    def now(self) -> int:
        """What time it is."""

    def wait_until(self, when: int) -> None:
        """Return at that time, or at once when it has passed."""


class SystemClock:
    """The monotonic clock. Sleeping overshoots by 20 to 100 µs, so that the last stretch is spent watching the clock.

    Args:
        spin_ns: how long that stretch is; 0 where the core, or Python's lock, is wanted by another stream meanwhile.
    """

    def __init__(self, spin_ns: int = _SPIN_NS) -> None:
        self._spin_ns = spin_ns
        self.now = time.perf_counter_ns

    def wait_until(self, when: int) -> None:
        """Sleep, then watch the clock."""
        while (left := when - self.now() - self._spin_ns) > 0:
            time.sleep(left / 1e9)
        while self.now() < when:
            pass


def precise_timers() -> None:
    """Ask Linux not to delay this thread's timers, nor those of threads that it starts, by the usual 50 µs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)


def arrivals(qps: float, count: int, seed: int | str) -> list[int]:
    """When queries arrive: a Poisson process, whose gaps are exponential.

    Args:
        qps: queries a second in the mean.
        count: how many.
        seed: the same seed gives the same times, in every version of Python.

    Returns:
        nanoseconds from the beginning, ascending; the first one is a gap after it.
    """
    drawn = random.Random(seed)
    at, times = 0.0, []
    for _ in range(count):
        at -= math.log(1.0 - drawn.random()) / qps
        times.append(round(at * 1e9))
    return times


@dataclass(frozen=True)
class Served:
    """One run of a schedule, in nanoseconds from its beginning; one entry a query, in the order of the schedule.

    Attributes:
        scheduled: when it arrived.
        issued: when it was sent.
        done: when it was answered.
        lag: how much later it was issued than it could have been: than its time, or than a stream was free for it.
            This much of its latency is the measurement's fault.
    """

    scheduled: list[int]
    issued: list[int]
    done: list[int]
    lag: list[int]

    @property
    def latency(self) -> list[int]:
        """From the scheduled time to the answer, waiting included."""
        return [done - due for due, done in zip(self.scheduled, self.done, strict=True)]

    @property
    def busy(self) -> int:
        """Time spent answering, over all streams."""
        return sum(self.done) - sum(self.issued)

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))


def drive(scheduled: Sequence[int], calls: Sequence[Callable[[], object]], clock: Clock) -> Served:
    """Answer every query of a schedule, with one stream for each of the calls.

    Args:
        scheduled: nanoseconds from the beginning, ascending.
        calls: what answers a query, one a stream; each is called by one thread only.
        clock: whose time it is.

    Raises:
        Exception: whatever a call raises, after the other streams have answered what they had begun.
    """
    count = len(scheduled)
    served = Served(list(scheduled), [0] * count, [0] * count, [0] * count)
    # A deque's ends are safe to share between threads: whichever stream is free first gets the next query.
    waiting = deque(range(count))
    start = clock.now()

    def take() -> int | None:
        try:
            return waiting.popleft()
        except IndexError:
            return None

    def stream(call: Callable[[], object]) -> None:
        free = 0
        while (place := take()) is not None:
            clock.wait_until(start + scheduled[place])
            issued = clock.now() - start
            try:
                call()
            except BaseException:
                waiting.clear()  # the other streams end with what they have begun
                raise
            done = clock.now() - start
            served.issued[place], served.done[place] = issued, done
            served.lag[place] = issued - max(scheduled[place], free)
            free = done

    if len(calls) == 1:
        stream(calls[0])
        return served
    with ThreadPoolExecutor(len(calls)) as pool:
        for running in [pool.submit(stream, call) for call in calls]:
            running.result()
    return served


def queue_max(scheduled: Sequence[int], issued: Sequence[int]) -> int:
    """The longest that the queue ever was: queries whose time had come and that had not been sent."""
    sent = sorted(issued)
    return max((place + 1 - bisect.bisect_right(sent, due) for place, due in enumerate(scheduled)), default=0)


@dataclass(frozen=True)
class OpenLoop:
    """How the arrivals of one candidate at one shape went, over all rounds.

    Attributes:
        qps: queries a second that were asked for.
        scheduled_qps: what the drawn schedules came to, which differs from that by chance.
        achieved_qps: answers a second, from the beginning of a round to its last answer.
        queries: how many.
        lag_ms: ``p50``, ``p99`` and ``max`` of how late queries were issued.
        queue_max: the most queries that waited at once.
        load: share of the time that the streams were answering; None where what answers is out of sight.
        streams: queries answered at once; None where that is not known.
        reason: why nothing should be made of the latencies; empty when they are valid.
        errors: queries without an answer, by what came instead; their time is in no latency.
        more: what else was measured, by name: percentiles in milliseconds.
    """

    qps: float
    scheduled_qps: float
    achieved_qps: float
    queries: int
    lag_ms: dict[str, float]
    queue_max: int
    load: float | None = None
    streams: int | None = None
    reason: str = ""
    errors: dict[str, int] = field(default_factory=dict)
    more: dict[str, JSON] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether the latencies are those of the candidate, at the rate that was asked for."""
        return not self.reason

    def sentences(self) -> list[str]:
        """Of a server: what came instead of answers, and the times within streamed ones; empty without either."""
        said = []
        if self.errors:
            said.append("without an answer: " + ", ".join(f"{count} {name}" for name, count in self.errors.items()))
        for name, title in (("ttft_ms", "to the first token"), ("itl_ms", "between tokens")):
            if times := self.more.get(name):
                said.append(f"{title}: " + ", ".join(f"{at} {value:.3g} ms" for at, value in times.items()))
        return said

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "valid": self.valid}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OpenLoop:
        return cls(**{name: value for name, value in data.items() if name != "valid"})


def judge(rounds: Sequence[Served], qps: float, streams: int | None) -> OpenLoop:
    """Sum up the rounds of one candidate, and say whether their latencies are valid.

    They are not when

    - more than 1 query in 100 (of fewer, more than one) was issued later than a tenth of the median latency after
      it could have been: the generator, and not the candidate, is what was measured; or
    - more was offered than can be answered, as then the queue grows for as long as the run lasts and latency says how
      long that was. Where the streams are in sight: the rate times the mean time of an answer is no less than the
      number of streams, which is where a queue stops having a steady state (Kleinrock, *Queueing Systems*, vol. 1,
      §1.7). Where they are not: by the end of a round of n queries, answers are behind by more than 2/√n of the
      time, the fastest answer aside. A queue that is offered exactly what it can answer is a random walk, which falls
      behind by less than that 95 times in 100.

    Args:
        rounds: at least one, each with at least one query.
        qps: queries a second that were asked for.
        streams: queries answered at once; None where that is not known.
    """
    import numpy as np

    queries = sum(len(served.scheduled) for served in rounds)
    lag = np.concatenate([np.asarray(served.lag, np.float64) for served in rounds])
    latency = np.concatenate([np.asarray(served.latency, np.float64) for served in rounds])
    scheduled_s = sum(served.scheduled[-1] for served in rounds) / 1e9
    took_s = sum(max(served.done) for served in rounds) / 1e9
    load = qps * sum(served.busy for served in rounds) / 1e9 / queries / streams if streams else None
    behind = (took_s - scheduled_s - len(rounds) * float(latency.min()) / 1e9) / scheduled_s
    late = int(np.count_nonzero(lag > _LATE * np.median(latency)))
    reason = ""
    if load is not None and load >= 1:
        reason = f"overloaded: {qps:g} queries a second are {load:.2f} times what it can answer"
    elif load is None and behind > 2 / math.sqrt(queries / len(rounds)):
        reason = f"overloaded: asked {queries / scheduled_s:.4g} times a second, it answered {queries / took_s:.4g}"
    elif late > math.ceil(queries / _LATE_ONE_IN):
        reason = f"the generator was late: {late} of {queries} queries by more than {_LATE:.0%} of the median latency"
    return OpenLoop(
        qps=qps,
        scheduled_qps=queries / scheduled_s,
        achieved_qps=queries / took_s,
        queries=queries,
        lag_ms={
            "p50": float(np.median(lag)) / 1e6,
            "p99": float(np.percentile(lag, 99)) / 1e6,
            "max": float(lag.max()) / 1e6,
        },
        queue_max=max(queue_max(served.scheduled, served.issued) for served in rounds),
        load=load,
        streams=streams,
        reason=reason,
    )
