"""A graph and its float32 weights, which can be scaled along an axis: what SmoothQuant does its arithmetic on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Part", "WeightedGraph", "attribute"]


@dataclass(frozen=True)
class Part:
    """A part of a weight: entries along ``axis`` from ``start`` on, of an input of a node."""

    node: str
    place: int
    axis: int = 0
    start: int = 0


class WeightedGraph:
    """A graph's nodes by what they make and read, and its weights as arrays."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.by_name = {node.name: node for node in model.graph.node}
        self._makers = {name: node for node in model.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._reads = Counter(name for node in model.graph.node for name in node.input)
        self._reads.update(output.name for output in model.graph.output)
        self._reads.update(self._inner_reads())
        self._arrays: dict[str, Any] = {}

    def _inner_reads(self) -> Iterable[str]:
        """What graphs inside of nodes read from outside."""
        from optimizer.quantizing.choose import graphs_of

        for graph in list(graphs_of(self.model.graph))[1:]:
            for node in graph.node:
                yield from node.input
            yield from (output.name for output in graph.output)

    def reads(self, name: str) -> int:
        """How often a value is read, by nodes, by graphs inside of them and as an output."""
        return self._reads[name]

    def maker(self, value: str) -> onnx.NodeProto | None:
        """The node that makes a value; None for inputs and weights."""
        return self._makers.get(value)

    def array(self, name: str) -> Any:
        """A weight as float32, kept and changed in memory until :meth:`write`."""
        import numpy as np
        from onnx import numpy_helper

        if name not in self._arrays:
            self._arrays[name] = np.array(numpy_helper.to_array(self._weights[name]))
        return self._arrays[name]

    def is_weight(self, name: str, size: int | None = None) -> bool:
        """Whether a name is a float32 weight, with that many entries along its last axis."""
        tensor = self._weights.get(name)
        return tensor is not None and tensor.data_type == 1 and (size is None or tensor.dims[-1:] == [size])

    def is_bias(self, name: str, size: int) -> bool:
        """Whether a name is a float32 weight of one axis, with that many entries."""
        return self.is_weight(name, size) and len(self._weights[name].dims) == 1

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies an activation, as it is, by a float32 matrix."""
        return (
            node.op_type in ("MatMul", "Gemm")
            and self.is_weight(node.input[1])
            and len(self._weights[node.input[1]].dims) == 2
            and node.input[0] not in self._weights
            and not attribute(node, "transA")
        )

    def rows_of(self, node: onnx.NodeProto) -> int:
        """How many channels a product reads."""
        return int(self._weights[node.input[1]].dims[attribute(node, "transB", 0)])

    def columns_of(self, node: onnx.NodeProto) -> tuple[int, int]:
        """How many channels a product makes, and along which axis of its weight they lie."""
        axis = 0 if attribute(node, "transB", 0) else 1
        return int(self._weights[node.input[1]].dims[axis]), axis

    def matrix(self, node: onnx.NodeProto) -> Any:
        """The weight of a product, a row an input channel."""
        array = self.array(node.input[1])
        return array.T if attribute(node, "transB", 0) else array

    def multiply_rows(self, node: onnx.NodeProto, scale: NDArray[Any]) -> None:
        """Multiply a product's weight, a row by each number of the scale."""
        self._own(node, 1)
        matrix = self.matrix(node)
        matrix *= scale[:, None]

    def divide(self, part: Part, scale: NDArray[Any]) -> None:
        """Divide a part of a weight, an entry along its axis by each number of the scale."""
        node = self.by_name[part.node]
        self._own(node, part.place)
        array = self.array(node.input[part.place])
        along = array.swapaxes(0, part.axis)[part.start : part.start + len(scale)]
        along /= scale.reshape(-1, *[1] * (array.ndim - 1))

    def insert(self, value: str, readers: Collection[str], factor: NDArray[Any]) -> None:
        """``value * factor`` in front of some of the nodes that read a value."""
        import numpy as np
        import onnx

        name = f"{value}_smooth"
        self._arrays[f"{name}_factor"] = factor.astype(np.float32)
        tensor = self.model.graph.initializer.add(name=f"{name}_factor")
        self._weights[tensor.name] = tensor
        node = onnx.helper.make_node("Mul", [value, tensor.name], [name], name=name)
        places = {reader.name: place for place, reader in enumerate(self.model.graph.node)}
        self.model.graph.node.insert(min(places[reader] for reader in readers), node)
        for reader in self.model.graph.node:
            if reader.name in readers:
                reader.input[0] = name

    def write(self) -> None:
        """Bring the changed weights back into the message."""
        from onnx import numpy_helper

        for name, array in self._arrays.items():
            self._weights[name].CopyFrom(numpy_helper.from_array(array, name))

    def _own(self, node: onnx.NodeProto, place: int) -> None:
        """Give a node its own copy of a weight that others read too (tied, or made one as they were equal)."""
        name = node.input[place]
        if self._reads[name] == 1:
            return
        copy = f"{name}_{node.name}"
        self._arrays[copy] = self.array(name).copy()
        self._weights[copy] = self.model.graph.initializer.add(name=copy)
        self._reads[name] -= 1
        self._reads[copy] = 1
        node.input[place] = copy


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute as Python has it, lists for repeated ones."""
    from onnx.helper import get_attribute_value

    found = next((a for a in node.attribute if a.name == name), None)
    if found is None:
        return default
    value = get_attribute_value(found)
    return list(value) if found.ints else value
