"""A model proves itself before it is ready: its golden inputs go through its queue, and the answers are compared.

They are written and read as V2's binary bodies, as a client's are; only the socket is left out. Three ways: all rows in
one request, each row in a request of its own, one after the other, and those requests all at once, at their different
lengths. Every way is held to the tolerance of the artifact's number format, as ``verify`` has it. What answers wrong in
rows of its own is served without sharing runs: first without padding, then not joined at all. Where runs may be side by
side, the session that is for those proves itself as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optimizer.data.golden import Golden
from optimizer.errors import GateFailed
from optimizer.evaluate.golden import GoldenSession
from optimizer.evaluate.parity import TOLERANCES, Case, Inputs, Tolerance, as_computed, compare, judge
from optimizer.serving.inference import decoded, encoded, parse, written
from optimizer.serving.problems import Problem
from optimizer.serving.served import Served
from optimizer.task import get_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimizer.serving.batcher import Batcher

    Arrays = Mapping[str, NDArray[Any]]

__all__ = ["prove"]

_MASK = "attention_mask"


async def prove(served: Served) -> str:
    """Replay what was kept beside a model.

    Generators have a proof of their own (:mod:`optimizer.serving.text.proving`).

    Returns:
        what was replayed, in words; empty where nothing was kept that this graph takes.

    Raises:
        GateFailed: an answer is not the one that was kept.
        Damaged: what was kept cannot be read.
    """
    artifact, batcher = served.artifact, served.batcher
    if artifact is None or batcher is None or (golden := Golden.load(artifact.path)) is None:
        return ""
    if any(spec.name not in golden.inputs for spec in served.inputs):
        return ""  # the graph takes other inputs than the model it was made from
    tolerance = TOLERANCES[as_computed(artifact.precision, served.facts)]
    for beside in (False, True)[: batcher.lanes]:
        batcher.always_beside = beside
        await _proved(served, batcher, golden, tolerance)
    batcher.always_beside = False
    return f"golden inputs: {len(next(iter(golden.inputs.values())))} rows"


async def _proved(served: Served, batcher: Batcher, golden: Golden, tolerance: Tolerance) -> None:
    """Replay it as the batcher is set to run now, and have it join no requests that are answered wrong together."""
    if failures := await _failures(served, _Whole(served), golden, tolerance):
        raise GateFailed(
            f"{served.ref} does not answer its golden inputs as it should: {failures[0]}",
            f"look at it: ml-opt verify {served.ref} --against golden; to serve it all the same: --no-verify",
        )
    while batcher.plan.joins:
        ways = (_Rows(served, together=together) for together in (False, True))
        if not any([await _failures(served, way, golden, tolerance) for way in ways]):
            return
        batcher.plan = replace(batcher.plan, pads=False, joins=batcher.plan.pads)


async def _failures(served: Served, way: _Way, golden: Golden, tolerance: Tolerance) -> list[str]:
    """What is beyond the tolerance, in words. In a thread, as the way waits for the event loop's queue."""

    def judged() -> list[str]:
        case = Case("golden", {spec.name: golden.inputs[spec.name] for spec in served.inputs}, Inputs.GOLDEN)
        reference = GoldenSession(golden)
        return judge(list(compare(reference, way, [case], get_task(served.task), served.model)), tolerance)

    return await asyncio.to_thread(judged)


class _Way:
    """A session that asks a model through its queue; it is called from another thread than the loop's."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._loop = asyncio.get_running_loop()
        self.inputs, self.outputs, self.facts = served.inputs, served.outputs, dict(served.facts)

    def run(self, feeds: Arrays) -> dict[str, Any]:
        raise NotImplementedError

    def bind(self, feeds: Arrays) -> Any:
        raise NotImplementedError

    def runs(self) -> None:
        return None

    def close(self) -> None:
        """It is the server's."""

    def ask(self, requests: Sequence[Arrays]) -> list[dict[str, Any]]:
        """Answers to requests that enter the queue at once."""

        async def asked() -> list[dict[str, Any]]:
            served, batcher = self._served, self._served.batcher
            assert batcher is not None
            limits = served.model.get("limits") or {}
            read = [parse(*written(feeds), served.inputs, served.outputs, limits) for feeds in requests]
            tickets = batcher.submit_all([request.feeds for request in read])
            outputs = await asyncio.gather(*(ticket.answer for ticket in tickets))
            answers = zip(read, outputs, strict=True)
            return [decoded(*encoded(request, output, served.name, served.version)) for request, output in answers]

        try:
            return asyncio.run_coroutine_threadsafe(asked(), self._loop).result()
        except Problem as problem:
            raise GateFailed(problem.message) from problem


class _Whole(_Way):
    """All rows in one request."""

    def run(self, feeds: Arrays) -> dict[str, Any]:
        return self.ask([feeds])[0]


class _Rows(_Way):
    """Each row in a request of its own, without its padding where the queue would join it with others' lengths."""

    def __init__(self, served: Served, *, together: bool) -> None:
        super().__init__(served)
        self._together = together

    def run(self, feeds: Arrays) -> dict[str, Any]:
        import numpy as np

        batcher = self._served.batcher
        assert batcher is not None
        mask = feeds[_MASK] if batcher.plan.pads else None
        rows: list[dict[str, Any]] = []
        for place in range(len(next(iter(feeds.values())))):
            row = {name: array[place : place + 1] for name, array in feeds.items()}
            if mask is not None:
                for name, axes in batcher.plan.inputs.items():
                    for axis in axes:
                        row[name] = np.take(row[name], np.flatnonzero(mask[place]), axis=axis)
            rows.append(row)
        answers = self.ask(rows) if self._together else [self.ask([row])[0] for row in rows]
        stepped = {name for name, axes in batcher.plan.outputs.items() if axes and mask is not None}
        return {
            name: _stacked([answer[name] for answer in answers], mask if name in stepped else None)
            for name in answers[0]
        }


def _stacked(rows: Sequence[NDArray[Any]], mask: NDArray[Any] | None) -> NDArray[Any]:
    """One array of all rows; where a mask says which steps were asked, those at their places, and 0 elsewhere."""
    import numpy as np

    if mask is None:
        return np.concatenate(rows)
    stacked = np.zeros((*mask.shape, *rows[0].shape[2:]), rows[0].dtype)
    for place, row in enumerate(rows):
        stacked[place, np.flatnonzero(mask[place])] = row[0]
    return stacked
