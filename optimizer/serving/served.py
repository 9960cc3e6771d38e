"""One model of the server: its session or its generator, what prepares its inputs, and its queue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact
from optimizer.data.preprocess import Preprocessor
from optimizer.environment import cpu_threads, gpu_facts
from optimizer.errors import BadInput, MlOptError
from optimizer.generator import Generator, GeneratorOptions, open_generator
from optimizer.runtime import GPU_PROVIDERS, STREAMING, Provider, Session, SessionOptions, get_runtime, preferred
from optimizer.serving.problems import Problem
from optimizer.serving.settings import Settings
from optimizer.serving.statistics import Statistics
from optimizer.types import JSON, Kind, TensorSpec

if TYPE_CHECKING:
    from optimizer.serving.batcher import Batcher
    from optimizer.serving.metrics import ModelMetrics
    from optimizer.serving.text.writers import Writer

__all__ = ["NotLoaded", "Phase", "Served", "opened", "uncounted", "using"]

_LAST_RUN_S = 3.0
#: Bytes of a model that is not held twice without being asked.
_LARGE = 1 << 30
#: Models that the request that is answered now has asked for; None where nobody has to know.
_USED: ContextVar[list[Served] | None] = ContextVar("used", default=None)


class NotLoaded(Problem):
    """A model is asked for that is loaded when it is asked for, and is not loaded now."""

    def __init__(self, served: Served) -> None:
        why = served.told(served.reason) or str(served.phase).lower()
        super().__init__(503, f"model {served.name} is not ready: {why}", {"Retry-After": "1"}, reason="not_ready")
        self.served = served


@contextmanager
def using() -> Iterator[None]:
    """Models that are asked for inside are in use until its end (:attr:`Served.busy`)."""
    used: list[Served] = []
    token = _USED.set(used)
    try:
        yield
    finally:
        _USED.reset(token)
        for served in used:
            served.users -= 1
            served.used = time.perf_counter()


@contextmanager
def uncounted(served: Served) -> Iterator[None]:
    """What a model is asked inside is in none of its counts: they are those of its clients."""
    statistics, metrics = served.statistics, served.metrics
    served.statistics, served.metrics = Statistics(), None
    try:
        yield
    finally:
        served.statistics, served.metrics = statistics, metrics


class Phase(StrEnum):
    """Where a model is; the words are those of Triton's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(eq=False)
