"""Single sentences from many clients: ``ml-opt serve`` beside the servers that people write or take today.

    python -m benchmarks.serving.throughput [--rounds 5] [--seconds 6] [--clients 64] [--best REF --best-provider P]

MiniLM into vectors of length 1, the 600 sentences of benchmarks/data in turn; load and server share the machine, every
server has the same fp32 file and as many threads. All run all the time and are asked in turn, in another order every
round. First each answers every sentence once, beside each other, and is held against the bare session's answer to the
sentence alone. Prints medians over rounds and writes benchmarks/results/throughput.json. The peers' environments come
from ``make bench-peers``; those that are not there are left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.door import ROOT, STORE, minilm
from benchmarks.serving.load import Loaded, closed, post
from optimizer.artifact import Artifact
from optimizer.environment import cpu_threads, describe
from optimizer.store import Store

RESULT = ROOT / "benchmarks" / "results" / "throughput.json"
PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = ROOT / ".venv-peers"
SENTENCES = ROOT / "benchmarks" / "data" / "sentiment-test.jsonl"
OURS, BEST = "ml-opt serve", "ml-opt serve, best"


@dataclass
class Server:
    """One server.

    Attributes:
        name: in the table.
        command: starts it; ``PORT`` in it is replaced.
        path: that takes texts.
        body: text → a request's body.
        vector: an answer's body → the vector.
        environment: variables beside ours.
        folder: where it is started; the peers' own where it is left out.
    """

    name: str
    command: Sequence[str]
    path: str
    body: Callable[[str], Any]
    vector: Callable[[Any], Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = PEERS
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Start it, and wait until it answers; raises RuntimeError with its last words."""
        self.port = free_port()
        command = [word.replace("PORT", str(self.port)) for word in self.command]
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                (answer,) = closed(self.port, [self.request("ready?")], 1, None, keep=True).answers or [None]
                if answer is not None and answer.status == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"{self.name} does not answer: {log.read_text(errors='replace')[-600:]}")

    def request(self, text: str) -> bytes:
        """The bytes that ask for a text's vector."""
        return post(self.port, self.path, json.dumps(self.body(text)).encode())

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # some leave their children behind
            self.process.wait()

    @property
    def memory(self) -> int:
        """Bytes that it and its children hold now."""
        assert self.process is not None
        return sum(_rss(pid) for pid in _family(self.process.pid))


def with_root(environment: Mapping[str, str]) -> str:
    """``PYTHONPATH`` of a child: this checkout before what was there."""
    return os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ours(ref: str, store: Path, threads: int, name: str, *words: str) -> Server:
    """``ml-opt serve`` of an artifact."""
    # Nobody else writes a line for each request either.
    command = [sys.executable, "-m", "optimizer", "serve", ref, "--store", str(store), "--port", "PORT", "--threads",
               str(threads), "--json", "--no-access-log", *words]  # fmt: skip
    model = ref.partition("@")[0].partition(":")[0]
    return Server(
        name, command, "/v1/embeddings", lambda text: {"model": model, "input": text},
        lambda said: said["data"][0]["embedding"], {"PYTHONPATH": with_root(os.environ)}, ROOT,
    )  # fmt: skip


def peers(artifact: Artifact, source: Path, threads: int, scratch: Path) -> tuple[list[Server], list[str]]:
    """The other servers, and those whose environment is not there."""
    shared = {
        "PEER_MODEL": str(artifact.path),
        "PEER_SOURCE": str(source),
        "PEER_THREADS": str(threads),
        "PYTHONPATH": str(PEERS),
        "HF_HUB_OFFLINE": "1",
    }
    environment = {"name": "vectors", "implementation": "mlserver_ort.Vectors", "max_batch_size": 16}
    (scratch / "model-settings.json").write_text(json.dumps({**environment, "max_batch_time": 0.005}))

    def embed(name: str, venv: str, *words: str) -> tuple[str, Server]:
        command = [str(ENVIRONMENTS / venv / "bin" / words[0]), *words[1:]]
        return venv, Server(
            name, command, "/embed", lambda text: {"input": text}, lambda said: said["embedding"], shared
        )

    uvicorn = ("--port", "PORT", "--log-level", "warning", "--no-access-log")
    found = [
        embed("FastAPI + ONNX Runtime", "fastapi", "uvicorn", "fastapi_ort:app", *uvicorn),
        embed("FastAPI + PyTorch", "fastapi", "uvicorn", "fastapi_torch:app", *uvicorn),
        embed("LitServe + ONNX Runtime", "litserve", "python", "litserve_ort.py", "PORT"),
        (
            "mlserver",
            Server(
                "MLServer + ONNX Runtime",
                [str(ENVIRONMENTS / "mlserver/bin/python"), str(PEERS / "start_mlserver.py"), "PORT", str(scratch)],
                "/v2/models/vectors/infer",
                lambda text: {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [text]}]},
                lambda said: said["outputs"][0]["data"],
                shared,
                scratch,
            ),
        ),
    ]  # fmt: skip
    there = [server for venv, server in found if (ENVIRONMENTS / venv / "bin" / "python").exists()]
    return there, [server.name for venv, server in found if server not in there]


