"""TensorRT and TensorRT-RTX engines, run by NVIDIA's own bindings: no torch and no ONNX Runtime at serving time.

An engine belongs to a version of its library and to some GPUs. Both are compared with the manifest before anything is
loaded, so that what does not fit is refused by name and not by the vendor's number.

Device memory, copies, streams and graphs go through :mod:`optimizer.engines.cuda`, the engine itself through
:mod:`optimizer.engines.vendor`; tests put their own in the place of both. A call runs in a
:class:`~optimizer.engines.lane.Lane`.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import ENGINE_NAME, Artifact
from optimizer.engines.cuda import Cuda, cuda
from optimizer.engines.flavors import FLAVORS, choose, numbers
from optimizer.engines.kernels import CompiledKernels
from optimizer.engines.lane import Lane
from optimizer.engines.vendor import load
from optimizer.errors import BadInput, Damaged, MissingPiece, MlOptError
from optimizer.runtime import TENSORRT_NATIVE, Availability, Runtime, SessionOptions
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.types import JSON, Kind, Precision, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimizer.engines.engine import Engine
    from optimizer.engines.flavors import Flavor
    from optimizer.engines.vendor import Vendor

    Feeds = Mapping[str, NDArray[np.generic]]

__all__ = ["RUNTIME", "TrtSession", "check_machine"]

#: Calls of a CUDA graph that its device time is taken from.
_TIMED_CALLS = 16
#: Number formats that arrays have.
_HELD = frozenset({"float32", "float16", "int8", "int32", "int64", "uint8", "bool"})


class TrtSession:
    """An engine on a GPU.

    :meth:`run` may be called by several threads, and runs one call at a time. Every bound call has a context, a stream
    and memory of its own: different ones run side by side, and one belongs to one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        gpu: Cuda,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limits: Limits,
        facts: dict[str, JSON],
        products: dict[str, int] | None = None,
        kept: CompiledKernels | None = None,
    ) -> None:
        self._engine = engine
        self._gpu = gpu
        self._limits = limits
        self._products = products
        self._kept = kept
        self._written = b""
        self._alone = threading.Lock()
        self._lane = Lane(engine, gpu)
        self._bound: list[Lane] = []
        self.inputs = inputs
        self.outputs = outputs
        self.facts = facts

    def run(self, feeds: Feeds) -> dict[str, NDArray[np.generic]]:
        """Run once, copies included; raises :class:`BadInput` naming the input that does not fit."""
        check_feeds(self.inputs, feeds, self._limits)
        with self._alone:
            _check_open(self._lane)
            try:
                self._lane.load(feeds)
                self._lane.begin()
                found = self._lane.answers()
            except BaseException:
                self._lane.abandon()
                raise
        return {spec.name: found[spec.name] for spec in self.outputs}

    def bind(self, feeds: Feeds) -> Callable[[], None]:
        """A call without copies: inputs lie on the device, and the launches are one CUDA graph.

        Where the engine cannot be recorded, its kernels are launched one by one; ``facts["cuda_graph"]`` says which,
        and ``facts["device_ms"]`` is the GPU's own time for a call.
        """
        check_feeds(self.inputs, feeds, self._limits)
        with self._alone:
            _check_open(self._lane)
            lane = Lane(self._engine, self._gpu)
            try:
                lane.load(feeds)
                lane.begin()
                lane.wait()
                lane.record()
                device_ms = lane.timed(_TIMED_CALLS)
            except BaseException:
                with contextlib.suppress(MlOptError):
                    lane.drop()
                raise
            self._bound.append(lane)
            self._keep_kernels()
        self.facts["cuda_graph"] = lane.recorded
        self.facts["device_ms"] = device_ms

        def call() -> None:
            _check_open(lane)
            lane.begin()
            lane.wait()

        return call

    def _keep_kernels(self) -> None:
        """Write down what was compiled for this GPU, where that has changed."""
        kernels = self._engine.kernels()
        if self._kept is not None and kernels and kernels != self._written:
            self.facts["kernels_kept"] = self._kept.write(kernels)
            self._written = kernels

    def inspect(self) -> str:
        """What the vendor's inspector says of the engine, as JSON text."""
        _check_open(self._lane)
        return self._engine.inspect()

    def runs(self) -> dict[str, JSON] | None:
        """Products by number format, as the builder listed the engine's layers; it need not have run."""
        return {**self._products, "fell_back": []} if self._products else None

    def close(self) -> None:
        """Give device memory, streams and graphs back; a second time does nothing."""
        with self._alone, contextlib.ExitStack() as stack:
            if self._lane.closed:
                return
            stack.callback(self._engine.close)
            for lane in (self._lane, *self._bound):
                stack.callback(lane.drop)
            self._bound = []
            self._keep_kernels()


