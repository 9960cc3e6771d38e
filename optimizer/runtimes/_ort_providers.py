"""The table of ONNX Runtime's execution providers: how each is loaded and set up, and whether it is what was got."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.environment import cpu_facts, version_of
from optimizer.errors import GateFailed, MissingPiece, missing_package
from optimizer.runtimes import _openvino as openvino
from optimizer.runtimes import _ort_gpu as gpu
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_gpu import Asked
from optimizer.runtimes._ort_load import not_loaded, preload
from optimizer.runtimes._signal_stack import own_signal_stack
from optimizer.types import JSON

__all__ = ["PROVIDERS", "ProviderRow", "check_got", "devices_of", "library"]

#: Nodes that hold nearly all of a model's arithmetic, and the one that holds a compiled graph; on another provider than
#: the one asked for, the time that is measured is not that provider's.
_HEAVY = re.compile(r"MatMul|Gemm|Conv|Attention|LSTM|GRU|RNN|Einsum|EPContext")


@dataclass(frozen=True)
class ProviderRow:
    """One provider.

    Attributes:
        ep: ONNX Runtime's name of it.
        extra: the extra of ml-opt that brings it.
        settings: ``settings(asked)`` → the vendor's provider options.
        plugin: the Python module of its plugin library; empty for a provider that is built in.
        distributions: what the plugin is installed as, where that is not its module's name.
        precisions: what it can be asked to compute in, the first being the default; empty when it computes in the
            types of the graph and nothing else.
        light_elsewhere: True when some nodes are by design left to others: ONNX Runtime keeps shape arithmetic on the
            CPU, and TensorRT takes whole subgraphs and leaves what it cannot compile.
        behind: the provider that is added behind it, to take what it leaves before the CPU does.
        device: where bound buffers live.
        compiles: it compiles a graph for shapes that it has to be told.
        records: its runs can be recorded as CUDA graphs.
    """

    ep: str
    extra: str
    settings: Callable[[Asked], dict[str, str]]
    plugin: str = ""
    distributions: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    light_elsewhere: bool = False
    behind: str = ""
    device: str = "cpu"
    compiles: bool = False
    records: bool = False

    @property
    def plugin_version(self) -> str | None:
        """The installed version of the plugin."""
        names = self.distributions or (self.plugin.replace("_", "-"),)
        return next((found for name in names if (found := version_of(name))), None)


def _openvino(asked: Asked) -> dict[str, str]:
    watched = {"PERF_COUNT": "YES"} if asked.options.watch else {}
    config = openvino.config(asked.options, asked.precision, asked.threads)
    return {"load_config": json.dumps({"CPU": {**watched, **config}})}


def _plain(asked: Asked) -> dict[str, str]:
    return dict(asked.options.extra)


PROVIDERS: dict[str, ProviderRow] = {
    "cpu": ProviderRow("CPUExecutionProvider", "cpu", _plain),
    "openvino": ProviderRow(
        "OpenVINOExecutionProvider",
        "openvino",
        _openvino,
        plugin="onnxruntime_ep_openvino",
        precisions=tuple(openvino.PRECISIONS),
    ),
    "cuda": ProviderRow("CUDAExecutionProvider", "gpu", gpu.cuda, light_elsewhere=True, device="cuda", records=True),
    "tensorrt": ProviderRow(
        "TensorrtExecutionProvider",
        "gpu",
        gpu.tensorrt,
        light_elsewhere=True,
        behind="cuda",
        device="cuda",
        compiles=True,
    ),
    # "cuda" is memory of NVIDIA's device 0, whether the CUDA provider or a plugin allocates it.
    "rtx": ProviderRow(
        "NvTensorRTRTXExecutionProvider",
        "rtx",
        gpu.rtx,
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        distributions=gpu.RTX,
        light_elsewhere=True,
        device="cuda",
        compiles=True,
    ),
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


@own_signal_stack()
def devices_of(onnxruntime: Any, name: str, row: ProviderRow, precision: str) -> list[Any]:
    """The plugin's devices to add; empty for a built-in provider. Raises :class:`MissingPiece` when it is not there."""
    if not row.plugin:
        if row.device == "cuda":
            preload(onnxruntime, row.ep)
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
    try:
        library = str(plugin.get_library_path())
    except OSError as error:
        raise MissingPiece(
            f"the package {row.plugin} is there, and its library is not: {error}",
            f'run: pip install --force-reinstall "ml-opt[{row.extra}]"',
        ) from None
    if name not in _REGISTERED:  # a library is registered once a process, whether it finds devices or not
        with ort_errors(Path(library), name):
            onnxruntime.register_execution_provider_library(plugin.get_ep_name(), library)
        _REGISTERED.add(name)
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == plugin.get_ep_name()]
    if name == "openvino":
        devices = [d for d in devices if d.ep_metadata.get("ov_device") == "CPU"]
    devices = devices[:1]  # a session takes one: the first, as the built-in providers do
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
    if name == "rtx":
        return MissingPiece(
            "the provider rtx finds no device: it takes GPUs of compute capability 8.6, 8.9, and 12.0 and later",
            "use tensorrt or cuda on another NVIDIA GPU; `ml-opt doctor` lists what there is",
        )
    return MissingPiece(f"the provider {name} finds no device on this machine", "`ml-opt doctor` lists what there is")


def check_got(onnxruntime: Any, session: Any, name: str, row: ProviderRow, path: Path) -> dict[str, JSON]:
    """Nodes by the provider that has them; those that were compiled together are counted one by one.

    Raises:
        MissingPiece: the provider did not load.
        GateFailed: some of the graph was given to another one.
    """
    if row.ep not in session.get_providers():
        raise not_loaded(onnxruntime, name, row.ep)
    short = {each.ep: key for key, each in PROVIDERS.items()}
    nodes: Counter[str] = Counter()
    strangers: Counter[tuple[str, str]] = Counter()
    for part in session.get_provider_graph_assignment_info():
        at = short.get(part.ep_name, part.ep_name)
        for node in part.get_nodes():
            nodes[at] += 1
            if part.ep_name != row.ep and not (row.light_elsewhere and not _HEAVY.search(node.op_type)):
                strangers[node.op_type, at] += 1
    if strangers or (nodes and name not in nodes):
        left = sum(nodes.values()) - nodes.get(name, 0)
        several = len({at for _, at in strangers}) > 1
        ops = ", ".join(f"{op} ({n}{f' on {at}' if several else ''})" for (op, at), n in strangers.most_common(4))
        raise GateFailed(
            f"{path}: {left} of {sum(nodes.values())} nodes would not run on {name}" + (f": {ops}" if ops else ""),
            f"use the provider {row.behind or 'cpu'}, or another variant of the model",
        )
    return dict(nodes)
