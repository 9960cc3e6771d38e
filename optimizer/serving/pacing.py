"""How large runs of a model are, and how long a request may wait for one: by the times of its runs, or as given.

Under ``--slo`` a request shall be over in so many seconds: it waits, and then it runs. No run is predicted to take more
than half of them. Where runs were measured before (:mod:`optimizer.serving.measured`), that is known from the first
request on; a run is no larger than pays off, and what a run leaves of the time is for waiting. Without, the halves are
all that is known, and runs are as large as is usual until they have shown what they take.

A request never waits while the model has nothing to do, unless ``--delay`` says so: by a line of start and slope, a run
that begins later is over later. What ``--delay`` takes is taken from the time that there is.
"""

from __future__ import annotations

from collections.abc import Mapping

from optimizer.serving.curve import Curve
from optimizer.serving.measured import Measured
from optimizer.serving.settings import Settings
from optimizer.serving.tickets import Limits
from optimizer.types import JSON

__all__ = ["curve_of", "limits_from", "limits_of", "rows_of_a_run"]

#: What a run has at most where nothing else is known.
_ROWS, _TOKENS = 32, 2048
#: Of the tokens a second that endless runs would compute, what one has to reach: a larger one keeps more waiting.
_ENOUGH = 0.98
#: Of the time that is promised, what is left for all but waiting and the run: bodies, the answer, the loop.
_REST = 0.1


def rows_of_a_run(settings: Settings, model: Mapping[str, JSON]) -> int:
    """Most rows of a run, of a model of which nothing was measured."""
    return _within(settings.max_batch or _ROWS, model)


def _within(rows: int, model: Mapping[str, JSON]) -> int:
    """No more rows than the model was exported for."""
    return min(rows, int(model.get("max_batch") or rows))


def limits_of(settings: Settings, model: Mapping[str, JSON], measured: Measured | None = None) -> Limits:
    """What a model's batcher may do.

    Args:
        settings: of the server; what they give is followed.
        model: the manifest's description.
        measured: times of its runs here; None where there are none.
    """
    delay = settings.delay or 0.0
    half = (settings.slo - delay) / 2 if settings.slo else None
    rows, tokens, total = rows_of_a_run(settings, model), settings.max_tokens or _TOKENS, None
    if settings.slo and measured is not None:
        total = (1 - _REST) * settings.slo - delay
        if settings.max_batch is None:
            rows = _within(max(rows, measured.rows), model)
        if settings.max_tokens is None:
            # Nobody knows what becomes of runs that are larger than those that were measured, or are usual.
            tokens = max(1, int(min(curve_of(measured).enough(_ENOUGH), max(_TOKENS, measured.tokens))))
    return Limits(settings.max_queue, rows, tokens, delay, run_s=half, wait_s=half, total_s=total)


def curve_of(measured: Measured) -> Curve:
    """What is known of runs before the first, by what was measured."""
    return Curve.of((run.tokens, run.seconds) for run in measured.runs)


def limits_from(settings: Settings, measured: Measured | None) -> str:
    """Where the limits come from, in words."""
    given = [f"--{name.replace('_', '-')}" for name in ("max_batch", "max_tokens", "delay")
             if getattr(settings, name) is not None]  # fmt: skip
    known = "learned as it runs" if measured is None else str(measured)
    return f"{known}; given: {', '.join(given)}" if given else known
