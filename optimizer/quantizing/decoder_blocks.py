"""Weights of a traced decoder in blocks, by the algorithms that onnxruntime-genai's builder has for its own graphs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from optimizer.hf import root_logger_kept

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["fold_transposes", "quantize_decoder"]

#: The layer that a product belongs to, in its name.
_LAYER = re.compile(r"/(\d+)/")
#: Products that llama.cpp found sensitive: those that make queries, keys and values, and those that end a layer.
_SENSITIVE = re.compile(r"/(c_attn|qkv_proj|query_key_value|v_proj|down_proj|mlp/c_proj|fc2|dense_4h_to_h|fc_out)/")
#: Bits of what an algorithm does not put into 4.
_MORE = 8


def quantize_decoder(
    model: onnx.ModelProto,
    *,
    bits: int,
    block_size: int,
    algorithm: str,
    accuracy_level: int,
    layers: int,
    float_head: bool,
) -> onnx.ModelProto:
    """Replace every product with a stored weight by MatMulNBits.

    Args:
        model: a traced decoder, its products named after their modules and their weights plain
            (:func:`fold_transposes`); changed in place.
        bits: of a weight, 4 or 8.
        block_size: weights along the input axis that share a scale.
        algorithm: ``default``, ``rtn`` or ``k_quant``; ``…_last`` keeps the last product in 8 bits, ``k_quant_mixed``
            those too that llama.cpp found sensitive (its ``llama-quant.cpp``): of the first and last eighth of the
            layers, and of every third between them.
        accuracy_level: what products may round activations to (4 int8, 1 float32, 0 their own choice).
        layers: how many layers there are.
        float_head: the last product stays in float.

    Returns:
        the quantized graph.
    """
    with root_logger_kept():
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    products = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    head = products[-1] if products else ""
    method = algorithm.removesuffix("_last").removesuffix("_mixed")
    given = {name: {"bits": bits} for name in products}
    if algorithm.endswith(("_last", "_mixed")):
        given[head] = {"bits": _MORE}
    if algorithm.endswith("_mixed"):
        given |= {name: {"bits": _MORE} for name in products if _is_sensitive(name, layers)}
    # Weights around zero, as the builder has them; k_quant has zero points of its own.
    arguments: dict[str, Any] = {
        "bits": bits,
        "block_size": block_size,
        "is_symmetric": True,
        "accuracy_level": accuracy_level or None,
        "nodes_to_exclude": [head] if float_head else [],
        "op_types_to_quantize": ("MatMul",),
    }
    if method == "rtn":
        arguments["algo_config"] = nbits.RTNWeightOnlyQuantConfig(customized_weight_config=given)
    elif method == "k_quant":
        arguments["algo_config"] = nbits.KQuantWeightOnlyQuantConfig(customized_weight_config=given)
    with root_logger_kept():
        quantizer = nbits.MatMulNBitsQuantizer(model, **arguments)
        quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made


def _is_sensitive(name: str, layers: int) -> bool:
    found = _LAYER.search(name)
    if found is None or not _SENSITIVE.search(name):
        return False
    layer = int(found.group(1))
    return layer < layers / 8 or layer >= 7 * layers / 8 or (layer - round(layers / 8)) % 3 == 2


def fold_transposes(model: onnx_ir.Model) -> None:
    """Store the weight of every product as the product reads it, where a Transpose stands between.

    The head of a model that ties it to its table of embeddings reads the table that way; quantizers take plain
    weights only.
    """
    import numpy as np
    import onnx_ir

    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if source is None or source.const_value is None or len(source.const_value.shape) != 2:
            continue
        if not all(use.node.op_type in ("MatMul", "Gemm") for use in node.outputs[0].uses()):
            continue
        (result,) = node.outputs
        tensor = onnx_ir.Tensor(np.ascontiguousarray(source.const_value.numpy().T), name=f"{source.name}_transposed")
        value = onnx_ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=source.type)
        model.graph.register_initializer(value)
        onnx_ir.convenience.replace_all_uses_with(result, value)
        model.graph.remove(node, safe=True)
