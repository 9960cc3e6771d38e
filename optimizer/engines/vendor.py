"""NVIDIA's TensorRT and TensorRT-RTX, behind one front: nothing else of this project imports their packages.

Both speak the same Python API. TensorRT 11 and TensorRT-RTX are strongly typed only, and TensorRT 10 is asked to be:
a network computes in the number formats of its graph and in no other, so that precision is decided by ``cast`` and by
Q/DQ nodes and never by a builder's flag. What is made of them is touched here, in :mod:`optimizer.engines.callbacks`
and in :mod:`optimizer.engines.engine`, and nowhere else. :data:`USED` names every attribute that is touched in the
three; a test looks each up in the bindings of all versions.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.engines.asked import Asked
from optimizer.engines.callbacks import BAD, Tell, interruptible, logger, progress_monitor
from optimizer.engines.engine import Engine, dtype_name
from optimizer.engines.flavors import Flavor, choose
from optimizer.engines.layers import Layer, parse_layers
from optimizer.engines.vendor_errors import Problem, build_failed, cannot_open, latest, parse_failed
from optimizer.errors import BadInput, MissingPiece

__all__ = ["USED", "Built", "Input", "Network", "Vendor", "load"]

#: Class → attributes that are used in the three files, of both flavours; those of one alone stand under its name
#: (``rtx:``). ``module`` is the package itself.
USED: Mapping[str, tuple[str, ...]] = {
    "Builder": ("build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile"),
    "BuilderFlag": ("REFIT", "STRICT_NANS", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"),
    "DataType": ("BF16", "BOOL", "FLOAT", "FP4", "FP8", "HALF", "INT32", "INT4", "INT64", "INT8", "UINT8", "name"),
    "EngineInspector": ("get_engine_information",),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS",),
    "IBuilderConfig": (
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "hardware_compatibility_level",
        "profiling_verbosity",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    ),
    "ICudaEngine": (
        "create_engine_inspector",
        "create_execution_context",
        "device_memory_size_v2",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_profile_values",
        "get_tensor_shape",
        "get_weight_streaming_automatic_budget",
        "num_io_tensors",
        "num_layers",
        "num_optimization_profiles",
        "streamable_weights_size",
        "weight_streaming_budget_v2",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    ),
    "ILayer": ("get_input", "get_output", "name", "num_inputs", "num_outputs", "type"),
    "ILogger": ("log",),
    "INetworkDefinition": (
        "get_input",
        "get_layer",
        "get_output",
        "num_inputs",
        "num_layers",
        "num_outputs",
    ),
    "IOptimizationProfile": ("set_shape", "set_shape_input"),
    "IProgressMonitor": ("phase_finish", "phase_start", "step_complete"),
    "ITensor": ("dtype", "is_shape_tensor", "name", "shape"),
    "ITimingCache": ("serialize",),
    "LayerInformationFormat": ("JSON",),
    "LayerType": ("name",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("get_error", "num_errors", "parse_from_file"),
    "OnnxParserRefitter": ("refit_from_file",),
    "ParserError": ("code", "desc", "node_name", "node_operator"),
    "ProfilingVerbosity": ("DETAILED",),
    "Refitter": ("refit_cuda_engine",),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "TensorLocation": ("HOST",),
    "rtx:ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "rtx:DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "rtx:IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "rtx:ICudaEngine": ("create_runtime_config",),
    "rtx:IRuntimeCache": ("deserialize", "serialize"),
    "rtx:IRuntimeConfig": (
        "create_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_runtime_cache",
    ),
}


@dataclass(frozen=True)
class Built:
    """An engine as bytes, and what the builder told of it.

    Attributes:
        plan: the engine.
        layers: of the engine itself, after fusing; empty where the builder does not tell.
        log: lines of the vendor's log, ``SEVERITY text``, without the ramble.
        memory: bytes that it named: ``weights``, ``activation``, ``scratch``.
        timing_cache: to be kept for the next build, or None.
        seconds: of building alone.
    """

    plan: bytes
    layers: tuple[Layer, ...]
    log: tuple[str, ...]
    memory: dict[str, int]
    timing_cache: bytes | None
    seconds: float


@functools.cache
def load(flavor: Flavor) -> Vendor:
    """Import the package, once a process: the first logger that the vendor is given is the one it keeps using.

    Raises:
        MissingPiece: it is not there, or its libraries cannot be loaded.
    """
    try:
        module = importlib.import_module(flavor.module)
    except ImportError:
        choose(flavor.name)
        raise MissingPiece(f"{flavor.title} is installed, and cannot be imported") from None
    except (OSError, RuntimeError) as error:
        raise MissingPiece(
            f"the libraries of {flavor.title} cannot be loaded: {error}",
            f"install it whole: pip install {flavor.distributions[0]}",
        ) from error
    return Vendor(flavor, module)


@dataclass(frozen=True)
class Input:
    """One input of a network: ``shape`` has -1 for what is open; ``values`` where its numbers are a shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: bool = False


