"""A model proves itself before it is ready: its golden inputs go through its queue, and the answers are compared.

They are sent and answered as a client's are: bytes of HTTP through a socket, the door, V2's binary bodies, the queue
(:mod:`optimizer.serving.loopback`). Nothing of it is counted. Three ways: all rows in one request, each row in a
request of its own, one after the other, and those requests all at once, at their different lengths. Every way is held
to the tolerance of the artifact's number format, as ``verify`` has it. What answers wrong in rows of its own is served
without sharing runs: first without padding, then not joined at all. Where runs may be side by side, the session that is
for those proves itself as well.
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
from optimizer.serving.inference import HEADER_LENGTH, decoded, written
from optimizer.serving.loopback import Loopback
from optimizer.serving.served import Served, uncounted
from optimizer.serving.tickets import Limits
from optimizer.task import get_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimizer.serving.batcher import Batcher
    from optimizer.serving.settings import Settings

    Arrays = Mapping[str, NDArray[Any]]

__all__ = ["prove"]

_MASK = "attention_mask"
#: Rows that may wait while nobody else asks.
_EVERYTHING = 1 << 30
#: Seconds between two looks at how many requests have come.
_MOMENT = 0.0005


async def prove(served: Served, settings: Settings) -> str:
    """Replay what was kept beside a model, over HTTP.

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
    asking = _Asking(Loopback(served, settings), served, batcher)
    limits = batcher.limits
    with uncounted(served):
        # What clients may ask for at once, and how long they may wait, is no matter of what is answered; the limits
        # that hold for them are set when it is proved.
        batcher.begin_with(Limits(_EVERYTHING, limits.rows, limits.tokens))
        for beside in (False, True)[: batcher.lanes]:
            batcher.always_beside = beside
            await _proved(asking, golden, tolerance)
        batcher.always_beside = False
    return f"golden inputs: {len(next(iter(golden.inputs.values())))} rows"


async def _proved(asking: _Asking, golden: Golden, tolerance: Tolerance) -> None:
    """Replay it as the batcher is set to run now, and have it join no requests that are answered wrong together."""
    served, batcher = asking.served, asking.batcher
    if failures := await _failures(_Whole(asking), golden, tolerance):
        raise GateFailed(
            f"{served.ref} does not answer its golden inputs as it should: {failures[0]}",
            f"look at it: ml-opt verify {served.ref} --against golden; to serve it all the same: --no-verify",
        )
    while batcher.plan.joins:
        ways = (_Rows(asking, together=together) for together in (False, True))
        if not any([await _failures(way, golden, tolerance) for way in ways]):
            return
        batcher.plan = replace(batcher.plan, pads=False, joins=batcher.plan.pads)


async def _failures(way: _Way, golden: Golden, tolerance: Tolerance) -> list[str]:
    """What is beyond the tolerance, in words. In a thread, as the way waits for the event loop's queue."""
    served = way.asking.served

    def judged() -> list[str]:
        case = Case("golden", {spec.name: golden.inputs[spec.name] for spec in served.inputs}, Inputs.GOLDEN)
        reference = GoldenSession(golden)
        return judge(list(compare(reference, way, [case], get_task(served.task), served.model)), tolerance)

    return await asyncio.to_thread(judged)


class _Asking:
    """A model that is asked, from another thread than the event loop's.

    Args:
        loopback: the way to it.
        served: the model.
        batcher: its queue.
    """

    def __init__(self, loopback: Loopback, served: Served, batcher: Batcher) -> None:
        self._loop = asyncio.get_running_loop()
        self._loopback, self.served, self.batcher = loopback, served, batcher
        self._path = f"/v2/models/{served.name}/versions/{served.version}/infer"

    def all_at_once(self, requests: Sequence[Arrays]) -> list[dict[str, Any]]:
        """Answers to requests that come at the same time, and share runs where the queue would join them."""

        async def asked() -> list[dict[str, Any]]:
            with self.batcher.held():  # the first would run before the others are there
                asking = [asyncio.ensure_future(self._answer(feeds)) for feeds in requests]
                rows = sum(self.batcher.plan.size(feeds).rows for feeds in requests)
                while self.batcher.depth < rows and not any(each.done() for each in asking):  # as one that failed is
                    await asyncio.sleep(_MOMENT)
            return await asyncio.gather(*asking)

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result()

    def one(self, feeds: Arrays) -> dict[str, Any]:
        """The answer to a request that is alone."""
        return asyncio.run_coroutine_threadsafe(self._answer(feeds), self._loop).result()

    async def _answer(self, feeds: Arrays) -> dict[str, Any]:
        body, length = written(feeds)
        reply = await self._loopback.post(self._path, body, {HEADER_LENGTH: length})
        return decoded(reply.body, reply.headers)


class _Way:
    """A session that asks a model over HTTP; it is called from another thread than the loop's."""

    def __init__(self, asking: _Asking) -> None:
        served = asking.served
        self.asking = asking
        self.inputs, self.outputs, self.facts = served.inputs, served.outputs, dict(served.facts)

    def run(self, feeds: Arrays) -> dict[str, Any]:
        raise NotImplementedError

    def bind(self, feeds: Arrays) -> Any:
        raise NotImplementedError

    def runs(self) -> None:
        return None

    def close(self) -> None:
        """It is the server's."""


class _Whole(_Way):
    """All rows in one request."""

    def run(self, feeds: Arrays) -> dict[str, Any]:
        return self.asking.one(feeds)


class _Rows(_Way):
    """Each row in a request of its own, without its padding where the queue would join it with others' lengths."""

    def __init__(self, asking: _Asking, *, together: bool) -> None:
        super().__init__(asking)
        self._together = together

    def run(self, feeds: Arrays) -> dict[str, Any]:
        import numpy as np

        batcher = self.asking.batcher
        mask = feeds[_MASK] if batcher.plan.pads else None
        rows: list[dict[str, Any]] = []
        for place in range(len(next(iter(feeds.values())))):
            row = {name: array[place : place + 1] for name, array in feeds.items()}
            if mask is not None:
                for name, axes in batcher.plan.inputs.items():
                    for axis in axes:
                        row[name] = np.take(row[name], np.flatnonzero(mask[place]), axis=axis)
            rows.append(row)
        asking = self.asking
        answers = asking.all_at_once(rows) if self._together else [asking.one(row) for row in rows]
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
