"""How much arithmetic one call of a graph is, and how many bytes it has to move, at given input shapes.

What is counted, and why, is in ``docs/benchmarks.md``; the rules by operator are in :mod:`optimizer.graph.products`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.graph.contrib import CONTRIB, Shape
from optimizer.graph.io import load
from optimizer.graph.products import ARITHMETIC_BY_OP, PRODUCTS, UNCOUNTED, flops_of
from optimizer.graph.shapes import Known, infer_shapes
from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Cost", "Uncounted", "graph_cost", "model_cost"]

#: What the arithmetic of an element type is called.
_ARITHMETIC = {
    "FLOAT": "fp32",
    "DOUBLE": "fp64",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "UINT8": "int8",
}

#: Nodes whose answer is their input under another shape, and is not written again.
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")

#: By operator, the tables of which only those rows are read that are looked up.
_TABLES = {"Gather": (0,), "GatherBlockQuantized": (0,), "EmbedLayerNormalization": (2, 3, 4)}


@dataclass(frozen=True)
class Uncounted:
    """A node that is lacking in a count.

    Attributes:
        node: its name, or that of its first output.
        op: its type, with its domain where that is not the standard's.
        why: ``shape unknown``, ``operator unknown`` or ``body not counted``.
        product: whether operations are lacking, or may be; otherwise only bytes.
    """

    node: str
    op: str
    why: str
    product: bool

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))


@dataclass(frozen=True)
class Cost:
    """One call of a graph.

    Attributes:
        arithmetic: operations by what they are computed in, as the graph says: ``fp32``, ``bf16``, ``fp16``, ``int8``.
        weight_bytes: stored tensors that a call reads, each once, as they are stored; of a table only the rows that are
            looked up.
        io_bytes: what is fed and what is answered.
        activation_bytes: everything in between, each tensor written once and read once.
        uncounted: nodes that are lacking in these numbers, which are lower bounds then.
    """

    arithmetic: Mapping[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    io_bytes: int = 0
    activation_bytes: int = 0
    uncounted: tuple[Uncounted, ...] = ()

    @property
    def flops(self) -> int:
        """All operations."""
        return sum(self.arithmetic.values())

    @property
    def bytes(self) -> int:
        """What is moved when every tensor is written once and read once, and none stays in a cache."""
        return self.weight_bytes + self.io_bytes + self.activation_bytes

    @property
    def least_bytes(self) -> int:
        """What has to be moved whatever is fused or cached: weights, inputs and answers, each once."""
        return self.weight_bytes + self.io_bytes

    def __add__(self, other: Cost) -> Cost:
        """Both calls, one after the other."""
        return Cost(
            dict(Counter(self.arithmetic) + Counter(other.arithmetic)),
            self.weight_bytes + other.weight_bytes,
            self.io_bytes + other.io_bytes,
            self.activation_bytes + other.activation_bytes,
            tuple(dict.fromkeys((*self.uncounted, *other.uncounted))),
        )


def model_cost(path: Path, fed: Iterable[Mapping[str, Sequence[int]]]) -> Cost:
    """The cost of a file's graph, of one call for each set of input shapes that is given.

    Raises:
        BadInput: the file is not an ONNX model.
        MissingPiece: onnx or onnx_ir is not installed.
    """
    from onnx_ir.passes.common import InlinePass

    model = load(path)
    if model.functions:
        InlinePass()(model)
    calls = Counter(tuple((name, tuple(shape)) for name, shape in sorted(shapes.items())) for shapes in fed)
    costs = ((graph_cost(model, dict(shapes)), times) for shapes, times in calls.items())
    return sum((cost for cost, times in costs for _ in range(times)), Cost())


def graph_cost(model: onnx_ir.Model, fed: Mapping[str, Sequence[int]]) -> Cost:
    """The cost of one call.

    Args:
        model: a graph without functions.
        fed: the shape of every input, by name.
    """
    known = infer_shapes(model, fed)
    constant = _constant(model)
    arithmetic: Counter[str] = Counter()
    uncounted = []
    for node in model.graph:
        if all(value.name in constant for value in node.outputs if value.name):
            continue  # sessions fold it before the first call
        found = _operations(node, known)
        if isinstance(found, Uncounted):
            uncounted.append(found)
        else:
            arithmetic.update(found)
    weights = sum(_weights(model, known))
    io_bytes, activations, unsized = _moved(model, known, constant)
    lacking = {each.node for each in uncounted}
    return Cost(
        {name: count for name, count in sorted(arithmetic.items()) if count},
        weights,
        io_bytes,
        activations,
        (*uncounted, *(each for each in unsized if each.node not in lacking)),
    )


def _operations(node: onnx_ir.Node, known: Mapping[str, Known]) -> Mapping[str, int] | Uncounted:
    """A node's operations by their arithmetic, or why they are not known."""
    if node.op_type in PRODUCTS:
        ins = [known.get(value.name or "") if value is not None else None for value in node.inputs]
        outs: list[Shape | None] = [known[value.name].shape if value.name in known else None for value in node.outputs]
        found = flops_of(node, ins, outs)
        own = _arithmetic(node, ins)
        if found is None or not own:
            return _lacking(node, "shape unknown", product=True)
        return Counter({own: found[0]}) + Counter({"fp32": found[1]})
    if node.op_type in UNCOUNTED:
        if node.op_type in ("If", "Loop", "Scan") and not any(inner.op_type in PRODUCTS for inner in _inside(node)):
            return {}
        return _lacking(node, "body not counted", product=True)
    if node.domain not in ("", "ai.onnx", "ai.onnx.ml") and node.op_type not in CONTRIB:
        return _lacking(node, "operator unknown", product=True)
    return {}


