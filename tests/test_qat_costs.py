"""What the benchmark of training for int8 makes of its measurements."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.qat import KINDS, costs_of


def test_each_kind_is_a_share_of_plain_fine_tuning_in_the_same_round() -> None:
    """A machine that is slow for a round is slow for all of it: medians of shares, not shares of medians."""
    plain, ours, smooth = [1.0, 4.0, 1.2], [1.5, 6.0, 2.4], [2.0, 8.0, 2.4]
    rounds: dict[str, Any] = {
        kind: [{"step_s": step, "peak_mib": 100.0 * (1 + place)} for step in steps]
        for place, (kind, steps) in enumerate(zip(KINDS, (plain, ours, smooth), strict=True))
    }
    found = costs_of(rounds)
    assert [found[kind]["step_s"] for kind in KINDS] == [1.2, 2.4, 2.4]
    assert found["step_ratios"] == pytest.approx([1.5, 1.5, 2.0])
    assert found["step_ratio"] == pytest.approx(1.5)
    assert found["memory_ratio"] == 2.0
    assert found["qat-smooth_step_ratios"] == pytest.approx([2.0, 2.0, 2.0])
    assert (found["qat-smooth_step_ratio"], found["qat-smooth_memory_ratio"]) == (pytest.approx(2.0), 3.0)


def test_costs_of_before_are_read_as_ever() -> None:
    """Two kinds give the keys that results of before have, and no others."""
    rounds = {kind: [{"step_s": 1.0, "peak_mib": 2.0, "before_mib": 1.0}] for kind in ("plain", "qat")}
    assert list(costs_of(rounds)) == ["plain", "qat", "step_ratio", "step_ratios", "memory_ratio"]