def alone(artifact: Artifact, texts: Sequence[str]) -> NDArray[np.float32]:
    """What the bare session says to each text by itself."""
    os.environ |= {"PEER_MODEL": str(artifact.path), "PEER_THREADS": "2"}
    sys.path.insert(0, str(PEERS))
    from embedder import Embedder  # type: ignore[import-not-found]  # as the peers import it

    embedder = Embedder()
    return np.array([embedder.vectors([text])[0] for text in texts], np.float32)


def vectors(server: Server, texts: Sequence[str], clients: int) -> NDArray[np.float32]:
    """What a server says to each text, asked beside each other; ``[texts, width]``."""
    asked = closed(server.port, [server.request(text) for text in texts], clients, None, keep=True)
    for answer in asked.answers:
        if answer.status != 200:
            raise RuntimeError(f"{server.name} answers {answer.status}: {answer.body[:200]!r}")
    answers = sorted(asked.answers, key=lambda answer: answer.asked)
    return np.array([server.vector(json.loads(answer.body)) for answer in answers], np.float32)


def judged(server: Server, texts: Sequence[str], truth: NDArray[np.float32], clients: int) -> dict[str, float]:
    """The largest difference from the truth, and the worst cosine, of answers given beside each other."""
    found = vectors(server, texts, clients)
    cosine = (found * truth).sum(1) / np.linalg.norm(found, axis=1)
    return {"largest_difference": float(abs(found - truth).max()), "worst_cosine": float(cosine.min())}


def measured(servers: Sequence[Server], texts: Sequence[str], rounds: int, seconds: float, clients: int) -> Any:
    """Every server's rounds."""
    rows: dict[str, dict[str, list[float]]] = {
        server.name: {"per_second": [], "p50_ms": [], "p99_ms": [], "one_client_ms": []} for server in servers
    }
    for turn in range(rounds):
        for place in range(len(servers)):
            server = servers[(place + turn) % len(servers)]
            requests = [server.request(text) for text in texts]
            closed(server.port, requests, clients, seconds / 4)
            loaded = closed(server.port, requests, clients, seconds)
            single = closed(server.port, requests, 1, seconds / 3)
            refused(server, loaded, single)
            row = rows[server.name]
            row["per_second"].append(loaded.per_second)
            row["p50_ms"].append(loaded.quantile(0.5) * 1000)
            row["p99_ms"].append(loaded.quantile(0.99) * 1000)
            row["one_client_ms"].append(single.quantile(0.5) * 1000)
        said = ", ".join(f"{name} {row['per_second'][-1]:.0f}/s" for name, row in rows.items())
        print(f"round {turn + 1}: {said}", file=sys.stderr)
    return rows


def refused(server: Server, *runs: Loaded) -> None:
    """Stop where a server answers with anything but 200: it would be the fastest at refusing."""
    for run in runs:
        if wrong := [answer.status for answer in run.answers if answer.status != 200]:
            raise RuntimeError(f"{server.name} answered {len(wrong)} of {len(run.answers)} with {wrong[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--best", help="a reference in --best-store that is served too, e.g. minilm@best")
    parser.add_argument("--best-store", type=Path, default=STORE)
    parser.add_argument("--best-provider", default="auto")
    parser.add_argument("--only", help="names of servers, by a part of them, separated by commas")
    asked = parser.parse_args()
    artifact, source = minilm()
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        scratch = Path(folder)
        servers = [ours(artifact.ref, STORE, asked.threads, OURS)]
        if asked.best:
            words = ("--provider", asked.best_provider) if asked.best_provider != "auto" else ()
            store = Store(asked.best_store)
            servers.append(ours(asked.best, store.root.resolve(), asked.threads, BEST, *words))
        others, missing = peers(artifact, source, asked.threads, scratch)
        servers += others
        if asked.only:
            servers = [server for server in servers if any(part in server.name for part in asked.only.split(","))]
        for name in missing:
            print(f"left out: {name} (make bench-peers)")
        try:
            for place, server in enumerate(servers):
                server.start(scratch / f"{place}.log")
            truth = alone(artifact, texts)
            answers = {server.name: judged(server, texts, truth, asked.clients) for server in servers}
            rows = measured(servers, texts, asked.rounds, asked.seconds, asked.clients)
            memory = {server.name: server.memory for server in servers}
        finally:
            for server in servers:
                server.stop()
    document = {
        "clients": asked.clients, "threads": asked.threads, "seconds": asked.seconds, "best": asked.best,
        "best_provider": asked.best_provider, "rows": rows, "answers": answers, "memory_bytes": memory,
        "left_out": missing, "environment": describe(),
    }  # fmt: skip
    if not asked.only:
        RESULT.write_text(json.dumps(document, indent=1) + "\n")
    for name, row in rows.items():
        middle = {key: statistics.median(values) for key, values in row.items()}
        print(
            f"{name:24s} {middle['per_second']:5.0f}/s  p50 {middle['p50_ms']:6.1f} ms  p99 {middle['p99_ms']:4.0f}, "
            f"one client {middle['one_client_ms']:5.2f} ms  {memory[name] / 2**20:5.0f} MiB  "
            f"differs by {answers[name]['largest_difference']:.1e}, worst cosine {answers[name]['worst_cosine']:.4f}"
        )


if __name__ == "__main__":
    main()
