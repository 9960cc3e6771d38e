"""Waiting for answers while the client may hang up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimizer.serving.guard.connection import LINE, Line
from optimizer.serving.problems import Problem
from optimizer.serving.record import parts, unfinished

if TYPE_CHECKING:
    from optimizer.serving.call import Call
    from optimizer.serving.tickets import Ticket

__all__ = ["answers", "deadline"]

#: Most answers are there before this many seconds; only then does it pay to listen for the client going away.
_LISTEN_AFTER = 0.005


def deadline(call: Call, timeout: float | None = None) -> float:
    """When the request has to be answered, by ``time.perf_counter()``.

    Args:
        call: its header ``X-Request-Timeout`` may say the seconds.
        timeout: seconds that the body says; it comes before the header.

    Raises:
        Problem: 400: the header is no number of seconds.
    """
    if timeout is None and (said := call.request.headers.get("x-request-timeout")):
        try:
            timeout = float(said)
        except ValueError:
            timeout = 0.0
        if not 0 < timeout < float("inf"):
            raise Problem(400, f"X-Request-Timeout {said[:20]!r} is no number of seconds")
    usual = call.state.settings.deadline
    return time.perf_counter() + min(timeout or usual, usual)


async def answers(call: Call, tickets: Sequence[Ticket]) -> list[dict[str, Any]]:
    """The outputs of every ticket, in their order; a client that hangs up, or one that fails, takes all of them out.

    Raises:
        Problem: what the first that failed met; 499: the client hung up; 504: their time is over.
    """
    everything: asyncio.Future[Any] = tickets[0].answer
    if len(tickets) > 1:
        everything = asyncio.gather(*(ticket.answer for ticket in tickets))
    try:
        found = await _in_time(call, everything, min(ticket.deadline for ticket in tickets))
    except BaseException:
        unfinished(call, tickets)
        raise
    finally:
        for ticket in tickets:
            if not ticket.answer.done() or ticket.answer.cancelled():  # one that waits alone is cancelled by _in_time
                ticket.drop()
    first = max(tickets, key=lambda ticket: ticket.begun + ticket.seconds)
    call.times["queue"] = max(ticket.waited for ticket in tickets)
    call.times["compute"] = first.seconds
    call.notes["mates"] = first.mates
    call.runs = parts(tickets)
    return found if len(tickets) > 1 else [found]


async def _in_time(call: Call, everything: asyncio.Future[Any], end: float) -> Any:
    """The answer; :class:`Problem` 499 when the client goes away before it, 504 when its time is over."""
    loop = asyncio.get_running_loop()
    listening: list[asyncio.Task[None]] = []
    why: list[Problem] = []
    line: Line | None = call.request.scope.get("extensions", {}).get(LINE)

    def give_up(problem: Problem) -> None:
        why.append(problem)
        everything.cancel()

    def gone() -> None:
        if not everything.done():
            give_up(Problem(499, "the client hung up", reason="disconnected"))

    def listen() -> None:
        listening.append(asyncio.ensure_future(call.hung_up()))
        listening[0].add_done_callback(lambda task: None if task.cancelled() else gone())

    timers = []
    if line is None:  # not a connection of ours: another server's, or gRPC's
        timers.append(loop.call_later(_LISTEN_AFTER, listen))
    elif line.lost:
        gone()
    else:
        line.told.add(gone)
    if end < math.inf:
        late = Problem(504, "its time was over before it was answered", reason="late")
        timers.append(loop.call_later(end - time.perf_counter(), give_up, late))
    try:
        return await everything
    except asyncio.CancelledError:
        if why:
            raise why[0] from None
        raise
    finally:
        if line is not None:
            line.told.discard(gone)
        for timer in timers:
            timer.cancel()
        for task in listening:
            task.cancel()