def _check_open(lane: Lane) -> None:
    if lane.closed:
        raise BadInput("the session was closed: the GPU has nothing of it any more", "open it again")


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> TrtSession:
    """Open ``model.engine`` of an artifact.

    Raises:
        BadInput: it lies in no artifact, so that nothing is known of it; or its numbers are none that numpy has.
        MissingPiece: no driver, no library, another version of it, or another GPU.
        Damaged: the file is no engine.
    """
    started = time.perf_counter()
    artifact = _artifact(path)
    _check_numbers(artifact)
    facts = artifact.manifest.facts
    record = facts["engine"]
    gpu = cuda()
    here = gpu.facts()
    flavor = choose(str(record["flavor"]), "running this engine")
    vendor = load(flavor)
    check_machine(artifact, flavor, vendor.version, here)
    kept = CompiledKernels.of(flavor, vendor.version, here, artifact.manifest.key)
    got: dict[str, JSON] = {
        "provider": options.provider.name,
        "precision": record["precision"],
        "threads": 0,
        "flavor": flavor.name,
        flavor.module: vendor.version,
        "gpu": here,
        "tf32": record["precision"] == Precision.FP32.value and bool(artifact.manifest.options.get("tf32")),
    }
    kernels = kept.read() if kept is not None else b""
    engine = vendor.open(_plan(path), path, bool(artifact.manifest.options.get("version_compatible")), kernels)
    try:
        _add_weights(artifact, vendor, engine, path, got)
        got["nodes"] = {options.provider.name: engine.facts["layers"]}
        got["device_memory"] = engine.facts["device_memory"]
        if kept is not None:
            got["kernels_read"] = len(kernels)
        products = facts.get("layers", {}).get("products") or None
        inputs, outputs = _signature(artifact, engine)
        session = TrtSession(engine, gpu, inputs, outputs, model.get("limits") or {}, got, products, kept)
    except BaseException:
        engine.close()
        raise
    got["load_seconds"] = time.perf_counter() - started
    return session


