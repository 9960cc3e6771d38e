"""How much of a call is the GPU's own: what is counted in a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import device_time
from benchmarks.device_time import busy_ns, measured
from optimizer.types import TensorSpec


def span(begin: float, length: float, cat: str = "kernel", ph: str = "X") -> dict[str, Any]:
    return {"cat": cat, "ph": ph, "ts": begin, "dur": length}


def test_work_that_overlaps_is_counted_once() -> None:
    """Microseconds in, nanoseconds out; what the processor did meanwhile is not the GPU's."""
    assert busy_ns([span(0, 10), span(5, 10), span(100, 1, "gpu_memcpy")]) == 16_000
    assert busy_ns([span(3, 2), span(0, 10)]) == 10_000, "one inside the other, in any order"
    assert busy_ns([span(0, 10), span(20, 5, "cpu_op"), span(30, 5, "cuda_runtime"), span(40, 5, ph="i")]) == 10_000
    assert busy_ns([]) == 0


class Session:
    """Counts its calls."""

    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("b", "s")),
    )
    calls = 0
    fed: dict[str, Any]

    def __init__(self) -> None:
        self.facts = {"cuda_graph": True}

    def bind(self, feeds: dict[str, Any]) -> Any:
        self.fed = feeds

        def call() -> None:
            self.calls += 1

        return call


def test_a_shape_is_timed_and_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []
    monkeypatch.setattr(device_time, "_traced", lambda call, calls: traced.append(calls) or 2e6 * calls)
    session = Session()
    row = measured(session, "2x8", 10)  # type: ignore[arg-type]  # a session in what is asked of it
    assert session.fed["input_ids"].shape == session.fed["attention_mask"].shape == (2, 8)
    assert np.all(session.fed["attention_mask"] == 1)
    assert session.calls > 10, "warmed up"
    assert traced == [10]
    assert (row["shape"], row["device_ms"], row["cuda_graph"]) == ("2x8", 2.0, True)
    assert row["quotient"] == row["call_ms"] / 2.0
