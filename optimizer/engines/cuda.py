"""CUDA, as far as an engine needs it: device memory, copies, streams and graphs, by NVIDIA's own ``cuda-bindings``.

Nothing else of this project calls the CUDA runtime. :class:`Cuda` is the seam: tests put their own in its place and
so run a session's logic without a GPU. Pointers, streams and graphs are plain integers or what the vendor returned,
and belong to whoever asked for them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from optimizer.environment import gpu_facts
from optimizer.errors import MissingPiece, MlOptError, missing_package
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CALLS", "Cuda", "CudaBindings", "CudaFailed", "cuda"]

#: Every name of ``cuda.bindings.runtime`` that is used here; a test looks each one up in the real package.
CALLS = (
    "cudaDriverGetVersion",
    "cudaEventCreate",
    "cudaEventDestroy",
    "cudaEventElapsedTime",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaFree",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorString",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaMalloc",
    "cudaMemcpyAsync",
    "cudaMemcpyKind",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCaptureMode",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamNonBlocking",
    "cudaStreamSynchronize",
)

#: Errors that mean that there is no GPU to talk to (``cudaError_t`` in the CUDA runtime's reference).
_NO_GPU = {
    34: "the CUDA library is a stub without a driver",
    35: "there is no NVIDIA driver here, or it is older than this CUDA",
    36: "the NVIDIA driver is older than this CUDA",
    46: "the GPU is taken by another process",
    100: "the driver finds no GPU",
    802: "the GPUs of this machine are not ready yet",
    803: "the driver and its libraries are of different versions",
    804: "this GPU takes no newer CUDA than its driver's",
    999: "the driver cannot be used",
}
_OUT_OF_MEMORY, _OLD_DRIVER = 2, (35, 36)


class CudaFailed(MlOptError):
    """A call of the CUDA runtime failed, with its own name and text."""

    exit_code = 4


class Cuda(Protocol):
    """What a session needs of a GPU."""

    def facts(self) -> dict[str, JSON]:
        """``name``, ``compute_capability`` (``"8.6"``), ``memory`` in bytes, ``driver`` and ``runtime`` (CUDA)."""

    def malloc(self, size: int) -> int:
        """Device memory of so many bytes."""

    def free(self, pointer: int) -> None:
        """Give memory back."""

    def to_device(self, pointer: int, array: NDArray[np.generic], stream: int) -> None:
        """Begin to copy an array (contiguous, and alive until the stream is done) to the device."""

    def to_host(self, array: NDArray[np.generic], pointer: int, stream: int) -> None:
        """Begin to copy device memory into an array; the same holds, and it is not filled before :meth:`wait`."""

    def stream(self) -> int:
        """A new stream, which waits for no other."""

    def wait(self, stream: int) -> None:
        """Wait until all that was begun on a stream is done."""

    def drop_stream(self, stream: int) -> None:
        """Give a stream back."""

    def begin_capture(self, stream: int) -> None:
        """Record what is begun on a stream instead of doing it."""

    def end_capture(self, stream: int) -> Any:
        """The recording, ready to be launched; whether or not there is one, the stream does things again."""

    def launch(self, graph: Any, stream: int) -> None:
        """Begin what was recorded."""

    def drop_graph(self, graph: Any) -> None:
        """Give a recording back."""

    def timed(self, call: Callable[[], None], stream: int, times: int) -> float:
        """Milliseconds of device time that one of ``times`` calls takes, by CUDA events."""


@functools.cache
def cuda() -> Cuda:
    """This machine's CUDA.

    Raises:
        MissingPiece: the package, the driver or the GPU is not there.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise missing_package("cuda", "running TensorRT engines") from None
    found = CudaBindings(runtime)
    found.need_device()
    return found


class CudaBindings:
    """:class:`Cuda` by ``cuda.bindings.runtime``."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a call answers behind its error code, which is looked at; None where that is all."""
        code, *answers = getattr(self._runtime, name)(*arguments)
        if int(code) != 0:
            raise self._failed(name, int(code), code)
        return answers[0] if answers else None

    def _failed(self, name: str, number: int, code: Any) -> MlOptError:
        if number in _NO_GPU:
            hint = "engines run on a machine with an NVIDIA GPU and its driver; `ml-opt doctor` says what is here"
            if number in _OLD_DRIVER and (gpus := gpu_facts()):
                hint = f"the driver here is {gpus[0]['driver']}; update it, or run: pip install 'cuda-bindings<13'"
            return MissingPiece(f"no CUDA device can be used: {_NO_GPU[number]} ({name}: error {number})", hint)
        text = str(code)
        with contextlib.suppress(Exception):
            _, found = self._runtime.cudaGetErrorString(code)
            text = found.decode() if isinstance(found, bytes) else str(found)
        hint = ""
        if number == _OUT_OF_MEMORY:
            hint = "the GPU's memory is full: `nvidia-smi` lists who has it; or build for smaller shapes"
        return CudaFailed(f"{name} failed: {text} (error {number})", hint)

    def need_device(self) -> None:
        """Raise :class:`MissingPiece` when there is no GPU."""
        if self._call("cudaGetDeviceCount") < 1:
            raise self._failed("cudaGetDeviceCount", 100, None)
        self._call("cudaSetDevice", 0)  # makes the context, without which TensorRT-RTX does not take its kernels back

    def facts(self) -> dict[str, JSON]:
        found = self._call("cudaGetDeviceProperties", 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return {
            "name": name.rstrip("\0"),
            "compute_capability": f"{found.major}.{found.minor}",
            "memory": int(found.totalGlobalMem),
            "driver": _version(self._call("cudaDriverGetVersion")),
            "runtime": _version(self._call("cudaRuntimeGetVersion")),
        }

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", max(1, size)))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def to_device(self, pointer: int, array: NDArray[np.generic], stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: NDArray[np.generic], pointer: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, stream)

    def stream(self) -> int:
        # A stream of the usual sort waits for the legacy one, and work there by any thread would end a capture.
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def drop_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def begin_capture(self, stream: int) -> None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def drop_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def timed(self, call: Callable[[], None], stream: int, times: int) -> float:
        with contextlib.ExitStack() as events:
            first, last = self._event(events), self._event(events)
            self._call("cudaEventRecord", first, stream)
            for _ in range(times):
                call()
            self._call("cudaEventRecord", last, stream)
            self._call("cudaEventSynchronize", last)
            return float(self._call("cudaEventElapsedTime", first, last)) / times

    def _event(self, until: contextlib.ExitStack) -> Any:
        event = self._call("cudaEventCreate")
        until.callback(self._call, "cudaEventDestroy", event)
        return event


def _version(number: int) -> str:
    """13020 → ``13.2`` (CUDA counts thousands and tens)."""
    return f"{number // 1000}.{number % 1000 // 10}"
