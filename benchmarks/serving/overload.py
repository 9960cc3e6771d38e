"""Twice as many requests as the server can answer, for a minute: who is answered in time, who is told to come again.

    python -m benchmarks.serving.overload [--seconds 60] [--slo 50ms] [--many 100000]

MiniLM in fp32, single sentences, ``ml-opt serve --slo``. Capacity is measured first, of a server without ``--slo``, by
64 clients that wait for each answer. Then, after five seconds of the same to warm up, arrivals are drawn beforehand
(Poisson) at twice that rate and sent whether or not earlier ones are answered; a latency counts from when the request
was due. Every request has to be answered, by 200 or by 429 with ``Retry-After``. Last, ``--many`` requests from 64
clients: what memory has grown by. Writes benchmarks/results/overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.door import ROOT, STORE, minilm
from benchmarks.serving.load import Answer, Client, closed
from benchmarks.serving.throughput import OURS, SENTENCES, Server, ours
from optimizer.environment import cpu_threads, describe

RESULT = ROOT / "benchmarks" / "results" / "overload.json"
#: Connections that arrivals share; one that is due while all wait for answers is late, which its latency counts.
_CONNECTIONS = 512


class Arrivals:
    """Requests that are due at times drawn beforehand, over connections that are kept.

    Args:
        requests: to send, in turn.
        due: seconds from the beginning, ascending.
    """

    def __init__(self, requests: Sequence[bytes], due: Sequence[float]) -> None:
        self.answers: list[Answer] = []
        self.unsent = 0
        self._requests, self.due = requests, due
        self._free: deque[Arriving] = deque()
        self._owed: deque[int] = deque()

    async def run(self, port: int) -> None:
        """Send all of them, and wait for the last answer."""
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(lambda: Arriving(self), "127.0.0.1", port) for _ in range(_CONNECTIONS)]
        self._free.extend(client for _, client in made)
        begin = self.begin = time.perf_counter()
        for place, due in enumerate(self.due):
            if (wait := begin + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if self._free:
                self._free.popleft().send(place)
            else:
                self._owed.append(place)
        end = time.perf_counter() + 60
        while len(self.answers) < len(self.due) and time.perf_counter() < end:
            await asyncio.sleep(0.05)
        self.unsent = len(self._owed)
        for _, client in made:
            client.close()

    def bytes_of(self, place: int) -> bytes:
        """The request that is the ``place``-th to arrive."""
        return self._requests[place % len(self._requests)]

    def free(self, client: Arriving, answer: Answer) -> None:
        """Count an answer from when its request was due, and give the connection its next one."""
        late = time.perf_counter() - self.begin - self.due[answer.asked]
        self.answers.append(Answer(answer.asked, answer.status, late))
        if self._owed:
            client.send(self._owed.popleft())
        else:
            self._free.append(client)


class Arriving(Client):
    """A connection that sends when it is told to."""

    def __init__(self, arrivals: Arrivals) -> None:
        super().__init__(self._answer, keep=False)
        self._arrivals = arrivals

    def _answer(self, answer: Answer | None) -> tuple[int, bytes] | None:
        if answer is not None:
            self._arrivals.free(self, answer)
        return None

    def _next(self, answer: Answer | None) -> None:
        self._answer(answer)

    def send(self, place: int) -> None:
        """Send the ``place``-th request."""
        self._asked, self._got, self._length = place, b"", -1
        self._sent = time.perf_counter()
        self._transport.write(self._arrivals.bytes_of(place))

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


def overloaded(server: Server, requests: Sequence[bytes], rate: float, seconds: float) -> Arrivals:
    """Poisson arrivals at a rate, for so long."""
    import uvloop

    drawn, due = random.Random(0), [0.0]
    while due[-1] < seconds:
        due.append(due[-1] + drawn.expovariate(rate))
    arrivals = Arrivals(requests, due[:-1])
    uvloop.run(arrivals.run(server.port))
    return arrivals


def capacity_of(server: Server, texts: Sequence[str]) -> float:
    """Requests a second that a server answers 64 clients."""
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        try:
            server.start(Path(folder) / "log")
            requests = [server.request(text) for text in texts]
            closed(server.port, requests, 64, 3.0)
            return statistics.median(closed(server.port, requests, 64, 5.0).per_second for _ in range(3))
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slo", default="50ms")
    parser.add_argument("--many", type=int, default=100_000)
    asked = parser.parse_args()
    artifact, _ = minilm()
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    server = ours(artifact.ref, STORE, cpu_threads(), OURS, "--slo", asked.slo)
    document: dict[str, Any] = {"slo": asked.slo, "seconds": asked.seconds}
    capacity = capacity_of(ours(artifact.ref, STORE, cpu_threads(), OURS), texts)
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        try:
            server.start(Path(folder) / "log")
            requests = [server.request(text) for text in texts]
            overloaded(server, requests, 2 * capacity, 5.0)
            before = server.memory
            arrivals = overloaded(server, requests, 2 * capacity, asked.seconds)
            statuses = Counter(answer.status for answer in arrivals.answers)
            accepted = sorted(answer.seconds for answer in arrivals.answers if answer.status == 200)
            refused = sorted(answer.seconds for answer in arrivals.answers if answer.status == 429)
            time.sleep(1.0)
            document |= {
                "capacity_per_second": capacity,
                "asked": len(arrivals.due),
                "statuses": {str(status): count for status, count in sorted(statuses.items())},
                "unanswered": len(arrivals.due) - len(arrivals.answers),
                "accepted_per_second": len(accepted) / asked.seconds,
                "accepted_p50_ms": accepted[len(accepted) // 2] * 1000,
                "accepted_p99_ms": accepted[int(0.99 * len(accepted))] * 1000,
                "refused_p99_ms": refused[int(0.99 * len(refused))] * 1000 if refused else None,
                "memory_bytes": [before, server.memory],
            }
            grown, left = [server.memory], asked.many
            while left > 0:
                left -= len(closed(server.port, requests * -(-min(left, 10_000) // len(requests)), 64, None).answers)
                grown.append(server.memory)
            document["many"] = {"requests": asked.many - left, "memory_bytes": grown}
        finally:
            server.stop()
    document["environment"] = describe()
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({key: value for key, value in document.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
