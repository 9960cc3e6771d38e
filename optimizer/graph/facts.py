"""What an ONNX file says about itself: the read-back that every stage is held to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.graph.io import graphs, load, tensors
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["ATTENTION_OPS", "WEIGHTED_OPS", "fed_inputs", "graph_facts", "model_facts", "quantized_as", "tensor_specs"]

#: Nodes that compute a whole attention (ONNX Runtime's contrib operators, and the standard one of opset 23).
ATTENTION_OPS = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "PackedMultiHeadAttention")

#: Nodes that multiply activations by weights: what quantization is about.
WEIGHTED_OPS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "FusedConv", "FusedGemm", "LSTM", "GRU")

#: Nodes that compute in int8 with ranges found at run time.
_DYNAMIC_OPS = (
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeLSTM",
    "QAttention",
)
_QLINEAR_OPS = ("QLinearMatMul", "QLinearConv", "QGemm", "QLinearAdd", "QEmbedLayerNormalization")


def model_facts(path: Path) -> dict[str, JSON]:
    """Read an ONNX file back.

    Returns:
        ``opset`` (by domain), ``ir_version``, ``inputs``, ``outputs``, ``nodes``, ``ops`` (count by type, subgraphs
        and functions included; operators outside the standard carry their domain), ``weights`` (bytes of stored tensors
        by dtype), ``attention``
        (fused attention nodes), and ``quantized`` (nodes by how they were quantized).
    """
    return graph_facts(load(path))


def graph_facts(model: onnx_ir.Model) -> dict[str, JSON]:
    """The same as :func:`model_facts`, of a model in memory."""
    ops: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    quantized: Counter[str] = Counter()
    attention = 0
    for _, tensor in tensors(model):
        dtypes[_dtype_name(tensor.dtype)] += tensor.nbytes
    for graph in graphs(model):
        for node in graph:
            ops[f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type] += 1
            attention += node.op_type in ATTENTION_OPS
            if how := quantized_as(node):
                quantized[how] += 1
    return {
        "opset": dict(model.opset_imports),
        "ir_version": model.ir_version,
        "inputs": [spec.to_json() for spec in tensor_specs(fed_inputs(model))],
        "outputs": [spec.to_json() for spec in tensor_specs(model.graph.outputs)],
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items())),
        "weights": dict(sorted(dtypes.items())),
        "attention": attention,
        "quantized": {**dict(sorted(quantized.items())), "total": sum(quantized.values())},
    }


def quantized_as(node: onnx_ir.Node) -> str:
    """How a node is quantized: ``dynamic``, ``qlinear``, ``weight_only``, ``qdq``, ``stored``; empty when it is not."""
    if node.op_type == "MatMulIntegerToFloat" and node.inputs[2] is not None and node.inputs[2].const_value is not None:
        return "qlinear"  # its activations have the scale that was calibrated
    if node.op_type in _DYNAMIC_OPS:
        return "dynamic"
    if node.op_type in _QLINEAR_OPS:
        return "qlinear"
    if node.op_type == "MatMulNBits":
        return "weight_only"
    if _is_between_qdq(node):
        return "qdq"
    return "stored" if node.op_type == "GatherBlockQuantized" or _has_quantized_weight(node) else ""


def _producer_op(value: onnx_ir.Value | None) -> str:
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""


def _is_between_qdq(node: onnx_ir.Node) -> bool:
    """Whether a weighted node takes both activation and weight through DequantizeLinear (and so runs in int8)."""
    if node.op_type not in WEIGHTED_OPS or len(node.inputs) < 2:
        return False
    return all(_producer_op(value) == "DequantizeLinear" for value in node.inputs[:2])


def _has_quantized_weight(node: onnx_ir.Node) -> bool:
    """Whether a node's weight is stored in 8 bits and computed in float (Gather, or weight-only Q/DQ)."""
    if node.op_type not in (*WEIGHTED_OPS, "Gather", "EmbedLayerNormalization"):
        return False
    for value in node.inputs:
        if _producer_op(value) == "DequantizeLinear":
            source = value.producer().inputs[0]
            if source is not None and source.is_initializer():
                return True
    # ORT's own quantizer gathers from the int8 table and dequantizes what it gathered.
    if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].const_value is not None:
        return node.inputs[0].const_value.dtype.name in ("INT8", "UINT8") and any(
            use.node.op_type in ("DequantizeLinear", "Cast") for use in node.outputs[0].uses()
        )
    return False


def fed_inputs(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    """The inputs that must be fed: before IR 4, initializers had to be listed among the inputs as well."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def tensor_specs(values: Sequence[onnx_ir.Value]) -> tuple[TensorSpec, ...]:
    """Names, types and shapes of graph inputs or outputs.

    Dimensions without a name get one of their own from input and place (``dim_0_1``). What is no tensor says so in its
    type (``sequence(float32)``).
    """
    specs = []
    for index, value in enumerate(values):
        dims: list[int | str] = []
        for place, dim in enumerate(value.shape or ()):
            if isinstance(dim, int):
                dims.append(dim)
            else:
                dims.append(str(dim.value) if dim.value is not None else f"dim_{index}_{place}")
        specs.append(TensorSpec(value.name or "", _type_name(value.type), tuple(dims)))
    return tuple(specs)


def _type_name(type_: onnx_ir.TypeProtocol | None) -> str:
    import onnx_ir

    if isinstance(type_, onnx_ir.SequenceType):
        return f"sequence({_type_name(type_.elem_type)})"
    if isinstance(type_, onnx_ir.OptionalType):
        return f"optional({_type_name(type_.elem_type)})"
    if type_ is None:
        return "unknown"
    return _dtype_name(type_.dtype)


def _dtype_name(dtype: onnx_ir.DataType) -> str:
    """Numpy's name of an element type, where numpy has one."""
    name = str(dtype.name).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
