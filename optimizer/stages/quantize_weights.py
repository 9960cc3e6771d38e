"""quantize-weights: weights in 4 or 8 bits by blocks, activations as they are; data is needed for GPTQ alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Artifact, Source
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import BadInput
from optimizer.options import Options, opt
from optimizer.quantizing.options import exclude_opt, include_opt, optional_calib_opt, samples_opt, seed_opt
from optimizer.quantizing.promise import (
    check_quantized,
    finished,
    modifiers,
    refuse_quantized,
    refuse_unquantizable,
)
from optimizer.quantizing.rows import calibration_rows, few_rows, rows_content
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    import onnx_ir

    from optimizer.data.calibration import CalibrationSet

__all__ = ["STAGE", "QuantizeWeights"]

_BITS = (4, 8)
#: The graph in float with the names that the quantizer sees, in a scratch folder.
_FLOATS = "floats.onnx"
#: Rows of a file that GPTQ learns from.
_ROWS = 128


class QuantizeWeights(Options):
    """Options of quantize-weights."""

    bits: int = opt(4, "Of a weight: 4 or 8.", ge=4, le=8)
    block_size: int = opt(32, "Weights that share a scale: 16, 32, 64, 128 or 256.", ge=16, le=256)
    symmetric: bool = opt(False, "Blocks around zero, without zero points: smaller, and less exact in 4 bits.")
    accuracy_level: int = opt(
        4, "What kernels may round activations to: 4 int8, 3 bf16, 2 fp16, 1 fp32, 0 as they like.", ge=0, le=4
    )
    tables: str = opt(
        "int8",
        "How lookup tables (embeddings) are stored: int8 has a scale a row, int4 one a block.",
        choices=("float", "int8", "int4"),
    )
    algorithm: str = opt(
        "rtn", "How levels are chosen: the nearest, or by GPTQ, which learns from --calib.", choices=("rtn", "gptq")
    )
    calib: Path | None = optional_calib_opt("Data like the model will see, for GPTQ: a file, or a calibration set.")
    column: tuple[str, ...] = column_opt()
    samples: int | None = samples_opt("learn from", _ROWS)
    seed: int = seed_opt()
    include: tuple[str, ...] = include_opt()
    exclude: tuple[str, ...] = exclude_opt()

    def check(self) -> None:
        named_columns(self.column)
        if self.algorithm == "gptq":
            if self.bits != _BITS[0]:
                raise BadInput(
                    "--algorithm gptq chooses levels of 4 bits, and 8 bits lose nothing that it could win",
                    "leave out one of the two",
                )
            if self.calib is None:
                raise BadInput("--algorithm gptq learns from data, and none was given", "add --calib FILE")
        elif given := [name for name in ("calib", "column", "samples", "seed") if name in self.changed()]:
            raise BadInput(f"--{given[0]} is for GPTQ", "add --algorithm gptq, or leave it out")
        if self.bits not in _BITS:
            raise BadInput(f"--bits {self.bits}: weights have 4 or 8 bits")
        if self.block_size & (self.block_size - 1):
            raise BadInput(f"--block-size {self.block_size} is no power of two", "write 16, 32, 64, 128 or 256")


def _run(source: Source, out: Path, options: QuantizeWeights, progress: Progress) -> Outcome:
    from optimizer.graph.io import MODEL_NAME
    from optimizer.hf import quiet_libraries
    from optimizer.quantizing.choose import choose_nodes
    from optimizer.quantizing.prepare import load_proto, load_result, prepare, save_proto
    from optimizer.quantizing.rounding import store_int8
    from optimizer.quantizing.weights import blocks_in, quantize_blocks, without_odd_tables

    assert isinstance(source, Artifact)
    refuse_quantized(source)
    refuse_unquantizable(source, taken=0)
    op_types = ("MatMul", "Gemm") if options.tables == "float" else ("MatMul", "Gemm", "Gather")
    data = None
    if options.calib is not None:
        progress("reading the data")
        data = calibration_rows(source, options, _ROWS)
    with tempfile.TemporaryDirectory(dir=out) as work, quiet_libraries():
        progress("preparing the graph")
        model = load_proto(prepare(source.model_file, Path(work)))
        choice = choose_nodes(model, op_types, include=options.include, exclude=options.exclude, dynamic=True)
        choice = without_odd_tables(model, choice)
        tables = {node.name for node in model.graph.node if node.op_type == "Gather"} & set(choice.chosen)
        if data is not None:
            save_proto(model, Path(work) / _FLOATS)
        progress(f"quantizing {len(choice.chosen)} nodes")
        target = Path(work) / MODEL_NAME
        made = quantize_blocks(
            model,
            choice,
            bits=options.bits,
            block_size=options.block_size,
            symmetric=options.symmetric,
            accuracy_level=options.accuracy_level,
            tables=options.tables == "int4",
        )
        save_proto(made, target)
        quantized = load_result(target)
        facts: dict[str, JSON] = {}
        if data is not None:
            facts = _learned(quantized, Path(work) / _FLOATS, data, progress)
        progress("writing the artifact")
        if options.tables == "int8":
            store_int8(quantized, tables)
        outcome = finished(source, quantized, choice, out, {"blocks": blocks_in(quantized), **facts})
    few = few_rows(data, options.calib.name) if data is not None and options.calib is not None else []
    return replace(outcome, warnings=[*outcome.warnings, *few])


def _learned(model: onnx_ir.Model, floats: Path, data: CalibrationSet, progress: Progress) -> dict[str, JSON]:
    """Choose levels by GPTQ; what it came to, and what it learned from."""
    from optimizer.quantizing.gptq import Original, refine

    def feeds() -> Iterator[dict[str, Any]]:
        return (batch.feeds for batch in data.batches(1))  # one by one: padding is nothing to learn from

    found = refine(model, Original(floats, feeds, len(data.rows)), progress)
    return {"gptq": found, "calibration": data.summary}


def _verify(options: QuantizeWeights, facts: Mapping[str, JSON], source: Source) -> None:
    from optimizer.quantizing.weights import check_blocks

    check_quantized("quantize-weights", facts, source)
    check_blocks(facts, options.bits, options.block_size)


def _variant(options: QuantizeWeights, source: Source) -> str:
    assert isinstance(source, Artifact)
    words = [f"int{options.bits}", "weights", *modifiers(source)]
    if options.algorithm != "rtn":
        words.append(options.algorithm)
    if options.block_size != 32:
        words.append(f"b{options.block_size}")
    if options.symmetric:
        words.append("sym")
    if options.accuracy_level != 4:
        words.append(f"level{options.accuracy_level}")
    if options.tables != "int8":
        words.append(f"{options.tables}-tables")
    return "-".join(words)


STAGE = Stage(
    name="quantize-weights",
    help="Store weights in 4 or 8 bits, by blocks with a scale each (MatMulNBits). Needs no data, but for GPTQ.",
    details="In 8 bits far more exact than other int8, as activations are rounded by blocks too; in 4 bits an eighth "
    "of the products' weights, and less exact. Faster than fp32 where reading weights is what takes time: short rows, "
    "one at a time. Refused when nothing was quantized or nothing shrank.",
    options=QuantizeWeights,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("onnxruntime", "onnxruntime-gpu", "onnx", "tokenizers"),
    modules=("onnxruntime", "onnx", "onnx_ir"),
    contents=(rows_content(_ROWS),),
    command=("quantize", "weights"),
)
