"""Deciding, for the whole graph and before anything is changed, what is computed in 16 bits and what stays in fp32.

Three sorts of result are *wide*: a 16-bit format would lose them.

- Operators whose results leave fp16's range or need more digits than 16 bits have: squares and their means (every
  spelled-out normalization), exponentials, logarithms, running sums.
- Numbers made of integers: positions, lengths, bucket numbers. bf16 counts to 256 exactly, fp16 to 2,048.
- What is computed with a weight that is out of range.

A node that takes nothing but wide values and small constants stays in fp32 too, so that a normalization's
``sqrt(mean + epsilon)`` or a rotary embedding's angles are rounded once, where they meet an activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optimizer.graph.cast_numbers import LowFormat, Numbers
from optimizer.graph.cast_schema import Signature, signature_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["DTYPE_ATTRIBUTES", "KEEP_OPS", "Plan", "subgraphs"]

#: Operators whose results are wide.
KEEP_OPS = frozenset(
    {
        "CumSum",
        "Exp",
        "Log",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Sqrt",
    }
)

#: Operators that name the type of their result in an attribute.
DTYPE_ATTRIBUTES = {
    "Bernoulli": "dtype",
    "Cast": "to",
    "EyeLike": "dtype",
    "Multinomial": "dtype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
}

#: A constant of at most so many numbers is a scale, an epsilon or a table of frequencies, and no layer's weights.
_SMALL = 1024


class Plan:
    """What is to become of a graph's float32 values.

    Attributes:
        floats: every float32 tensor of the graph.
        low: those that become 16 bits wide.
        constants: the tensors of those that are initializers or come out of a Constant node.
        inputs: for each node, the places of the inputs that it takes in 16 bits.
        kept: nodes on float32 values that have nothing in 16 bits.
    """

    def __init__(
        self, model: onnx_ir.Model, low: LowFormat, keep_nodes: frozenset[str], keep_ops: frozenset[str]
    ) -> None:
        self._model, self._low = model, low
        self._keep_nodes, self._keep_ops = keep_nodes, keep_ops
        self._wide: set[onnx_ir.Value] = set()
        self._numbers: dict[onnx_ir.Value, Numbers] = {}
        self._low_graphs: set[onnx_ir.Graph] = set()
        self.floats: set[onnx_ir.Value] = set()
        self.low: set[onnx_ir.Value] = set()
        self.constants: dict[onnx_ir.Value, onnx_ir.TensorProtocol] = {}
        self.inputs: dict[onnx_ir.Node, frozenset[int]] = {}
        self.kept: list[onnx_ir.Node] = []
        self._plan_graph(model.graph, keep=False)
        self.low.update(value for value in self.constants if self._constant_goes_low(value))

    def numbers(self, constant: onnx_ir.Value) -> Numbers:
        """How a constant's numbers fare in 16 bits."""
        if constant not in self._numbers:
            self._numbers[constant] = self._low.look(self.constants[constant])
        return self._numbers[constant]

    def graph_is_low(self, graph: onnx_ir.Graph) -> bool:
        """Whether a subgraph's own inputs and outputs are 16 bits wide; the outermost graph's never are."""
        return graph in self._low_graphs

    def _plan_graph(self, graph: onnx_ir.Graph, *, keep: bool) -> None:
        inputs = [value for value in graph.inputs if _is_float(value)]
        self.floats.update(inputs)
        if graph is not self._model.graph and not keep:
            self._low_graphs.add(graph)
            self.low.update(inputs)
        for value in graph.initializers.values():
            if _is_float(value) and value.const_value is not None:
                self.floats.add(value)
                self.constants[value] = value.const_value
        for node in graph:
            self._plan_node(node, keep=keep or node.name in self._keep_nodes)

    def _plan_node(self, node: onnx_ir.Node, *, keep: bool) -> None:
        places = [place for place, value in enumerate(node.inputs) if value in self.floats]
        results = [value for value in node.outputs if _is_float(value)]
        self.floats.update(results)
        if (tensor := _constant_tensor(node)) is not None:
            if results:
                self.constants[node.outputs[0]] = tensor
            return
        if not places and not results and not any(subgraphs(node)):
            return
        signature = signature_of(node, self._model.opset_imports)
        if any(subgraphs(node)):
            self._plan_control_flow(node, signature, places, results, keep=keep)
        elif signature is None or any(map(_holds_tensors, (*node.inputs, *node.outputs))):
            self._keep(node)
        elif self._is_wide(node, places):
            self._keep(node)
            self._wide.update(results)
        elif keep:
            self._keep(node)
        else:
            self._plan_operator(node, signature, places)

    def _plan_operator(self, node: onnx_ir.Node, signature: Signature, places: list[int]) -> None:
        """Cast a node as far as its schema and the range of its weights allow."""
        pinned = {signature.input(place) for place in places if self._must_stay(node.inputs[place])}
        types = signature.types_that_take(self._low.tensor_type) - pinned
        self.inputs[node] = frozenset(place for place in places if signature.input(place) in types)
        lowered = False
        for place, value in enumerate(node.outputs):
            if value not in self.floats:
                continue
            name = signature.output(place)
            # A type that no input binds is the operator's own choice: LayerNormalization's statistics stay in fp32.
            ours = name in signature.inputs or node.op_type in DTYPE_ATTRIBUTES or self._fills_low(node)
            if name in types and ours:
                self.low.add(value)
                lowered = True
            elif name in pinned:
                self._wide.add(value)
        if not self.inputs[node] and not lowered:
            self._keep(node)

    def _plan_control_flow(
        self,
        node: onnx_ir.Node,
        signature: Signature | None,
        places: list[int],
        results: list[onnx_ir.Value],
        *,
        keep: bool,
    ) -> None:
        """If, Loop and Scan: 16 bits all through, or, where that cannot be, fp32 all through."""
        keep = (
            keep
            or signature is None
            or not signature.types_that_take(self._low.tensor_type)
            or any(map(_holds_tensors, (*node.inputs, *node.outputs)))
            or any(self._must_stay(node.inputs[place]) for place in places)
        )
        for graph in subgraphs(node):
            self._plan_graph(graph, keep=keep)
        if keep and (places or results):
            self._keep(node)
        elif places or results:
            self.inputs[node] = frozenset(places)
            self.low.update(results)

    def _keep(self, node: onnx_ir.Node) -> None:
        self.inputs[node] = frozenset()
        self.kept.append(node)

    def _is_wide(self, node: onnx_ir.Node, places: list[int]) -> bool:
        if not node.domain:
            if node.op_type in self._keep_ops:
                return True
            if node.op_type == "Mul" and places == [0, 1] and node.inputs[0] is node.inputs[1]:
                return True  # a square by another name
            if node.op_type in ("Cast", "CastLike") and node.inputs[0].dtype.is_integer():
                return True
        values = [node.inputs[place] for place in places]
        activations = [value for value in values if value not in self.constants]
        return (
            bool(activations)
            and self._wide.issuperset(activations)
            and all(self._is_harmless(value) for value in values if value in self.constants)
        )

    def _is_harmless(self, constant: onnx_ir.Value) -> bool:
        """Whether fp32 arithmetic with this constant gives something that can be cast later: a mask fill does not."""
        return self.constants[constant].size <= _SMALL and not self.numbers(constant).mask_fills

    def _must_stay(self, value: onnx_ir.Value) -> bool:
        return value in self.constants and not self.numbers(value).fits

    def _fills_low(self, node: onnx_ir.Node) -> bool:
        """Whether a node is a ConstantOfShape whose number fits; without one it is a zero, which does."""
        if node.op_type != "ConstantOfShape" or node.domain:
            return False
        return "value" not in node.attributes or self._low.look(node.attributes["value"].value).fits

    def _constant_goes_low(self, value: onnx_ir.Value) -> bool:
        """Only when everyone takes it so: a shared constant is never rounded for one user and read back by another."""
        if value.is_graph_output() and not self.graph_is_low(value.graph):
            return False
        uses = value.uses()
        used = bool(uses) or value.is_graph_output()
        return used and all(use.idx in self.inputs[use.node] for use in uses) and not self._must_stay(value)


def subgraphs(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """The graphs in a node's attributes."""
    import onnx_ir

    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.value


def _constant_tensor(node: onnx_ir.Node) -> onnx_ir.TensorProtocol | None:
    """The tensor of a Constant node; None for other nodes, and for sparse constants and strings."""
    import numpy as np
    import onnx_ir

    if node.op_type != "Constant" or node.domain:
        return None
    for name in ("value", "value_float", "value_floats"):
        if name in node.attributes:
            value = node.attributes[name].value
            return value if name == "value" else onnx_ir.Tensor(np.asarray(value, np.float32))
    return None


def _is_float(value: onnx_ir.Value) -> bool:
    import onnx_ir

    return isinstance(value.type, onnx_ir.TensorType) and value.dtype == onnx_ir.DataType.FLOAT


def _holds_tensors(value: onnx_ir.Value | None) -> bool:
    """Whether a value is a sequence or an optional: its elements' type is nobody's to change."""
    import onnx_ir

    return value is not None and isinstance(value.type, (onnx_ir.SequenceType, onnx_ir.OptionalType))
