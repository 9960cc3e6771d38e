"""The graph that an engine is built from: out of the export's lineage, in the precision that was asked for.

A builder of today computes in the number formats of its graph. So fp16 and bf16 are cast before (as ``ml-opt cast``
does), int8 and fp8 have to be there as Q/DQ nodes, symmetric, and int4 weights are rewritten from ONNX Runtime's
``MatMulNBits`` to the Q/DQ form of the standard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Artifact
from optimizer.errors import BadInput
from optimizer.stage import Redirected
from optimizer.types import JSON, Precision

if TYPE_CHECKING:
    import onnx_ir

    from optimizer.store import Store

__all__ = ["Prepared", "Unfused", "from_export", "precision_asked", "prepared", "unfused"]

_CONTRIB = "com.microsoft."
#: Operators of ONNX Runtime's own that are rewritten here.
_REWRITTEN = frozenset({_CONTRIB + "MatMulNBits"})
_SIXTEEN = (Precision.FP16, Precision.BF16)
#: Stages that change how a graph is written down and not what it computes.
_HARMLESS = ("ort-optimize",)
#: TensorRT reads 4-bit weights in blocks of these sizes (https://docs.nvidia.com/deeplearning/tensorrt, "Working with
#: Quantized Types": block quantization of INT4 has blocks of 64 or 128 along K).
_INT4_BLOCKS = (64, 128)


@dataclass(frozen=True)
class Unfused:
    """What an engine is built from instead of what was named.

    Attributes:
        artifact: out of the lineage.
        precision: what the steps on the way there had made of it; None when they left it.
        note: a sentence for the user; empty when nothing was exchanged.
    """

    artifact: Artifact
    precision: Precision | None = None
    note: str = ""


def unfused(source: Artifact, store: Store) -> Unfused:
    """The nearest parent without operators of ONNX Runtime's own.

    Raises:
        BadInput: something on the way changed the numbers (quantizing), so that the parent would not answer like it;
            or the parent is not in the store any more.
    """
    artifact, cast = source, None
    while left := _contrib(artifact):
        stage = artifact.manifest.stage["name"]
        origin = artifact.manifest.source
        parent = origin.get("ref", "")
        what = f"{source.ref} has operators of ONNX Runtime's own ({', '.join(left[:3])})"
        if stage == "cast":
            cast = cast or Precision(artifact.manifest.options["to"])
        elif stage not in _HARMLESS:
            raise BadInput(
                f"{what}, which TensorRT does not take, and {stage} stands between it and the export",
                _quantize_hint(artifact, store),
            )
        if origin.get("type") != "artifact":
            raise BadInput(f"{what}, which TensorRT does not take, and no parent without them")
        artifact = store.get(parent)
        if artifact.digest != origin["digest"]:
            raise BadInput(f"{what}, and its parent {parent} has changed since", "make it again from the export")
    if artifact is source:
        return Unfused(source)
    note = f"{source.ref} is fused for ONNX Runtime, which TensorRT does not read: built from {artifact.ref} instead"
    return Unfused(artifact, cast, note)


def from_export(source: Artifact, options: Any, store: Store) -> Redirected:
    """Where a builder starts instead of a fused graph; a cast on the way there is asked for in its place.

    Args:
        source: what was named.
        options: of the stage; its ``precision`` is None for what the source is.
        store: where the lineage lies.

    Raises:
        BadInput: see :func:`unfused`.
    """
    found = unfused(source, store)
    if found.precision is not None and options.precision is None:
        options = type(options)(**{**options.changed(), "precision": found.precision})
    return Redirected(found.artifact, options, found.note)


def _contrib(artifact: Artifact) -> list[str]:
    """Operators of ONNX Runtime's own that nothing here rewrites."""
    ops: Mapping[str, int] = artifact.manifest.facts.get("ops", {})
    return sorted(op.removeprefix(_CONTRIB) for op in ops if op.startswith(_CONTRIB) and op not in _REWRITTEN)


