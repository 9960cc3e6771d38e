"""int8 products that add their bias themselves: the operator that ONNX Runtime's Q/DQ patterns stop short of.

A product between DequantizeLinear nodes becomes ``com.microsoft.MatMulIntegerToFloat`` when a session is opened, and
its bias stays an addition of its own behind it, over the whole answer in memory once more. The operator takes a bias,
too; the sums are the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["fuse_int8_biases"]

_OPERATOR, _DOMAIN = "MatMulIntegerToFloat", "com.microsoft"


@dataclass(frozen=True)
class _Found:
    """A product and the addition behind it.

    Attributes:
        product: between two DequantizeLinear nodes.
        activation: the first of them.
        weight: the second.
        addition: that adds the bias, and alone reads the product.
        bias: ``[columns]``.
    """

    product: onnx_ir.Node
    activation: onnx_ir.Node
    weight: onnx_ir.Node
    addition: onnx_ir.Node
    bias: onnx_ir.Value


def fuse_int8_biases(model: onnx_ir.Model) -> int:
    """Give every int8 product of unsigned activations by weights the bias that is added behind it, in place.

    Signed activations are left to ONNX Runtime, which brings them into unsigned ones first.

    Returns:
        how many products were given one.
    """
    import onnx_ir.passes.common as passes

    count = 0
    for graph in model.graphs():
        for node in tuple(graph):
            found = _biased(node)
            if found is not None:
                _exchange(graph, found)
                count += 1
    if count:
        model.opset_imports.setdefault(_DOMAIN, 1)
        passes.RemoveUnusedNodesPass()(model)
    return count


def _biased(product: onnx_ir.Node) -> _Found | None:
    if product.op_type != "MatMul" or product.domain not in ("", "ai.onnx"):
        return None
    activation, weight = (_dequantized(value) for value in product.inputs)
    if activation is None or weight is None or not (_is_scalar(activation) and _is_unsigned(activation)):
        return None
    stored = weight.inputs[0]
    if stored is None or stored.const_value is None or len(stored.const_value.shape) != 2:
        return None
    columns = int(stored.const_value.shape[1])
    if not (_is_scalar(weight) or _has_a_scale_for_each(weight, columns)):
        return None
    (answer,) = product.outputs
    readers = [use.node for use in answer.uses()]
    if len(readers) != 1 or answer.is_graph_output() or readers[0].op_type != "Add":
        return None
    (addition,) = readers
    bias = next((value for value in addition.inputs if value is not answer), None)
    if bias is None or bias.const_value is None or tuple(bias.const_value.shape) != (columns,):
        return None
    return _Found(product, activation, weight, addition, bias)


def _dequantized(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """The DequantizeLinear that makes a value, its scale and zero point constants."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 3:
        return None
    scale, zero = node.inputs[1:]
    return node if scale is not None and zero is not None and scale.const_value is not None else None


def _is_scalar(node: onnx_ir.Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and scale.const_value is not None and not scale.const_value.shape


def _is_unsigned(node: onnx_ir.Node) -> bool:
    zero = node.inputs[2]
    return zero is not None and zero.const_value is not None and zero.const_value.dtype.name == "UINT8"


def _has_a_scale_for_each(node: onnx_ir.Node, columns: int) -> bool:
    """A scale for each column, and no blocks."""
    scale = node.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    last = node.attributes.get_int("axis", 1) in (1, -1) and not node.attributes.get_int("block_size", 0)
    return last and tuple(scale.const_value.shape) == (columns,)


def _exchange(graph: onnx_ir.Graph, found: _Found) -> None:
    import onnx_ir

    # Both values, then both scales, then both zero points.
    inputs = [part for both in zip(found.activation.inputs, found.weight.inputs, strict=True) for part in both]
    fused = onnx_ir.Node(_DOMAIN, _OPERATOR, [*inputs, found.bias], name=found.product.name)
    (answer,), (after,) = fused.outputs, found.addition.outputs
    answer.name, answer.shape, answer.type = after.name, after.shape, after.type
    graph.insert_before(found.addition, fused)
    onnx_ir.convenience.replace_all_uses_with(after, answer, replace_graph_outputs=True)
    graph.remove([found.addition, found.product], safe=True)