def _arithmetic(node: onnx_ir.Node, ins: Sequence[Known | None]) -> str:
    """What a product is computed in; empty when that is unknown."""
    import onnx_ir

    if node.op_type in ARITHMETIC_BY_OP:
        return ARITHMETIC_BY_OP[node.op_type]
    if node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == 4:
        return "int8"
    if all(_is_dequantized(value) for value in node.inputs[:2]):
        return "int8"
    first = ins[0]
    return _ARITHMETIC.get(onnx_ir.DataType(first.dtype).name, "") if first is not None else ""


def _is_dequantized(value: onnx_ir.Value | None) -> bool:
    """Whether a value is made from 8-bit integers right before: sessions multiply those."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "DequantizeLinear" or maker.inputs[0] is None:
        return False
    # A type that is not written in the file is that of QuantizeLinear's zero point, 8 bits by default.
    return maker.inputs[0].dtype is None or maker.inputs[0].dtype.name in ("INT8", "UINT8")


def _inside(node: onnx_ir.Node) -> Iterator[onnx_ir.Node]:
    """The nodes of the graphs that a node holds."""
    import onnx_ir

    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield from onnx_ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _lacking(node: onnx_ir.Node, why: str, *, product: bool) -> Uncounted:
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return Uncounted(node.name or str(node.outputs[0].name), op, why, product)


def _constant(model: onnx_ir.Model) -> set[str]:
    """Names of tensors that follow from stored ones alone."""
    found = {name for name, value in model.graph.initializers.items() if value.const_value is not None}
    for node in model.graph:
        names = [value.name for value in node.inputs if value is not None]
        if all(name in found for name in names) and not any(True for _ in _inside(node)):
            found.update(str(value.name) for value in node.outputs if value.name)
    return found


def _weights(model: onnx_ir.Model, known: Mapping[str, Known]) -> Iterator[int]:
    """Bytes of the stored tensors that a call reads."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None or not list(value.uses()):
            continue
        whole = value.const_value.nbytes
        rows = _rows_read(value, known)
        yield whole if rows is None else min(whole, rows * whole // max(1, known[name].size))
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor().nbytes


def _rows_read(table: onnx_ir.Value, known: Mapping[str, Known]) -> int | None:
    """Elements of a table that look-ups read; None for what is read whole, or of unknown size."""
    read = 0
    for node, place in table.uses():
        if node.op_type == "DequantizeLinear" and place == 0:
            found = _rows_read(node.outputs[0], known)
        elif place in _TABLES.get(node.op_type, ()) and node.outputs[0].name in known:
            found = known[node.outputs[0].name].size
        else:
            found = None
        if found is None:
            return None
        read += found
    return read


def _moved(model: onnx_ir.Model, known: Mapping[str, Known], constant: set[str]) -> tuple[int, int, list[Uncounted]]:
    """Bytes of what goes in and out, bytes written and read in between, and nodes whose answer has no known size."""
    answers = {value.name for value in model.graph.outputs}
    fed = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    io_bytes = sum(_nbytes(known[str(v.name)]) for v in (*fed, *model.graph.outputs) if v.name in known)
    moved = 0
    unsized = []
    for node in model.graph:
        for value in node.outputs:
            if not value.name or value.name in constant or not (list(value.uses()) or value.name in answers):
                continue
            if value.name not in known:
                unsized.append(_lacking(node, "shape unknown", product=False))
                break
            if node.op_type in _VIEWS or node.op_type == "DequantizeLinear":
                continue  # the same bytes under another name; of DequantizeLinear, sessions read the integers
            times = (value.name not in answers) + bool(list(value.uses()))
            moved += times * _nbytes(known[value.name])
    return io_bytes, moved, unsized


def _nbytes(found: Known) -> int:
    import onnx_ir

    type_ = onnx_ir.DataType(found.dtype)
    return 0 if type_ == onnx_ir.DataType.STRING else math.ceil(found.size * float(type_.itemsize))
