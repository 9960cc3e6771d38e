"""The open loop over HTTP: queries sent to a server at their scheduled times, however slowly it answers.

A thread that does nothing else waits for each time and wakes the event loop, whose own timers are a millisecond coarse;
the loop sends the query on a connection that is free, or on a new one: a limit on connections would be a queue of the
client's, and close the loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.benching.openloop import Served, SystemClock, precise_timers
from optimizer.benching.protocols import Query, Refused
from optimizer.errors import BadInput
from optimizer.types import JSON

__all__ = ["Sent", "ask", "errors_of", "send_all", "served", "streaming_of"]

#: Queries that are sent one after another before the schedule begins: connections, caches, compilation.
_WARM = 3


@dataclass
class Sent:
    """One query, in nanoseconds from the beginning of the schedule.

    Attributes:
        scheduled: when it should be sent.
        issued: when it was.
        done: when its last byte was there.
        tokens: when each piece of a streamed answer was there.
        error: what came instead of an answer; empty when there is one.
    """

    scheduled: int
    issued: int = 0
    done: int = 0
    tokens: list[int] = field(default_factory=list)
    error: str = ""


def served(sent: Sequence[Sent]) -> Served:
    """The answered ones among some queries, as an open loop."""
    good = [each for each in sent if not each.error]
    return Served(
        [each.scheduled for each in good],
        [each.issued for each in good],
        [each.done for each in good],
        [each.issued - each.scheduled for each in good],
    )


def ask(url: str, path: str, timeout: float) -> Any:
    """What a server answers to one GET, as JSON; None for an empty answer.

    Raises:
        BadInput: there is no server, or it answers with an error.
    """
    import aiohttp

    async def get() -> Any:
        limit = aiohttp.ClientTimeout(total=timeout)
        async with aiohttp.ClientSession(timeout=limit) as session, session.get(url + path) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise BadInput(f"{url}{path} answers HTTP {answer.status}: {text[:200]}", "is the model loaded?")
            return await answer.json(content_type=None) if text.strip() else None

    try:
        return asyncio.run(get())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise BadInput(
            f"no server answers at {url}{path}: {type(error).__name__} {error}", "write its address as http://HOST:PORT"
        ) from None


def send_all(
    url: str, queries: Sequence[Query], scheduled: Sequence[int], timeout: float
) -> tuple[list[int], list[Sent]]:
    """Send queries by a schedule, each one of those given, in turn.

    Args:
        url: of the server, without a path.
        queries: at least one.
        scheduled: nanoseconds from the beginning, ascending.
        timeout: seconds after which a query counts as unanswered.

    Returns:
        nanoseconds of the queries before the schedule, and one entry for each time of it.

    Raises:
        BadInput: the server does not answer the first query of all.
    """
    return asyncio.run(_send_all(url, queries, scheduled, timeout))


async def _send_all(
    url: str, queries: Sequence[Query], scheduled: Sequence[int], timeout: float
) -> tuple[list[int], list[Sent]]:
    import aiohttp

    clock, loop = SystemClock(spin_ns=0), asyncio.get_running_loop()
    sent = [Sent(due) for due in scheduled]
    tasks: list[asyncio.Task[None]] = []
    all_issued = asyncio.Event()
    limit = aiohttp.ClientTimeout(total=timeout)
    async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
        warm = [await _warm(session, url, queries[place % len(queries)]) for place in range(_WARM)]
        start = clock.now()

        def issue(place: int) -> None:
            tasks.append(loop.create_task(_send(session, url, queries[place % len(queries)], sent[place], start)))
            if place == len(sent) - 1:
                all_issued.set()

        def pace() -> None:
            precise_timers()
            for place, due in enumerate(scheduled):
                clock.wait_until(start + due)
                loop.call_soon_threadsafe(issue, place)

        threading.Thread(target=pace, daemon=True).start()
        await all_issued.wait()
        await asyncio.gather(*tasks)
    return warm, sent


async def _warm(session: Any, url: str, query: Query) -> int:
    before = Sent(0)
    await _send(session, url, query, before, time.perf_counter_ns(), says=200)
    if before.error:
        raise BadInput(f"{url}{query.path} answers the first query with {before.error}", query.hint)
    return before.done


async def _send(session: Any, url: str, query: Query, sent: Sent, start: int, says: int = 0) -> None:
    """One query: its times, or the name of what went wrong, with so many letters of what the server says of it."""
    import aiohttp

    sent.issued = time.perf_counter_ns() - start
    try:
        async with session.post(url + query.path, data=query.body, headers=query.headers) as answer:
            if answer.status != 200:
                detail = (await answer.text())[:says]
                raise Refused(f"HTTP {answer.status}" + (f": {detail}" if detail else ""))
            await query.read(answer, lambda: sent.tokens.append(time.perf_counter_ns() - start))
    except Refused as refused:
        sent.error = str(refused)
    except TimeoutError:
        sent.error = "timeout"
    except (aiohttp.ClientError, OSError) as error:
        sent.error = type(error).__name__
    sent.done = time.perf_counter_ns() - start


def errors_of(sent: Sequence[Sent]) -> dict[str, int]:
    """How often each thing came in the place of an answer."""
    names = [each.error for each in sent if each.error]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def streaming_of(sent: Sequence[Sent]) -> dict[str, JSON]:
    """Of streamed answers: milliseconds to the first piece (from the scheduled time) and between pieces; else empty."""
    from optimizer.benching.stats import summarize

    good = [each for each in sent if not each.error and each.tokens]
    if not good:
        return {}
    first = summarize([[each.tokens[0] - each.scheduled for each in good]])
    found: dict[str, JSON] = {"ttft_ms": {"p50": first.p50_ms, **first.percentiles_ms}}
    gaps = [later - sooner for each in good for sooner, later in zip(each.tokens, each.tokens[1:], strict=False)]
    if gaps:
        between = summarize([gaps])
        found["itl_ms"] = {"p50": between.p50_ms, **between.percentiles_ms}
    found["pieces"] = sum(len(each.tokens) for each in good)
    return found
