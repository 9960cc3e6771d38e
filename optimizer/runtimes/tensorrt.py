"""TensorRT and TensorRT-RTX engines, run by NVIDIA's own bindings: no torch and no ONNX Runtime at serving time.

An engine belongs to a version of its library and to some GPUs. Both are compared with the manifest before anything is
loaded, so that what does not fit is refused by name and not by the vendor's number.

Device memory, copies, streams and graphs go through :mod:`optimizer.engines.cuda`, the engine itself through
:mod:`optimizer.engines.vendor`; tests put their own in the place of both.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import ENGINE_NAME, Artifact
from optimizer.engines.cuda import Cuda, cuda
from optimizer.engines.flavors import FLAVORS, choose
from optimizer.engines.profiles import Profile
from optimizer.engines.vendor import load
from optimizer.errors import BadInput, Damaged, MissingPiece, MlOptError
from optimizer.runtime import Availability, Runtime, SessionOptions
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.types import JSON, Kind, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimizer.engines.flavors import Flavor
    from optimizer.engines.vendor import Context, Engine

    Feeds = Mapping[str, NDArray[np.generic]]

__all__ = ["PROVIDER", "RUNTIME", "TrtSession", "check_machine", "choose_profile"]

PROVIDER = "tensorrt-native"
#: Calls of a CUDA graph that its device time is taken from.
_TIMED_CALLS = 16


class _Buffers:
    """Device memory of one context, by tensor; it grows, and is given back as a whole."""

    def __init__(self, gpu: Cuda) -> None:
        self._gpu = gpu
        self._held: dict[str, tuple[int, int]] = {}

    def of(self, name: str, size: int) -> int:
        """Memory of at least so many bytes for a tensor."""
        pointer, room = self._held.get(name, (0, -1))
        if room < size:
            if room >= 0:
                del self._held[name]  # first, so that a failure to get more leaves nothing that is freed twice
                self._gpu.free(pointer)
            pointer = self._gpu.malloc(size)
            self._held[name] = (pointer, size)
        return pointer

    def drop(self) -> None:
        """Give everything back."""
        while self._held:
            _, (pointer, _) = self._held.popitem()
            self._gpu.free(pointer)


class _Lane:
    """A context with its stream and buffers: where one call at a time runs."""

    def __init__(self, engine: Engine, profiles: Sequence[Profile], gpu: Cuda) -> None:
        self._gpu = gpu
        self._profiles = profiles
        self._outputs = engine.outputs
        self._profile: int | None = None
        self.context: Context = engine.context()
        self.stream = gpu.stream()
        self.buffers = _Buffers(gpu)

    def prepare(self, feeds: Feeds) -> dict[str, tuple[tuple[int, ...], NDArray[np.generic]]]:
        """Choose the profile, set shapes and addresses, and begin to copy the inputs.

        Returns:
            shape and an array to be filled, by output.

        Raises:
            BadInput: no profile holds these shapes, or only the data decides an output's shape.
        """
        import numpy as np

        shapes = {name: array.shape for name, array in feeds.items()}
        if self._profiles:
            number = choose_profile(self._profiles, shapes)
            if number != self._profile:
                self.context.use_profile(number, self.stream)
                self._profile = number
        kept = []
        for name, array in feeds.items():
            whole = np.ascontiguousarray(array)
            kept.append(whole)
            self.context.set_shape(name, whole.shape)
            pointer = self.buffers.of(name, whole.nbytes)
            self.context.set_address(name, pointer)
            self._gpu.to_device(pointer, whole, self.stream)
        self._alive = kept  # until the copies are done
        if missing := self.context.missing():
            raise BadInput(f"the engine wants {', '.join(missing)} before it knows the shapes of its outputs")
        answers = {}
        for spec in self._outputs:
            shape = self.context.shape(spec.name)
            if any(size < 0 for size in shape):
                raise BadInput(f"the shape of output {spec.name!r} depends on the data, which is not supported")
            filled = np.empty(shape, spec.dtype)
            self.context.set_address(spec.name, self.buffers.of(spec.name, filled.nbytes))
            answers[spec.name] = (shape, filled)
        return answers

    def drop(self) -> None:
        self._gpu.wait(self.stream)
        self.buffers.drop()
        self._gpu.drop_stream(self.stream)


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int:
    """The profile that holds these shapes and was built for the nearest.

    Raises:
        BadInput: none holds them.
    """
    fitting = [number for number, profile in enumerate(profiles) if profile.holds(shapes)]
    if not fitting:
        given = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        built = "; ".join(str(profile) for profile in profiles)
        raise BadInput(
            f"the engine was not built for these shapes: {given}", f"it takes {built}; build another with --profile"
        )
    return min(fitting, key=lambda number: profiles[number].distance(shapes))


class TrtSession:
    """An engine on a GPU. One call runs at a time; bound calls have a context, a stream and memory of their own."""

    def __init__(
        self,
        engine: Engine,
        gpu: Cuda,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limits: Limits,
        facts: dict[str, JSON],
        products: dict[str, int] | None = None,
    ) -> None:
        self._engine = engine
        self._gpu = gpu
        self._limits = limits
        self._products = products
        self._profiles = engine.profiles if any(-1 in spec.shape for spec in engine.inputs) else ()
        self._alone = threading.Lock()
        self._lanes = [_Lane(engine, self._profiles, gpu)]
        self._graphs: list[Any] = []
        self.inputs = inputs
        self.outputs = outputs
        self.facts = facts

    def run(self, feeds: Feeds) -> dict[str, NDArray[np.generic]]:
        """Run once, copies included; raises :class:`BadInput` naming the input that does not fit."""
        check_feeds(self.inputs, feeds, self._limits)
        with self._alone:
            lane = self._lanes[0]
            answers = lane.prepare(feeds)
            lane.context.begin(lane.stream)
            for name, (_, filled) in answers.items():
                self._gpu.to_host(filled, lane.buffers.of(name, filled.nbytes), lane.stream)
            self._gpu.wait(lane.stream)
        return {spec.name: answers[spec.name][1] for spec in self.outputs}

    def bind(self, feeds: Feeds) -> Callable[[], None]:
        """A call without copies: inputs lie on the device, and the launches are one CUDA graph.

        Where the engine cannot be recorded, its kernels are launched one by one; ``facts["cuda_graph"]`` says which,
        and ``facts["device_ms"]`` is the GPU's own time for a call.
        """
        check_feeds(self.inputs, feeds, self._limits)
        with self._alone:
            lane = _Lane(self._engine, self._profiles, self._gpu)
            self._lanes.append(lane)
            lane.prepare(feeds)
            lane.context.begin(lane.stream)  # memory and kernels are settled by the first call, which no graph may hold
            self._gpu.wait(lane.stream)
            graph = self._recorded(lane)
        gpu, stream = self._gpu, lane.stream

        def begin() -> None:
            if graph is None:
                lane.context.begin(stream)
            else:
                gpu.launch(graph, stream)

        def call() -> None:
            begin()
            gpu.wait(stream)

        self.facts["cuda_graph"] = graph is not None
        self.facts["device_ms"] = gpu.timed(begin, stream, _TIMED_CALLS)
        return call

    def _recorded(self, lane: _Lane) -> Any:
        """The launches of a call as a CUDA graph; None where the engine cannot be recorded."""
        self._gpu.begin_capture(lane.stream)
        try:
            lane.context.begin(lane.stream)
        except MlOptError:
            with contextlib.suppress(MlOptError):
                self._gpu.end_capture(lane.stream)
            return None
        try:
            graph = self._gpu.end_capture(lane.stream)
        except MlOptError:
            return None
        self._graphs.append(graph)
        return graph

    def inspect(self) -> str:
        """What the vendor's inspector says of the engine, as JSON text."""
        return self._engine.inspect()

    def runs(self) -> dict[str, JSON] | None:
        """Products by number format, as the builder listed the engine's layers; it need not have run."""
        return {**self._products, "fell_back": []} if self._products else None

    def close(self) -> None:
        """Give device memory, streams and graphs back."""
        with self._alone:
            while self._graphs:
                self._gpu.drop_graph(self._graphs.pop())
            while self._lanes:
                self._lanes.pop().drop()


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> TrtSession:
    """Open ``model.engine`` of an artifact.

    Raises:
        BadInput: it lies in no artifact, so that nothing is known of it.
        MissingPiece: no driver, no library, another version of it, or another GPU.
        Damaged: the file is no engine.
    """
    started = time.perf_counter()
    artifact = _artifact(path)
    facts = artifact.manifest.facts
    record = facts["engine"]
    gpu = cuda()
    here = gpu.facts()
    flavor = choose(str(record["flavor"]))
    vendor = load(flavor)
    check_machine(artifact, flavor, vendor.version, here)
    with _named(path):
        host_code = bool(artifact.manifest.options.get("version_compatible"))
        engine = vendor.open(path.read_bytes(), path, host_code)
        if artifact.manifest.options.get("strip_weights"):
            vendor.refit(engine, _weights_of(artifact), path)
    got: dict[str, JSON] = {
        "provider": options.provider.name,
        "precision": record["precision"],
        "threads": 0,
        "nodes": {options.provider.name: engine.facts["layers"]},
        "flavor": flavor.name,
        flavor.module: vendor.version,
        "gpu": here,
        "device_memory": engine.facts["device_memory"],
        "load_seconds": 0.0,
    }
    limits = model.get("limits") or {}
    products = facts.get("layers", {}).get("products") or None
    inputs, outputs = _signature(artifact, engine)
    session = TrtSession(engine, gpu, inputs, outputs, limits, got, products)
    got["load_seconds"] = time.perf_counter() - started
    return session


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
    here = str(gpu["compute_capability"])
    wanted = [str(each) for each in record["compute_capabilities"]]
    portable = bool(options.get("hardware_compatible")) or (
        bool(flavor.portable) and not options.get("compute_capability")
    )
    if here in wanted or (portable and _number(here) >= _number(min(["8.0", *wanted], key=_number))):
        return
    raise MissingPiece(
        f"{_ref(artifact)} was built for GPUs of compute capability {', '.join(wanted) or 'unknown'}, and "
        f"{gpu['name']} here has {here}",
        again,
    )