def _quantize_hint(artifact: Artifact, store: Store) -> str:
    """The command that quantizes the export in the place of what was fused and quantized."""
    parent = artifact.manifest.source
    if parent.get("type") == "artifact":
        export = unfused(store.get(parent["ref"]), store).artifact.ref
        return f"quantize the export: ml-opt quantize static {export} --calib FILE --symmetric"
    return "quantize the export: ml-opt quantize static REF --calib FILE --symmetric"


def precision_asked(asked: Precision | None, source: Artifact) -> Precision:
    """What the engine will compute in, held to what its source can become.

    Args:
        asked: what was asked for; None for what the source is.
        source: an artifact without fused operators.

    Raises:
        BadInput: the source is something else, naming the command that makes it.
    """
    has = source.precision
    wanted = asked or has
    facts = source.manifest.facts
    if has is Precision.INT8 and not facts.get("quantized", {}).get("qdq"):
        how = next((name for name, count in facts.get("quantized", {}).items() if count and name != "total"), "other")
        raise BadInput(
            f"{source.ref} is quantized in a form that TensorRT does not take ({how}): it wants ranges that are known "
            "beforehand, as Q/DQ nodes",
            f"ml-opt quantize static {_float_parent(source)} --calib FILE --symmetric",
        )
    if wanted is has or (has is Precision.FP32 and wanted in _SIXTEEN):
        return wanted
    if wanted is Precision.INT8:
        raise BadInput(
            f"int8 was asked for, and {source.ref} is {has}: the ranges of an int8 engine come from calibrated data",
            f"ml-opt quantize static {source.ref} --calib FILE --symmetric, and build from what that makes",
        )
    if wanted is Precision.INT4:
        raise BadInput(
            f"int4 was asked for, and {source.ref} is {has}",
            f"ml-opt quantize weights {source.ref} --bits 4 --block-size 128, and build from what that makes",
        )
    if wanted is Precision.FP8:
        raise BadInput(
            f"fp8 was asked for, and {source.ref} is {has}: fp8 has to be in the graph, as Q/DQ nodes",
            "export a file that was quantized to fp8 (by NVIDIA's ModelOpt, say): ml-opt export-onnx FILE.onnx",
        )
    raise BadInput(
        f"{wanted} was asked for, and {source.ref} is {has}",
        f"build from its float parent: {_float_parent(source)}",
    )


def _float_parent(source: Artifact) -> str:
    return str(source.manifest.source.get("ref", "the float artifact"))


@dataclass(frozen=True)
class Prepared:
    """A file for the builder.

    Attributes:
        path: the ONNX file.
        facts: what was done to it.
        precision: what it computes in.
    """

    path: Path
    precision: Precision
    facts: dict[str, JSON] = field(default_factory=dict)


def prepared(source: Artifact, precision: Precision, folder: Path, say: Callable[[str], object]) -> Prepared:
    """The source's graph in that precision; the source's own file where nothing has to be done.

    Args:
        source: an artifact that :func:`precision_asked` has let pass.
        precision: what it said.
        folder: where a file may be written.
        say: told what is being done.

    Raises:
        BadInput: its Q/DQ nodes are not symmetric, or its blocks of 4 bits are none that TensorRT has.
    """
    from optimizer.graph.io import load, save

    has = source.precision
    if has is precision and precision in (Precision.FP32, *_SIXTEEN):
        return Prepared(source.model_file, precision)
    model = load(source.model_file)
    if precision is Precision.INT8:
        _check_symmetric(model, source)
        return Prepared(source.model_file, precision)
    if precision is Precision.FP8:
        return Prepared(source.model_file, precision)
    if precision is Precision.INT4:
        say("rewriting 4-bit weights")
        return Prepared(save(_with_int4(model, source), folder), precision)
    from optimizer.graph.cast import cast_model

    say(f"casting to {precision}")
    model, report = cast_model(model, precision)
    return Prepared(save(model, folder), precision, {"cast": report})


