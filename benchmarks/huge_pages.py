"""What huge pages give: the same session with its weights on them and without, in processes of their own, in turn.

    python -m benchmarks.huge_pages [--rounds 12] [--calls 60]

MiniLM in fp32, and a decoder of 40 million parameters written a token at a time (fp32, int8, int4). Each round opens
both again, as where memory happens to lie is a part of what is measured. Prints the median of the ratios and writes
benchmarks/results/huge_pages.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.generation import CACHE, ours, untrained
from benchmarks.serving.door import ROOT, minilm
from optimizer.environment import describe
from optimizer.store import Store

RESULT = ROOT / "benchmarks" / "results" / "huge_pages.json"

#: Opens a session or a generator, on huge pages or not, and prints the median time of a run, in seconds.
_ONE = """
import statistics, sys, time
from pathlib import Path
import numpy as np
path, how, shape, calls = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
import optimizer.runtimes.ort as ort, optimizer.runtimes.ort_generator as loop
if how == "small":
    loop.onto_huge_pages = ort.onto_huge_pages = lambda: 0
from optimizer.generator import GeneratorOptions, Sampling, open_generator
from optimizer.runtime import Provider, SessionOptions, get_runtime
times = []
if shape == "decode":
    generator = open_generator(path, GeneratorOptions(threads=2))
    for _ in range(4):
        stream = iter(generator.submit(list(range(5, 21)), Sampling(max_tokens=calls, temperature=0.0)))
        next(stream)
        begin, count = time.perf_counter(), sum(1 for _ in stream)
        times.append((time.perf_counter() - begin) / count)
    generator.close()
    times = times[1:]
else:
    rows, length = map(int, shape.split("x"))
    provider = Provider("cpu")
    session = get_runtime(provider).open(path, SessionOptions(provider, threads=2), model={})
    ids = np.random.default_rng(0).integers(1000, 20000, (rows, length))
    feeds = {spec.name: ids if spec.name == "input_ids" else ids * 0 + 1 for spec in session.inputs}
    for _ in range(calls + 5):
        begin = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - begin)
    times = times[5:]
print(statistics.median(times))
"""


def measured(rounds: int, calls: int) -> dict[str, list[float]]:
    """Of each case the rounds' ratios: time on small pages over time on huge ones."""
    encoder = minilm()[0].path / "model.onnx"
    cases = [("MiniLM fp32, 1x16", encoder, "1x16"), ("MiniLM fp32, 8x128", encoder, "8x128")]
    for entrant in ours(untrained(), Store(CACHE / "store"), {}):
        if entrant.candidate.provider.name != "cpu":
            continue
        cases.append((f"{entrant.label}, a token", entrant.candidate.path, "decode"))
    ratios: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    for turn in range(rounds):
        for name, path, shape in cases:
            took = {}
            for how in ("small", "huge") if turn % 2 else ("huge", "small"):
                command = [sys.executable, "-c", _ONE, str(path), how, shape, str(calls)]
                took[how] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            ratios[name].append(took["small"] / took["huge"])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=60)
    asked = parser.parse_args()
    ratios = measured(asked.rounds, asked.calls)
    document: dict[str, Any] = {"ratios": ratios, "calls": asked.calls, "environment": describe()}
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    for name, found in ratios.items():
        print(f"{name:28s} {statistics.median(found):.3f} times as fast ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
