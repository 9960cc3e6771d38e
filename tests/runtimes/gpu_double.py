"""ONNX Runtime as it would be with a GPU: its CPU kernels under other names.

Sessions are real and compute on the CPU provider; what they are asked, what they say of who has which node, and where
buffers are put, are this double's. It refuses what the real library refuses.
"""

from __future__ import annotations

import os
import types
from dataclasses import dataclass, field

import onnx
import onnxruntime as real
from onnx import helper

CPU, CUDA, TRT, RTX = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)
#: Options that the plugin 0.5 takes (tensorrt_rtx_provider_options.h); it refuses all others.
RTX_OPTIONS = {
    "enable_cuda_graph",
    "nv_max_workspace_size",
    "nv_profile_max_shapes",
    "nv_profile_min_shapes",
    "nv_profile_opt_shapes",
    "nv_runtime_cache_path",
}


@dataclass
class Node:
    op_type: str


@dataclass
class Part:
    ep_name: str
    nodes: list[Node]

    def get_nodes(self):
        return self.nodes


@dataclass
class Device:
    ep_name: str
    ep_metadata: dict[str, str] = field(default_factory=dict)


class Options:
    """Session options: the real ones behind, and what was asked in front."""

    def __init__(self):
        self.real = real.SessionOptions()
        self.config: dict[str, str] = {}
        self.devices: list[Device] = []
        self.given: dict[str, str] = {}

    def __setattr__(self, name, value):
        if name in ("intra_op_num_threads", "inter_op_num_threads", "log_severity_level"):
            setattr(self.real, name, value)
        else:
            super().__setattr__(name, value)

    def add_session_config_entry(self, name, value):
        self.config[name] = value
        if not name.startswith("ep."):
            self.real.add_session_config_entry(name, value)

    def add_provider_for_devices(self, devices, given):
        assert len(devices) == 1, "EP only supports selection for one device."
        unknown = set(given) - RTX_OPTIONS
        assert not unknown, f"Unknown provider option: {unknown}"
        self.devices, self.given = list(devices), dict(given)


class RunOptions:
    """Which recording a run is of."""

    def __init__(self):
        self.config: dict[str, str] = {}

    def add_run_config_entry(self, name, value):
        self.config[name] = value


class Value:
    def __init__(self, value, device):
        self.real, self.device = value, device

    def numpy(self):
        return self.real.numpy()

    @staticmethod
    def ortvalue_from_numpy(array, device="cpu", device_id=0):
        return Value(real.OrtValue.ortvalue_from_numpy(array, "cpu", 0), (device, device_id))


class Binding:
    """Where every input and output was put, in the order of what was done."""

    def __init__(self, session):
        self.real = session.io_binding()
        self.log: list[tuple] = []
        self.outputs: dict[str, str] = {}

    def bind_ortvalue_input(self, name, value):
        self.log.append(("input", name, value.device))
        self.real.bind_ortvalue_input(name, value.real)

    def bind_output(self, name, device="cpu", device_id=0):
        self.log.append(("output", name, (device, device_id)))
        self.outputs[name] = device
        self.real.bind_output(name, "cpu")

    def bind_ortvalue_output(self, name, value):
        self.log.append(("kept output", name, value.device))
        self.outputs[name] = value.device[0]
        self.real.bind_ortvalue_output(name, value.real)

    def synchronize_inputs(self):
        self.log.append(("synchronize",))
        self.real.synchronize_inputs()

    def get_outputs(self):
        places = list(self.outputs.values())
        return [Value(value, (place, 0)) for value, place in zip(self.real.get_outputs(), places, strict=True)]

    def clear_binding_outputs(self):
        self.real.clear_binding_outputs()


