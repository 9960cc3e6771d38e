"""Texts that are written at the same time, each streamed to its own client, beside the same texts one after another.

    python -m benchmarks.serving.streams [--rounds 5] [--streams 8] [--tokens 64]

A Llama of 40 million parameters with random weights, in fp32 and in int4, through ``/v1/completions`` with
``stream=true``. Prints tokens a second of both ways, and how soon after its client has hung up a text has given its
place back, in steps of writing: the server's own record of the request says when it was over, so that nobody has to ask
again and again, which would take as long as some steps. Writes benchmarks/results/streams.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.generation import CACHE, ours, untrained
from benchmarks.serving.door import ROOT
from benchmarks.serving.load import post
from benchmarks.serving.throughput import Server
from benchmarks.serving.throughput import ours as serving
from optimizer.environment import cpu_threads, describe
from optimizer.store import Store

RESULT = ROOT / "benchmarks" / "results" / "streams.json"
PRECISIONS = ("fp32", "int4")


async def written(
    port: int, model: str, prompt: str, tokens: int, leave_after: float | None = None, id: str = "text"
) -> int:
    """Tokens of one text; the client hangs up after so many seconds where that is asked."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = post(port, "/v1/completions", json.dumps(body).encode())
    writer.write(request.replace(b"\r\n", f"\r\nX-Request-Id: {id}\r\n".encode(), 1))
    if leave_after is not None:
        await asyncio.sleep(leave_after)
        writer.close()
        return 0
    found = 0
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        if not line:
            raise SystemExit("the server closed the connection in the middle of a text")
        if line.startswith(b"data: ") and (usage := json.loads(line[6:]).get("usage")):
            found = usage["completion_tokens"]
    writer.close()
    return found


async def recorded(port: int, id: str) -> dict[str, Any]:
    """What the server has kept of a request that is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v2/requests/{id} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if b" 200 " not in head.splitlines()[0]:
        raise SystemExit(f"the server knows nothing of {id}: {head.decode()}")
    found: dict[str, Any] = json.loads(body)
    return found


async def freed(port: int, model: str, prompt: str, step: float) -> float:
    """Steps of writing from a client's hanging up to the end of its request, which gives the place back.

    The server's clock begins a little after the client's, once the request has come: what lies within that is nothing.
    """
    id = f"left-{time.time_ns()}"
    began = time.perf_counter()
    await written(port, model, prompt, 400, leave_after=0.2, id=id)
    stayed = time.perf_counter() - began
    await asyncio.sleep(0.2)
    record = await recorded(port, id)
    assert record["refused"]["reason"] == "disconnected", record
    return max(0.0, float(record["seconds"]) - stayed) / step


def measured(server: Server, model: str, rounds: int, streams: int, tokens: int) -> dict[str, list[float]]:
    """Tokens a second, both ways in turn, and what hanging up takes."""
    drawn = random.Random(0)
    words = [line for line in Path(__file__).read_text(encoding="utf-8").splitlines() if len(line) > 40]
    found: dict[str, list[float]] = {"together": [], "one_by_one": [], "freed_steps": []}

    async def together(prompts: list[str]) -> int:
        return sum(await asyncio.gather(*(written(server.port, model, prompt, tokens) for prompt in prompts)))

    async def one_by_one(prompts: list[str]) -> int:
        return sum([await written(server.port, model, prompt, tokens) for prompt in prompts])

    for _ in range(rounds):
        prompts = drawn.sample(words, streams)
        for name, way in (("together", together), ("one_by_one", one_by_one)):
            begin = time.perf_counter()
            count = asyncio.run(way(prompts))
            found[name].append(count / (time.perf_counter() - begin))
        found["freed_steps"].append(asyncio.run(freed(server.port, model, prompts[0], 1 / found["one_by_one"][-1])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    store = Store(CACHE / "store")
    ours(untrained(), store, {})
    document: dict[str, Any] = {"streams": asked.streams, "tokens": asked.tokens, "rows": {}}
    for precision in PRECISIONS:
        server = serving(f"decoder:{precision}-genai", store.root, cpu_threads(), f"ml-opt serve, {precision}")
        server.path, server.body = "/v1/completions", lambda text: {"model": "decoder", "prompt": text, "max_tokens": 2}
        with tempfile.TemporaryDirectory(prefix="streams-") as folder:
            try:
                server.start(Path(folder) / "log")
                rows = measured(server, "decoder", asked.rounds, asked.streams, asked.tokens)
            finally:
                server.stop()
        document["rows"][precision] = rows
        middle = {name: statistics.median(values) for name, values in rows.items()}
        ratio = statistics.median(a / b for a, b in zip(rows["together"], rows["one_by_one"], strict=True))
        print(
            f"{precision}: {asked.streams} together {middle['together']:.0f} tokens/s, one by one "
            f"{middle['one_by_one']:.0f}: {ratio:.2f} times; a place is free after {middle['freed_steps']:.1f} steps"
        )
    document["environment"] = describe()
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
