"""The table of ONNX Runtime's execution providers: how each is loaded and set up, and whether it is what was got."""

from __future__ import annotations

import ctypes
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.environment import cpu_facts
from optimizer.errors import GateFailed, MissingPiece, missing_package
from optimizer.runtime import SessionOptions
from optimizer.runtimes import _openvino as openvino
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.types import JSON

__all__ = ["PROVIDERS", "ProviderRow", "check_got", "devices_of", "library"]

#: Nodes that hold nearly all of a model's arithmetic; on another provider than the one asked for, the time that is
#: measured is not that provider's.
_HEAVY = re.compile(r"MatMul|Gemm|Conv|Attention|LSTM|GRU|RNN")


@dataclass(frozen=True)
class ProviderRow:
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


PROVIDERS: dict[str, ProviderRow] = {
    "cpu": ProviderRow("CPUExecutionProvider", "cpu", _plain),
    "openvino": ProviderRow(
        "OpenVINOExecutionProvider",
        "openvino",
        _openvino,
        plugin="onnxruntime_ep_openvino",
        precisions=tuple(openvino.PRECISIONS),
    ),
    "cuda": ProviderRow("CUDAExecutionProvider", "gpu", _cuda, light_on_cpu=True, device="cuda"),
    "tensorrt": ProviderRow("TensorrtExecutionProvider", "gpu", _plain, device="cuda"),
    "rtx": ProviderRow("NvTensorRTRTXExecutionProvider", "rtx", _plain, plugin="onnxruntime_ep_nv_tensorrt_rtx"),
}


#: Providers whose plugin library this process has registered.
_REGISTERED: set[str] = set()


def library() -> Any:
    """The package onnxruntime, its log silenced; raises :class:`MissingPiece` when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package(error.name or "onnxruntime", "running ONNX files") from None
    onnxruntime.set_default_logger_severity(4)  # a library that cannot load is logged there
    return onnxruntime


def devices_of(onnxruntime: Any, name: str, row: ProviderRow, precision: str) -> list[Any]:
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


def check_got(session: Any, name: str, row: ProviderRow, path: Path) -> dict[str, JSON]:
    """Nodes by the provider that has them.

    Raises:
        MissingPiece: the provider did not load.
        GateFailed: some of the graph was given to another one.
    """
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


def _why_not(row: ProviderRow) -> str:
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
