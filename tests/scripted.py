"""A generator whose texts go on when the test says so, behind the real application in this process's own loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.generating.stream import Stream
from optimizer.generator import Finish, Piece, Sampling
from optimizer.serving.app import build_app
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.served import Phase, Served
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.serving.text.models import writer_for
from optimizer.store import Store


class Scripted:
    """A :class:`optimizer.generator.Generator` that writes nothing by itself."""

    context, answers, vocabulary, end_tokens = 128, 0, 512, (1,)

    def __init__(self, slots: int) -> None:
        self.facts: dict[str, Any] = {"slots": slots, "provider": "cpu"}
        self.texts: list[Stream] = []

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Stream:
        self.texts.append(Stream())
        return self.texts[-1]

    def score(self, tokens: Any, read: Any = None) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        for text in self.texts:
            text.end(Finish.CANCELLED)


@dataclass
class Asked:
    """One request: what came back so far.

    Attributes:
        reads: clear while the client reads nothing: what is sent waits then, as it does for a socket that is full.
        stalled: whether something does.
    """

    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    stalled: bool = False
    hang_up: asyncio.Event = field(default_factory=asyncio.Event)
    task: Any = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def parts(self) -> list[Any]:
        rows = [row.removeprefix("data: ") for row in self.body.decode().split("\n\n") if row]
        return [row if row == "[DONE]" else json.loads(row) for row in rows]


class Server:
    """The application, a scripted model called m, and clients without sockets."""

    def __init__(self, folder: Path, slots: int, **settings: Any) -> None:
        self.generator = Scripted(slots)
        metrics, asked = Metrics(), Settings(access_log=False, **settings)
        models = Repository(Store(folder / "none"), asked, metrics)
        served = Served("m", "1", "m@1:fp32", Phase.READY, path=folder, generator=self.generator)
        served.metrics = metrics.of("m", "1")
        served.writer = writer_for(served, asked, metrics)
        models._models["m"] = {"1": served}
        self.state = State(asked, models, metrics)
        self.app = build_app(self.state)

    def ask(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Asked:
        asked = Asked()
        asked.reads.set()
        sent = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

        async def receive() -> Any:
            for message in sent:
                return message
            await asked.hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            asked.stalled = not asked.reads.is_set()
            await asked.reads.wait()
            asked.stalled = False
            if message["type"] == "http.response.start":
                asked.status = message["status"]
                asked.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                asked.body += message.get("body", b"")

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()], "root_path": "",
            "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("y", 2),
        }  # fmt: skip
        asked.task = asyncio.ensure_future(self.app(scope, receive, send))
        return asked

    async def begun(self, count: int) -> Stream:
        """Wait until so many texts were begun; the last of them."""
        while len(self.generator.texts) < count:
            await asyncio.sleep(0.001)
        return self.generator.texts[count - 1]

    def counted(self, name: str, **labels: str) -> float:
        return self.state.metrics.registry.get_sample_value(name, {"model": "m", "version": "1", **labels}) or 0.0


def write(text: Stream, *tokens: int, finish: Finish | None = None) -> None:
    for token in tokens:
        text.put(Piece((token,)))
    if finish:
        text.end(finish)


async def until(true: Any) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def server(folder: Path, slots: int = 2, **settings: Any) -> AsyncIterator[Server]:
    made = Server(folder, slots, **settings)
    async with asyncio.timeout(30):
        yield made
