"""What V2's statistics extension tells of a model: counts and nanoseconds since it was loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from optimizer.types import JSON

__all__ = ["Statistics"]

#: Every field that Triton has: perf_analyzer reads each of them.
_PARTS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip


@dataclass
class Statistics:
    """The counts of one model."""

    rows: int = 0
    last_ms: int = 0
    parts: dict[str, list[int]] = field(default_factory=lambda: {part: [0, 0] for part in _PARTS})

    def add(self, part: str, seconds: float, count: int = 1) -> None:
        """Count a part of a request."""
        entry = self.parts[part]
        entry[0] += count
        entry[1] += int(seconds * 1e9)

    def answered(self, rows: int) -> None:
        """Count the rows of a request that was answered."""
        self.rows += rows
        self.last_ms = int(time.time() * 1000)

    def to_json(self, batches: Mapping[int, int]) -> dict[str, JSON]:
        """As the extension has it.

        Args:
            batches: rows of a run → how many runs had as many.
        """
        empty = {"count": 0, "ns": 0}
        return {
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": sum(batches.values()),
            "inference_stats": {part: {"count": count, "ns": ns} for part, (count, ns) in self.parts.items()},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": dict(empty),
                    "compute_infer": {"count": count, "ns": 0},
                    "compute_output": dict(empty),
                }
                for rows, count in sorted(batches.items())
            ],
            "response_stats": {},
            "memory_usage": [],
        }
