"""All at once: clients that hang up, slow readers, bodies too large, cut short or malformed, a worker that is killed.

Whoever behaves meanwhile is answered as if nobody else were there, and nothing is left of the others.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from processes import alive
from served_texts import TEMPLATE, put_text
from serving import artifacts
from serving.conftest import Process
from serving.hostile import HOSTILE, LARGE
from serving.test_workers import ask, counted, eventually

from optimizer.runtime import Candidate, Provider
from optimizer.store import Store

#: How many hostile clients come at once, and how many that behave ask meanwhile.
AT_ONCE, BEHAVED = 8, 5
#: Most threads of the event loop's own pool, which grows as it is used: that of :class:`ThreadPoolExecutor`.
POOL = min(32, (os.cpu_count() or 1) + 4)


@pytest.fixture
def server(tmp_path: Path, llama_generator: Path) -> Iterator[Process]:
    store = Store(tmp_path / "models")
    artifacts.put(store, "classes")
    put_text(store, llama_generator, "llama", TEMPLATE)
    large = [{"name": "y", "dtype": "float32", "shape": ["batch", LARGE]}]
    (tmp_path / "large.json").write_text(json.dumps({"outputs": large}))
    (tmp_path / "slow.json").write_text(json.dumps({"latency_s": 0.02, "wait": "sleep"}))
    planted = [f"fake:{tmp_path / name}.json" for name in ("large", "slow")]
    words = ["classes", "llama", *planted, "--store", str(store.root), "--workers", "2", "--max-body", "1"]
    made = Process([*words, "--max-queue", "4096", "--deadline", "300s", "--no-access-log"])
    try:
        assert made.ready
        yield made
    finally:
        made.process.kill()


@dataclass
class Behaved:
    """Clients that ask and wait, each on a connection that it keeps, and compare what they are told.

    Attributes:
        port: of the server.
        rows: what ``classes`` is asked, and what its session answers alone.
        texts: what the Llama is asked, and what it said when nobody else asked.
        opening: held while a connection is made, so that whoever holds it knows all that there are.
        answered: how many were, by kind.
        wrong: what was not as it should be.
        lost: client's port of each connection that ended before its answer.
    """

    port: int
    rows: list[tuple[np.ndarray, np.ndarray]]
    texts: dict[str, str] = field(default_factory=dict)
    opening: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    def run(self, seed: int) -> None:
        drawn, connection = random.Random(seed), self.connected()
        while not self.over.is_set():
            kind = drawn.choice(["rows", "rows", "text", "stream"])
            which = drawn.randrange(len(self.rows)), drawn.choice(list(self.texts))
            while True:  # one that was in the worker that died is asked again
                mine = connection.sock.getsockname()[1]
                try:
                    self.ask(connection, kind, *which)
                    break
                except (OSError, http.client.HTTPException):
                    self.lost.append(mine)
                    connection = self.connected()
                except Exception as error:
                    self.wrong.append(f"{kind}: {error!r}")
                    return
        connection.close()

    def connected(self) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with self.opening:
            made.connect()
        return made

    def ask(self, connection: http.client.HTTPConnection, kind: str, row: int, text: str) -> None:
        if kind == "rows":
            got, wanted = self.logits(connection, self.rows[row][0]), self.rows[row][1]
            same = np.allclose(got, wanted, atol=1e-4)
        else:
            wanted = self.texts[text]
            got = self.said(connection, text, stream=kind == "stream")
            same = got == wanted
        if not same:
            self.wrong.append(f"{kind}: {got!r} instead of {wanted!r}")
        self.answered[kind] += 1

    def logits(self, connection: http.client.HTTPConnection, ids: np.ndarray) -> np.ndarray:
        tensors = [
            {"name": name, "shape": list(ids.shape), "datatype": "INT64", "data": values.ravel().tolist()}
            for name, values in (("input_ids", ids), ("attention_mask", np.ones_like(ids)))
        ]
        answer = json.loads(self.post(connection, "/v2/models/classes/infer", {"inputs": tensors}))
        return np.array(answer["outputs"][0]["data"]).reshape(len(ids), -1)

    def said(self, connection: http.client.HTTPConnection, prompt: str, stream: bool) -> str:
        asked = {"model": "llama", "prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": stream}
        body = self.post(connection, "/v1/completions", asked).decode()
        if not stream:
            return str(json.loads(body)["choices"][0]["text"])
        *parts, done = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
        assert done == "[DONE]"
        return "".join(choice["text"] for part in parts for choice in json.loads(part)["choices"])

    def post(self, connection: http.client.HTTPConnection, path: str, document: Any) -> bytes:
        connection.request("POST", path, json.dumps(document))
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (response.status, body)
        return body


def established(port: int) -> dict[int, int]:
    """The server's ends of its connections: each client's port, and the socket's number; 0 where nobody took it yet."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, mine, theirs, state, *rest = line.split()
        if int(mine.partition(":")[2], 16) == port and state == "01":
            found[int(theirs.partition(":")[2], 16)] = int(rest[5])
    return found


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(str(each.readlink()))
    return found


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def kill_one(pid: int, behaved: Behaved) -> set[int]:
    """Kill a worker; the clients whose connections it had."""
    with behaved.opening:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)  # the other one takes what it has not taken yet: what is left was this one's
        sockets = {int(number) for each in descriptors(pid) for number in re.findall(r"^socket:\[(\d+)\]$", each)}
        doomed = {client for client, socket in established(behaved.port).items() if socket in sockets | {0}}
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid))
    return doomed