def _plan(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from error


def _add_weights(artifact: Artifact, vendor: Vendor, engine: Engine, path: Path, got: dict[str, JSON]) -> None:
    """Put weights where they have to be, before there is a context; what was done is told to ``got``."""
    asked = artifact.manifest.options
    if asked.get("strip_weights"):
        with _weights_of(artifact) as weights:
            vendor.refit(engine, weights, path)
    if asked.get("weight_streaming"):
        got["weights_on_gpu"] = engine.stream_weights()


def _artifact(path: Path) -> Artifact:
    found = Artifact.found_in(path.parent)
    if found is None or found.kind is not Kind.ENGINE or path.name != ENGINE_NAME:
        raise BadInput(
            f"{path} is no engine of a store: what it was built for is not known",
            "build one that is: ml-opt build-trt-engine REF",
        )
    return found


def _ref(artifact: Artifact) -> str:
    """The reference that an artifact has in its store, by its place (``<name>/<version>/<variant>``)."""
    if artifact.ref:
        return artifact.ref
    variant = artifact.path.resolve()
    return f"{variant.parent.parent.name}@{variant.parent.name}:{variant.name}"


def check_machine(artifact: Artifact, flavor: Flavor, version: str, gpu: Mapping[str, JSON]) -> None:
    """Hold a machine to what an engine was built for.

    Args:
        artifact: the engine.
        flavor: whose library would load it.
        version: of that library.
        gpu: ``name`` and ``compute_capability`` of the GPU.

    Raises:
        MissingPiece: naming what was wanted and what is here.
    """
    record, options = artifact.manifest.facts["engine"], artifact.manifest.options
    again = f"build it for this machine: ml-opt build-trt-engine {_ref(artifact)} --rebuild"
    built = str(record["version"])
    if not _runs_with(built, version, bool(options.get("version_compatible"))):
        raise MissingPiece(
            f"{_ref(artifact)} was built by {flavor.title} {built}, and {version} is installed here", again
        )
    flavor.need(gpu)
    here = str(gpu["compute_capability"])
    wanted = [str(each) for each in record["compute_capabilities"]]
    portable = bool(options.get("hardware_compatible")) or (
        bool(flavor.portable) and not options.get("compute_capability")
    )
    if here in wanted or (portable and numbers(here) >= numbers(min(["8.0", *wanted], key=numbers))):
        return
    raise MissingPiece(
        f"{_ref(artifact)} was built for GPUs of compute capability {', '.join(wanted) or 'unknown'}, and "
        f"{gpu['name']} here has {here}",
        again,
    )


def _runs_with(built: str, here: str, compatible: bool) -> bool:
    """Whether a library opens what another version of it wrote."""
    ours, theirs = numbers(here), numbers(built)
    if ours == theirs:
        return True
    return compatible and ours[:1] == theirs[:1] and ours >= theirs


def _signature(artifact: Artifact, engine: Engine) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs with the names of their dimensions, held to what the engine says.

    Raises:
        Damaged: the engine has others than its manifest.
    """
    for what, told, found in (
        ("inputs", artifact.manifest.inputs, engine.inputs),
        ("outputs", artifact.manifest.outputs, engine.outputs),
    ):
        if sorted((spec.name, spec.dtype) for spec in told) != sorted((spec.name, spec.dtype) for spec in found):
            raise Damaged(f"{_ref(artifact)}: the engine has other {what} than its manifest says")
    return artifact.manifest.inputs, artifact.manifest.outputs


@contextlib.contextmanager
def _weights_of(artifact: Artifact) -> Iterator[Path]:
    """The ONNX file that has the weights of a stripped engine, in the precision that the engine was built in.

    Raises:
        Damaged: it is not the file any more that the engine was built from.
        MissingPiece: it is not there any more.
    """
    from optimizer.engines.prepare import prepared

    source = artifact.manifest.source
    ref = str(source.get("ref", ""))
    variant = ref.rpartition(":")[2]
    folder = artifact.path.resolve().parent / variant
    parent = Artifact.found_in(folder) if variant else None
    if parent is None or parent.digest != source["digest"]:
        raise MissingPiece(
            f"the weights of {_ref(artifact)} are in {ref or 'its source'}, which is not there any more",
            "make it again, or build an engine with weights (without --strip-weights)",
        )
    parent.check()
    with tempfile.TemporaryDirectory(prefix="ml-opt-weights-") as scratch:
        precision = Precision(artifact.manifest.facts["engine"]["precision"])
        yield prepared(parent, precision, Path(scratch), lambda _: None).path


def _check_numbers(artifact: Artifact) -> None:
    """Refuse inputs and outputs in number formats that arrays do not have."""
    for what, specs in (("input", artifact.manifest.inputs), ("output", artifact.manifest.outputs)):
        for spec in specs:
            if spec.dtype not in _HELD:
                raise BadInput(
                    f"{_ref(artifact)}: {what} {spec.name!r} is {spec.dtype}, which numpy does not have",
                    "build from a graph whose inputs and outputs are float32 or float16; `ml-opt cast` leaves them so",
                )


def _available(provider: str) -> Availability:
    """Whether there is a GPU, and a library to run engines with."""
    installed = [flavor for flavor in FLAVORS.values() if flavor.installed]
    try:
        flavor = installed[0] if installed else choose("auto", "running engines")
        facts = cuda().facts()
        flavor = next((each for each in installed if each.runs_on(str(facts["compute_capability"]))), flavor)
        flavor.need(facts)
    except MlOptError as error:
        return Availability(provider, False, error.message, error.hint)
    return Availability(provider, True, facts={flavor.module: flavor.version, "gpu": facts["name"]})


RUNTIME = Runtime(
    name="tensorrt",
    help="TensorRT and TensorRT-RTX engines, by NVIDIA's own bindings.",
    providers={TENSORRT_NATIVE: ()},
    open=_open,
    available=_available,
    engines=True,
)
