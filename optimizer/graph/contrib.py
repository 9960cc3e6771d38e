"""Shapes of what ONNX Runtime's own operators answer, after its documentation (``docs/ContribOperators.md``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["CONTRIB", "Ins", "Shape", "Unknown", "contrib_shapes", "matrix_product", "operands", "optional", "shape_of"]

Shape = tuple[int, ...]


class _Sized(Protocol):
    """What a rule needs to know of an input."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> int: ...


Ins = Sequence[_Sized | None]
_Rule = Callable[["onnx_ir.Node", Ins], "list[Shape]"]


def contrib_shapes(node: onnx_ir.Node, ins: Ins) -> dict[str, tuple[Shape, int]]:
    """Shapes and element types of a node's outputs, by name.

    Args:
        node: of any operator.
        ins: what is known of its inputs; None for one that is absent or unknown.

    Returns:
        empty for an operator that is not known here, or when an input that decides is unknown.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        return {}
    try:
        shapes = rule(node, ins)
        dtype = _dtype(node, ins)
    except (IndexError, ValueError, Unknown):  # ValueError: a rank that the operator cannot have
        return {}
    return {str(v.name): (shape, dtype) for v, shape in zip(node.outputs, shapes, strict=False) if v.name}


class Unknown(Exception):
    """An input that decides is not known."""


def shape_of(ins: Ins, place: int) -> Shape:
    """The shape of an input that must be there; raises :class:`Unknown` when it is not known."""
    found = ins[place]
    if found is None:
        raise Unknown
    return found.shape


def optional(node: onnx_ir.Node, ins: Ins, place: int) -> Shape | None:
    """The shape of an input that may be absent; raises :class:`Unknown` when it is there and not known."""
    if place >= len(node.inputs) or node.inputs[place] is None:
        return None
    return shape_of(ins, place)


def matrix_product(left: Shape, right: Shape) -> Shape:
    """The shape of numpy's ``matmul``, of two tensors of at least two dimensions."""
    batch, width = [], max(len(left), len(right)) - 2
    lead = ((1,) * width + left[:-2])[-width:] if width else ()
    other = ((1,) * width + right[:-2])[-width:] if width else ()
    for one, two in zip(lead, other, strict=True):
        batch.append(max(one, two) if min(one, two) else 0)
    return (*batch, left[-2], right[-1])


def _transposed(shape: Shape) -> Shape:
    """With the last two dimensions exchanged."""
    return (*shape[:-2], shape[-1], shape[-2])


def _like(*places: int) -> _Rule:
    """Every output has the shape of the first input, or the broadcast of those that are named."""

    def rule(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
        shapes = [shape_of(ins, place) for place in places]
        rank = max(map(len, shapes))
        padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
        return [tuple(max(dims) for dims in zip(*padded, strict=True))] * len(node.outputs)

    return rule


def _product(left: int, right: int) -> _Rule:
    def rule(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
        return [matrix_product(*operands(node, shape_of(ins, left), shape_of(ins, right)))]

    return rule


def operands(node: onnx_ir.Node, left: Shape, right: Shape) -> tuple[Shape, Shape]:
    """The two shapes that a product multiplies, once its own ``transA`` and ``transB`` are done."""
    if node.attributes.get_int("transA", 0):
        left = _transposed(left)
    if node.attributes.get_int("transB", 0):
        right = _transposed(right)
    return left, right


def _nbits(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    return [(*shape_of(ins, 0)[:-1], node.attributes.get_int("N", 0))]


def _attention(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    batch, steps, _ = shape_of(ins, 0)
    sizes = node.attributes.get_ints("qkv_hidden_sizes", ())
    width = sizes[2] if sizes else shape_of(ins, 1)[-1] // 3
    return [(batch, steps, width)]


def _multi_head(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    query = shape_of(ins, 0)
    heads = node.attributes.get_int("num_heads", 1)
    batch, steps = query[0], query[1]
    if len(query) == 5:  # packed query, key and value: [batch, steps, heads, 3, size]
        return [(batch, steps, query[2] * query[4])]
    key = shape_of(ins, 1)
    if len(key) == 5:  # packed key and value: [batch, steps, heads, 2, size]
        return [(batch, steps, key[2] * key[4])]
    value = shape_of(ins, 2)
    width = value[1] * value[3] if len(value) == 4 else value[2]
    past = optional(node, ins, 6)
    length = (key[2] if len(key) == 4 else key[1]) + (past[2] if past else 0)
    size = query[2] // heads
    return [(batch, steps, width), (batch, heads, length, size), (batch, heads, length, width // heads)]


def _group_query(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    batch, steps, width = shape_of(ins, 0)
    heads, groups = node.attributes.get_int("num_heads", 1), node.attributes.get_int("kv_num_heads", 1)
    packed = node.inputs[1] is None
    size = width // (heads + 2 * groups) if packed else width // heads
    past = optional(node, ins, 3)
    present = (batch, groups, (past[2] if past else 0) + steps, size)
    return [(batch, steps, heads * size), present, present]


def _embed(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    batch, steps = shape_of(ins, 0)
    width = shape_of(ins, 2)[-1]
    return [(batch, steps, width), (batch,), (batch, steps, width)]


def _gather(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    table, indices = shape_of(ins, 0), shape_of(ins, 1)
    axis = node.attributes.get_int("gather_axis", 0) % len(table)
    return [(*table[:axis], *indices, *table[axis + 1 :])]


def _recurrent(node: onnx_ir.Node, ins: Ins) -> list[Shape]:
    steps, batch, _ = shape_of(ins, 0)
    both = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
    hidden = node.attributes.get_int("hidden_size", 0)
    return [(steps, both, batch, hidden), (both, batch, hidden), (both, batch, hidden)]


_FIRST = (
    *("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasAdd", "BiasSoftmax", "BiasDropout", "RotaryEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "GroupNorm"),
    *("QuantizeLinear", "DequantizeLinear", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"),
)
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_FIRST, _like(0)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _like(0, 3)),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu"), _product(0, 1)),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _product(0, 1)),
    "QGemm": _product(0, 3),
    "MatMulNBits": _nbits,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
    "EmbedLayerNormalization": _embed,
    "GatherBlockQuantized": _gather,
    "DynamicQuantizeLSTM": _recurrent,
}
#: Every operator that has a rule here.
CONTRIB = frozenset(_RULES)

#: Where the input lies whose element type the answer has; the first one otherwise.
_TYPED_BY = {"MatMulIntegerToFloat": 2, "QAttention": 3, "EmbedLayerNormalization": 2, "GatherBlockQuantized": 2}


def _dtype(node: onnx_ir.Node, ins: Ins) -> int:
    place = _TYPED_BY.get(node.op_type, 0)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        place = 2 if node.op_type == "QuantizeLinear" else 1
    found = ins[place]
    if found is None:
        raise Unknown
    return found.dtype