def _runs_with(built: str, here: str, compatible: bool) -> bool:
    """Whether a library opens what another version of it wrote."""
    ours, theirs = (tuple(int(part) for part in text.split(".") if part.isdigit()) for text in (here, built))
    if ours == theirs:
        return True
    return compatible and ours[:1] == theirs[:1] and ours >= theirs


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split(".") if part.isdigit())


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


def _weights_of(artifact: Artifact) -> Path:
    """The ONNX file that has the weights of a stripped engine."""
    ref = str(artifact.manifest.source.get("ref", ""))
    variant = ref.rpartition(":")[2]
    folder = artifact.path.resolve().parent / variant
    parent = Artifact.found_in(folder) if variant else None
    if parent is None or parent.digest != artifact.manifest.source["digest"]:
        raise MissingPiece(
            f"the weights of {_ref(artifact)} are in {ref or 'its source'}, which is not there any more",
            "make it again, or build an engine with weights (without --strip-weights)",
        )
    return parent.model_file


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from error


def _available(provider: str) -> Availability:
    """Whether there is a GPU, and a library to run engines with."""
    installed = [flavor for flavor in FLAVORS.values() if flavor.installed]
    try:
        flavor = installed[0] if installed else choose("auto")
        facts = cuda().facts()
    except MlOptError as error:
        return Availability(provider, False, error.message, error.hint)
    return Availability(provider, True, facts={flavor.module: flavor.version, "gpu": facts["name"]})


RUNTIME = Runtime(
    name="tensorrt",
    help="TensorRT and TensorRT-RTX engines, by NVIDIA's own bindings.",
    providers={PROVIDER: ()},
    open=_open,
    available=_available,
    engines=True,
)
