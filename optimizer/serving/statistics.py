"""What V2's statistics extension tells of a model: counts and nanoseconds since it was loaded first.

Triton's words: an *inference* is a row that was answered, an *execution* a run of the model, which several requests may
share. Replaying golden inputs is neither. A text of a generator is one of each: its steps are shared with whoever else
is written for, and no step is one request's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from optimizer.serving.tickets import Run
from optimizer.types import JSON

__all__ = ["Counting", "Statistics"]

#: Every field that Triton has: perf_analyzer reads each of them.
_PARTS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip
#: Parts of an execution.
_COMPUTE = ("compute_input", "compute_infer", "compute_output")
#: Triton's part → the parts of a request's own time that are of it (:attr:`Call.times`). How long a text waits for its
#: place is not known by itself: it is in the time to its first token.
_OF = {
    "queue": ("queue",),
    "compute_input": ("parse", "tokenize"),
    "compute_infer": ("compute", "first_token", "write"),
    "compute_output": ("serialize",),
}


@dataclass
class Statistics:
    """The counts of one model."""

    rows: int = 0
    executions: int = 0
    last_ms: int = 0
    parts: dict[str, list[int]] = field(default_factory=lambda: {part: [0, 0] for part in _PARTS})
    #: Rows of a run → runs that had as many, and nanoseconds of each part of theirs.
    batches: dict[int, list[int]] = field(default_factory=dict)

    def add(self, part: str, seconds: float, count: int = 1) -> None:
        """Count a part of a request."""
        entry = self.parts[part]
        entry[0] += count
        entry[1] += int(seconds * 1e9)

    def answered(self, rows: int) -> None:
        """Count the rows of a request that was answered."""
        self.rows += rows
        self.last_ms = int(time.time() * 1000)

    def ran(self, run: Run) -> None:
        """Count a run of the model."""
        self.executions += 1
        entry = self.batches.setdefault(run.rows, [0, 0, 0, 0])
        entry[0] += 1
        for place, seconds in enumerate((run.joining, run.seconds - run.joining - run.splitting, run.splitting), 1):
            entry[place] += int(seconds * 1e9)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What fails inside is a request that failed; what does not is counted by whoever goes on with it."""
        counting = Counting(self, {})
        try:
            yield
        except Exception:
            counting.failed()
            raise

    def to_json(self) -> dict[str, JSON]:
        """As the extension has it."""
        return {
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {part: {"count": count, "ns": ns} for part, (count, ns) in self.parts.items()},
            "batch_stats": [
                {
                    "batch_size": rows,
                    **{part: {"count": count, "ns": ns} for part, ns in zip(_COMPUTE, times, strict=True)},
                }
                for rows, (count, *times) in sorted(self.batches.items())
            ],
            "response_stats": {},
            "memory_usage": [],
        }


class Counting:
    """One request that asks a model: how it ended, and where its time went.

    It ends once, and what is said of it later is not heard. As a context it ends with its block: well, or by an error.

    Args:
        statistics: of the model.
        times: of the request, by part, as they will be at its end.

    Attributes:
        rows: that it asks about; to be set before it ends well.
        executions: that are its own; none where runs are counted by themselves (:meth:`Statistics.ran`).
    """

    def __init__(self, statistics: Statistics, times: Mapping[str, float]) -> None:
        self._statistics, self._times = statistics, times
        self._began = time.perf_counter()
        self._over = False
        self.rows = self.executions = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self.succeeded()
        elif isinstance(error, Exception):  # a task that was cancelled says nothing of the model
            self.failed()

    def succeeded(self) -> None:
        """It was answered."""
        if self._end("success"):
            for part, names in _OF.items():
                if took := [self._times[name] for name in names if name in self._times]:  # what was kept did not run
                    self._statistics.add(part, sum(took))
            self._statistics.answered(self.rows)
            self._statistics.executions += self.executions

    def failed(self) -> None:
        """It was not."""
        self._end("fail")

    def _end(self, how: str) -> bool:
        over, self._over = self._over, True
        if not over:
            self._statistics.add(how, time.perf_counter() - self._began)
        return not over
