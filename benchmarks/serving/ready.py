"""How long a server takes to be ready, beside what its model takes to load.

    python -m benchmarks.serving.ready [--rounds 10] [--write]

From the start of the process to its line `ready`, with the golden replay and without it, less the time in which a bare
ONNX Runtime opens the same file (in a process of its own, its import not counted). MiniLM in fp32. Rounds take turns.
``--write`` keeps the result in benchmarks/results/ready.json: only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.serving.door import ROOT, STORE, minilm
from optimizer.environment import describe

RESULT = ROOT / "benchmarks" / "results" / "ready.json"

#: The model alone: seconds that its session takes to open.
_BARE = """
import sys, time
import onnxruntime
start = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(time.perf_counter() - start)
"""


def loads(path: Path) -> float:
    """Seconds in which ONNX Runtime opens the file."""
    done = subprocess.run([sys.executable, "-c", _BARE, str(path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def ready(ref: str, *words: str) -> float:
    """Seconds from the start of a server to its line ``ready``."""
    command = [sys.executable, "-m", "optimizer", "serve", ref, "--store", str(STORE), "--port", "0", "--json", *words]
    start = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    took = time.perf_counter() - start
    server.terminate()
    server.wait()
    if '"ready"' not in line:
        raise SystemExit("the server ended before it was ready")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made, _ = minilm()
    ways = {
        "load": lambda: loads(made.path / "model.onnx"),
        "ready": lambda: ready(made.ref),
        "ready, not verified": lambda: ready(made.ref, "--no-verify"),
    }
    for way in ways.values():
        way()  # files into the page cache, bytecode written
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds):
        for name in list(ways)[turn % 3 :] + list(ways)[: turn % 3]:
            found[name].append(ways[name]())
    after = {
        name: statistics.median(took - load for took, load in zip(found[name], found["load"], strict=True))
        for name in ways
        if name != "load"
    }
    print(f"the model alone: {statistics.median(found['load']):.2f} s")
    for name, seconds in after.items():
        print(f"{name}: {statistics.median(found[name]):.2f} s, {seconds:.2f} s beside the model's own")
    if options.write:
        document = {"after_load_s": after, "rounds_s": found, "environment": describe()}
        RESULT.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
        print(RESULT)


if __name__ == "__main__":
    main()
