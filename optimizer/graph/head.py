"""Logits of the last tokens alone: a decoder's head is its largest product, and a prompt wants its last row only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["LOGITS_FROM", "choose_rows", "chooses_rows"]

#: An input with a default, so that runtimes that do not know it get logits of all tokens: int64 ``[1]``, where to begin
#: on the axis of tokens, as in Slice; -1 is the last token.
LOGITS_FROM = "logits_from"
_FIRST, _END = -(2**63), 2**63 - 1
#: What may stand between the head's product and the logits, each number by itself.
_ELEMENTWISE = ("Cast", "Mul", "Div", "Add", "Tanh")
_PRODUCTS = ("MatMul", "MatMulNBits")


def choose_rows(model: onnx_ir.Model, logits: str) -> bool:
    """Give a decoder the input :data:`LOGITS_FROM`; changed in place.

    Args:
        model: hidden states of its head are ``[batch, tokens, width]``.
        logits: name of its output of logits.

    Returns:
        whether the head was found; if not, the graph is as it was.
    """
    import numpy as np
    import onnx_ir

    product = _head(model, logits)
    hidden = product.inputs[0] if product is not None else None
    if product is None or hidden is None or (hidden.shape is not None and len(hidden.shape) != 3):
        return False
    start, end, axis = (
        onnx_ir.Value(name=name, const_value=onnx_ir.Tensor(np.array([number], np.int64), name=name))
        for name, number in ((LOGITS_FROM, _FIRST), (f"{LOGITS_FROM}.end", _END), (f"{LOGITS_FROM}.axis", 1))
    )
    for value in (start, end, axis):
        value.shape, value.type = onnx_ir.Shape([1]), onnx_ir.TensorType(onnx_ir.DataType.INT64)
        model.graph.register_initializer(value)
    model.graph.inputs.append(start)
    rows = onnx_ir.node("Slice", [hidden, start, end, axis], name=f"{product.name or 'head'}/Slice")
    rows.outputs[0].name = f"{hidden.name}.rows"
    rows.outputs[0].type = hidden.type
    model.graph.insert_before(product, rows)
    product.replace_input_with(0, rows.outputs[0])
    return True


def chooses_rows(model: onnx_ir.Model) -> bool:
    """Whether a graph has the input."""
    return any(value.name == LOGITS_FROM for value in model.graph.inputs)


def _head(model: onnx_ir.Model, logits: str) -> onnx_ir.Node | None:
    """The product that makes the logits, if only elementwise nodes follow it."""
    value = next((output for output in model.graph.outputs if output.name == logits), None)
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _ELEMENTWISE:
        made = [source for source in node.inputs if source is not None and source.producer() is not None]
        node = made[0].producer() if len(made) == 1 else None
    return node if node is not None and node.op_type in _PRODUCTS else None