class Hostility:
    """Every hostile client so many times, in an order that is drawn, some at once.

    Args:
        port: of the server.
        seed: of the order, and of all that they do.

    Attributes:
        left: those that did not come yet.
        statuses: what they were answered, by kind.
        refused: answers that they should not have had.
    """

    def __init__(self, port: int, seed: int) -> None:
        drawn = random.Random(seed)
        order = [(kind, drawn.getrandbits(32)) for kind, (times, _) in HOSTILE.items() for _ in range(times)]
        drawn.shuffle(order)
        self.left: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for each in order:
            self.left.put(each)
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.refused: list[str] = []
        self._port = port

    def come(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                kind, seed = self.left.get_nowait()
                try:
                    status = kind(self._port, random.Random(seed))
                except OSError:  # the worker that was killed
                    status = 0
                self.statuses[kind.__name__, status] += 1
                if status not in HOSTILE[kind][1]:
                    self.refused.append(f"{kind.__name__}: {status}")


def test_in_the_middle_of_chaos_those_who_behave_are_answered_rightly(server: Process) -> None:
    port = int(server.address.rpartition(":")[2])
    behaved = Behaved(port, rows_of(server))
    alone = behaved.connected()
    behaved.texts = {prompt: behaved.said(alone, prompt, stream=False) for prompt in ("def ", "class ", "import os\n")}
    alone.close()
    first = children(server.process.pid)
    assert len(first) == 2
    opened = {pid: len(descriptors(pid)) for pid in (*first, server.process.pid)}
    ran = {pid: threads(pid) for pid in (*first, server.process.pid)}

    asking = [threading.Thread(target=behaved.run, args=(seed,)) for seed in range(BEHAVED)]
    hostility = Hostility(port, seed=7)
    every = hostility.left.qsize()
    coming = [threading.Thread(target=hostility.come) for _ in range(AT_ONCE)]
    for each in (*asking, *coming):
        each.start()
    eventually(lambda: hostility.left.qsize() <= every // 2)
    victim = min(first)
    doomed = kill_one(victim, behaved)
    for each in coming:
        each.join()
    eventually(lambda: counted(server, "ml_worker_restarts_total") == 1)
    before = behaved.answered.total()
    eventually(lambda: behaved.answered.total() >= before + 30 or behaved.wrong)
    behaved.over.set()
    for each in asking:
        each.join(120)

    assert behaved.wrong == []
    assert set(behaved.answered) == {"rows", "text", "stream"}
    assert set(behaved.lost) <= doomed
    assert len(behaved.lost) == len(set(behaved.lost)) <= BEHAVED
    assert hostility.refused == []
    assert sum(hostility.statuses.values()) == sum(times for times, _ in HOSTILE.values())
    for kind, (_, may) in HOSTILE.items():  # each of them met the server, and not only one that was just killed
        assert any(hostility.statuses[kind.__name__, status] for status in may - {0} or {0})

    metrics = ask(server, "GET", "/metrics", None)[1]
    assert 'status="200"' in metrics
    assert not re.findall(r'^ml_requests_total\{.*status="5\d\d".*', metrics, re.MULTILINE)
    eventually(lambda: not established(port))
    eventually(lambda: counted(server, "ml_active_requests") == 1)  # whoever asks for it
    for name in ("ml_queue_depth", "ml_texts_active", "ml_texts_waiting"):
        eventually(lambda name=name: counted(server, name) == 0)

    (survivor,) = first - {victim}
    now = children(server.process.pid)
    assert len(now) == 2
    assert survivor in now
    for pid in (*now, server.process.pid):
        like = pid if pid in opened else survivor
        eventually(lambda pid=pid, like=like: len(descriptors(pid)) <= opened[like])
        assert threads(pid) <= ran[like] + POOL
    assert server.end() == 0
    assert not any(map(alive, now))


def rows_of(server: Process) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of many lengths, and what a session of the same model answers to each alone."""
    store = Store(Path(server.words[server.words.index("--store") + 1]))
    artifact = store.get("classes")
    session = Candidate("classes", artifact.model_file, Provider("cpu"), "", artifact.model_info).open(threads=1)
    drawn = np.random.default_rng(0)
    asked = [drawn.integers(5, 30, (1, length)) for length in drawn.integers(1, 30, 24)]
    made = [(ids, session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]) for ids in asked]
    session.close()
    return made