@dataclass
class Network:
    """A parsed graph, with all that must stay alive beside it."""

    vendor: Vendor
    path: Path
    made: Any
    builder: Any
    parser: Any

    @property
    def inputs(self) -> tuple[Input, ...]:
        found = (self.made.get_input(i) for i in range(self.made.num_inputs))
        return tuple(Input(t.name, dtype_name(t.dtype), tuple(t.shape), bool(t.is_shape_tensor)) for t in found)

    @property
    def outputs(self) -> tuple[Input, ...]:
        found = (self.made.get_output(i) for i in range(self.made.num_outputs))
        return tuple(Input(t.name, dtype_name(t.dtype), tuple(t.shape)) for t in found)

    def layers(self) -> tuple[Layer, ...]:
        """Layers as they were parsed, before fusing: what the graph asks for."""
        found = []
        for i in range(self.made.num_layers):
            layer = self.made.get_layer(i)
            ins = [layer.get_input(k) for k in range(layer.num_inputs)]
            outs = [layer.get_output(k) for k in range(layer.num_outputs)]
            found.append(
                Layer(
                    layer.name,
                    layer.type.name.lower(),
                    tuple(dtype_name(t.dtype) for t in ins if t is not None),
                    tuple(dtype_name(t.dtype) for t in outs if t is not None),
                )
            )
        return tuple(found)


