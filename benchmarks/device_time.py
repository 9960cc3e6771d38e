"""How much of a bound call's time is the GPU's own.

    python -m benchmarks.device_time STORE REF+PROVIDER… [--shape 8x128 …] [--calls 100]

Times bound calls as ``bench`` does, then counts the nanoseconds in which the GPU had anything to do, read from CUPTI's
trace of the same calls by PyTorch's profiler, which sees what any library of its process launches. What is between the
two is launching and waiting. Prints JSON: milliseconds of a call and of the GPU in it, their quotient, and whether the
launches were one CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.benching.candidates import parse
from optimizer.runtime import Session
from optimizer.store import Store

__all__ = ["busy_ns", "measured"]

#: What CUPTI calls work of the GPU.
_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_WARM_CALLS = 20


def busy_ns(events: Iterable[dict[str, Any]]) -> float:
    """Nanoseconds in which at least one of the events was going on.

    Args:
        events: of a Chrome trace: ``cat``, ``ts`` and ``dur`` in microseconds.
    """
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in _WORK and e.get("ph") == "X")
    total, end = 0.0, float("-inf")
    for begin, stop in spans:
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total * 1000


def measured(session: Session, shape: str, calls: int) -> dict[str, Any]:
    """One shape of one open session."""
    call = session.bind(_feeds(session, shape))
    for _ in range(_WARM_CALLS):
        call()
    times = []
    for _ in range(calls):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    call_ms, device_ms = statistics.median(times) / 1e6, _traced(call, calls) / calls / 1e6
    return {
        "shape": shape,
        "call_ms": call_ms,
        "device_ms": device_ms,
        "quotient": call_ms / device_ms if device_ms else None,
        "cuda_graph": session.facts.get("cuda_graph"),
        "why_no_cuda_graph": session.facts.get("why_no_cuda_graph"),
    }


def _feeds(session: Session, shape: str) -> dict[str, Any]:
    rows, length = map(int, shape.split("x"))
    ids = np.random.default_rng(0).integers(1000, 20000, (rows, length))
    ones = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {spec.name: ones.get(spec.name, ids) for spec in session.inputs}


def _traced(call: Callable[[], None], calls: int) -> float:
    """The GPU's nanoseconds of so many calls."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="device-time-") as folder:
        file = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(file))
        return busy_ns(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("refs", nargs="+")
    parser.add_argument("--shape", action="append", help="rows × tokens [1x16, 8x128 and 32x128]")
    parser.add_argument("--calls", type=int, default=100)
    asked = parser.parse_args()
    rows = []
    for ref in asked.refs:
        session = parse(ref, Store(asked.store)).candidate.open()
        for shape in asked.shape or ("1x16", "8x128", "32x128"):
            rows.append({"ref": ref, **measured(session, shape, asked.calls)})
        session.close()
    print(json.dumps({"report": "device-time", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
