"""What the harness itself costs: on a call of 100 µs, and for a comparison of two candidates at default settings.

    python -m benchmarks.harness_overhead [--blocks 500] [--quick]

The call is a busy wait of 100 µs by the clock. A block of such calls is timed by the loop of the worker
(`optimizer.benching.worker.measure`), and as many calls in a bare loop that is timed as a whole, which knows of no
single call. Both take turns in short blocks, so that the machine's moods fall on both, and means are compared with
means, as what interrupts a block interrupts either. `overhead` is the mean of the times that were noted, over that of
the bare loop: what a report says too much. `outside` is the whole loop by its number of calls, over that of the
bare loop: what the harness takes beside the calls. Of each the median over blocks and its 95 % interval are reported.

Writes benchmarks/results/harness_overhead.json. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.sentiment import minilm_folder
from optimizer.benching.stats import Ratio, speedup
from optimizer.benching.worker import measure, undisturbed
from optimizer.environment import describe
from optimizer.files import write_report

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "harness_overhead.json"
CACHE = ROOT / ".cache" / "harness_overhead"

CALL_NS = 100_000
_CALLS = 20
#: What is promised: of a call of 100 µs, and of a comparison of two candidates.
LIMIT, LIMIT_S = 0.02, 90.0


def busy() -> None:
    """Hold a core for 100 µs."""
    clock = time.perf_counter_ns
    end = clock() + CALL_NS
    while clock() < end:
        pass


def bare(call: Callable[[], None], calls: int) -> float:
    """Nanoseconds a call in a loop that is timed as a whole; garbage is collected before, as the worker does."""
    with undisturbed():
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return (time.perf_counter_ns() - start) / calls


def whole(call: Callable[[], None], calls: int) -> tuple[list[int], float]:
    """A block timed by the worker's loop: nanoseconds of each call, and of the loop by its number of calls."""
    seen = [0, 0]  # calls so far, and when the first that counts began

    def counted() -> None:
        # Settling ends with the first call of the block, which the loop tells from outside only by its number.
        if seen[0] == 0:
            seen[1] = time.perf_counter_ns()
        seen[0] += 1
        call()

    times = measure(counted, 0.0, calls, call)
    return times, (time.perf_counter_ns() - seen[1]) / len(times)


def overhead(blocks: int) -> dict[str, Any]:
    """The loop against a bare one, on a call of 100 µs."""
    inside: list[list[int]] = []
    outside: list[list[int]] = []
    plain: list[list[int]] = []
    for number in range(blocks):
        # Every second block the other way round, so that a steady drift cancels.
        if number % 2:
            plain.append([round(bare(busy, _CALLS))])
        times, each = whole(busy, _CALLS)
        inside.append([round(statistics.mean(times))])
        outside.append([round(each)])
        if not number % 2:
            plain.append([round(bare(busy, _CALLS))])
    return {
        "blocks": blocks,
        "calls": _CALLS,
        "bare_ns": statistics.median(block[0] for block in plain),
        "reported_ns": statistics.median(block[0] for block in inside),
        "overhead": _more(speedup(inside, plain)),
        "outside": _more(speedup(outside, plain)),
        "clock_ns": statistics.median(bare(_two_reads, 20_000) for _ in range(20)) - _empty_ns(),
    }


def _two_reads() -> None:
    time.perf_counter_ns()
    time.perf_counter_ns()


def _empty_ns() -> float:
    return statistics.median(bare(lambda: None, 20_000) for _ in range(20))


def _more(ratio: Ratio) -> dict[str, float]:
    """A ratio of times as a share that it is more."""
    return {"value": ratio.value - 1, "low": ratio.low - 1, "high": ratio.high - 1}


def comparison(quick: bool) -> dict[str, Any]:
    """Two candidates at default settings: wall seconds, and the most memory that the parent held."""
    import optimizer
    from optimizer.store import Store

    store = Store(CACHE / "store")
    if not any(store.root.glob("models/minilm/*")):
        optimizer.export_onnx(str(minilm_folder()), name="minilm", store=store.root)
        optimizer.quantize_dynamic("minilm:fp32", store=store.root)
    words = ["bench", "minilm:int8-dynamic", "--against", "minilm:fp32", "--store", str(store.root)]
    words += ["--duration", "0.1", "--rounds", "3"] if quick else []
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "wb") as log:
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "optimizer", *words], cwd=ROOT, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _peak_of(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - started
        if process.returncode:
            raise SystemExit((Path(folder) / "log").read_text())
    return {"command": "ml-opt " + " ".join(words[:4]), "seconds": round(seconds, 1), "parent_peak_bytes": peak}


def _peak_of(pid: int) -> int:
    """The most that a process held so far (``VmHWM``), bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def to_markdown(document: Mapping[str, Any]) -> str:
    """What a page says of it."""
    loop, two, cpu = document["loop"], document["comparison"], document["environment"]["cpu"]
    over, outside = loop["overhead"], loop["outside"]
    return (
        f"{cpu['model']}, {cpu['cores']} cores, {document['created'][:10]}.\n\n"
        "| what | measured | promised |\n|---|---|---|\n"
        f"| what a report says of a call of {loop['bare_ns'] / 1e3:.1f} µs, beyond that | {over['value']:+.2%} "
        f"({over['low']:+.2%} to {over['high']:+.2%}) | under {LIMIT:.0%} |\n"
        f"| what the loop takes beside that call, the reading of its clock in it | {outside['value']:+.2%} "
        f"({outside['low']:+.2%} to {outside['high']:+.2%}) | under {LIMIT:.0%} |\n"
        f"| two readings of the clock | {loop['clock_ns']:.0f} ns | |\n"
        f"| two candidates at default settings, `{two['command']}` | {two['seconds']:.0f} s | under {LIMIT_S:.0f} s |\n"
        f"| most memory of its parent process | {two['parent_peak_bytes'] / 2**20:.0f} MiB | |\n"
    )


def broken(document: Mapping[str, Any]) -> list[str]:
    """What was promised and does not hold."""
    found = [
        f"{name} is {document['loop'][name]['value']:.2%}, and {LIMIT:.0%} is promised"
        for name in ("overhead", "outside")
        if document["loop"][name]["value"] >= LIMIT
    ]
    if document["comparison"]["seconds"] >= LIMIT_S:
        found.append(f"a comparison takes {document['comparison']['seconds']} s, and {LIMIT_S:.0f} are promised")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="to see that all works; the result goes into .cache")
    options = parser.parse_args()
    # On one core, so that a move to another falls on neither loop.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    loop = overhead(20 if options.quick else options.blocks)
    os.sched_setaffinity(0, cores)
    document = {
        "report": "harness_overhead",
        "schema": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "environment": describe(),
        "loop": loop,
        "comparison": comparison(options.quick),
    }
    result = CACHE / "quick.json" if options.quick else RESULT
    write_report(result, document)
    print(to_markdown(document))
    print(json.dumps(loop))
    if wrong := broken(document):
        raise SystemExit("\n".join(["Not as promised:", *wrong]))


if __name__ == "__main__":
    main()
