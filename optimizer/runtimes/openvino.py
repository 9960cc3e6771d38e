"""OpenVINO by its own package, on processors of any maker.

It is the library that ONNX Runtime's OpenVINO plugin holds (:mod:`optimizer.runtimes.ort`), without ONNX Runtime around
it: the plugin passes over processors that are not Intel's, and bf16 and int8 pay on others too. The whole graph is
compiled or none of it, so that nothing can fall to another provider; what can differ from what was asked is the
precision, which is read back from the compiled model.

Names, order and shapes of inputs and outputs are those of the ONNX file: OpenVINO forgets the names of dimensions, and
renames an input that an operator without effect hands on.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import cpu_threads
from optimizer.errors import BadInput, GateFailed, MlOptError
from optimizer.runtime import Availability, Provider, Runtime, SessionOptions
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.runtimes._huge_pages import onto_huge_pages
from optimizer.runtimes._openvino import PRECISIONS, config, library, need_capability
from optimizer.runtimes._openvino_errors import openvino_errors
from optimizer.runtimes._openvino_kernels import kernels_of
from optimizer.runtimes._signal_stack import own_signal_stack
from optimizer.runtimes._tiny import TINY
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RUNTIME", "OpenVinoSession", "compiled_model"]

_PROVIDER = "openvino-native"
_DEVICE = "CPU"
#: Element types of inputs and outputs that can be used.
_NUMBERS = frozenset(
    {"bool", "float16", "float32", "float64", *(f"{s}int{bits}" for s in ("", "u") for bits in (8, 16, 32, 64))}
)


class OpenVinoSession:
    """An ONNX file compiled by OpenVINO for the processor, in exactly the precision that was asked for.

    Requests are started and waited for: with one thread, OpenVINO's own ``infer`` keeps a failure to itself and leaves
    the answers of the call before (2026.4.1).
    """

    def __init__(
        self,
        compiled: Any,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limits: Limits,
        facts: dict[str, JSON],
        streams: int = 1,
    ) -> None:
        self._compiled = compiled
        self._path = path
        self._limits = limits
        # A request that is running refuses to be run: who finds none free waits for one.
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())
        self.inputs = inputs
        self.outputs = outputs
        self.facts = facts

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once; raises :class:`BadInput` naming the input that does not fit."""
        check_feeds(self.inputs, feeds, self._limits)
        by_place = {place: feeds[spec.name] for place, spec in enumerate(self.inputs)}
        if self._compiled is None:
            raise RuntimeError(f"the session of {self._path} is closed")
        request = self._free.get()
        try:
            with openvino_errors(self._path, _PROVIDER):
                request.start_async(by_place, share_inputs=True)
                request.wait()
                return {spec.name: request.get_output_tensor(i).data.copy() for i, spec in enumerate(self.outputs)}
        finally:
            self._free.put(request)

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """A request of its own: inputs copied into its tensors once, outputs left in the buffers of the first run."""
        import openvino

        check_feeds(self.inputs, feeds, self._limits)
        with openvino_errors(self._path, _PROVIDER):
            request = self._compiled.create_infer_request()
            for place, spec in enumerate(self.inputs):
                request.set_input_tensor(place, openvino.Tensor(feeds[spec.name]))
            request.start_async()
            request.wait()
        start, wait, path = request.start_async, request.wait, self._path

        def call() -> None:
            try:
                start()
                wait()
            except RuntimeError:
                with openvino_errors(path, _PROVIDER):
                    raise

        return call

    def runs(self) -> dict[str, JSON] | None:
        """Products by what they are computed in, read from the compiled graph; it need not have run."""
        return kernels_of(self._compiled.get_runtime_model(), self._path) if self._compiled else None

    def close(self) -> None:
        """Drop the compiled model and its buffers; the last session to go takes OpenVINO's threads with it."""
        self._compiled = None
        self._free = queue.LifoQueue()


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> OpenVinoSession:
    """Open an ``.onnx`` file.

    Raises:
        BadInput: the file cannot be used, or has an operator that OpenVINO has not.
        MissingPiece: OpenVINO is not installed, or the processor does not compute in that precision.
        GateFailed: the model was compiled, and not as it was asked for.
    """
    from optimizer.graph.facts import fed_inputs, tensor_specs
    from optimizer.graph.io import load

    started = time.perf_counter()
    graph = load(path)
    inputs, outputs = tensor_specs(fed_inputs(graph)), tensor_specs(graph.graph.outputs)
    for what, specs in (("input", inputs), ("output", outputs)):
        _check_types(what, specs, path)
    compiled, facts = compiled_model(path, path, options)
    if (len(compiled.inputs), len(compiled.outputs)) != (len(inputs), len(outputs)):
        raise GateFailed(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; OpenVINO made it {len(compiled.inputs)} and "
            f"{len(compiled.outputs)}",
            "use the provider cpu",
        )
    facts["nodes"] = {_PROVIDER: len(graph.graph)}
    facts["huge_pages"] = onto_huge_pages()
    facts["load_seconds"] = time.perf_counter() - started
    return OpenVinoSession(compiled, path, inputs, outputs, model.get("limits") or {}, facts, options.streams)


