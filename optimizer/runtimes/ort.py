"""ONNX Runtime, and the table of execution providers that it computes with.

What is asked and not got is an error here: ONNX Runtime itself falls back to its CPU kernels when a provider cannot
load, or cannot run a node, and says so only in its log. Every session is opened with
``session.record_ep_graph_assignment_info`` and its nodes are counted by the provider that really has them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import cpu_facts, cpu_threads, version_of
from optimizer.errors import BadInput, GateFailed, MissingPiece, MlOptError, missing_package
from optimizer.runtime import Availability, Provider, Runtime, SessionOptions
from optimizer.runtimes import _openvino as openvino
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_kernels import Watch
from optimizer.runtimes._tiny import TINY
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PROVIDERS", "RUNTIME", "OrtSession"]

#: ONNX Runtime's element types that numpy can hold.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}

#: Nodes that hold nearly all of a model's arithmetic; on another provider than the one asked for, the time that is
#: measured is not that provider's.
_HEAVY = re.compile(r"MatMul|Gemm|Conv|Attention|LSTM|GRU|RNN")


@dataclass(frozen=True)
class _Row:
    """One provider.

    Attributes:
        ep: ONNX Runtime's name of it.
        plugin: the Python module of its plugin library; empty for a provider that is built in.
        extra: the extra of ml-opt that brings it.
        precisions: what it can be asked to compute in, the first being the default; empty when it computes in the
            types of the graph and nothing else.
        settings: ``settings(options, precision, threads)`` → the vendor's provider options.
        light_on_cpu: True when ONNX Runtime by design leaves shape arithmetic on the CPU.
        device: where bound buffers live.
    """

    ep: str
    extra: str
    settings: Callable[[SessionOptions, str, int], dict[str, str]]
    plugin: str = ""
    precisions: tuple[str, ...] = ()
    light_on_cpu: bool = False
    device: str = "cpu"


def _openvino(options: SessionOptions, precision: str, threads: int) -> dict[str, str]:
    watched = {"PERF_COUNT": "YES"} if options.watch else {}
    return {"load_config": json.dumps({"CPU": {**watched, **openvino.config(options, precision, threads)}})}


def _cuda(options: SessionOptions, precision: str, threads: int) -> dict[str, str]:
    del precision, threads
    return {"device_id": "0", "use_tf32": "1" if options.tf32 else "0", **options.extra}


def _plain(options: SessionOptions, precision: str, threads: int) -> dict[str, str]:
    del precision, threads
    return dict(options.extra)


PROVIDERS: dict[str, _Row] = {
    "cpu": _Row("CPUExecutionProvider", "cpu", _plain),
    "openvino": _Row(
        "OpenVINOExecutionProvider",
        "openvino",
        _openvino,
        plugin="onnxruntime_ep_openvino",
        precisions=tuple(openvino.PRECISIONS),
    ),
    "cuda": _Row("CUDAExecutionProvider", "gpu", _cuda, light_on_cpu=True, device="cuda"),
    "tensorrt": _Row("TensorrtExecutionProvider", "gpu", _plain, device="cuda"),
    "rtx": _Row("NvTensorRTRTXExecutionProvider", "rtx", _plain, plugin="onnxruntime_ep_nv_tensorrt_rtx"),
}


#: Providers whose plugin library this process has registered.
_REGISTERED: set[str] = set()


class OrtSession:
    """An ONNX file opened by ONNX Runtime with exactly the provider that was asked for."""

    def __init__(
        self, session: Any, path: Path, row: _Row, limits: Limits, facts: dict[str, JSON], watch: Watch | None
    ) -> None:
        self._session = session
        self._watch = watch
        self._path = path
        self._row = row
        self._limits = limits
        self.facts = facts
        self.inputs = _specs("input", session.get_inputs(), path)
        self.outputs = _specs("output", session.get_outputs(), path)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once; raises :class:`BadInput` naming the input that does not fit."""
        check_feeds(self.inputs, feeds, self._limits)
        with ort_errors(self._path, self.facts["provider"]):
            arrays = self._session.run(None, dict(feeds))
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """Inputs copied to the device once, outputs written into buffers of the first run."""
        import onnxruntime

        check_feeds(self.inputs, feeds, self._limits)
        device = self._row.device
        with ort_errors(self._path, self.facts["provider"]):
            binding = self._session.io_binding()
            for name, array in feeds.items():
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
                binding.bind_ortvalue_input(name, value)
            for spec in self.outputs:
                binding.bind_output(spec.name, device)
            self._session.run_with_iobinding(binding)
            filled = binding.get_outputs()
            binding.clear_binding_outputs()
            for spec, value in zip(self.outputs, filled, strict=True):
                binding.bind_ortvalue_output(spec.name, value)
        run, path, provider = self._session.run_with_iobinding, self._path, self.facts["provider"]

        def call() -> None:
            try:
                run(binding)
            except Exception:
                with ort_errors(path, provider):
                    raise

        return call

    def runs(self) -> dict[str, JSON] | None:
        """Products by what they were computed in, read from ONNX Runtime's profile (:mod:`._ort_kernels`)."""
        return self._watch.read(self._session, self._path, self.facts["provider"]) if self._watch else None

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its arena and threads with it."""
        self._session = None
        if self._watch:
            self._watch.close()


def _specs(what: str, args: list[Any], path: Path) -> tuple[TensorSpec, ...]:
    specs = []
    for index, arg in enumerate(args):
        if arg.type == "tensor(bfloat16)":
            raise BadInput(
                f"{path}: {what} {arg.name!r} is bfloat16, which numpy cannot hold",
                "keep a model's inputs and outputs in float32; `ml-opt cast --to bf16` does",
            )
        if arg.type not in _DTYPES:
            raise BadInput(f"{path}: {what} {arg.name!r} is {arg.type}; only tensors of plain numbers can be used")
        dims = [d if d is not None else f"dim_{index}_{place}" for place, d in enumerate(arg.shape)]
        specs.append(TensorSpec(arg.name, _DTYPES[arg.type], tuple(dims)))
    return tuple(specs)


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> OrtSession:
    """Open an ``.onnx`` file.

    Raises:
        BadInput: the file cannot be used.
        MissingPiece: the provider cannot load on this machine.
        GateFailed: the provider loaded, and some of the graph was given to another one.
    """
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    return _opened(str(path), path, options, model.get("limits") or {})


def _opened(source: str | bytes, path: Path, options: SessionOptions, limits: Limits) -> OrtSession:
    row = PROVIDERS[options.provider.name]
    precision = options.provider.precision or (row.precisions[0] if row.precisions else "")
    threads = options.threads or cpu_threads()
    started = time.perf_counter()
    onnxruntime = _library()
    devices = _devices(onnxruntime, options.provider.name, row, precision)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    watch = Watch(settings) if options.watch else None
    given = row.settings(options, precision, threads)
    with ort_errors(path, options.provider.name):
        if devices:
            settings.add_provider_for_devices(devices, given)
            session = onnxruntime.InferenceSession(source, settings, enable_fallback=False)
        else:
            session = onnxruntime.InferenceSession(source, settings, providers=[(row.ep, given)], enable_fallback=False)
    nodes = _check_got(session, options.provider.name, row, path)
    return OrtSession(
        session,
        path,
        row,
        limits,
        {
            "provider": options.provider.name,
            "precision": precision,
            "threads": threads,
            "nodes": nodes,
            "load_seconds": time.perf_counter() - started,
            "onnxruntime": onnxruntime.__version__,
        },
        watch,
    )


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package(error.name or "onnxruntime", "running ONNX files") from None
    onnxruntime.set_default_logger_severity(4)  # a library that cannot load is logged there
    return onnxruntime


def _devices(onnxruntime: Any, name: str, row: _Row, precision: str) -> list[Any]:
    """The plugin's devices to add; empty for a built-in provider. Raises :class:`MissingPiece` when it is not there."""
    if not row.plugin:
        if row.device == "cuda":
            onnxruntime.preload_dlls()  # CUDA and cuDNN as pip installs them
        if row.ep not in onnxruntime.get_available_providers():
            raise MissingPiece(
                f"this onnxruntime {onnxruntime.__version__} was built without {row.ep}",
                f'run: pip uninstall onnxruntime && pip install "ml-opt[{row.extra}]"',
            )
        return []
    try:
        plugin = importlib.import_module(row.plugin)
    except ImportError:
        raise MissingPiece(
            f"the provider {name} needs the package {row.plugin}, which is not installed",
            f'run: pip install "ml-opt[{row.extra}]"',
        ) from None
    if name not in _REGISTERED:  # a library is registered once a process, whether it finds devices or not
        with ort_errors(Path(plugin.get_library_path()), name):
            onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        _REGISTERED.add(name)
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == plugin.get_ep_name()]
    if name == "openvino":
        devices = [d for d in devices if d.ep_metadata.get("ov_device") == "CPU"][:1]
    if not devices:
        raise _no_device(name)
    if name == "openvino":
        openvino.need_capability(name, precision, devices[0].ep_metadata.get("OPTIMIZATION_CAPABILITIES", "").split())
    return devices


