"""NVIDIA's Python package without NVIDIA's library: as much of it as running an engine takes, on the fake GPU.

A plan is JSON. Its outputs are simple functions of its inputs, computed when the stream is waited for, out of the
memory that the addresses point to at that moment. The order of calls that NVIDIA's documentation asks for is demanded:
a profile before shapes, shapes and addresses before a call, a call before a recording, and contexts are gone before
their engine.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
from engines.fake_cuda import ALIGNED, FakeCuda


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64, BF16 = range(8)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT8: np.int8,
    DataType.INT32: np.int32,
    DataType.BOOL: np.bool_,
    DataType.UINT8: np.uint8,
    DataType.INT64: np.int64,
    DataType.BF16: np.uint16,
}


def tensor(name: str, dtype: str, *shape: int, host: bool = False, how: str = "") -> dict[str, Any]:
    """One line of a plan. ``how`` an output is made:

    ``twice`` doubles the first input (an integer or bool one is turned into a number first), ``rows`` sums its last
    dimension, ``sum`` adds up all of all inputs into a scalar, ``spread`` is that scalar in the shape that the values
    of ``size`` say, ``shape`` is the first input's shape, ``found`` are its elements above zero. ``onnx`` is the output
    of this name of the ONNX file that the plan names.
    """
    return {"name": name, "dtype": dtype, "shape": list(shape), "host": host, "how": how}


def plan(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], *profiles: dict[str, list[list[int]]], **more: Any
) -> bytes:
    """A plan.

    Args:
        inputs: made by :func:`tensor`.
        outputs: made by :func:`tensor`.
        profiles: smallest, best and largest shape by input.
        more: ``recordable`` false for what no graph can hold, ``weights`` false for a stripped engine and ``wants``
            their format, ``streamable`` bytes of weights and ``least`` of them on the GPU, ``lean`` for host code,
            ``big`` for what no GPU has room for, ``contradicts`` for sizes that do, ``onnx`` the file that computes,
            and ``off`` by how much its answers are off.
    """
    return json.dumps({"inputs": inputs, "outputs": outputs, "profiles": profiles or [{}], **more}).encode()


class FakeTrt:
    """The package.

    Args:
        gpu: where engines run.
        version: of the library.

    Attributes:
        compiled: shapes that kernels were compiled for.
        free: bytes that the GPU has for weights.
    """

    def __init__(self, gpu: FakeCuda, version: str = "1.7.1.116") -> None:
        self.__version__ = version
        self.gpu = gpu
        self.compiled: list[str] = []
        self.free = 1000
        self.log: Any = None
        self.TensorIOMode, self.TensorLocation, self.DataType = TensorIOMode, TensorLocation, DataType
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", LAZY="lazy")
        self.Runtime = lambda log: Runtime(self, log)
        self.Refitter = lambda engine, log: Refitter(engine)
        self.OnnxParserRefitter = lambda refitter, log: OnnxParserRefitter(refitter)

    class ILogger:
        """What a logger is made of."""

    def error(self, text: str) -> bool:
        """Say what is wrong, as the library does, and answer False."""
        if self.log is not None:
            self.log.log(Severity.VERBOSE, "something that nobody wants to know")
            self.log.log(
                Severity.ERROR, f"[fake.cpp::check::1] Error Code 3: API Usage Error ({text} In check at a.cpp:1)"
            )
        return False


class Runtime:
    def __init__(self, trt: FakeTrt, log: Any) -> None:
        self._trt = trt
        self.engine_host_code_allowed = False
        if trt.log is None:
            trt.log = log  # the first one is kept, as the library does
        self._engines: weakref.WeakSet[CudaEngine] = weakref.WeakSet()

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        try:
            told = json.loads(serialized_engine)
        except ValueError:
            self._trt.error("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None
        if told.get("lean") and not self.engine_host_code_allowed:
            self._trt.error("host code is not allowed")
            return None
        engine = CudaEngine(self._trt, told)
        self._engines.add(engine)
        return engine

    def __del__(self) -> None:
        if len(self._engines):
            self._trt.gpu.wrongs.append("the runtime goes before its engine")


class CudaEngine:
    def __init__(self, trt: FakeTrt, told: dict[str, Any]) -> None:
        self.trt, self.told = trt, told
        self.tensors = {each["name"]: each for each in (*told["inputs"], *told["outputs"])}
        self.contexts: weakref.WeakSet[ExecutionContext] = weakref.WeakSet()
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(told["profiles"])
        self.num_layers = 3
        self.device_memory_size_v2 = 4096
        self.streamable_weights_size = told.get("streamable", 0)
        self.has_weights = told.get("weights", True)
        self.made = 0
        self.onnx: Any = None
        if "onnx" in told:
            import onnxruntime

            self.onnx = onnxruntime.InferenceSession(told["onnx"], providers=["CPUExecutionProvider"])
        self._budget = self.streamable_weights_size

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name]["shape"])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        is_input = any(each["name"] == name for each in self.told["inputs"])
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self.tensors[name]["host"] else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert not self.tensors[name]["host"]
        return [tuple(each) for each in self.told["profiles"][profile_index][name]]

    def get_tensor_profile_values(self, name: int, profile_index: str) -> list[list[int]]:
        assert self.tensors[profile_index]["host"]
        return self.told["profiles"][name].get(profile_index, [])

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.trt.free

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        assert not len(self.contexts), "a budget is set while there is a context"
        if budget >= self.told.get("least", 0):
            self._budget = budget
            return
        self.trt.error("the weights do not fit")
        del self  # the real one leaves no frame behind that would keep the engine alive
        raise RuntimeError("budget")

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda format: '{"Layers": []}')

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)

    def create_execution_context(self, runtime_config: RuntimeConfig | None = None) -> ExecutionContext | None:
        if self.told.get("big"):
            self.trt.error("OutOfMemory")
            return None
        context = ExecutionContext(self, runtime_config)
        self.contexts.add(context)
        self.made += 1
        return context

    def __del__(self) -> None:
        if len(self.contexts):
            self.trt.gpu.wrongs.append("the engine goes before its contexts")


class RuntimeConfig:
    def __init__(self, engine: CudaEngine) -> None:
        self._trt = engine.trt
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self._trt)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self.shapes: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        try:
            version, *shapes = json.loads(blob)
        except ValueError:
            return self._trt.error("the cache is damaged")
        if version != self._trt.__version__:
            return self._trt.error("the cache is another version's")
        self.shapes = set(shapes)
        return True

    def serialize(self) -> bytes:
        return json.dumps([self._trt.__version__, *sorted(self.shapes)]).encode()


class Refitter:
    def __init__(self, engine: CudaEngine) -> None:
        self.engine = engine
        self.weights: Any = None

    def refit_cuda_engine(self) -> bool:
        assert not len(self.engine.contexts)
        self.engine.has_weights = self.weights is not None
        return self.engine.has_weights


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter) -> None:
        self._refitter = refitter

    def refit_from_file(self, model: str) -> bool:
        import onnx

        found = onnx.load(model).graph.initializer
        wanted = self._refitter.engine.told["wants"]
        if any(onnx.TensorProto.DataType.Name(each.data_type) != wanted for each in found) or not found:
            return self._refitter.engine.trt.error(f"the weights are not {wanted}")
        self._refitter.weights = found
        return True


class ExecutionContext:
    def __init__(self, engine: CudaEngine, config: RuntimeConfig | None) -> None:
        self._engine = weakref.proxy(engine)
        self._trt, self._gpu, self._config = engine.trt, engine.trt.gpu, config
        self._told = engine.told
        self._profile: int | None = 0 if not engine.made else None  # only the first one has a profile to begin with
        self._switched_on: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._settled: Any = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._trt.error(f"there is no profile {profile_index}")
        assert not self._gpu.is_capturing(stream_handle)
        self._gpu.submit(stream_handle, lambda: None)
        self._profile, self._switched_on = profile_index, stream_handle
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert all(type(size) is int for size in shape)
        if self._profile is None:
            return self._trt.error("no profile was chosen")
        own = self._engine.get_tensor_shape(name)
        if len(own) != len(shape) or any(want not in (-1, got) for want, got in zip(own, shape, strict=True)):
            return self._trt.error(f"{name} is {own}")
        ranges = self._told["profiles"][self._profile]
        if -1 in own and not all(
            lo <= n <= hi for lo, n, hi in zip(ranges[name][0], shape, ranges[name][2], strict=True)
        ):
            return self._trt.error(f"{name} is not in profile {self._profile}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        if not memory:
            return self._trt.error(f"{name} is nowhere")
        if not self._engine.tensors[name]["host"]:
            assert memory % ALIGNED == 0
            self._gpu.view(memory, 1)
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        missing = []
        for each in self._told["inputs"]:
            if each["name"] not in self._shapes or (each["host"] and each["name"] not in self._addresses):
                missing.append(each["name"])
        if not missing and self._told.get("contradicts"):
            self._trt.error("IShapeLayer: the sizes contradict each other")
            raise RuntimeError("infer_shapes failed")
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        first = self._shapes[self._told["inputs"][0]["name"]]
        how = self._engine.tensors[name]["how"]
        if how == "spread":
            return tuple(int(size) for size in self._values("size"))
        if how == "onnx":
            inputs = {each["name"]: each for each in self._told["inputs"]}
            zeros = {n: np.zeros(self._shapes[n], _NUMPY[DataType[each["dtype"]]]) for n, each in inputs.items()}
            return tuple(self._engine.onnx.run([name], zeros)[0].shape)
        return {"twice": first, "rows": first[:-1], "sum": (), "shape": (len(first),), "found": (-1,)}[how]

    def _values(self, name: str) -> np.ndarray:
        dtype = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name)])
        count = int(np.prod(self._shapes[name]))
        read = (ctypes.c_char * (count * dtype.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(bytes(read), dtype)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._engine.has_weights:
            return self._trt.error("the engine has no weights")
        for name in self._engine.tensors:
            if name not in self._addresses:
                return self._trt.error(f"{name} has no address")
        if missing := self.infer_shapes():
            return self._trt.error(f"{missing} are not known")
        assert self._switched_on in (None, stream_handle), "the profile was changed on another stream"
        now = (self._profile, dict(self._shapes), dict(self._addresses))
        if self._gpu.is_capturing(stream_handle):
            if self._told.get("recordable") is False:
                self._gpu.spoil(stream_handle)
                return self._trt.error("operation not permitted when stream is capturing")
            assert now == self._settled, "recorded without a call before, or after something was changed"
        self._settled = now
        self._compile()
        shapes = {name: self.get_tensor_shape(name) for name in self._engine.tensors}
        self._gpu.submit(stream_handle, lambda: self._compute(shapes, now[2]))
        return True

    def _compile(self) -> None:
        if self._config is None:
            return
        assert self._config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert self._config.cache is not None
        key = json.dumps(self._shapes, sort_keys=True)
        if key not in self._config.cache.shapes:
            self._trt.compiled.append(key)
            self._config.cache.shapes.add(key)

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        read = {each["name"]: self._read(each, shapes, addresses) for each in self._told["inputs"]}
        given = [each.astype(np.float64) for each in read.values()]
        first, total = given[0], sum(float(each.sum()) for each in given)
        for each in self._told["outputs"]:
            name, dtype = each["name"], _NUMPY[DataType[each["dtype"]]]
            made = {
                "twice": lambda: first * 2,
                "rows": lambda: first.sum(-1),
                "sum": lambda: np.array(total),
                "spread": lambda: np.full(shapes[name], total),  # noqa: B023
                "shape": lambda: np.array(first.shape),
                "onnx": lambda: self._engine.onnx.run([name], read)[0] + self._told["off"],  # noqa: B023
            }[each["how"]]()
            whole = np.asarray(made, order="C").astype(dtype)
            assert whole.shape == shapes[name]
            if each["host"]:
                ctypes.memmove(addresses[name], whole.tobytes(), whole.nbytes)
            else:
                self._gpu.view(addresses[name], whole.nbytes)[:] = np.frombuffer(whole.tobytes(), np.uint8)

    def _read(self, each: dict[str, Any], shapes: dict[str, Any], addresses: dict[str, int]) -> np.ndarray:
        name, dtype = each["name"], np.dtype(_NUMPY[DataType[each["dtype"]]])
        if each["host"]:
            return self._values(name)
        size = int(np.prod(shapes[name])) * dtype.itemsize
        found = np.frombuffer(self._gpu.view(addresses[name], size).tobytes(), dtype)
        return found.reshape(shapes[name])
