"""How long runs of a model take on this machine, by their size: as ``ml-opt bench`` measured it, or a moment ago.

``bench`` keeps its reports beside the versions of a model, each with the machine, the artifact's key and what the
session said of itself. A time counts here where all of that is the same: another processor, other threads, another
provider or another version of what computes take other times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.data.golden import Golden
from optimizer.ref import REPORTS
from optimizer.serving.cache import FACTS
from optimizer.serving.choosing import of_this_machine

if TYPE_CHECKING:
    from optimizer.serving.joining import Plan
    from optimizer.serving.served import Served

__all__ = ["Measured", "Timed", "by_bench", "timed_now"]

#: Reports that are looked into, the newest: a server shall be ready soon.
_REPORTS = 20
#: Rows of the runs that are timed at load, one after the other.
_ROWS = (1, 4, 16)
#: Seconds that these may take together, as far as the one before tells.
_SECONDS = 0.2


@dataclass(frozen=True)
class Timed:
    """Runs of one size.

    Attributes:
        rows: of each.
        tokens: of each, padding included; rows, where a model has no sequences.
        seconds: that the median one took.
    """

    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """Runs of several sizes on this machine.

    Attributes:
        runs: at least one, each of another size.
        by: who measured them and when, in words.
    """

    runs: tuple[Timed, ...]
    by: str

    @property
    def rows(self) -> int:
        """Of the run with the most of them."""
        return max(run.rows for run in self.runs)

    @property
    def tokens(self) -> int:
        """Of the largest run."""
        return max(run.tokens for run in self.runs)

    def __str__(self) -> str:
        sizes = "1 size" if len(self.runs) == 1 else f"{len(self.runs)} sizes"
        return f"measured {self.by}, {sizes} up to {self.tokens} tokens"


def by_bench(served: Served, plan: Plan) -> Measured | None:
    """What ``ml-opt bench`` measured of a model as it is served now; the newest time of each size.

    Args:
        served: the model; it has a session.
        plan: how its requests are joined, as runs are counted by it.

    Returns:
        None where nothing was measured of this very artifact on a machine like this one, or nothing that can be read.
    """
    if served.artifact is None:
        return None
    found: dict[int, Timed] = {}
    day = ""
    reports = sorted(served.artifact.path.parent.joinpath(REPORTS).glob("bench-2*.json"), reverse=True)[:_REPORTS]
    for path in reports:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            runs = list(_of_report(report, served, plan))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # whoever writes something else there costs nothing but its time
        if runs and not day:
            day = str(report.get("created", ""))[:10]
        for run in runs:
            found.setdefault(run.tokens, run)
    return Measured(tuple(found[tokens] for tokens in sorted(found)), f"by bench on {day}") if found else None


def _of_report(report: Mapping[str, Any], served: Served, plan: Plan) -> Iterator[Timed]:
    assert served.artifact is not None
    if report["report"] != "bench" or not of_this_machine(report):
        return
    key, facts = served.artifact.manifest.key, served.facts
    for row in report["rows"]:
        if row["key"] != key or any(row["facts"].get(name) != facts.get(name) for name in FACTS):
            continue
        for cell in row["cells"]:
            if cell.get("workload") or cell.get("open_loop"):
                continue  # a pass over a file is many runs; a time under load has the wait in it
            batch, _, length = str(cell["shape"]).partition("x")
            if not length and any(plan.inputs.values()):
                continue  # of the examples' own length, which nobody has written down
            rows, copying = int(batch), max(0.0, float(cell.get("copy_ms") or 0.0))
            seconds = (float(cell["p50_ms"]) + copying) / 1e3
            if rows > 0 and 0 < seconds < float("inf"):
                yield Timed(rows, rows * plan.padded(int(length or 1)), seconds)


def timed_now(served: Served, plan: Plan, most_rows: int) -> Measured | None:
    """Time a few sizes of runs of the golden inputs, in a fraction of a second. Not for the event loop's thread.

    Args:
        served: the model; it has a session, and nobody asks it yet.
        plan: how its requests are joined.
        most_rows: of a run.

    Returns:
        None where no golden inputs are kept that this graph takes, or its rows do not share runs.
    """
    import numpy as np

    session, artifact = served.session, served.artifact
    golden = Golden.load(artifact.path) if artifact is not None else None
    if session is None or golden is None or not plan.joins:
        return None
    if any(spec.name not in golden.inputs for spec in session.inputs):
        return None
    arrays = {spec.name: golden.inputs[spec.name] for spec in session.inputs}
    end, took = time.perf_counter() + _SECONDS, 0.0
    runs: list[Timed] = []
    for rows in _ROWS:
        # Each is run twice, as the first of a size pays for what is done once, and is larger than the one before.
        if rows > most_rows or time.perf_counter() + 8 * took > end:
            break
        feeds = {name: array[np.arange(rows) % len(array)] for name, array in arrays.items()}
        session.run(feeds)
        start = time.perf_counter()
        session.run(feeds)
        took = time.perf_counter() - start
        runs.append(Timed(rows, plan.as_run(plan.size(feeds)).tokens, took))
    return Measured(tuple(runs), "at load") if runs else None
