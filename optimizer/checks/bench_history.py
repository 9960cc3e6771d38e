"""bench history: what was measured of a model so far, and where it shifted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.check import Check
from optimizer.options import Options

if TYPE_CHECKING:
    from optimizer.benching.history import History
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "BenchHistory"]


class BenchHistory(Options):
    """Options of bench history: none of its own."""


def _run(refs: tuple[str, ...], options: BenchHistory, store: Store, progress: Progress) -> History:
    from optimizer.benching.history import history

    return history(refs[0], store)


CHECK = Check(
    name="bench-history",
    command=("bench", "history"),
    help="Show what bench measured of a model over time: a sparkline a candidate and shape, and where it shifted.",
    details="It reads the reports that bench keeps beside every version, and asks no server. Runs of different "
    "machines are never put into one series.",
    options=BenchHistory,
    run=_run,
    modules=("numpy",),
)
