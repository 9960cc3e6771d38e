"""Weights in 4 or 8 bits by blocks, products in float or int8 as the kernel likes: ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, GateFailed
from optimizer.hf import root_logger_kept
from optimizer.quantizing.choose import Choice, graphs_of, told_to_dynamic
from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["blocks_in", "check_blocks", "quantize_blocks", "without_odd_tables"]

PRODUCT, TABLE = "MatMulNBits", "GatherBlockQuantized"


def quantize_blocks(
    model: onnx.ModelProto,
    choice: Choice,
    *,
    bits: int,
    block_size: int,
    symmetric: bool,
    accuracy_level: int,
    tables: bool,
) -> onnx.ModelProto:
    """Replace chosen products by MatMulNBits, through ONNX Runtime's own quantizer (round to nearest, a scale a block).

    Args:
        model: the prepared graph, its nodes named; changed in place. A Gemm becomes a product and a sum.
        choice: which nodes.
        bits: of a weight, 4 or 8.
        block_size: weights along the input axis that share one scale (and zero point).
        symmetric: blocks around zero, without zero points.
        accuracy_level: what the kernel may round activations to: 0 its own choice, 1 float32, 2 float16, 3 bfloat16,
            4 int8 (com.microsoft.MatMulNBits).
        tables: also look chosen tables up in 4 bits (GatherBlockQuantized).

    Returns:
        the quantized graph.

    Raises:
        BadInput: one weight is used in two ways that would take the same name.
    """
    with root_logger_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    _, left = told_to_dynamic(model, choice)
    if tables:
        _refuse_two_uses(model, choice)
    whole = ONNXModel(model)
    whole.replace_gemm_with_matmul()
    made: onnx.ModelProto = whole.model
    for op_type, width in (("MatMul", bits), ("Gather", 4)) if tables else (("MatMul", bits),):
        quantizer = MatMulNBitsQuantizer(
            made,
            bits=width,
            block_size=block_size,
            is_symmetric=symmetric,
            accuracy_level=accuracy_level or None,
            nodes_to_exclude=left,
            op_types_to_quantize=(op_type,),
        )
        quantizer.process()
        made = quantizer.model.model
    for each in made.opset_import:
        # The quantizer declares opset 21 for tables in 4 bits, which only com.microsoft reads: other operators would
        # then be held to rules that the graph was not written by.
        if each.domain in ("", "ai.onnx"):
            each.version = opset
    return made


def without_odd_tables(model: onnx.ModelProto, choice: Choice) -> Choice:
    """Leave out every Gather that does not look up rows of a float32 matrix of the main graph."""
    import onnx

    matrices = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    odd = {}
    for graph in graphs_of(model.graph):
        for node in graph.node:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            plain = graph is model.graph and axis == 0 and node.input[:1] and node.input[0] in matrices
            if node.op_type == "Gather" and not plain:
                odd[node.name] = node.op_type
    return choice.without({name: odd[name] for name in choice.chosen if name in odd})


def _refuse_two_uses(model: onnx.ModelProto, choice: Choice) -> None:
    """The quantizer names blocks after the weight: those of a product and those of a table would take the same name."""
    chosen = set(choice.chosen)
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node if node.name in chosen]
    products = {node.input[1]: node for node in nodes if node.op_type != "Gather"}
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in products:
            raise BadInput(
                f"{node.name} and {products[node.input[0]].name} read one weight, as a table and as a product, "
                "which need different blocks",
                "store the table in another way: --tables int8",
            )


def blocks_in(model: onnx_ir.Model) -> dict[str, JSON]:
    """What a graph says of its weights in blocks.

    Returns:
        ``bits`` and ``block_size`` (the numbers found, ascending), ``products`` and ``tables`` (how many).
    """
    from optimizer.graph.io import graphs

    nodes = [node for graph in graphs(model) for node in graph if node.op_type in (PRODUCT, TABLE)]
    products = [node for node in nodes if node.op_type == PRODUCT]

    def found(name: str) -> list[int]:
        return sorted({node.attributes[name].as_int() for node in products})

    return {
        "bits": found("bits"),
        "block_size": found("block_size"),
        "products": len(products),
        "tables": len(nodes) - len(products),
    }


def check_blocks(facts: Mapping[str, JSON], bits: int, block_size: int) -> None:
    """Hold products in blocks to what was asked.

    Raises:
        GateFailed: products were chosen and none was taken, or their blocks are others.
    """
    blocks, chosen = facts["blocks"], facts["chosen"]
    asked = sum(count for op, count in chosen.items() if op != "Gather")
    if asked and not blocks["products"]:
        raise GateFailed(
            f"none of the {asked} chosen products was taken: their weights are no matrices",
            "quantize them with another method: ml-opt quantize dynamic REF",
        )
    got: Sequence[JSON] = (blocks["bits"], blocks["block_size"])
    if asked and list(got) != [[bits], [block_size]]:
        raise GateFailed(f"{bits} bits in blocks of {block_size} were asked for, and the file says {got}")
