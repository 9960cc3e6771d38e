"""What is kept of the last requests, so that one can be asked about: where its time went, and with whom it ran.

Nothing of what was asked or answered is kept: no text, no tensor, no body. A record is made of what the request left
behind anyway, once it is over, and is put into words only when somebody asks (:mod:`optimizer.serving.explaining`).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from optimizer.serving.guard.scopes import ANYBODY, STRANGER

if TYPE_CHECKING:
    from optimizer.serving.call import Call
    from optimizer.serving.route import Route
    from optimizer.serving.tickets import Run, Ticket

__all__ = ["ASKED_AT", "RECENT", "REFUSED", "SLOWEST", "Part", "Record", "Records", "parts", "unfinished"]

#: Where it is asked about requests.
ASKED_AT = "/v2/requests"
#: Answered requests that are kept, the newest.
RECENT = 1000
#: Requests that were refused or failed, the newest: in a ring of their own, so that they push nothing else out.
REFUSED = 1000
#: Answered requests that are kept because none took longer since the server began.
SLOWEST = 100
#: Runs that are kept of one request; only one with more rows than a run takes has several.
_RUNS = 32
_LONGEST = 300
#: Notes that are kept of a request that was refused or failed, beside what went wrong.
_NOTES = ("reason", "mates", "prompt_tokens", "tokens", "trace")


class Part(NamedTuple):
    """What a request was of one run: how many of its rows and tokens were in it."""

    run: Run
    rows: int
    tokens: int


class Record(NamedTuple):
    """One request that is over.

    Attributes:
        id: of the request.
        at: when it was over, in seconds since 1970.
        seconds: that it took, from head to the end of its answer.
        status: of HTTP; 499 where the client had gone.
        endpoint: the path of its route, with the names of its parts.
        model: that was asked; empty where none was.
        version: of the model.
        ref: what was loaded for it.
        provider: what computed.
        who: who asked, as the log has it; empty where nobody has to say.
        times: part → seconds.
        notes: what else the log says: tokens, and why it was refused.
        runs: the runs that it shared.
    """

    id: str
    at: float
    seconds: float
    status: int
    endpoint: str
    model: str
    version: str
    ref: str
    provider: str
    who: str
    times: Mapping[str, float]
    notes: Mapping[str, Any]
    runs: Sequence[Part]


class Records:
    """The last requests, bounded in number: 1,000 answered ones, 1,000 refused ones, and the 100 slowest."""

    def __init__(self) -> None:
        self._recent: deque[Record] = deque(maxlen=RECENT)
        self._refused: deque[Record] = deque(maxlen=REFUSED)
        self._slowest: list[tuple[float, int, Record]] = []  # a heap; the number decides between equal times
        self._number = itertools.count()

    def add(self, call: Call, route: Route, status: int, seconds: float) -> None:
        """Keep what a request left behind. On the event loop, after its answer was sent.

        Requests that only look (health, metrics, lists) are not kept where they were answered: scrapes and probes
        would push out what somebody asks about.
        """
        if route.path.startswith(ASKED_AT):
            return  # asked of several workers in turn, most of which know nothing of the request
        asks = "POST" in route.methods
        refused = "error" in call.notes or (asks and status >= 400)
        if not refused and not asks:
            return
        served = call.answering
        ref, provider = ("", "") if served is None else (served.ref, str(served.facts.get("provider", "")))
        notes = _short(call.notes) if refused else call.notes
        caller = call.admitted.who
        who = "" if caller in (ANYBODY, STRANGER) else caller.id
        record = Record(call.id, time.time(), seconds, status, route.path, call.model, call.version, ref, provider,
                        who, call.times, notes, call.runs)  # fmt: skip
        if refused:
            self._refused.append(record)
            return
        self._recent.append(record)
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, (seconds, next(self._number), record))
        elif seconds > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, (seconds, next(self._number), record))

    def find(self, id: str) -> tuple[Record, int] | None:
        """The newest request of an id, and how many are kept under it (a client chooses its ids); None for none."""
        found = {(record.at, record.seconds): record for record in self if record.id == id}
        return (found[max(found)], len(found)) if found else None

    def slowest(self, most: int) -> list[Record]:
        """Those that took longest, the slowest first."""
        return [record for _, _, record in sorted(self._slowest, reverse=True)[:most]]

    def newest(self, most: int) -> list[Record]:
        """Those that ended last, answered or not, the newest first."""
        return sorted((*self._recent, *self._refused), key=lambda record: record.at, reverse=True)[:most]

    def __iter__(self) -> itertools.chain[Record]:
        return itertools.chain(self._recent, self._refused, (record for _, _, record in self._slowest))


def parts(tickets: Sequence[Ticket]) -> tuple[Part, ...]:
    """What a request was of the runs that it shared, in their order; rows that ran in none are left out."""
    if len(tickets) == 1:  # nearly all of them
        (ticket,) = tickets
        return () if ticket.run is None else (Part(ticket.run, ticket.size.rows, ticket.size.tokens),)
    mine: dict[int, Part] = {}
    for ticket in tickets:
        if ticket.run is not None and (id(ticket.run) in mine or len(mine) < _RUNS):
            before = mine.get(id(ticket.run), Part(ticket.run, 0, 0))
            mine[id(ticket.run)] = Part(ticket.run, before.rows + ticket.size.rows, before.tokens + ticket.size.tokens)
    return tuple(mine.values())


def unfinished(call: Call, tickets: Sequence[Ticket]) -> None:
    """Say of a request that gave up, or failed, how long it had waited and run by then."""
    now = time.perf_counter()
    call.times["queue"] = max(ticket.waited if ticket.begun else now - ticket.arrived for ticket in tickets)
    if begun := [ticket.begun for ticket in tickets if ticket.begun]:
        call.times["compute"] = now - max(begun)
    call.runs = parts(tickets)


def _short(notes: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a failure: no traceback, and no message of any length."""
    kept = {name: notes[name] for name in _NOTES if name in notes}
    return {"error": str(notes.get("error", ""))[:_LONGEST], **kept}