class Vendor:
    """One flavour, loaded."""

    def __init__(self, flavor: Flavor, module: Any) -> None:
        self.flavor = flavor
        self.trt = module
        self.version = str(module.__version__)
        self._log, self._sink = logger(module)

    @property
    def strongly_typed(self) -> int:
        """Flags of a strongly typed network; 0 where there is no other sort any more."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def parse(self, path: Path) -> Network:
        """Read an ONNX file into a network.

        Raises:
            BadInput: an operator, a type or an attribute that this flavour does not have, naming the node.
        """
        builder = self.trt.Builder(self._log)
        network = builder.create_network(self.strongly_typed)
        parser = self.trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(path)):
            problems = [_problem(parser.get_error(i)) for i in range(parser.num_errors)]
            raise parse_failed(problems, self.flavor.title, self.version, path)
        return Network(self, path, network, builder, parser)

    def build(self, network: Network, asked: Asked, tell: Tell) -> Built:
        """Build an engine; it can be interrupted (Ctrl-C, SIGTERM), and then ends within a step of the builder.

        Args:
            network: what :meth:`parse` made.
            asked: see :class:`Asked`.
            tell: told what is being done, and how far it is.

        Raises:
            BadInput: the builder does not take what was asked.
            GateFailed: it did not succeed.
            MissingPiece: no memory, or no GPU where one is needed.
        """
        self._log.everything = True
        self._sink.clear()
        config = self._config(network, asked)
        monitor = progress_monitor(self.trt, tell)
        config.progress_monitor = monitor
        started = time.perf_counter()
        plan = interruptible(lambda: network.builder.build_serialized_network(network.made, config), monitor)
        seconds = time.perf_counter() - started
        lines = list(self._sink)
        if plan is None:
            raise build_failed(self._complaints(), self.flavor.title, self.version)
        cache = config.get_timing_cache() if asked.timing_cache is not None else None
        return Built(
            bytes(memoryview(plan)),
            parse_layers(lines),
            tuple(line for line in lines if not line.startswith("VERBOSE")),
            _memory(lines),
            bytes(memoryview(cache.serialize())) if cache is not None else None,
            seconds,
        )

    def _config(self, network: Network, asked: Asked) -> Any:
        trt, config = self.trt, network.builder.create_builder_config()
        for profile in asked.profiles:
            made = network.builder.create_optimization_profile()
            for name, each in profile.ranges.items():
                setter = made.set_shape_input if name in asked.values else made.set_shape
                try:
                    setter(name, each.min, each.opt, each.max)
                except (ValueError, RuntimeError, TypeError) as error:
                    raise BadInput(f"{self.flavor.title} does not take the profile {name}:{each}: {error}") from error
            if config.add_optimization_profile(made) < 0:
                raise BadInput(f"{self.flavor.title} does not take the profile {profile}")
        if asked.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, asked.workspace)
        if asked.level is not None:
            config.builder_optimization_level = asked.level
        flags = {
            # TensorRT-RTX wants both for an engine without weights; TensorRT takes STRIP_PLAN to mean them.
            "REFIT": asked.refit or (asked.strip and bool(self.flavor.capabilities)),
            "STRICT_NANS": asked.strict_nans,
            "STRIP_PLAN": asked.strip,
            "TF32": asked.tf32,
            "VERSION_COMPATIBLE": asked.version_compatible,
            "WEIGHT_STREAMING": asked.stream,
        }
        for name, wanted in flags.items():
            (config.set_flag if wanted else config.clear_flag)(getattr(trt.BuilderFlag, name))
        if asked.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if asked.capabilities:
            self._target(config, asked.capabilities)
        if asked.timing_cache is not None:
            cache = config.create_timing_cache(asked.timing_cache)
            # A cache of another version or GPU is refused and a new one begun: a stale timing is worse than none.
            if cache is None or not config.set_timing_cache(cache, False):
                config.set_timing_cache(config.create_timing_cache(b""), False)
        return config

    def _target(self, config: Any, capabilities: Sequence[str]) -> None:
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            word = "SM" + capability.replace(".", "")
            if not config.set_compute_capability(getattr(self.trt.ComputeCapability, word), place):
                raise BadInput(f"{self.flavor.title} {self.version} does not build for compute capability {capability}")

    def open(self, plan: bytes, path: Path, host_code: bool = False, kernels: bytes = b"") -> Engine:
        """An engine from its bytes.

        Args:
            plan: the bytes.
            path: where they came from, for errors.
            host_code: the plan is version compatible and brings a runtime of its own, which is allowed to run.
            kernels: what :meth:`Engine.kernels` gave when this engine was open the last time.

        Raises:
            MissingPiece: there is no driver, no memory, or another GPU than it was built for.
            Damaged: the bytes are no engine.
        """
        self._log.everything = False
        self._sink.clear()
        runtime = self.trt.Runtime(self._log)
        if host_code:
            runtime.engine_host_code_allowed = True
        made = runtime.deserialize_cuda_engine(plan)
        if made is None:
            raise cannot_open(self._complaints(), self.flavor.title, self.version, path)
        return Engine(self.trt, runtime, made, self._why, bool(self.flavor.capabilities), kernels)

    def refit(self, engine: Engine, weights: Path, path: Path) -> None:
        """Put the weights of an ONNX file into an engine that was built without them; before it has a context.

        Raises:
            Damaged: they do not fit.
        """
        self._sink.clear()
        refitter = self.trt.Refitter(engine.made, self._log)
        parser = self.trt.OnnxParserRefitter(refitter, self._log)
        done = parser.refit_from_file(str(weights)) and refitter.refit_cuda_engine()
        del parser, refitter  # the parser had the weights in its hands until they were in the engine
        if not done:
            raise cannot_open(self._complaints(), self.flavor.title, self.version, path)

    def _complaints(self) -> list[str]:
        return [line for line in self._sink if line.startswith(BAD)]

    def _why(self) -> str:
        """The latest complaint, to be put behind a sentence; empty where there is none."""
        said = latest(self._complaints())
        return f": {said}" if said else ""


def _problem(error: Any) -> Problem:
    """What the parser says of one node; its parts are methods in every version so far."""

    def part(name: str) -> str:
        found = getattr(error, name)
        return str(found() if callable(found) else found)

    return Problem(part("code").rpartition(".")[2], part("desc"), part("node_name"), part("node_operator"))


#: What the log calls bytes that an engine takes, and what they are called here.
_MEMORY = {"Total Weights Memory": "weights", "Total Activation Memory": "activation", "Max Scratch Memory": "scratch"}


def _memory(lines: Sequence[str]) -> dict[str, int]:
    """Bytes that the builder names in its log, where it does."""
    found: dict[str, int] = {}
    for line in lines:
        for phrase, name in _MEMORY.items():
            _, sign, rest = line.partition(f"{phrase}: ")
            if sign and rest.partition(" ")[0].isdigit():
                found[name] = int(rest.partition(" ")[0])
    return found
