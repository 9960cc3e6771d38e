"""Casting a float32 graph to fp16 or bf16, with float32 kept where 16 bits would give other answers."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, UnknownName
from optimizer.graph.cast_numbers import LowFormat
from optimizer.graph.cast_plan import DTYPE_ATTRIBUTES, KEEP_OPS, Plan, subgraphs
from optimizer.graph.cast_schema import infer_types
from optimizer.types import JSON, Precision

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["KEEP_OPS", "cast_model", "match_nodes"]

#: Operators that only a quantized graph has: Q/DQ pairs, integer and n-bit arithmetic, ONNX Runtime's Q… family.
_QUANTIZED = re.compile(r"[Qq]uantize|^Q[A-Z]|Integer|NBits|Bnb4")

#: Constants of at least so many numbers become initializers, where file sizes and read-back look for weights.
_WEIGHT_SIZE = 1024


def cast_model(
    model: onnx_ir.Model,
    to: Precision,
    *,
    keep_nodes: frozenset[str] = frozenset(),
    keep_ops: frozenset[str] = KEEP_OPS,
) -> tuple[onnx_ir.Model, dict[str, JSON]]:
    """Cast a graph's float32 to 16 bits; its own inputs and outputs stay float32 and keep their names.

    Weights are read once to see what is in them, and again, one at a time, when the model is saved.

    Args:
        model: a float graph; it is changed in place. Functions are inlined.
        to: fp16 or bf16.
        keep_nodes: names of nodes that stay in float32, with everything inside them.
        keep_ops: standard operators that stay in float32.

    Returns:
        the model, and what was done: ``to``; ``tensors`` and ``numbers`` cast, of them ``mask_fills`` replaced (the
        -3.4e38 of an attention mask becomes half the format's largest number), ``subnormal`` and ``zeroed``;
        ``out_of_range`` numbers, in the tensors ``kept`` in float32 for their range; ``nodes_cast``, ``nodes_kept``
        by operator; ``casts`` inserted.

    Raises:
        BadInput: the graph is quantized, is in 16 bits already, or has no float32 weights.
        UnknownName: no node has a name in ``keep_nodes``.
        MissingPiece: the graph has operators of ONNX Runtime's own, and ONNX Runtime is not installed.
    """
    if to not in (Precision.FP16, Precision.BF16):
        raise BadInput(f"a graph is cast to fp16 or bf16, not to {to}")
    _prepare(model)
    _refuse(model, to)
    names = {node.name for node in _nodes(model)}
    for name in sorted(keep_nodes - names):
        raise UnknownName("node", name, names)
    infer_types(model)
    low = LowFormat(to)
    return model, _Rewriter(model, low, Plan(model, low, keep_nodes, keep_ops)).rewrite()


def match_nodes(model: onnx_ir.Model, patterns: tuple[str, ...]) -> frozenset[str]:
    """Names of the nodes whose name or operator matches a glob pattern; unnamed nodes are given names, in place.

    Raises:
        UnknownName: a pattern that no node matches.
    """
    _prepare(model)
    found: set[str] = set()
    for pattern in patterns:
        matched = {
            node.name
            for node in _nodes(model)
            if fnmatch.fnmatchcase(node.name, pattern) or fnmatch.fnmatchcase(node.op_type, pattern)
        }
        if not matched:
            known = {word for node in _nodes(model) for word in (node.name, node.op_type)}
            raise UnknownName("node or operator", pattern, known)
        found |= matched
    return frozenset(found)


def _prepare(model: onnx_ir.Model) -> None:
    """Bring a graph into the form that the rest relies on: no functions, every node named, weights in initializers."""
    import onnx_ir.passes.common as passes

    passes.InlinePass()(model)
    passes.NameFixPass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=_WEIGHT_SIZE)(model)


def _nodes(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for graph in model.graphs() for node in graph]


def _refuse(model: onnx_ir.Model, to: Precision) -> None:
    quantized = Counter(node.op_type for node in _nodes(model) if _QUANTIZED.search(node.op_type))
    if quantized:
        ops = ", ".join(f"{op} ({count})" for op, count in quantized.most_common(3))
        raise BadInput(f"the graph is quantized: {ops}", "cast the float artifact it was made from")
    stored: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                stored[value.const_value.dtype.name] += value.const_value.size
    for precision, dtype in ((Precision.FP16, "FLOAT16"), (Precision.BF16, "BFLOAT16")):
        if stored[dtype] > stored["FLOAT"]:
            hint = "there is nothing left to cast" if precision is to else "cast the fp32 artifact it was made from"
            raise BadInput(f"the weights are {precision} already", hint)
    if not stored["FLOAT"]:
        held = ", ".join(sorted(dtype.lower() for dtype in stored)) or "none at all"
        raise BadInput(f"the graph has no float32 weights to cast (it has: {held})")


class _Rewriter:
    """Carries a plan out."""

    def __init__(self, model: onnx_ir.Model, low: LowFormat, plan: Plan) -> None:
        self._model, self._low, self._plan = model, low, plan
        self._other: dict[onnx_ir.Value, onnx_ir.Value] = {}  # a value → the same value in the other precision
        self._names = {
            value.name
            for graph in model.graphs()
            for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
        } | {node.name for node in _nodes(model)}

    def rewrite(self) -> dict[str, JSON]:
        """Change the model; returns the report of :func:`cast_model`."""
        import onnx_ir

        plan = self._plan
        # Names are of the file that was given: a kept weight is reported before anything is renamed.
        unfit = sorted(value.name for value in plan.constants if value.uses() and not plan.numbers(value).fits)
        cast = [plan.numbers(value) for value in plan.constants if value in plan.low]
        report: dict[str, JSON] = {
            "to": self._low.precision.value,
            "tensors": len(cast),
            "numbers": sum(numbers.size for numbers in cast),
            "mask_fills": sum(numbers.mask_fills for numbers in cast),
            "subnormal": sum(numbers.subnormal for numbers in cast),
            "zeroed": sum(numbers.zeroed for numbers in cast),
            "out_of_range": sum(plan.numbers(value).out_of_range for value in plan.constants if value.uses()),
            "kept": unfit,
            "nodes_cast": len(plan.inputs) - len(plan.kept),
            "nodes_kept": dict(sorted(Counter(node.op_type for node in plan.kept).items())),
        }
        for value in plan.constants:
            if value in plan.low:
                self._lower_constant(value)
        self._rewrite_graph(self._model.graph)
        for value in plan.low:
            value.type = onnx_ir.TensorType(self._low.dtype)
        report["casts"] = len(self._other)
        return report

    def _lower_constant(self, value: onnx_ir.Value) -> None:
        import onnx_ir

        # A bound of Clip must not bite; a fill that a score is added to must not become infinite.
        only_clips = all(use.node.op_type == "Clip" for use in value.uses())
        tensor = self._low.lower(
            self._plan.constants[value], self._low.largest if only_clips else self._low.largest / 2
        )
        node = value.producer()
        if node is None:
            value.const_value = tensor
        else:
            node.attributes.clear()
            node.attributes["value"] = onnx_ir.AttrTensor("value", tensor)

    def _rewrite_graph(self, graph: onnx_ir.Graph) -> None:
        for node in list(graph):  # the list: casts are added on the way
            for inner in subgraphs(node):
                self._rewrite_graph(inner)
            self._rewrite_node(node)
        outermost = graph is self._model.graph
        for place, value in enumerate(list(graph.outputs)):
            if value not in self._plan.floats:
                continue
            wanted = self._as(value, low=self._plan.graph_is_low(graph))
            if wanted is not value:
                if outermost:  # what callers ask for keeps its name
                    value.name, wanted.name = self._fresh(f"{value.name}_{self._low.precision}"), value.name
                graph.outputs[place] = wanted

    def _rewrite_node(self, node: onnx_ir.Node) -> None:
        import onnx_ir

        takes = self._plan.inputs.get(node)
        if takes is None:
            return
        for place, value in enumerate(node.inputs):
            if value in self._plan.floats:
                node.replace_input_with(place, self._as(value, low=place in takes))
        if not any(value in self._plan.low for value in node.outputs):
            return
        if not node.domain and (name := DTYPE_ATTRIBUTES.get(node.op_type)):
            node.attributes[name] = onnx_ir.AttrInt64(name, int(self._low.dtype))
        elif not node.domain and node.op_type == "ConstantOfShape":
            self._lower_fill(node)

    def _lower_fill(self, node: onnx_ir.Node) -> None:
        import numpy as np
        import onnx_ir

        given = node.attributes.get("value")
        tensor = onnx_ir.Tensor(np.zeros(1, np.float32)) if given is None else given.value
        node.attributes["value"] = onnx_ir.AttrTensor("value", self._low.lower(tensor, self._low.largest / 2))

    def _as(self, value: onnx_ir.Value, *, low: bool) -> onnx_ir.Value:
        """The value in the wanted precision: itself, or the output of a Cast, one for all who want it."""
        if (value in self._plan.low) == low:
            return value
        if value not in self._other:
            self._other[value] = self._insert_cast(value, low=low)
        return self._other[value]

    def _insert_cast(self, value: onnx_ir.Value, *, low: bool) -> onnx_ir.Value:
        """Cast a value right behind where it is made, so that the nodes stay in an order that runs."""
        import onnx_ir

        dtype = self._low.dtype if low else onnx_ir.DataType.FLOAT
        suffix = self._low.precision if low else Precision.FP32
        output = onnx_ir.Value(
            name=self._fresh(f"{value.name}_{suffix}"), shape=value.shape, type=onnx_ir.TensorType(dtype)
        )
        node = onnx_ir.Node(
            "",
            "Cast",
            [value],
            [onnx_ir.AttrInt64("to", int(dtype))],
            outputs=[output],
            name=self._fresh(f"cast_{value.name}_{suffix}"),
        )
        producer, graph = value.producer(), value.graph
        if producer is not None:
            graph.insert_after(producer, node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        return output

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name
