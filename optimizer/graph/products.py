"""Floating-point (or whole-number) operations of every node that multiplies matrices, from the shapes it is fed.

One multiplication and the addition behind it are 2 operations, as everywhere in the literature on peaks. Only products
are counted: what a GEMM's peak can be compared with. Sums, activations, normalizations and softmax are left out, as in
the count that model FLOPs utilization is made from (Chowdhery et al., *PaLM*, 2022, appendix B); in a transformer they
are about one in a hundred. Work that a mask makes useless is counted, as it is done.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from optimizer.graph.contrib import Ins, Shape, Unknown, matrix_product, operands, optional, shape_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["ARITHMETIC_BY_OP", "PRODUCTS", "UNCOUNTED", "flops_of"]

_Split = tuple[int, int]  # in the node's own arithmetic, and in float
_Rule = Callable[["onnx_ir.Node", Ins, "list[Shape | None]"], _Split]


def flops_of(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split | None:
    """Operations of one call.

    Args:
        node: one of :data:`PRODUCTS`.
        ins: what is known of its inputs; None for one that is absent or unknown.
        outs: the shapes of its outputs, None where unknown.

    Returns:
        those in the arithmetic that :data:`ARITHMETIC_BY_OP` names, or else in that of its first input; and those in
        float whatever it names (the scores of a quantized attention). None when a shape that decides is unknown.
    """
    try:
        return PRODUCTS[node.op_type](node, ins, outs)
    except (IndexError, ValueError, Unknown):
        return None


def _matmul(left: Shape, right: Shape) -> int:
    if not left or not right:
        return 0
    left = (1, *left) if len(left) == 1 else left
    right = (*right, 1) if len(right) == 1 else right
    return 2 * math.prod(matrix_product(left, right)) * left[-1]


def _product(left: int, right: int) -> _Rule:
    def rule(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
        del outs
        return _matmul(*operands(node, shape_of(ins, left), shape_of(ins, right))), 0

    return rule


def _nbits(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    del outs
    left = shape_of(ins, 0)
    return 2 * math.prod(left) * node.attributes.get_int("N", 0), 0


def _conv(weight: int) -> _Rule:
    """Each number of the answer takes a window of the kernel over the group's channels."""

    def rule(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
        kernel = shape_of(ins, weight)  # [channels out, channels in / group, *window]
        return 2 * math.prod(_known(outs)) * math.prod(kernel[1:]), 0

    return rule


def _conv_transpose(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    """Each number of the input is spread over a window of the group's channels (cropped or not)."""
    del node, outs
    return 2 * math.prod(shape_of(ins, 0)) * math.prod(shape_of(ins, 1)[1:]), 0


def _recurrent(gates: int) -> _Rule:
    """``gates`` products with the input and as many with the state, each step, each direction."""

    def rule(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
        del outs
        steps = shape_of(ins, 0)  # layout 1 has the batch first: the product is the same
        hidden = node.attributes.get_int("hidden_size", 0)
        both = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
        return 2 * steps[0] * steps[1] * both * gates * hidden * (steps[2] + hidden), 0

    return rule


def _scores(batch: int, steps: int, length: int, keys: int, values: int) -> int:
    """Queries by keys, and their weights by values; widths over all heads."""
    return 2 * batch * steps * length * (keys + values)


def _packed_attention(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    """com.microsoft Attention and QAttention: the three projections and the attention in one."""
    del outs
    batch, steps, _ = x = shape_of(ins, 0)
    weight = shape_of(ins, 1)
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [weight[-1] // 3] * 3
    past = optional(node, ins, 8 if node.op_type == "QAttention" else 4)  # [2, batch, heads, steps, size]
    length = steps + (past[3] if past else 0)
    return _matmul(x, weight), _scores(batch, steps, length, sizes[0], sizes[2])


def _multi_head(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    query = shape_of(ins, 0)
    batch, steps = query[0], query[1]
    if len(query) == 5:
        width = query[2] * query[4]
        return _scores(batch, steps, steps, width, width), 0
    key = shape_of(ins, 1)
    past = optional(node, ins, 6)
    length = (key[2] if len(key) == 4 else key[1]) + (past[2] if past else 0)
    return _scores(batch, steps, length, query[2], _known(outs)[2]), 0


def _group_query(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    batch, steps, width = _known(outs)
    past = optional(node, ins, 3)
    length = steps + (past[2] if past else 0)
    return _scores(batch, steps, length, width, width), 0


def _attention(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    """Attention: the standard operator of opset 23, or ONNX Runtime's older one of the same name."""
    if node.domain == "com.microsoft":
        projected, scored = _packed_attention(node, ins, outs)
        return projected + scored, 0
    query, key, value = (shape_of(ins, place) for place in range(3))
    past = optional(node, ins, 4)
    before = past[2] if past else 0
    heads = node.attributes.get_int("q_num_heads", 0)
    if len(query) == 4:  # [batch, heads, steps, size]
        batch, heads, steps, size = query
        return _scores(batch, steps, key[2] + before, heads * size, heads * value[3]), 0
    of_keys = node.attributes.get_int("kv_num_heads", 0) or heads
    return _scores(query[0], query[1], key[1] + before, query[2], heads * (value[2] // of_keys)), 0


def _qattention(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    return _packed_attention(node, ins, outs)


def _einsum(node: onnx_ir.Node, ins: Ins, outs: list[Shape | None]) -> _Split:
    """Two operands: one product and one sum for every combination of their letters."""
    del outs
    equation = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0]
    terms = equation.split(",")
    if len(terms) != 2 or "..." in equation:
        raise Unknown
    sizes: Counter[str] = Counter()
    for place, letters in enumerate(terms):
        for letter, dim in zip(letters, shape_of(ins, place), strict=True):
            sizes[letter] = max(sizes[letter], dim)
    return 2 * math.prod(sizes.values()), 0


def _known(outs: list[Shape | None]) -> Shape:
    if not outs or outs[0] is None:
        raise Unknown
    return outs[0]


#: By operator, whatever its domain: how its operations are counted.
PRODUCTS: Mapping[str, _Rule] = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu"), _product(0, 1)),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _product(0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), _product(0, 3)),
    "MatMulNBits": _nbits,
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger"), _conv(1)),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("LSTM", "DynamicQuantizeLSTM"), _recurrent(4)),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Attention": _attention,
    "QAttention": _qattention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
    "Einsum": _einsum,
}

#: Operators that multiply integers by their own definition; others by the types that they are fed.
ARITHMETIC_BY_OP = dict.fromkeys(
    (
        *("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        *("QLinearMatMul", "QLinearConv", "QGemm", "QAttention", "DynamicQuantizeLSTM"),
    ),
    "int8",
)

#: Standard operators that may hold much arithmetic and that nothing here counts: they are reported.
UNCOUNTED = ("DFT", "STFT", "DeformConv", "Loop", "Scan", "If", "RoiAlign")