def _check_types(what: str, specs: tuple[TensorSpec, ...], path: Path) -> None:
    """Refuse what has no plain numbers; OpenVINO itself takes strings, and ends the process over them."""
    for spec in specs:
        if spec.dtype == "bfloat16":
            raise BadInput(
                f"{path}: {what} {spec.name!r} is bfloat16, which numpy cannot hold",
                "keep a model's inputs and outputs in float32; `ml-opt cast --to bf16` does",
            )
        if spec.dtype not in _NUMBERS:
            raise BadInput(f"{path}: {what} {spec.name!r} is {spec.dtype}; only tensors of plain numbers can be used")


def compiled_model(
    source: Path | bytes, path: Path, options: SessionOptions, change: Callable[[Any], Any] = lambda model: model
) -> tuple[Any, dict[str, JSON]]:
    """Read and compile an ONNX file.

    Args:
        source: the file, or what is in it.
        path: for messages.
        options: how.
        change: of the model (``openvino.Model``), between the two.

    Returns:
        the compiled model, and what was really got.

    Raises:
        BadInput: the file cannot be used, or has an operator that OpenVINO has not.
        MissingPiece: OpenVINO is not installed, or the processor does not compute in that precision.
        GateFailed: the model was compiled, and not as it was asked for.
    """
    precision = options.provider.precision or next(iter(PRECISIONS))
    openvino = library()
    core = openvino.Core()
    with own_signal_stack():  # the first question loads the plugin
        need_capability(_PROVIDER, precision, core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
    asked = config(options, precision, options.threads or cpu_threads())
    with openvino_errors(path, _PROVIDER):
        model = core.read_model(source)
    model = change(model)
    with openvino_errors(path, _PROVIDER):
        compiled = core.compile_model(model, _DEVICE, asked)
        got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if got != PRECISIONS[precision]:
        raise GateFailed(
            f"{path}: {precision} was asked for, and OpenVINO computes in {got}", f"use {_PROVIDER} without a precision"
        )
    return compiled, {
        "provider": _PROVIDER,
        "precision": precision,
        "threads": threads,
        "openvino": openvino.__version__.partition("-")[0],
    }


def _available(provider: str) -> Availability:
    """Try it for real, with a model of one node."""
    try:
        _, facts = compiled_model(TINY, Path("a model of one node"), SessionOptions(Provider(provider), threads=1))
    except MlOptError as error:
        return Availability(provider, False, error.message, error.hint)
    return Availability(provider, True, facts={"openvino": facts["openvino"]})


RUNTIME = Runtime(
    name="openvino",
    help="OpenVINO by its own package, on any maker's processor.",
    providers={_PROVIDER: tuple(PRECISIONS)},
    open=_open,
    available=_available,
    onnx=True,
)
