"""An engine that was opened, and the contexts that it runs in: the half of NVIDIA's Python API that serving needs.

What was made last is given back first: contexts, what TensorRT-RTX compiled, the engine, the runtime that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optimizer.engines.profiles import Profile, Range
from optimizer.errors import BadInput, GateFailed, MissingPiece
from optimizer.types import JSON, TensorSpec

__all__ = ["Context", "Engine", "dtype_name"]

#: Vendor's number formats by numpy's names, or the ONNX names where numpy has none.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8e4m3fn",
    "INT4": "int4",
    "FP4": "float4e2m1",
}


def dtype_name(dtype: Any) -> str:
    """A vendor's number format by numpy's name."""
    name = str(dtype.name)
    return _DTYPES.get(name, name.lower())


class Engine:
    """An engine that was opened.

    Attributes:
        made: the vendor's own.
        inputs: names, number formats and shapes, -1 where open.
        outputs: the same of outputs.
        on_host: inputs and outputs that lie in host memory: numbers that are a shape.
    """

    def __init__(
        self, trt: Any, runtime: Any, made: Any, why: Callable[[], str], compiles: bool = False, kernels: bytes = b""
    ) -> None:
        """Read an engine's inputs and outputs.

        Args:
            trt: the vendor's module.
            runtime: what read the engine, and has to outlive it.
            made: the vendor's engine.
            why: the vendor's latest complaint.
            compiles: kernels are compiled where the engine is loaded (TensorRT-RTX).
            kernels: what :meth:`kernels` gave the last time; what does not fit any more is left out.
        """
        self._trt, self._runtime, self.made, self._why = trt, runtime, made, why
        found: dict[Any, list[TensorSpec]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        host = set()
        for i in range(made.num_io_tensors):
            name = made.get_tensor_name(i)
            spec = TensorSpec(name, dtype_name(made.get_tensor_dtype(name)), tuple(made.get_tensor_shape(name)))
            found[made.get_tensor_mode(name)].append(spec)
            if made.get_tensor_location(name) == trt.TensorLocation.HOST:
                host.add(name)
        self.inputs, self.outputs = tuple(found[trt.TensorIOMode.INPUT]), tuple(found[trt.TensorIOMode.OUTPUT])
        self.on_host = frozenset(host)
        self._config: Any = None
        self._kernels: Any = None
        if compiles:
            self._compile(kernels)

    def _compile(self, kernels: bytes) -> None:
        """How TensorRT-RTX is to compile, and what it need not compile again.

        A kernel for a shape is compiled when the shape comes and before the answer: left to itself it answers with
        other kernels until the right ones are there, so that an answer depended on when it was asked for, and a CUDA
        graph would hold the wrong ones for ever.
        """
        config = self.made.create_runtime_config()
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        cache = config.create_runtime_cache()
        if kernels:
            cache.deserialize(kernels)  # says no to another version, GPU or driver, and is empty then
        config.set_runtime_cache(cache)
        self._config, self._kernels = config, cache

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Shapes by profile, read back from the engine; of inputs on the host, their values."""
        made = []
        for number in range(self.made.num_optimization_profiles):
            ranges = {}
            for spec in self.inputs:
                if spec.name in self.on_host:
                    # The vendor's names of these two arguments are exchanged: the number is the first.
                    three = self.made.get_tensor_profile_values(number, spec.name)
                elif -1 in spec.shape:
                    three = self.made.get_tensor_profile_shape(spec.name, number)
                else:
                    continue
                if three:
                    ranges[spec.name] = Range(*(tuple(each) for each in three))
            made.append(Profile(ranges))
        return tuple(made)

    @property
    def facts(self) -> dict[str, JSON]:
        """``layers`` and ``device_memory`` in bytes."""
        return {"layers": int(self.made.num_layers), "device_memory": int(self.made.device_memory_size_v2)}

    def inspect(self) -> str:
        """What the vendor's inspector says of the engine, as JSON text."""
        inspector = self.made.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def stream_weights(self) -> int:
        """Keep as many weights on the GPU as there is room for, and the others in host memory.

        To be called before there is a context.

        Returns:
            bytes of weights that stay on the GPU, of those that need not.

        Raises:
            MissingPiece: the GPU has no room even for what has to be there.
        """
        budget = min(int(self.made.streamable_weights_size), int(self.made.get_weight_streaming_automatic_budget()))
        try:
            self.made.weight_streaming_budget_v2 = budget
        except RuntimeError:
            raise MissingPiece(
                f"the GPU has no memory for the engine's weights{self._why()}", "`nvidia-smi` lists who has it"
            ) from None
        return budget

    def context(self) -> Context:
        """A new context to run it in; raises :class:`MissingPiece` when the GPU has no room for it."""
        config = () if self._config is None else (self._config,)
        made = self.made.create_execution_context(*config)
        if made is None:
            raise MissingPiece(
                f"the GPU has no memory for the engine's activations{self._why()}", "`nvidia-smi` lists who has it"
            )
        return Context(made, self._why)

    def kernels(self) -> bytes:
        """What was compiled so far, to be given to the next one that opens this engine; empty where nothing is."""
        blob = self._kernels.serialize() if self._kernels is not None else None
        return bytes(memoryview(blob)) if blob is not None else b""

    def close(self) -> None:
        """Give it back; every context has to be given back before."""
        self._config = None
        self._kernels = None
        self.made = None
        self._runtime = None


class Context:
    """Where an engine runs, with its activations."""

    def __init__(self, made: Any, why: Callable[[], str]) -> None:
        self._made, self._why = made, why

    def use_profile(self, number: int, stream: int) -> None:
        """Take another profile; it is in effect for what is begun on the same stream after this."""
        if not self._made.set_optimization_profile_async(number, stream):
            raise GateFailed(f"profile {number} cannot be used{self._why()}")

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """The shape of an input."""
        if not self._made.set_input_shape(name, tuple(shape)):
            text = " × ".join(map(str, shape)) or "of a scalar"
            raise BadInput(f"input {name!r} cannot have the shape {text}{self._why()}")

    def missing(self) -> list[str]:
        """Inputs without which the shapes of outputs are not known; raises :class:`BadInput` where they contradict."""
        try:
            return list(self._made.infer_shapes())
        except RuntimeError as error:
            raise BadInput(f"these inputs do not fit together{self._why() or f': {error}'}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input or output, by what the inputs have; -1 where only the data decides."""
        return tuple(self._made.get_tensor_shape(name))

    def set_address(self, name: str, pointer: int) -> None:
        """Where a tensor lies."""
        if not self._made.set_tensor_address(name, pointer):
            raise GateFailed(f"the memory of {name!r} is not taken{self._why()}")

    def begin(self, stream: int) -> None:
        """Begin to run on a stream; raises :class:`GateFailed` when the vendor refuses."""
        if not self._made.execute_async_v3(stream):
            raise GateFailed(f"the engine could not be started{self._why()}")

    def close(self) -> None:
        """Give it back, when nothing runs in it any more."""
        self._made = None
