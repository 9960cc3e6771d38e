"""``ml-opt serve`` on a GPU beside itself on the processor: the same answers, and how many a second.

    python -m benchmarks.serving.on_gpu STORE [REF+PROVIDER …] [--rounds 3] [--seconds 3] [--clients 64]

The 600 sentences of benchmarks/data into vectors, by clients that wait for an answer before they ask again. Every
server's answers are held against those of the first before anything is timed. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.serving.throughput import SENTENCES, Server, judged, measured, ours, vectors
from optimizer.environment import cpu_threads, describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("refs", nargs="*", default=["minilm:fp32+cpu", "minilm:fp32+cuda", "minilm:fp16+cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=64)
    asked = parser.parse_args()
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    servers: list[Server] = []
    with tempfile.TemporaryDirectory(prefix="on-gpu-") as folder:
        try:
            for place, ref in enumerate(asked.refs):
                name, _, provider = ref.partition("+")
                server = ours(name, asked.store.resolve(), cpu_threads(), ref, "--provider", provider)
                servers.append(server)
                server.start(Path(folder) / f"{place}.log")
            truth = vectors(servers[0], texts, asked.clients)
            likeness = {server.name: judged(server, texts, truth, asked.clients) for server in servers}
            rows = measured(servers, texts, asked.rounds, asked.seconds, asked.clients)
        finally:
            for server in servers:
                server.stop()
    found = {
        name: {**{what: statistics.median(values) for what, values in row.items()}, **likeness[name]}
        for name, row in rows.items()
    }
    print(json.dumps({"report": "on-gpu", "clients": asked.clients, "rows": found, "environment": describe()}))


if __name__ == "__main__":
    main()