def _no_device(name: str) -> MissingPiece:
    """Why a plugin that loaded has nothing to run on. OpenVINO's passes over every processor that is not Intel's."""
    cpu = cpu_facts()
    if name == "openvino" and cpu["vendor"] != "GenuineIntel":
        maker = cpu["vendor"] or cpu["machine"]
        return MissingPiece(
            f"the provider openvino finds no device: its plugin passes over processors that are not Intel's ({maker})",
            'run: pip install "ml-opt[openvino-native]", and use openvino-native',
        )
    return MissingPiece(f"the provider {name} finds no device on this machine", "`ml-opt doctor` lists what there is")


def _check_got(session: Any, name: str, row: _Row, path: Path) -> dict[str, JSON]:
    """Nodes by provider, or the error that says what was not got."""
    if row.ep not in session.get_providers():
        raise MissingPiece(
            f"the provider {name} did not load: {_why_not(row)}", "`ml-opt doctor` says what this machine has"
        )
    short = {each.ep: key for key, each in PROVIDERS.items()}
    nodes: Counter[str] = Counter()
    strangers: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[short.get(part.ep_name, part.ep_name)] += 1
            if part.ep_name != row.ep and not (row.light_on_cpu and not _HEAVY.search(node.op_type)):
                strangers[node.op_type] += 1
    if strangers or (nodes and name not in nodes):
        left = sum(nodes.values()) - nodes.get(name, 0)
        ops = ", ".join(f"{op} ({n})" for op, n in strangers.most_common(4))
        raise GateFailed(
            f"{path}: {left} of {sum(nodes.values())} nodes would not run on {name}" + (f": {ops}" if ops else ""),
            "use the provider cpu, or another variant of the model",
        )
    return dict(nodes)


def _why_not(row: _Row) -> str:
    """The reason that ONNX Runtime writes only into its log: found by loading the provider's library again."""
    import onnxruntime

    word = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}.get(row.ep, "")
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{word}.so"))
    except OSError as error:
        return str(error)
    return "no NVIDIA GPU, or a driver older than the library"


def _available(provider: str) -> Availability:
    """Try a provider for real, with a model of one node."""
    try:
        session = _opened(TINY, Path("a model of one node"), SessionOptions(Provider(provider), threads=1), {})
    except MlOptError as error:
        return Availability(provider, False, error.message, error.hint)
    facts: dict[str, JSON] = {"onnxruntime": session.facts["onnxruntime"]}
    row = PROVIDERS[provider]
    if row.plugin:
        facts["plugin"] = version_of(row.plugin.replace("_", "-"))
    session.close()
    return Availability(provider, True, facts=facts)


RUNTIME = Runtime(
    name="onnxruntime",
    help="ONNX Runtime and its execution providers.",
    providers={name: row.precisions for name, row in PROVIDERS.items()},
    open=_open,
    available=_available,
    onnx=True,
)
