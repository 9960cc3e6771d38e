"""From the options of a command that measures to how it measures."""

from __future__ import annotations

from typing import Any, Protocol

from optimizer.benching.measure import Plan
from optimizer.benching.workload import Load
from optimizer.environment import cpu_threads

__all__ = ["Timed", "plan_of"]


class Timed(Protocol):
    """Options that every command that measures has; see :class:`~optimizer.benching.measure.Plan`."""

    @property
    def threads(self) -> int: ...

    @property
    def rounds(self) -> int: ...

    @property
    def duration(self) -> float: ...

    @property
    def seed(self) -> int: ...

    @property
    def timeout(self) -> float: ...

    @property
    def roofline(self) -> bool: ...


def plan_of(options: Timed, shapes: tuple[Load, ...], samples: int, **more: Any) -> Plan:
    """How to measure what was asked for.

    Args:
        options: of the command.
        shapes: what is timed.
        samples: fewest calls of a candidate at a shape.
        more: other fields of the plan.
    """
    return Plan(
        shapes=shapes,
        threads=options.threads or cpu_threads(),
        rounds=options.rounds,
        seconds=options.duration,
        samples=samples,
        seed=options.seed,
        timeout=options.timeout,
        roofline=options.roofline,
        **more,
    )