def _check_symmetric(model: onnx_ir.Model, source: Artifact) -> None:
    """Refuse Q/DQ nodes that TensorRT refuses, with the command that makes better ones."""
    for graph in model.graphs():
        for node in graph:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
                continue
            zero = node.inputs[2].const_value if node.inputs[2] is not None else None
            if zero is None or (zero.dtype.name in ("INT8", "FLOAT8E4M3FN", "INT32") and not zero.numpy().any()):
                continue
            stage = source.manifest.stage["name"]
            again = f"{source.manifest.command} --symmetric" if stage == "quantize-static" else ""
            raise BadInput(
                f"{source.ref} is quantized around other points than zero ({node.name}: {zero.dtype.name.lower()}, "
                f"{zero.numpy().reshape(-1)[:1].tolist()}), and TensorRT takes none but symmetric int8",
                f"quantize again: {again or 'ml-opt quantize static REF --calib FILE --symmetric'}",
            )


def _with_int4(model: onnx_ir.Model, source: Artifact) -> onnx_ir.Model:
    """``MatMulNBits`` as ``MatMul`` of a weight that ``DequantizeLinear`` makes of signed 4-bit blocks.

    ``MatMulNBits`` packs ``B[N, K/block, block/2]`` as unsigned numbers with a zero point of 8 where none is given
    (ONNX Runtime, docs/ContribOperators.md); less 8 they are the signed numbers of a symmetric INT4 tensor ``[K, N]``
    with scales ``[K/block, N]``.
    """
    import numpy as np
    import onnx_ir

    made = 0
    for node in [each for each in model.graph if each.op_type == "MatMulNBits"]:
        numbers = {name: node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")}
        rows, columns, block = numbers["K"], numbers["N"], numbers["block_size"]
        extra = [value for value in node.inputs[3:] if value is not None]
        zeros = node.inputs[3].const_value if len(node.inputs) > 3 and node.inputs[3] is not None else None
        if zeros is not None and not (zeros.numpy() == 0x88).all():
            raise BadInput(f"{source.ref}: {node.name} has 4-bit weights around other points than zero")
        if numbers["bits"] != 4 or block not in _INT4_BLOCKS or rows % block or len(extra) > 2:
            sizes = " or ".join(map(str, _INT4_BLOCKS))
            raise BadInput(
                f"{source.ref}: {node.name} has blocks of {block} × {numbers['bits']} bits along {rows}; TensorRT "
                f"takes 4 bits in blocks of {sizes} that divide it",
                f"ml-opt quantize weights {_float_parent(source)} --bits 4 --block-size {_INT4_BLOCKS[-1]}",
            )
        packed = node.inputs[1].const_value.numpy().reshape(columns, rows // block, block // 2)
        low, high = packed & 0x0F, packed >> 4
        values = np.stack([low, high], axis=-1).reshape(columns, rows).astype(np.int8) - 8
        scales = node.inputs[2].const_value.numpy().reshape(columns, rows // block)
        weight = _initializer(model, f"{node.name}_int4", np.ascontiguousarray(values.T), onnx_ir.DataType.INT4)
        scale = _initializer(model, f"{node.name}_scale", np.ascontiguousarray(scales.T).astype(np.float32))
        whole = onnx_ir.node(
            "DequantizeLinear", [weight, scale], {"axis": 0, "block_size": block}, name=f"{node.name}_dq"
        )
        product = onnx_ir.node("MatMul", [node.inputs[0], whole.outputs[0]], name=f"{node.name}_int4_product")
        whole.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        nodes = [whole, product]
        if len(node.inputs) > 5 and node.inputs[5] is not None:
            nodes.append(onnx_ir.node("Add", [product.outputs[0], node.inputs[5]], name=f"{node.name}_bias"))
        nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        onnx_ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        made += 1
    if not made:
        raise BadInput(f"{source.ref} has no product with 4-bit weights")
    model.opset_imports[""] = max(model.opset_imports.get("", 0), 21)  # blocks came to DequantizeLinear with opset 21
    model.opset_imports.pop("com.microsoft", None)
    return model


def _initializer(model: onnx_ir.Model, name: str, array: object, dtype: object = None) -> onnx_ir.Value:
    import onnx_ir

    tensor = onnx_ir.Tensor(array, dtype=dtype, name=name) if dtype is not None else onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape)
    model.graph.initializers[name] = value
    return value
