"""Ten times SIGTERM and ten times ``kill -9`` under load: what becomes of requests, and of the next start.

    python -m benchmarks.serving.endings [--times 10] [--clients 16]

MiniLM in fp32, single sentences on V2, by one process and by two workers. Clients wait for each answer and ask again at
once on the same connection; where the server closes it they make a new one, until nobody listens any more. Each
request has an id, and the server's log says which of them it read.

With SIGTERM a request is one of

- *answered*: 200, all of it;
- *refused*: 503, all of it;
- *raced*: the client sent it, or a part of it, and the connection ended without a byte of an answer; the server's log,
  whole because the server ended by itself, knows nothing of it: it was still in the system's buffers when the server
  closed the connection, which HTTP/1.1 cannot rule out. ``raced_kept`` are those on a connection that had been used
  before, ``raced_new`` those on a new one;
- *lost*: everything else: the server read it and did not answer it, answered a part of it, or with another status. It
  has to be 0.

A client's last connection is refused by the system; nothing was sent on it, and it is counted nowhere. With
``kill -9`` whatever is under way is lost, and only counted (``cut``); wanted is that the next server, started at once
on the same port, is ready and answers, and that ``left`` of the first is nothing by then or within three seconds:
processes, and files in the folder for temporary files. No time is measured. Writes benchmarks/results/endings.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.door import ROOT, STORE, minilm
from benchmarks.serving.throughput import free_port, with_root
from optimizer.environment import describe

__all__ = ["Ended", "killed", "terminated"]

RESULT = ROOT / "benchmarks" / "results" / "endings.json"
#: Answers that every client has before the server is told to end.
_WARM = 5
#: Written by ONNX Runtime, once for all processes, and left by each of them however it ends.
_SHARED = {".ses"}
#: Seconds that what was killed may take to be gone.
_GONE_S = 3.0


class Started:
    """A server in a process of its own, ready.

    Args:
        words: what it serves, and how.
        port: that it listens on.
        home: where its log is written, and its temporary files.
    """

    def __init__(self, words: Sequence[str], port: int, home: Path) -> None:
        self.port, self.log = port, home / "log"
        (home / "temporary").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "optimizer", "serve", *words, "--port", str(port), "--json"]
        environment = {**os.environ, "TMPDIR": str(home / "temporary"), "PYTHONPATH": with_root(os.environ)}
        with self.log.open("w") as said:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready: dict[str, Any] = json.loads(line) if '"ready"' in line else {}
        self.pids = {self.process.pid, *self.ready.get("workers", [])}

    def read(self) -> set[str]:
        """Ids of the requests that its log knows."""
        found = set()
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and (event := json.loads(line)).get("event") == "request":
                found.add(event["id"])
        return found


@dataclass
class Ended:
    """What became of the requests of all clients.

    Attributes:
        answered: ids of those answered 200.
        refused: of those answered 503.
        silent: of those whose connection ended without a byte, and whether it had been used before.
        broken: of those with another status, or a part of an answer.
    """

    answered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    silent: dict[str, bool] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def counts(self, read: set[str]) -> Counter[str]:
        """By the names of this module, of a server that ended by itself.

        Args:
            read: ids of requests that the server read.
        """
        raced = {id: kept for id, kept in self.silent.items() if id not in read}
        return Counter(
            answered=len(self.answered),
            refused=len(self.refused),
            raced_kept=sum(raced.values()),
            raced_new=len(raced) - sum(raced.values()),
            lost=len(self.broken) + len(self.silent) - len(raced),
        )


class Load:
    """Clients that ask again and again until nobody listens.

    Args:
        port: of the server.
        path: that is asked.
        bodies: that it is asked with, in turn.
        clients: how many.
    """

    def __init__(self, port: int, path: str, bodies: Sequence[bytes], clients: int) -> None:
        self.ended = Ended()
        self._port, self._path, self._bodies = port, path, bodies
        self._had = [0] * clients
        self._threads = [threading.Thread(target=self._client, args=(place,)) for place in range(clients)]
        for thread in self._threads:
            thread.start()
        while min(self._had) < _WARM and any(thread.is_alive() for thread in self._threads):
            time.sleep(0.01)

    def join(self) -> Ended:
        """Wait until the last client has met nobody."""
        for thread in self._threads:
            thread.join()
        return self.ended

    def _client(self, place: int) -> None:
        asked = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            connection.auto_open = 0  # a connection that ended shall not be made anew behind our back
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # the system's queue of connections was closed: nothing was sent
                continue
            used = False
            while self._asked(connection, place, asked, used):
                asked, used = asked + 1, True
                self._had[place] = asked
            asked += 1
            connection.close()

    def _asked(self, connection: http.client.HTTPConnection, place: int, asked: int, used: bool) -> bool:
        """Ask once; whether the connection can be asked again."""
        id, body = f"{place}-{asked}", self._bodies[(place + asked) % len(self._bodies)]
        try:
            connection.request("POST", self._path, body, {"X-Request-Id": id})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):  # of what is no answer as well; there is none then
            self.ended.silent[id] = used
            return False
        try:
            response.read()
        except (OSError, http.client.HTTPException):
            self.ended.broken.append(id)
            return False
        of = {200: self.ended.answered, 503: self.ended.refused}
        of.get(response.status, self.ended.broken).append(id)
        return response.getheader("Connection") != "close"


def terminated(words: Sequence[str], path: str, bodies: Sequence[bytes], clients: int) -> Counter[str]:
    """One SIGTERM under load: what became of the requests, and ``code``, the server's exit code.

    Args:
        words: what is served, and how.
        path: that is asked.
        bodies: that it is asked with, in turn.
        clients: how many ask.
    """
    with tempfile.TemporaryDirectory(prefix="endings-") as folder:
        server = Started(words, free_port(), Path(folder))
        try:
            load = Load(server.port, path, bodies, clients)
            server.process.send_signal(signal.SIGTERM)
            ended = load.join()
            code = server.process.wait(120)
        finally:
            server.process.kill()
        found = ended.counts(server.read())
        found["code"] = code
        return found


def killed(words: Sequence[str], path: str, bodies: Sequence[bytes], clients: int) -> Counter[str]:
    """One ``kill -9`` under load, and the next start.

    Args:
        words: what is served, and how.
        path: that is asked.
        bodies: that it is asked with, in turn.
        clients: how many ask.

    Returns:
        ``answered`` and ``cut`` requests; ``ready`` and ``answers``, 1 each where the next server is and does;
        processes and files of the first that are ``left``.
    """
    with tempfile.TemporaryDirectory(prefix="endings-") as folder:
        first = Started(words, free_port(), Path(folder))
        temporary = Path(folder) / "temporary"
        load = Load(first.port, path, bodies, clients)
        files = {each.name for each in temporary.iterdir()} - _SHARED
        first.process.kill()
        first.process.wait()
        second = Started(words, first.port, Path(folder))
        try:
            answers = int(_asked(second.port, path, bodies[0]) == 200) if second.ready else 0
            end = time.monotonic() + _GONE_S
            while (left := _left(first.pids, files, temporary)) and time.monotonic() < end:
                time.sleep(0.05)
            second.process.send_signal(signal.SIGTERM)
            ended = load.join()
            second.process.wait(120)
        finally:
            second.process.kill()
        cut = len(ended.silent) + len(ended.broken)
        return Counter(answered=len(ended.answered), cut=cut, ready=int(bool(second.ready)), answers=answers, left=left)


def _left(pids: set[int], files: set[str], temporary: Path) -> int:
    """How many of these processes and files there are still."""
    return sum(_runs(pid) for pid in pids) + sum((temporary / name).exists() for name in files)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _asked(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, body)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def _body(inputs: Sequence[str], ids: list[int]) -> bytes:
    """A request for one row of tokens."""
    values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    tensors = [{"name": name, "shape": [1, len(ids)], "datatype": "INT64", "data": values[name]} for name in inputs]
    return json.dumps({"inputs": tensors}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    asked = parser.parse_args()
    artifact, _ = minilm()
    inputs = [each["name"] for each in artifact.model_info["inputs"]]
    bodies = [_body(inputs, [101, *range(2000, 2000 + length), 102]) for length in range(1, 30)]
    document: dict[str, Any] = {"times": asked.times, "clients": asked.clients, "sigterm": {}, "kill": {}}
    for workers in ("1", "2"):
        words = [artifact.ref, "--store", str(STORE), "--workers", workers]
        path = f"/v2/models/{artifact.ref.partition('@')[0]}/infer"
        for name, end in (("sigterm", terminated), ("kill", killed)):
            rounds = [end(words, path, bodies, asked.clients) for _ in range(asked.times)]
            document[name][workers] = [dict(each) for each in rounds]
            print(name, workers, {key: sum(each[key] for each in rounds) for key in rounds[0]}, flush=True)
    document["environment"] = describe()
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
