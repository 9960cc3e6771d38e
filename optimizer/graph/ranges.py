"""Which integers an input may hold, read from the tables that it looks up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["integer_limits"]

#: Nodes whose output holds nothing but values of these inputs (None: of all of them).
_CARRIERS: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Reshape": (0,),
    "Unsqueeze": (0,),
    "Squeeze": (0,),
    "Flatten": (0,),
    "Identity": (0,),
    "Transpose": (0,),
    "Slice": (0,),
    "Expand": (0,),
    "Gather": (0,),
    "Where": (1, 2),
    "Concat": None,
}


def integer_limits(model: onnx_ir.Model, *, sensible: bool = False) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each integer input that is used as an index.

    Follows an input through nodes that keep its values to the tables it indexes (Gather); the smallest table decides.
    Inputs called masks that index nothing hold 0 and 1. Others that index nothing are left out.

    Args:
        model: the graph.
        sensible: also count one-hot encodings as tables. They take any number and answer zeros beyond their depth: good
            for making values up, too narrow for refusing any.
    """
    found: dict[str, tuple[float, float]] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if value.dtype is None or not value.dtype.is_integer() or value.is_initializer():
            continue
        if sizes := _tables(value, set(), sensible):
            found[name] = (0, min(sizes) - 1)
        elif name == "mask" or name.endswith("_mask"):
            found[name] = (0, 1)
    return found


def _tables(value: onnx_ir.Value, seen: set[int], one_hot: bool) -> list[int]:
    """Sizes of the tables that a value indexes."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    sizes: list[int] = []
    for node, place in value.uses():
        if node.op_type == "Gather" and place == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.is_initializer() and table.shape is not None and len(table.shape) > axis:
                size = table.shape[axis]
                sizes += [size] if isinstance(size, int) else []
        elif one_hot and node.op_type == "OneHot" and place == 0:
            depth = node.inputs[1].const_value if node.inputs[1] is not None else None
            sizes += [int(depth.numpy().reshape(-1)[0])] if depth is not None else []
        elif one_hot and node.op_type == "Equal":
            sizes += _counted(node.inputs[1 - place])
        elif node.op_type in _CARRIERS:
            places = _CARRIERS[node.op_type]
            if places is None or place in places:
                sizes += _tables(node.outputs[0], seen, one_hot)
    return sizes


def _counted(value: onnx_ir.Value | None) -> list[int]:
    """How far a constant counts, if it is 0, 1, 2, …: comparing with it is TensorFlow's way to write OneHot."""
    import numpy as np

    if value is None or value.const_value is None or value.const_value.size < 2:
        return []
    numbers = value.const_value.numpy().reshape(-1)
    return [len(numbers)] if np.array_equal(numbers, np.arange(len(numbers))) else []
