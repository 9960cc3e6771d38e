"""A budget of memory: models are loaded when they are asked for, and make room by last use.

What a model takes is measured when it is loaded (:attr:`~optimizer.serving.served.Served.bytes`); before that it is
taken to be what its files weigh. One model loads at a time. The one that was used the longest ago makes room, as soon
as nobody uses it. Where all are in use all the time, it is let run empty, and those that ask for it meanwhile wait
until it is loaded again.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Iterable

from optimizer.environment import has_module
from optimizer.errors import BadInput, MlOptError
from optimizer.serving.problems import Problem
from optimizer.serving.served import Phase, Served
from optimizer.serving.sizes import said

__all__ = ["WAITS", "Memory"]

#: Why a model that is not loaded is not ready.
WAITS = "not loaded: it is loaded when it is asked for"
#: Seconds after which a model that is never idle is let run empty.
_PATIENCE = 1.0
_LOOK = 0.005
#: What every model needs is loaded before any, so that it is charged to none.
_LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "PIL.Image")


class Memory:
    """The budget of a server's models. All its methods belong to the event loop's thread.

    Args:
        limit: bytes that loaded models may take together.
        models: all that the server knows.
        load: ``load(served)`` opens a model, proves it, and measures it; raises :class:`MlOptError`.
        retire: ``retire(served, reason)`` takes one out of service.
        waiting: most requests that wait for one model's load.
    """

    def __init__(
        self,
        limit: int,
        models: Iterable[Served],
        load: Callable[[Served], Awaitable[None]],
        retire: Callable[[Served, str], Awaitable[None]],
        waiting: int,
    ) -> None:
        self.limit = limit
        self._models = models
        self._load = load
        self._retire = retire
        self._most = waiting
        self._turn = asyncio.Lock()
        self._loading: dict[Served, asyncio.Task[None]] = {}

    def taken(self) -> int:
        """Bytes of what is loaded."""
        return sum(served.bytes for served in self._models if served.phase in (Phase.READY, Phase.UNLOADING))

    async def start(self, found: list[Served]) -> None:
        """Load as many models as fit, in their order; the others wait until they are asked for.

        Raises:
            BadInput: one is larger than the budget.
            MlOptError: one cannot be served, and why.
        """
        await asyncio.to_thread(_import_libraries)
        for served in found:
            self._need_small(served)
        for served in found:
            if self.taken() + served.weight > self.limit:
                if served.artifact is not None:  # what is damaged shall not come to light when somebody asks for it
                    await asyncio.to_thread(served.artifact.check)
                continue
            await self.load(served)
            if self.taken() > self.limit:  # it takes more than its files said, and those before it come first
                await self._retire(served, WAITS)

    async def load(self, served: Served) -> None:
        """Load a model in its turn, after room was made for it.

        Raises:
            BadInput: it is larger than the budget.
            MlOptError: it cannot be served, and why.
            Problem: 503: nobody waits for it any more.
        """
        served.waiting += 1
        try:
            await self._in_turn(served)
        finally:
            served.waiting -= 1

    async def wake(self, served: Served, deadline: float) -> None:
        """Wait until a model is loaded that was not.

        Args:
            served: loads on demand.
            deadline: when the request has to be answered, by ``time.perf_counter()``.

        Raises:
            Problem: 429: too many wait already; 503: it cannot be loaded, and why; 504: its time is over.
        """
        if served.waiting >= self._most:
            message = f"{served.waiting} requests wait for {served.name} to be loaded already (--max-queue)"
            raise Problem(429, message, {"Retry-After": "1"}, reason="queue_full")
        task = self._loading.get(served)
        if task is None:
            task = self._loading[served] = asyncio.ensure_future(self._in_turn(served))
            task.add_done_callback(lambda done: self._loaded(served, done))
        served.waiting += 1
        try:
            await asyncio.wait({task}, timeout=max(0.0, deadline - time.perf_counter()))
        finally:
            served.waiting -= 1
        if not task.done():
            raise Problem(504, f"its time was over before {served.name} was loaded", reason="late")
        try:
            task.result()
        except MlOptError as error:
            raise Problem(503, f"{served.name} cannot be loaded: {served.told(error.message)}", reason="load") from None

    async def close(self) -> None:
        """Wait for the load that is under way, and begin no other."""
        for task in list(self._loading.values()):
            await asyncio.wait({task})

    def _loaded(self, served: Served, task: asyncio.Task[None]) -> None:
        self._loading.pop(served, None)
        if not task.cancelled():
            task.exception()  # seen by those who waited; where nobody did, the index has the reason

    async def _in_turn(self, served: Served) -> None:
        async with self._turn:
            if served.ready:
                return
            self._need_small(served)
            await self._room(served)
            try:
                await self._load(served)
                if served.bytes > self.limit:
                    await self._retire(served, f"it takes {said(served.bytes)}")
                    self._need_small(served)
            except MlOptError as error:
                served.failed, served.reason = True, error.message
                served.on_demand = False  # it would fail again, and make others lose their place each time
                raise
            served.used = time.perf_counter()
            while self.taken() > self.limit and (idle := self._idle(served)):  # it took more than its files said
                await self._unload(idle[0], served)

    def _need_small(self, served: Served) -> None:
        if served.weight > self.limit:
            raise BadInput(
                f"{served.ref} takes {said(served.weight)}, more than all models may together: {said(self.limit)}",
                "give them more: --memory SIZE",
            )

    async def _room(self, served: Served) -> None:
        """Unload others until a model fits, which may take until they are not used any more."""
        patience = time.perf_counter() + _PATIENCE
        while self.taken() + served.weight > self.limit:
            if idle := self._idle(served):
                await self._unload(idle[0], served)
                continue
            if not served.waiting:
                raise Problem(503, f"nobody waits for {served.name} any more", reason="memory")
            busy = [other for other in self._models if other.ready and other is not served]
            if busy and time.perf_counter() > patience:
                await self._emptied(min(busy, key=lambda other: other.used), served)
                continue
            await asyncio.sleep(_LOOK)

    def _idle(self, served: Served) -> list[Served]:
        """The others that nobody uses, the one that was used the longest ago first."""
        others = [each for each in self._models if each.ready and each is not served]
        return sorted((each for each in others if not each.busy and not each.waiting), key=lambda each: each.used)

    async def _emptied(self, victim: Served, served: Served) -> None:
        """Unload a model that is in use: nobody new is let in, and those who are in finish."""
        victim.phase, victim.on_demand = Phase.UNLOADING, True
        while victim.busy:
            if not served.waiting:
                victim.phase = Phase.READY
                raise Problem(503, f"nobody waits for {served.name} any more", reason="memory")
            await asyncio.sleep(_LOOK)
        await self._unload(victim, served)

    async def _unload(self, victim: Served, served: Served) -> None:
        victim.on_demand = True
        await self._retire(victim, f"unloaded for {served.name} (--memory); it is loaded again when it is asked for")


def _import_libraries() -> None:
    for name in _LIBRARIES:
        if has_module(name.partition(".")[0]):
            importlib.import_module(name)
