"""Fusing a transformer's graph into the operators that ONNX Runtime has kernels for.

onnxscript's fusions match what torch's exporter makes of transformers 5 models; ONNX Runtime's own
``transformers.optimizer`` finds no attention in those graphs at all.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["attention_like", "fuse_for_onnxruntime"]


def fuse_for_onnxruntime(model: onnx_ir.Model, *, pack_attention: bool) -> dict[str, int]:
    """Fuse in place.

    Args:
        model: an exported graph, unquantized.
        pack_attention: also pack the three projections into one ``Attention`` node. CUDA has its fastest kernels for
            that; on a processor it gains nothing, and it takes the projections' weights out of a quantizer's reach.

    Returns:
        how often each fusion matched, by its name in onnxscript.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import optimize
    from onnxscript.rewriter import ort_fusions as fusions
    from onnxscript.rewriter import rewrite

    core = fusions._core
    if pack_attention:
        _, packed = core.optimize_for_ort(model)  # in place
        return {name: count for name, count in packed.items() if count}
    # The steps of onnxscript's optimize_for_ort, without the last one that packs the projections, and without those
    # that a session on the processor leaves out too (`SLOWER_FUSED` of optimizer/runtimes/_ort_open.py).
    rewrite(model, [core._gemm_to_matmul_add.gemm_to_matmul_add_rule])
    core._pre_optimize(model)
    counts: Counter[str] = Counter()
    for name, step in (
        ("erf_gelu", core.fuse_erfgelu),
        ("rms_normalization", core.fuse_rms_normalization),
        ("rotary_embedding", core.fuse_rotary_embedding),
        ("cos_sin_cache", core.fuse_cos_sin_cache),
    ):
        counts[name] += step(model)
    passes.CommonSubexpressionEliminationPass()(model)
    counts["partial_rotary_embedding"] += core.fuse_partial_rotary_embedding(model)
    counts["sdpa"] += core.fuse_sdpa(model, apply_shape_inference=True)
    for name, step in (
        ("gqa", core.fuse_gqa),
        ("packed_qkv_for_gqa", core.fuse_qkv_gqa),
        ("mha1", core.fuse_mha1),
        ("mha2", core.fuse_mha2),
        ("mha_scale", core.fuse_mha_scale),
        ("mha_bias", core.fuse_mha_bias),
        ("gelu", core.fuse_gelu),
        ("sdpa_via_mha", core.replace_sdpa_by_mha),
    ):
        counts[name] += step(model)
    optimize(model)
    rewrite(model, core.ORT_PATTERN_REWRITE_RULES)
    passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=1)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.ShapeInferencePass()(model)
    return {name: count for name, count in counts.items() if count}


#: What stands between a product and its Softmax (scaling, masking, biases, soft caps), or between that and the product
#: with the values.
_BETWEEN = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Where",
        "Max",
        "Min",
        "Clip",
        "Tanh",
        "Cast",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Slice",
        "Concat",
        "Identity",
        "Dropout",
        "IsNaN",
    ]
)
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum")
#: Further than this from the Softmax lies another layer.
_REACH = 8


def attention_like(model: onnx_ir.Model) -> int:
    """How many attentions a graph spells out: each Softmax of a product of two activations that is multiplied again."""
    return sum(
        node.op_type == "Softmax" and _comes_from_product(node.inputs[0]) and _goes_to_product(node.outputs[0])
        for graph in model.graphs()
        for node in graph
    )


def _goes_to_product(value: onnx_ir.Value, reach: int = _REACH) -> bool:
    users = [use.node for use in value.uses()]
    if any(user.op_type in _PRODUCTS for user in users):
        return True
    return reach > 0 and any(
        user.op_type in _BETWEEN and _goes_to_product(user.outputs[0], reach - 1) for user in users
    )


def _comes_from_product(value: onnx_ir.Value | None, reach: int = _REACH) -> bool:
    node = value.producer() if value is not None else None
    if node is None or reach == 0:
        return False
    if node.op_type in _PRODUCTS:
        return not any(_is_constant(factor) for factor in node.inputs[:2])
    return node.op_type in _BETWEEN and any(_comes_from_product(factor, reach - 1) for factor in node.inputs)


def _is_constant(value: onnx_ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return value is None or value.is_initializer() or (node is not None and node.op_type == "Constant")