class Served:
    """One version of one model.

    Attributes:
        name: by which clients ask for it.
        version: of the store, as a string; ``1`` for what comes from no store.
        ref: what was loaded: a reference, or a path.
        phase: whether it can be asked.
        reason: why it cannot, where it cannot.
        wanted: it was asked for at the server's start, and nobody has unloaded it since.
        failed: it could not be loaded when it was asked for.
        proof: what it was held to before it was ready; empty where there was nothing, or nobody wanted it.
        limits_from: what says how large its runs are and how long requests wait, in words; empty for generators.
        model: the manifest's description: task, labels, pooling, limits.
        path: the artifact's folder, or the file.
        session: what answers, for all but generators.
        beside: the same on one thread a run, for runs side by side; None where they are one after another.
        streams: how many runs there may be side by side.
        generator: what writes text, for generators.
        writer: who waits for the generator, and its tokenizer; None for all but generators.
        preprocessor: texts or images into arrays; None for a model that is fed arrays.
        batcher: its queue; None for generators, which have their own.
        prepare: the thread in which long texts and images become arrays.
        preparing: is held by who uses the preprocessor: a tokenizer is for one at a time.
        statistics: what V2's statistics extension tells.
        metrics: its children in the server's metrics.
        loaded: when it was loaded, in seconds since 1970.
        gpus: that it may run on, as :func:`~optimizer.environment.gpu_facts` has them; none on a processor.
        provider: where it should run, where a verdict says so; else empty.
        why: why this variant of several; empty where it was named, or is the only one.
        on_demand: when it is not loaded, whoever asks for it waits until it is.
        bytes: of memory that it took to load, as measured; 0 before.
        users: requests that ask it now, where that is counted (:func:`using`).
        waiting: those that wait for its load.
        used: when it was asked the last time, by ``time.perf_counter()``.
    """

    name: str
    version: str
    ref: str
    phase: Phase = Phase.LOADING
    reason: str = ""
    wanted: bool = False
    failed: bool = False
    proof: str = ""
    limits_from: str = ""
    model: Mapping[str, JSON] = field(default_factory=dict)
    path: Path = Path()
    artifact: Artifact | None = None
    session: Session | None = None
    beside: Session | None = None
    streams: int = 1
    generator: Generator | None = None
    writer: Writer | None = None
    preprocessor: Preprocessor | None = None
    batcher: Batcher | None = None
    prepare: ThreadPoolExecutor | None = None
    preparing: threading.Lock = field(default_factory=threading.Lock)
    statistics: Statistics = field(default_factory=Statistics)
    metrics: ModelMetrics | None = None
    loaded: float = field(default_factory=time.time)
    gpus: tuple[Mapping[str, JSON], ...] = ()
    provider: str = ""
    why: str = ""
    on_demand: bool = False
    bytes: int = 0
    users: int = 0
    waiting: int = 0
    used: float = 0.0

    @property
    def task(self) -> str:
        writes = self.generator is not None or (self.artifact is not None and self.artifact.kind is Kind.GENERATOR)
        return "text-generation" if writes else str(self.model.get("task") or "generic")

    @property
    def on_disk(self) -> int:
        """Bytes of its files."""
        return self.artifact.manifest.bytes if self.artifact is not None else self.path.stat().st_size

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes, or will take: as measured, or as its files say."""
        return self.bytes or self.on_disk

    @property
    def busy(self) -> bool:
        """Some request is in it."""
        writes = self.writer is not None and self.writer.under_way > 0
        return self.users > 0 or writes or (self.batcher is not None and self.batcher.depth > 0)

    @property
    def askable(self) -> bool:
        """A request for it is answered, if it may be after a load."""
        return self.ready or self.on_demand

    @property
    def facts(self) -> Mapping[str, JSON]:
        """What was really got: provider, precision, threads."""
        runs = self.session or self.generator
        return runs.facts if runs is not None else {}

    @property
    def batching(self) -> str:
        """What shares a run: ``padded`` (requests of any lengths), ``same-shape``, or ``none``."""
        if self.batcher is None or not self.batcher.plan.joins:
            return "none"
        return "padded" if self.batcher.plan.pads else "same-shape"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.inputs if self.session is not None else ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.outputs if self.session is not None else ()

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY

    @property
    def degraded(self) -> bool:
        """The server was started for it, and cannot answer it."""
        return self.wanted and self.failed

    def told(self, message: str) -> str:
        """A message as clients may read it: where the server keeps its files is not their business."""
        return message.replace(str(self.path), self.name)

    def need_open(self) -> None:
        """Raise :class:`Problem` 503 where it was closed while a request that was let in was still being read."""
        if self.batcher is None:
            raise Problem(503, f"model {self.name} is being unloaded", reason="unloading")

    def need_ready(self) -> None:
        """Raise :class:`Problem` 503, saying why, for a model that cannot be asked now (:class:`NotLoaded`: yet)."""
        if not self.ready:
            if self.on_demand:
                raise NotLoaded(self)
            why = f": {self.told(self.reason)}" if self.reason else ""
            raise Problem(503, f"model {self.name} is not ready ({self.phase.lower()}){why}", reason="not_ready")
        if (used := _USED.get()) is not None:
            used.append(self)
            self.users += 1

    def close(self) -> None:
        """Give everything back; blocks until the last run is over, but no longer than a few seconds."""
        if self.batcher is not None and not self.batcher.join(_LAST_RUN_S):
            return  # a run that hangs must not hold the server's end up; what it uses goes with it
        if self.prepare is not None:
            self.prepare.shutdown()
        for runs in (self.session, self.beside, self.generator):
            if runs is not None:
                runs.close()


def opened(served: Served, settings: Settings) -> None:
    """Open what a model is made of: session or generator, and what prepares its inputs. Takes as long as it takes.

    Raises:
        Damaged: a file is not what the manifest says.
        BadInput: it is nothing that can be served.
        GateFailed: the provider gave some of the graph to another one.
        MissingPiece: the provider cannot load on this machine.
    """
    artifact = served.artifact
    provider = _provider(served, settings)
    streams = _streams(served, provider, settings)
    # Where runs are side by side under load, this session runs when nobody else wants the cores.
    served.gpus = gpu_facts() if provider.name in GPU_PROVIDERS else ()
    options = SessionOptions(provider, settings.threads, spin=streams > 1 and settings.workers == 1)
    if artifact is None:  # a planted model, or a bare ONNX file
        _open(served, served.path, options, streams)
        return
    artifact.check()
    served.model = artifact.model_info
    if artifact.kind is Kind.GENERATOR:
        served.generator = open_generator(
            artifact.path, GeneratorOptions(provider=str(provider), threads=settings.threads)
        )
        return
    if artifact.kind not in (Kind.ONNX, Kind.ENGINE):
        raise BadInput(f"{served.ref} is {artifact.kind.phrase}, which cannot be served")
    _open(served, artifact.runnable, options, streams)
    try:
        served.preprocessor = Preprocessor.open(artifact.path, served.model, megapixels=settings.max_megapixels)
    except MlOptError as error:
        served.reason = error.message  # arrays can be sent all the same
    served.model = {**served.model, "problem_type": _problem_type(artifact.path)}
    served.prepare = ThreadPoolExecutor(1, thread_name_prefix=f"prepare {served.name}")


def _streams(served: Served, provider: Provider, settings: Settings) -> int:
    """How many runs there may be side by side: as asked, or as there are threads, and memory for a second session."""
    threads = settings.threads or cpu_threads()
    if provider.name not in STREAMING:
        return 1
    if settings.streams:
        return min(settings.streams, threads)
    return 1 if settings.memory or served.on_disk > _LARGE else threads


def _open(served: Served, path: Path, options: SessionOptions, streams: int) -> None:
    """Open the session, and meanwhile a second one for runs side by side, where there are any."""

    def session(options: SessionOptions) -> Session:
        return get_runtime(options.provider).open(path, options, model=dict(served.model))

    if streams == 1:
        served.session = session(options)
        return
    beside = replace(options, threads=streams, streams=streams, spin=False)
    # Both are given away before either is waited for: what one leaves when the other fails is closed with the model.
    with ThreadPoolExecutor(1, thread_name_prefix=f"opens {served.name}") as other:
        opening = other.submit(session, beside)
        try:
            served.session = session(options)
        finally:
            if opening.exception() is None:
                served.beside = opening.result()
        opening.result()
    served.streams = streams


def _problem_type(folder: Path) -> str:
    """Transformers' ``problem_type``: ``multi_label_classification`` where classes do not exclude each other."""
    try:
        return str(json.loads((folder / "config.json").read_bytes()).get("problem_type") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _provider(served: Served, settings: Settings) -> Provider:
    """What computes: as asked, or as the artifact is made for, or the processor."""
    if served.path.suffix == ".json":
        return Provider("fake")
    if settings.provider != "auto":
        return Provider.parse(settings.provider)
    if served.provider:
        return Provider.parse(served.provider)
    prefers = served.artifact.model_info.get("prefers") if served.artifact is not None else None
    provider = preferred(str(prefers)) if prefers else Provider("cpu")
    # A generator's runtimes are asked by name alone.
    return replace(provider, precision="") if served.artifact and served.artifact.kind is Kind.GENERATOR else provider
