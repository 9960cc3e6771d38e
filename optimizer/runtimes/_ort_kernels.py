"""What a session really computes in, from the profile that ONNX Runtime writes of a run.

A file says what was asked: a Q/DQ pair around a product is a request, and a provider may multiply in float all the
same. The profile names the kernel of every node that ran: on ONNX Runtime's own providers by operator and the types of
its inputs, on OpenVINO by the kernel's name, whose end is the type (``brgemm_avx512_amx_I8``). A provider that compiles
the graph and does not say (TensorRT) leaves it unknown.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["PRODUCTS", "Watch", "counted", "kernels_of", "quantized_nodes", "type_of"]

#: Operators that multiply in int8: those of files, and those that ONNX Runtime fuses Q/DQ pairs into.
_INT8_OPS = frozenset(
    {
        "QLinearMatMul",
        "QLinearConv",
        "QGemm",
        "QAttention",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    }
)
_BLOCKS = "MatMulNBits"
#: Operators that hold nearly all of a model's arithmetic, in the words of ONNX Runtime and of OpenVINO.
PRODUCTS = re.compile(r"MatMul|Gemm|Conv(?!ert)|Deconv|Attention|MHA|FullyConnected|LSTM|GRU|RNN")
#: Element types as profiles write them, in numpy's words.
_TYPES = {
    "float": "float32",
    "f32": "float32",
    "double": "float64",
    "f64": "float64",
    "float16": "float16",
    "f16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "int8": "int8",
    "uint8": "int8",
    "i8": "int8",
    "u8": "int8",
}
_NATIVE = ("cpu", "cuda")


class Watch:
    """Records the first run of one session.

    Args:
        settings: ONNX Runtime's session options, before the session is made.
    """

    def __init__(self, settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ml-opt-profile-")
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(self._folder.name) / "run")
        self._found: dict[str, JSON] | None = None
        self._open = True

    def read(self, session: Any, path: Path, provider: str) -> dict[str, JSON] | None:
        """End the recording, and count the kernels of what has run since the session was opened.

        Args:
            session: ONNX Runtime's.
            path: the file that it was opened from.
            provider: that computes.

        Returns:
            see :meth:`optimizer.runtime.Session.runs`.
        """
        if self._open:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            self.close()
            self._found = kernels_of(events, provider, quantized_nodes(path))
        return self._found

    def close(self) -> None:
        """Remove what was recorded."""
        if self._open:
            self._folder.cleanup()
            self._open = False


def kernels_of(
    events: Iterable[Mapping[str, JSON]], provider: str, quantized: Mapping[str, str]
) -> dict[str, JSON] | None:
    """Products by what they were computed in; a node that ran several times counts once.

    Args:
        events: of the profile.
        provider: that computes.
        quantized: the file's quantized products, by name, and what they are to run in (:func:`quantized_nodes`).

    Returns:
        number of products by numpy's name of the type (``int8``, ``float32``, ``bfloat16``, …), or ``int4-weights`` and
        ``int8-weights`` where only the weights are known to be so; and ``fell_back``, the names of products that were
        to run in int8 and ran in float. None where the provider does not say what it runs.
    """
    ran = _native(events, quantized) if provider in _NATIVE else _openvino(events) if provider == "openvino" else {}
    if not ran and provider not in _NATIVE:
        return None
    return counted(ran, quantized)


def counted(ran: Mapping[str, str], quantized: Mapping[str, str]) -> dict[str, JSON]:
    """What :meth:`optimizer.runtime.Session.runs` says of products by name → type that each was computed in."""
    counts = Counter(ran.values())
    asked = {name for name, type_ in quantized.items() if type_ == "int8"}
    back = sorted(name for name, type_ in ran.items() if "int" not in type_ and _file_name(name) in asked)
    return {**dict(sorted(counts.items())), "fell_back": back}


def _native(events: Iterable[Mapping[str, JSON]], quantized: Mapping[str, str]) -> dict[str, str]:
    """Node → type, of kernels of ONNX Runtime's own."""
    ran = {}
    for event in events:
        name, said = str(event.get("name", "")), event.get("args", {})
        op = str(said.get("op_name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        name = name.removesuffix("_kernel_time")
        if op in _INT8_OPS:
            ran[name] = "int8"
        elif op == _BLOCKS:
            # ONNX Runtime also makes blocks of a product whose weight alone is quantized, or whose activation's form it
            # has no integer kernel for.
            ran[name] = quantized.get(name, "int8").partition("-")[0] + "-weights"
        elif PRODUCTS.search(op) and (types := said.get("input_type_shape")):
            ran[name] = type_of(next(iter(types[0])))
    return ran


def _openvino(events: Iterable[Mapping[str, JSON]]) -> dict[str, str]:
    """Node → type, of kernels inside the graph that OpenVINO compiled."""
    ran = {}
    for event in events:
        said = event.get("args", {})
        if said.get("ov_status") == "EXECUTED" and PRODUCTS.search(str(said.get("ov_node_type", ""))):
            ran[str(event["name"]).removeprefix("OV::")] = type_of(str(said["ov_exec_type"]).rpartition("_")[2])
    return ran


def type_of(word: str) -> str:
    """Numpy's word for an element type, signed or not."""
    return _TYPES.get(word.lower(), word.lower())


def _file_name(name: str) -> str:
    """A node's name in the file: fusions of ONNX Runtime and OpenVINO append theirs behind a slash."""
    return name.partition("/")[0]


def quantized_nodes(path: Path) -> dict[str, str]:
    """The products of a file that are to run in int8 (``int8``), or that have but their weights in few bits."""
    from optimizer.graph.facts import quantized_as
    from optimizer.graph.io import graphs, load

    found = {}
    for graph in graphs(load(path)):
        for node in graph:
            how = quantized_as(node)
            if how == "weight_only":
                found[str(node.name)] = f"int{node.attributes['bits'].as_int()}-weights"
            elif how == "stored" and PRODUCTS.search(node.op_type):
                found[str(node.name)] = f"int{_bits_of(node)}-weights"
            elif how in ("dynamic", "qlinear", "qdq"):
                found[str(node.name)] = "int8"
    return found


def _bits_of(node: onnx_ir.Node) -> int:
    """Of a weight that is brought back to float by a DequantizeLinear."""
    for value in node.inputs:
        source = value.producer() if value is not None else None
        stored = source.inputs[0] if source is not None and source.op_type == "DequantizeLinear" else None
        if stored is not None and stored.const_value is not None:
            return 4 if stored.const_value.dtype.name in ("INT4", "UINT4") else 8
    return 8
