"""quantize-dynamic: int8 weights, activation ranges found at run time; no data needed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from optimizer.artifact import Artifact, Source
from optimizer.options import Options, opt
from optimizer.quantizing.options import exclude_opt, include_opt, per_channel_opt, reduce_range_opt
from optimizer.quantizing.promise import (
    check_quantized,
    finished,
    modifiers,
    refuse_quantized,
    refuse_unquantizable,
    saturation,
)
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import JSON, Kind

__all__ = ["STAGE", "QuantizeDynamic"]

#: Gather is the embedding table: a third of a small encoder's bytes. Convolutions are left out, because ConvInteger
#: is several times slower than float; ranges known beforehand (quantize-static) are what makes them fast.
_DEFAULT_OPS = ("MatMul", "Gemm", "Gather", "LSTM", "Attention", "EmbedLayerNormalization")


class QuantizeDynamic(Options):
    """Options of quantize-dynamic."""

    per_channel: bool = per_channel_opt()
    weight_type: str = opt(
        "int8", "Type of the weights; uint8 is slower on processors with VNNI.", choices=("int8", "uint8")
    )
    reduce_range: bool = reduce_range_opt()
    include: tuple[str, ...] = include_opt()
    exclude: tuple[str, ...] = exclude_opt()
    op_types: tuple[str, ...] = opt(
        _DEFAULT_OPS,
        "Operator types to quantize.",
        choices=("MatMul", "Gemm", "Gather", "LSTM", "Conv", "Attention", "EmbedLayerNormalization"),
    )


def _run(source: Source, out: Path, options: QuantizeDynamic, progress: Progress) -> Outcome:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from optimizer.graph.io import MODEL_NAME
    from optimizer.hf import quiet_libraries
    from optimizer.quantizing.choose import choose_nodes, told_to_dynamic
    from optimizer.quantizing.prepare import load_proto, load_result, prepare

    assert isinstance(source, Artifact)
    refuse_quantized(source)
    with tempfile.TemporaryDirectory(dir=out) as work, quiet_libraries():
        progress("preparing the graph")
        model = load_proto(prepare(source.model_file, Path(work)))
        choice = choose_nodes(model, options.op_types, include=options.include, exclude=options.exclude, dynamic=True)
        if options.op_types == _DEFAULT_OPS:
            refuse_unquantizable(source, choice.counts.get("Attention", 0))
        progress(f"quantizing {len(choice.chosen)} nodes")
        target = Path(work) / MODEL_NAME
        types, left = told_to_dynamic(model, choice)
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=types,
            nodes_to_exclude=left,
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
            weight_type=QuantType.QInt8 if options.weight_type == "int8" else QuantType.QUInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True, "EnableSubgraph": True},
        )
        progress("writing the artifact")
        outcome = finished(source, load_result(target), choice, out)
    return replace(outcome, warnings=[*saturation(options.reduce_range), *outcome.warnings])


def _verify(options: QuantizeDynamic, facts: Mapping[str, JSON], source: Source) -> None:
    check_quantized("quantize-dynamic", facts, source)


def _variant(options: QuantizeDynamic, source: Source) -> str:
    assert isinstance(source, Artifact)
    words = ["int8" if options.weight_type == "int8" else "uint8", "dynamic", *modifiers(source)]
    if not options.per_channel:
        words.append("per-tensor")
    if options.reduce_range:
        words.append("7bit")
    return "-".join(words)


STAGE = Stage(
    name="quantize-dynamic",
    help="Quantize weights to int8; activations are quantized at run time. Needs no data.",
    details="A quarter of the size, and on processors with VNNI about twice the speed of fp32 for transformers. "
    "Refused when nothing was quantized or nothing shrank.",
    options=QuantizeDynamic,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("onnxruntime", "onnxruntime-gpu", "onnx"),
    modules=("onnxruntime", "onnx", "onnx_ir"),
    command=("quantize", "dynamic"),
)
