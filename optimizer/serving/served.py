"""One model of the server: its session or its generator, what prepares its inputs, and its queue."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact
from optimizer.data.preprocess import Preprocessor
from optimizer.errors import BadInput, MlOptError
from optimizer.generator import Generator, GeneratorOptions, open_generator
from optimizer.runtime import Provider, Session, SessionOptions, get_runtime, preferred
from optimizer.serving.problems import Problem
from optimizer.serving.settings import Settings
from optimizer.serving.statistics import Statistics
from optimizer.types import JSON, Kind, TensorSpec

if TYPE_CHECKING:
    from optimizer.serving.batcher import Batcher
    from optimizer.serving.metrics import ModelMetrics
    from optimizer.serving.text.writers import Writer

__all__ = ["Phase", "Served", "opened"]

_LAST_RUN_S = 3.0


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
        model: the manifest's description: task, labels, pooling, limits.
        path: the artifact's folder, or the file.
        session: what answers, for all but generators.
        generator: what writes text, for generators.
        writer: who waits for the generator, and its tokenizer; None for all but generators.
        preprocessor: texts or images into arrays; None for a model that is fed arrays.
        batcher: its queue; None for generators, which have their own.
        prepare: the one thread in which texts and images become arrays, as a tokenizer is for one at a time.
        statistics: what V2's statistics extension tells.
        metrics: its children in the server's metrics.
        loaded: when it was loaded, in seconds since 1970.
    """

    name: str
    version: str
    ref: str
    phase: Phase = Phase.LOADING
    reason: str = ""
    model: Mapping[str, JSON] = field(default_factory=dict)
    path: Path = Path()
    artifact: Artifact | None = None
    session: Session | None = None
    generator: Generator | None = None
    writer: Writer | None = None
    preprocessor: Preprocessor | None = None
    batcher: Batcher | None = None
    prepare: ThreadPoolExecutor | None = None
    statistics: Statistics = field(default_factory=Statistics)
    metrics: ModelMetrics | None = None
    loaded: float = field(default_factory=time.time)

    @property
    def task(self) -> str:
        return "text-generation" if self.generator is not None else str(self.model.get("task") or "generic")

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

    def need_ready(self) -> None:
        """Raise :class:`Problem` 503, saying why, for a model that cannot be asked now."""
        if not self.ready:
            why = f": {self.reason}" if self.reason else ""
            raise Problem(503, f"model {self.name} is not ready ({self.phase.lower()}){why}", reason="not_ready")

    def close(self) -> None:
        """Give everything back; blocks until the last run is over, but no longer than a few seconds."""
        if self.batcher is not None and not self.batcher.join(_LAST_RUN_S):
            return  # a run that hangs must not hold the server's end up; what it uses goes with it
        if self.prepare is not None:
            self.prepare.shutdown()
        for runs in (self.session, self.generator):
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
    options = SessionOptions(provider, settings.threads, spin=False)
    if artifact is None:  # a planted model, or a bare ONNX file
        served.session = get_runtime(provider).open(served.path, options, model={})
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
    served.session = get_runtime(provider).open(artifact.runnable, options, model=dict(served.model))
    try:
        served.preprocessor = Preprocessor.open(artifact.path, served.model)
    except MlOptError as error:
        served.reason = error.message  # arrays can be sent all the same
    served.model = {**served.model, "problem_type": _problem_type(artifact.path)}
    served.prepare = ThreadPoolExecutor(1, thread_name_prefix=f"prepare {served.name}")


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
    prefers = served.artifact.model_info.get("prefers") if served.artifact is not None else None
    provider = preferred(str(prefers)) if prefers else Provider("cpu")
    # A generator's runtimes are asked by name alone.
    return replace(provider, precision="") if served.artifact and served.artifact.kind is Kind.GENERATOR else provider
