"""The models of a server: found in the store or a folder, loaded, proved, unloaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.errors import BadInput, MlOptError
from optimizer.options import parse_size
from optimizer.ref import Ref, is_name, safe_name
from optimizer.runtime import SHAPED
from optimizer.serving.batcher import Batcher
from optimizer.serving.choosing import chosen
from optimizer.serving.joining import plan_of
from optimizer.serving.measured import by_bench, timed_now
from optimizer.serving.memory import WAITS, Memory
from optimizer.serving.metrics import Metrics
from optimizer.serving.pacing import curve_of, limits_from, limits_of, rows_of_a_run
from optimizer.serving.priority import in_the_background
from optimizer.serving.problems import Problem
from optimizer.serving.proving import prove
from optimizer.serving.served import Phase, Served, opened
from optimizer.serving.settings import Settings
from optimizer.serving.settled import settled
from optimizer.serving.sizes import resident
from optimizer.serving.text.models import writer_for
from optimizer.serving.text.proving import prove_writer
from optimizer.serving.tickets import Run
from optimizer.store import Store

__all__ = ["Repository"]

#: Seconds between two looks at a queue that is to become empty.
_MOMENT = 0.01
#: Lengths are padded to a multiple of so many tokens where a session keeps what it prepared for every shape that came:
#: half the memory, and 1.1 to 1.4 times as many answers (docs/serving.md).
_MULTIPLE = 8


class Repository:
    """What is served, by name and version.

    Args:
        store: where references are looked up.
        settings: of every model.
        metrics: of the server.
    """

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, dict[str, Served]] = {}
        self._started = False
        self._memory: Memory | None = None
        if settings.memory:
            limit = parse_size(settings.memory, "--memory")
            self._memory = Memory(limit, self, self._opened, self._retire, settings.max_queue)

    def __iter__(self) -> Iterator[Served]:
        for versions in list(self._models.values()):
            yield from list(versions.values())

    @property
    def ready(self) -> bool:
        """Whether what was asked for at the start was loaded or waits to be, and nothing of it has failed."""
        return self._started and not self.degraded

    @property
    def degraded(self) -> list[Served]:
        """What the server was started for and cannot answer."""
        return [served for served in self if served.degraded]

    def get(self, name: str, version: str = "") -> Served:
        """A model by name: the version asked for, or the newest that is ready, or the newest.

        Raises:
            Problem: 404.
        """
        versions = self._models.get(name)
        if not versions:
            raise Problem(404, f"there is no model {name[:100]!r}", param="model", code="model_not_found")
        if version:
            if version not in versions:
                known = ", ".join(versions)
                raise Problem(404, f"model {name} has no version {version[:20]!r}; there is {known}", param="model")
            return versions[version]
        newest = sorted(versions.values(), key=lambda served: (served.askable, int(served.version)))
        return newest[-1]

    def versions(self, name: str) -> list[str]:
        """Versions of a model that are ready, ascending."""
        found = [served.version for served in self._models.get(name, {}).values() if served.ready]
        return sorted(found, key=int)

    async def start(self, refs: list[str]) -> None:
        """Load what was asked for on the command line; the first that fails ends it.

        Raises:
            MlOptError: one cannot be served, and why.
        """
        found = [self.find(ref) for ref in refs]
        names = [(served.name, served.version) for served in found]
        if twice := next((each for each in names if names.count(each) > 1), None):
            raise BadInput(
                f"{twice[0]} version {twice[1]} is asked for twice; a version is served as one of its variants",
                "serve the other variant with a server of its own, on another --port",
            )
        for served in found:
            served.wanted = True
        if self._memory is None:
            for served in found:
                await self.load(served)
        else:
            for served in found:
                self._models.setdefault(served.name, {})[served.version] = served
                served.phase, served.reason, served.on_demand = Phase.UNAVAILABLE, WAITS, True
                served.model = served.artifact.model_info if served.artifact is not None else {}
            await self._memory.start(found)
        self._started = True

    async def wake(self, served: Served, deadline: float) -> None:
        """Wait until a model is loaded that was not (:meth:`Memory.wake`)."""
        assert self._memory is not None
        await self._memory.wake(served, deadline)

    def find(self, text: str) -> Served:
        """What a reference, an artifact's folder, an ``.onnx`` file or ``fake:FILE.json`` names; nothing is opened.

        A reference without a variant is the one that suits this machine (:func:`~optimizer.serving.choosing.chosen`).

        Raises:
            UnknownName: there is no such artifact.
            BadInput: it is none of these.
            Damaged: its manifest cannot be read.
        """
        word, _, rest = text.partition(":")
        path = Path(rest if word == "fake" and rest else text).expanduser()
        if path.is_file() and path.suffix in (".onnx", ".json"):
            return Served(safe_name(path.stem), "1", text, path=path)
        if "/" in text or (path / "manifest.json").is_file():
            artifact = Artifact.found_in(path)
            if artifact is None:
                raise BadInput(f"{text} is no artifact and no .onnx file", "`ml-opt ls` lists what can be served")
            return Served(safe_name(path.name), "1", text, path=path, artifact=artifact)
        choice = chosen(self._store, text, self._settings.provider)
        artifact, found = choice.artifact, Ref.parse(choice.artifact.ref)
        return Served(
            found.name, found.at, artifact.ref, path=artifact.path, artifact=artifact,
            provider=choice.provider, why=choice.why,
        )  # fmt: skip

    async def load(self, served: Served) -> None:
        """Open a model, prove it, and serve it; one of the same name and version makes room for it then.

        Where there is a budget of memory, others make room for it before.

        Raises:
            MlOptError: it cannot be served; it stays in the index, with the reason.
            Problem: 503: there is no room for it.
        """
        if self._memory is None:
            await self._opened(served)
        else:
            served.on_demand = True
            await self._memory.load(served)

    async def _opened(self, served: Served) -> None:
        versions = self._models.setdefault(served.name, {})
        before = versions.get(served.version)
        if before is not None:
            served.wanted = before.wanted
        if before is None or not before.ready:
            versions[served.version] = served
        served.phase, served.reason = Phase.LOADING, ""
        in_memory = await asyncio.to_thread(resident)
        try:
            await in_the_background(lambda: opened(served, self._settings))
            served.metrics = self._metrics.of(served.name, served.version)
            if served.session is not None:
                self._queue(served)
            if served.generator is not None:
                served.writer = await asyncio.to_thread(writer_for, served, self._settings, self._metrics)
            if self._settings.verify:
                proved = prove if served.generator is None else prove_writer
                served.proof = await proved(served, self._settings)
            if served.batcher is not None:
                await self._pace(served, served.batcher)
        except MlOptError as error:
            served.phase, served.reason, served.failed = Phase.UNAVAILABLE, error.message, True
            await self._close(served)
            raise
        served.bytes = max(served.on_disk, await asyncio.to_thread(resident) - in_memory)
        versions[served.version] = served
        served.phase = Phase.READY
        served.metrics.loaded(served.ref, str(served.facts.get("provider", "")), served.bytes)
        if before is not None and before is not served and before.ready:
            await self._retire(before)
        else:
            settled()

    async def load_by_name(self, name: str) -> Served:
        """Load the newest of a name from the store, or again what was served under it.

        Raises:
            Problem: 400: no name of a model, or nothing that can be served, and why.
        """
        if not is_name(name):
            raise Problem(400, "this is no name of a model")
        known = self._models.get(name, {})
        refs = [served.ref for served in known.values()] or [name]
        try:
            for ref in refs:
                served = self.find(ref)
                await self.load(served)
        except MlOptError as error:
            raise Problem(400, f"{name} cannot be loaded: {error.message}", reason="load") from None
        return served

    async def unload(self, name: str) -> None:
        """Take every version of a name out of service; what is under way finishes.

        Raises:
            Problem: 404: there is none.
        """
        self.get(name)
        for served in list(self._models[name].values()):
            served.on_demand = served.wanted = False
            if served.ready:
                await self._retire(served)
            elif served.phase is Phase.UNAVAILABLE:
                served.reason = "unloaded"

    async def close(self) -> None:
        """End everything."""
        if self._memory is not None:
            await self._memory.close()
        for served in self:
            await self._close(served)

    def _queue(self, served: Served) -> None:
        session, settings, metrics = served.session, self._settings, served.metrics
        assert session is not None
        assert metrics is not None
        longest = int(served.model.get("max_length") or 0)
        # What is not known to fit is not made longer.
        multiple = _MULTIPLE if session.facts["provider"] in SHAPED and longest else 1
        plan = plan_of(session.inputs, session.outputs, _fill(served), multiple, longest)
        beside = served.beside

        def watch(run: Run) -> None:
            if served.phase is not Phase.LOADING:  # golden inputs are nobody's requests
                metrics.ran(run)
                served.statistics.ran(run)

        served.batcher = Batcher(
            session.run, plan, limits_of(settings, served.model), f"{served.name} {served.version}", watch,
            None if beside is None else beside.run, 1 if beside is None else served.streams, served.told,
        )  # fmt: skip

    async def _pace(self, served: Served, batcher: Batcher) -> None:
        """Have the queue begin with what is known of its runs: as it stands beside the model, or, where ``--slo`` has
        to be kept to, as a few runs show now. Those of the golden inputs were its first, which say little.
        """
        settings = self._settings
        known = await asyncio.to_thread(by_bench, served, batcher.plan)
        if known is None and settings.slo:
            rows = rows_of_a_run(settings, served.model)
            known = await in_the_background(lambda: timed_now(served, batcher.plan, rows))
        batcher.begin_with(limits_of(settings, served.model, known), curve_of(known) if known is not None else None)
        served.limits_from = limits_from(settings, known)

    async def _retire(self, served: Served, reason: str = "unloaded") -> None:
        served.phase = Phase.UNLOADING
        if served.metrics is not None:
            served.metrics.unloaded(served.ref, str(served.facts.get("provider", "")))
        if served.writer is not None:
            await served.writer.idle(self._settings.grace)
        await _idle(served, self._settings.grace)
        await self._close(served)
        served.phase, served.reason = Phase.UNAVAILABLE, reason
        settled(gone=True)

    async def _close(self, served: Served) -> None:
        if served.batcher is not None:
            served.batcher.close()
        await asyncio.to_thread(served.close)
        served.session = served.beside = served.generator = served.batcher = served.writer = None
        served.preprocessor = served.prepare = None


async def _idle(served: Served, seconds: float) -> None:
    """Wait until nobody who was let in is being read or waits for an answer, or so long."""
    end = time.perf_counter() + seconds
    while served.busy and time.perf_counter() < end:
        await asyncio.sleep(_MOMENT)


def _fill(served: Served) -> dict[str, int]:
    """What a tokenizer pads with; what stands behind a row is hidden by the mask, but models may look for the token."""
    preprocessor = served.preprocessor
    return {} if preprocessor is None else preprocessor.padding()
