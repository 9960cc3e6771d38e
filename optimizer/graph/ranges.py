"""Which integers an input may hold, read from the tables that it looks up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["integer_limits"]

#: Nodes that hand an index on without changing it.
_CARRIERS = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Transpose", "Slice", "Expand", "Clip", "Concat")


def integer_limits(model: onnx_ir.Model) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each integer input that is used as an index.

    Follows an input through nodes that keep its values to the tables it indexes (Gather, and OneHot by its depth); the
    smallest table decides. Inputs called masks hold 0 and 1. Inputs that index nothing are left out.
    """
    found: dict[str, tuple[float, float]] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if value.dtype is None or not value.dtype.is_integer():
            continue
        sizes = _tables(value, set())
        if "mask" in name:
            found[name] = (0, 1)
        elif sizes:
            found[name] = (0, min(sizes) - 1)
    return found


def _tables(value: onnx_ir.Value, seen: set[int]) -> list[int]:
    """Sizes of the tables that a value indexes."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    sizes: list[int] = []
    for node, place in value.uses():
        if node.op_type == "Gather" and place == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.shape is not None and len(table.shape) > axis:
                size = table.shape[axis]
                sizes += [size] if isinstance(size, int) else []
        elif node.op_type == "OneHot" and place == 0:
            depth = node.inputs[1].const_value if node.inputs[1] is not None else None
            sizes += [int(depth.numpy().reshape(-1)[0])] if depth is not None else []
        elif node.op_type in _CARRIERS and place == 0 or node.op_type == "Concat":
            sizes += _tables(node.outputs[0], seen)
    return sizes
