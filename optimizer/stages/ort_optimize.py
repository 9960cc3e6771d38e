"""ort-optimize: constants folded, shapes inferred, and the operators fused that ONNX Runtime has kernels for.

A float graph is fused as a whole; in one that computes in int8, products take their biases in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact, Source
from optimizer.errors import BadInput, GateFailed
from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["STAGE", "OrtOptimize"]


class OrtOptimize(Options):
    """Options of ort-optimize."""

    target: str = opt("cpu", "Where it will run; decides which fusions pay.", choices=("cpu", "cuda"))
    allow_unfused: bool = opt(False, "Accept a model in which what is to be fused matches nothing.")


def _run(source: Source, out: Path, options: OrtOptimize, progress: Progress) -> Outcome:
    from optimizer.graph.facts import graph_facts
    from optimizer.graph.fuse import attention_like, fuse_for_onnxruntime
    from optimizer.graph.io import load, save
    from optimizer.hf import quiet_libraries

    assert isinstance(source, Artifact)
    model = load(source.model_file)
    before = graph_facts(model)
    spelled_out = attention_like(model)
    if before["quantized"]["total"]:
        counts = _fuse_int8(model, source, options)
    else:
        progress("folding constants and fusing operators")
        with quiet_libraries():
            counts = fuse_for_onnxruntime(model, pack_attention=options.target == "cuda")
    left = attention_like(model)
    progress("writing the artifact")
    path = save(model, out)
    if options.target == "cpu":
        _check_opens(path, source.model_file)
    facts = {"fused": counts, "attention_found": spelled_out, "attention_left": left, "nodes_before": before["nodes"]}
    warnings = [f"{left} of {spelled_out} attentions matched no fusion"] if 0 < left < spelled_out else []
    return Outcome(facts=facts, warnings=warnings)


def _fuse_int8(model: onnx_ir.Model, source: Artifact, options: OrtOptimize) -> dict[str, int]:
    from optimizer.graph.fuse_int8 import fuse_int8_biases

    if options.target != "cpu":
        raise BadInput(
            f"{source.ref} is quantized, and for a GPU only float graphs are fused",
            "fuse the float artifact, and cast the result to fp16, which is faster there than int8",
        )
    count = fuse_int8_biases(model)
    if not count and not options.allow_unfused:
        raise BadInput(
            f"{source.ref} is quantized, and has no int8 product between Q/DQ nodes with a bias behind it",
            "attention and normalization are fused in float graphs: optimize the float artifact",
        )
    return {"int8_bias": count} if count else {}


def _check_opens(path: Path, source: Path) -> None:
    """Refuse a fused graph that the CPU provider has no kernels for, where it had them before (bf16 never had)."""
    from optimizer.errors import MlOptError
    from optimizer.runtime import Candidate, Provider

    try:
        Candidate(path.name, path, Provider("cpu")).open().close()
    except MlOptError as error:
        try:
            Candidate(source.name, source, Provider("cpu")).open().close()
        except MlOptError:
            return
        raise GateFailed(f"the fused graph does not run on ONNX Runtime: {error.message}") from error


def _verify(options: OrtOptimize, facts: Mapping[str, JSON], source: Source) -> None:
    found, fused = facts["attention_found"], facts["attention"]
    if facts["quantized"]["total"]:  # attention is looked for in float graphs
        return
    if found and not fused and not options.allow_unfused:
        raise GateFailed(
            f"the model has {found} attentions and none of them matched a fusion",
            "add --allow-unfused to keep what was optimized; the answers are right either way",
        )


def _variant(options: OrtOptimize, source: Source) -> str:
    assert isinstance(source, Artifact)
    return f"{source.variant}-ort" + ("" if options.target == "cpu" else f"-{options.target}")


STAGE = Stage(
    name="ort-optimize",
    help="Optimize a graph for ONNX Runtime: fold constants, infer shapes, fuse attention, and biases of int8.",
    details="The result has operators of ONNX Runtime's own and runs there, and on OpenVINO, only; build "
    "TensorRT engines from the export. A model that spells out attention and matches no attention fusion is refused. "
    "For a GPU normalization and GELU are fused too; on a processor they are faster apart. In a graph that "
    "quantize-static or quantize-qat made, int8 products take their biases in: the same answers, some 5 % sooner.",
    options=OrtOptimize,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=2,
    needs=("onnxscript", "onnx-ir"),
    modules=("onnx_ir", "onnxscript"),
)
