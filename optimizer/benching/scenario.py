"""How queries come, by the names that MLPerf gives them (Reddi et al., *MLPerf Inference Benchmark*, ISCA 2020)."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Scenario"]


class Scenario(StrEnum):
    """Who decides when the next query is sent.

    Attributes:
        SINGLE_STREAM: the one before does, by being answered (a closed loop); judged by latency.
        OFFLINE: nobody, all are there from the beginning; judged by throughput.
        SERVER: the outside world, at random times that no answer changes (an open loop); judged by latency.
    """

    SINGLE_STREAM = "single-stream"
    OFFLINE = "offline"
    SERVER = "server"

    @property
    def unit(self) -> str:
        """What a table's numbers are."""
        return _UNITS[self]


_UNITS = {
    Scenario.SINGLE_STREAM: "Median milliseconds of a call, one after another (closed loop)",
    Scenario.OFFLINE: "Rows a second of calls back to back",
    Scenario.SERVER: "Median milliseconds from the scheduled time of a query to its answer (open loop)",
}
