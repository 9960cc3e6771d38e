"""cast: a float graph's weights and arithmetic to fp16 or bf16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.artifact import Artifact, Source, variant_words
from optimizer.errors import GateFailed
from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import JSON, Kind, Precision

__all__ = ["STAGE", "Cast"]

#: What a graph's read-back calls the two formats, and bytes a number.
_STORED_AS = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}

_WARNINGS = {
    Precision.FP16: "ONNX Runtime's CPU provider computes fp16 in fp32, behind casts: half the file, no faster",
    Precision.BF16: "ONNX Runtime's CPU provider has no bf16 kernels: run it with openvino:bf16, "
    "openvino-native:bf16 or cuda",
}


class Cast(Options):
    """Options of cast."""

    to: Precision = opt(help="Number format of weights and arithmetic.", choices=("fp16", "bf16"))
    keep: tuple[str, ...] = opt((), "Nodes left in fp32, by name or by operator type (glob patterns).", metavar="NODE")


def _run(source: Source, out: Path, options: Cast, progress: Progress) -> Outcome:
    from optimizer.graph.cast import cast_model, match_nodes
    from optimizer.graph.io import load, save

    assert isinstance(source, Artifact)
    model = load(source.model_file)
    keep_nodes = match_nodes(model, options.keep)
    progress(f"casting to {options.to}")
    model, report = cast_model(model, options.to, keep_nodes=keep_nodes)
    progress("writing the artifact")
    path = save(model, out)
    progress("checking the graph")
    _check_valid(path, source.model_file)
    info = dict(source.manifest.model)
    if options.to is Precision.BF16:
        info["prefers"] = "openvino:bf16"
    facts: dict[str, JSON] = {"cast": {**report, "kept_as_asked": sorted(keep_nodes)}}
    return Outcome(facts=facts, model=info, warnings=[_WARNINGS[options.to]])


def _check_valid(path: Path, original: Path) -> None:
    """Run ONNX's checker: with strict type inference, unless the original did not pass that either.

    Strict inference knows the standard operators only, and stumbles over others.
    """
    import onnx

    def problem(file: Path, *, strict: bool) -> str:
        try:
            onnx.checker.check_model(str(file), full_check=strict)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return str(error).strip().splitlines()[0]
        return ""

    found = problem(path, strict=True)
    if found and problem(original, strict=True):
        found = problem(path, strict=False)
    if found:
        raise GateFailed(f"the cast graph is not valid ONNX: {found}")


def _verify(options: Cast, facts: Mapping[str, JSON], source: Source) -> None:
    assert isinstance(source, Artifact)
    before = source.manifest.facts
    weights: Mapping[str, int] = facts["weights"]
    low, full = weights.get(_STORED_AS[options.to], 0), weights.get("float32", 0)
    if low // 2 <= full // 4:
        kept = facts["cast"]["kept"]
        raise GateFailed(
            f"{options.to} was asked for, and most weights are still fp32 ({full:,} bytes, {low:,} in {options.to})",
            f"out of range and kept: {', '.join(kept[:5])}" if kept else "keep fewer nodes in fp32 (--keep)",
        )
    stored, was = sum(weights.values()), sum(before["weights"].values())
    if stored >= was:
        raise GateFailed(f"the weights did not shrink: {was:,} bytes before, {stored:,} after")
    for side in ("inputs", "outputs"):
        asked, got = ([(spec["name"], spec["dtype"]) for spec in each[side]] for each in (before, facts))
        if asked != got:
            raise GateFailed(f"the {side} were {asked}, and the cast graph has {got}")


def _variant(options: Cast, source: Source) -> str:
    precision, modifiers = variant_words(source)
    if precision not in list(Precision):  # a name that somebody chose: kept whole
        modifiers.insert(0, precision)
    return "-".join([options.to.value, *modifiers, *(["mixed"] if options.keep else [])])


STAGE = Stage(
    name="cast",
    help="Cast a float graph to fp16 or bf16, keeping in fp32 what 16 bits cannot hold.",
    details="Inputs and outputs stay float32. Weights out of range, squares and their means, positions and other "
    "numbers made of integers stay in fp32 and are counted; mask fills become finite numbers of the new format. fp16 "
    "pays on GPUs, bf16 also on processors with AMX or AVX512-BF16, through OpenVINO.",
    options=Cast,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("onnx-ir", "onnx"),
    modules=("onnx_ir", "onnx"),
)
