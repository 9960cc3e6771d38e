"""Eight bits and back, by the formulas of ONNX Runtime's quantizer (``quant_utils.compute_scale_zp``)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["channel_axis", "rounded", "store_int8", "weight_levels"]

#: The axis of output channels, which have a scale each. A Gather's table has one scale.
_CHANNELS = {"MatMul": -1, "Gemm": -1, "Conv": 0, "ConvTranspose": 1}
_PRODUCTS = ("MatMul", "Gemm")


def channel_axis(node: onnx.NodeProto | onnx_ir.Node) -> int | None:
    """The axis of a node's weight along which scales differ; None where there is one scale."""
    if node.op_type == "Gemm" and _turned(node):
        return 0
    return _CHANNELS.get(node.op_type)


def _turned(node: Any) -> bool:
    attributes = node.attribute if hasattr(node, "attribute") else node.attributes.values()
    return any(a.name == "transB" and bool(a.i if hasattr(a, "i") else a.as_int()) for a in attributes)


def rounded(array: NDArray[Any], low: float, high: float, *, symmetric: bool) -> NDArray[Any]:
    """An activation through 8 bits and back; indices stay what they are.

    The formulas are those of ``onnxruntime.quantization.quant_utils.compute_scale_zp``.
    """
    import numpy as np

    if array.dtype.kind != "f":
        return array
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        scale = max(-low, high) / 127
        bottom, top, zero = -127.0, 127.0, 0.0
    else:
        scale = (high - low) / 255
        bottom, top, zero = 0.0, 255.0, float(np.round(-low / scale)) if scale else 0.0
    if not scale:
        return array
    levels = np.clip(np.round(array / scale) + zero, bottom, top)
    made: NDArray[Any] = ((levels - zero) * scale).astype(array.dtype)
    return made


def weight_levels(weight: NDArray[Any], axis: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """A weight as signed whole numbers around zero, and the scales (of as many axes) that bring it back."""
    import numpy as np

    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    scale = np.where(scale > 0, scale, 1).astype(weight.dtype)
    return np.clip(np.round(weight / scale), -127, 127).astype(np.int8), scale


def store_int8(model: onnx_ir.Model, names: Collection[str]) -> list[str]:
    """Store weights in int8 with the scales that keep them best, and leave the arithmetic in float.

    A product's weight gets a scale an output channel and is brought back before each run; a table gets a scale a row,
    and only the rows that were looked up are brought back.

    Args:
        model: the quantized graph; changed in place.
        names: nodes that were left in float.

    Returns:
        the nodes whose weights are stored so; those without a float32 matrix are left as they are.
    """
    done = []
    for node in list(model.graph):
        if node.name not in names or node.op_type not in (*_PRODUCTS, "Gather"):
            continue
        value = node.inputs[0 if node.op_type == "Gather" else 1]
        tensor = value.const_value if value is not None else None
        if value is None or tensor is None or tensor.dtype.name != "FLOAT" or len(tensor.shape) != 2:
            continue
        if node.op_type == "Gather":
            if "axis" in node.attributes and node.attributes["axis"].as_int() != 0:
                continue
            _look_up_int8(model, node, value)
        else:
            _multiply_int8(model, node, value)
        if not value.uses():
            del model.graph.initializers[value.name]
        done.append(str(node.name))
    return done


def _multiply_int8(model: onnx_ir.Model, node: onnx_ir.Node, weight: onnx_ir.Value) -> None:
    import onnx_ir

    axis = channel_axis(node)
    levels, scale = weight_levels(weight.const_value.numpy(), axis)
    parts = _stored(model, node, levels, scale.reshape(-1))
    back = onnx_ir.node("DequantizeLinear", parts, {"axis": axis}, name=f"{node.name}_weight")
    model.graph.insert_before(node, back)
    node.replace_input_with(1, back.outputs[0])


def _look_up_int8(model: onnx_ir.Model, node: onnx_ir.Node, table: onnx_ir.Value) -> None:
    """``Cast(Gather(levels, i)) * Gather(scales, i)`` instead of ``Gather(table, i)``."""
    import onnx_ir

    levels, scale = _stored(model, node, *weight_levels(table.const_value.numpy(), 0))
    answer = node.outputs[0]
    factors = onnx_ir.node("Gather", [scale, node.inputs[1]], {"axis": 0}, name=f"{node.name}_scales")
    node.replace_input_with(0, levels)
    found = onnx_ir.node("Cast", [answer], {"to": onnx_ir.DataType.FLOAT}, name=f"{node.name}_float")
    made = onnx_ir.node("Mul", [found.outputs[0], factors.outputs[0]], name=f"{node.name}_rows")
    model.graph.insert_after(node, [factors, found, made])
    result = made.outputs[0]
    result.type, result.shape = answer.type, answer.shape
    answer.type = onnx_ir.TensorType(onnx_ir.DataType.INT8)
    answer.replace_all_uses_with(result, replace_graph_outputs=True)
    found.replace_input_with(0, answer)
    result.name, answer.name = answer.name, f"{node.name}_levels"


def _stored(model: onnx_ir.Model, node: onnx_ir.Node, *arrays: NDArray[Any]) -> list[onnx_ir.Value]:
    """New weights of a node: its levels, and their scales."""
    import onnx_ir

    made = []
    for suffix, array in zip(("int8", "int8_scale"), arrays, strict=True):
        name = f"{node.name}_{suffix}"
        made.append(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name)))
        model.graph.register_initializer(made[-1])
    return made