class Double:
    """The module. ``takes(op)`` names the provider that has a node of this type; None for the one that was asked for.

    Attributes:
        sessions: what each was opened with: providers with their options, the session's configuration, the environment.
        bindings: of all sessions.
        compiled: what the ModelCompiler was asked.
        records: whether runs can be recorded: the text of the refusal otherwise.
        replays: what a recorded run does with its binding; None runs it.
    """

    def __init__(self, takes=lambda op: None, available=(TRT, CUDA, CPU), devices=1, loads=True):
        self.takes, self.available, self.devices, self.loads = takes, available, devices, loads
        self.sessions: list[dict] = []
        self.bindings: list[Binding] = []
        self.compiled: list[dict] = []
        self.registered: list[str] = []
        self.writes = True
        self.records, self.replays = "", None
        self.__file__, self.__spec__, self.__version__ = real.__file__, real.__spec__, real.__version__
        self.cuda_version = "13.0"
        self.SessionOptions, self.OrtValue, self.OrtCompileApiFlags = Options, Value, real.OrtCompileApiFlags
        self.RunOptions = RunOptions
        double = self

        class InferenceSession:
            def __init__(self, source, options, providers=None, enable_fallback=True):
                assert not enable_fallback
                names = providers or [(device.ep_name, options.given) for device in options.devices]
                double.sessions.append(
                    {
                        "providers": names,
                        "config": options.config,
                        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
                    }
                )
                self.names = [name for name, _ in names] if double.loads else []
                self.graphs = names[0][0] == CUDA and names[0][1].get("enable_cuda_graph") == "1"
                if self.graphs and double.records:
                    raise RuntimeError(
                        f"/onnxruntime_src/onnxruntime/core/session/inference_session.cc:1 {double.records}"
                    )
                graph = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
                self.ops = [node.op_type for node in graph.graph.node]
                if options.config.get("ep.context_enable") == "1" and double.writes:
                    write_context(graph, options.config["ep.context_file_path"], self.names[0])
                if "EPContext" in self.ops:  # what is compiled is nobody's to read here
                    (node,), (output,) = graph.graph.node, graph.graph.output
                    kind = output.type.tensor_type
                    node.CopyFrom(helper.make_node("Cast", node.input[:1], [output.name], to=kind.elem_type))
                    kind.ClearField("shape")
                    source = graph.SerializeToString()
                self.real = real.InferenceSession(source, options.real, providers=[CPU])

            def get_providers(self):
                return [*self.names, CPU]

            def get_provider_graph_assignment_info(self):
                return [Part(double.takes(op) or self.names[0], [Node(op)]) for op in self.ops]

            def get_inputs(self):
                return self.real.get_inputs()

            def get_outputs(self):
                return self.real.get_outputs()

            def recording(self, options):
                """The recording that a run is of; without one it would be recorded as number 0."""
                number = int(options.config["gpu_graph_id"]) if options else None
                assert self.graphs is (number is not None)
                return number

            def run(self, names, feeds, options=None):
                assert self.recording(options) in (None, -1), "at another address with every call"
                return self.real.run(names, feeds)

            def io_binding(self):
                double.bindings.append(Binding(self.real))
                return double.bindings[-1]

            def run_with_iobinding(self, binding, options=None):
                number = self.recording(options)
                binding.log.append(("run",) if number is None else ("run", number))
                if number is not None and number >= 0 and double.replays:
                    double.replays(binding)
                else:
                    self.real.run_with_iobinding(binding.real)

        class ModelCompiler:
            def __init__(self, options, path, *, embed_compiled_data_into_model, flags):
                self.asked = {
                    "options": options,
                    "path": path,
                    "embed": embed_compiled_data_into_model,
                    "flags": flags,
                    "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
                }
                double.compiled.append(self.asked)

            def compile_to_file(self, target):
                self.asked["target"] = target
                if double.writes:
                    write_context(onnx.load(self.asked["path"]), target, RTX)

        self.InferenceSession, self.ModelCompiler = InferenceSession, ModelCompiler

    def get_available_providers(self):
        return list(self.available)

    def set_default_logger_severity(self, level):
        pass

    def preload_dlls(self):
        print("Failed to load libcublas.so.13")  # the real one prints too, onto stdout

    def register_execution_provider_library(self, name, path):
        self.registered.append(name)

    def get_ep_devices(self):
        return [Device(CPU), *(Device(RTX) for _ in range(self.devices))]


def write_context(graph, path, by):
    """What a provider writes of a graph that it took as a whole."""
    node = helper.make_node(
        "EPContext",
        [value.name for value in graph.graph.input],
        [value.name for value in graph.graph.output],
        domain="com.microsoft",
        embed_mode=1,
        ep_cache_context=b"compiled",
        main_context=1,
        source=by,
    )
    made = helper.make_graph([node], "context", list(graph.graph.input), list(graph.graph.output))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)


def plugin(path="/somewhere/libplugin.so"):
    """The module of the plugin."""
    made = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    made.get_ep_name = lambda: RTX
    made.get_library_path = lambda: path
    return made


def install(monkeypatch, double, cache):
    """Put the double in the place of ONNX Runtime, with a plugin, a GPU and a cache folder of its own."""
    import sys

    from optimizer.runtimes import _ort_gpu, _ort_providers

    monkeypatch.setitem(sys.modules, "onnxruntime", double)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin())
    monkeypatch.setattr(_ort_providers, "_REGISTERED", set())
    gpu = {"name": "NVIDIA RTX 4090", "driver": "590.1", "compute_capability": "8.9"}
    monkeypatch.setattr(_ort_gpu, "gpu_facts", lambda: (gpu,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return double
