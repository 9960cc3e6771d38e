"""build-ep-context: a graph as ONNX Runtime's TensorRT or TensorRT-RTX provider compiles it, kept as an ONNX file.

The file holds the compiled graph in EPContext nodes and is opened by ONNX Runtime like any other, but without minutes
of compiling, and on the GPU and the versions that it was compiled for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Artifact, Source, variant_words
from optimizer.errors import GateFailed
from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Redirected, Stage
from optimizer.types import JSON, Kind, Precision, TensorSpec

if TYPE_CHECKING:
    from optimizer.engines.profiles import Profile
    from optimizer.store import Store

__all__ = ["STAGE", "BuildEpContext"]

#: The operator that holds a compiled graph, in the words of the facts of a file.
_CONTEXT = "com.microsoft.EPContext"
#: Distributions of TensorRT and of the plugin.
_LIBRARIES = (
    "tensorrt",
    "tensorrt-cu13-libs",
    "tensorrt-cu12-libs",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
)


class BuildEpContext(Options):
    """Options of build-ep-context."""

    provider: str = opt("tensorrt", "The provider that compiles, and will run it.", choices=("tensorrt", "rtx"))
    precision: Precision | None = opt(
        None, "What it computes in; fp16 and bf16 are cast first, int8 must be in REF [what REF is in]."
    )
    profile: str = opt(
        "", "Shapes it takes, smallest:best:largest of one input or of every dimension [1 to 32 rows of any length].",
        metavar="INPUT:MIN:BEST:MAX",
    )  # fmt: skip
    tf32: bool = opt(True, "Products in fp32 may round their factors to 10 bits, on tensor cores.")
    embed: bool = opt(True, "The compiled graph is in the ONNX file itself, which may have 2 GiB; else beside it.")


def _redirect(source: Artifact, options: BuildEpContext, store: Store) -> Redirected:
    """From a graph that was fused for ONNX Runtime's own kernels to the export it was made of."""
    from optimizer.engines.prepare import from_export

    return from_export(source, options, store)


def _run(source: Source, out: Path, options: BuildEpContext, progress: Progress) -> Outcome:
    from optimizer.engines.flavors import built_on
    from optimizer.engines.prepare import precision_asked, prepared
    from optimizer.environment import gpu_facts
    from optimizer.graph.io import MODEL_NAME
    from optimizer.runtime import Provider, SessionOptions, get_runtime

    assert isinstance(source, Artifact)
    provider = Provider(options.provider)
    runtime = get_runtime(provider)
    assert runtime.compile is not None
    precision = precision_asked(options.precision, source)
    profile = _profile(source, options)
    with tempfile.TemporaryDirectory(prefix="ml-opt-context-") as folder:
        ready = prepared(source, precision, Path(folder), progress)
        progress(f"{options.provider} compiles the graph")
        started = time.perf_counter()
        asked = SessionOptions(provider, tf32=options.tf32)
        versions = runtime.compile(ready.path, out / MODEL_NAME, asked, profile, embed=options.embed)
        seconds = time.perf_counter() - started
    if not (out / MODEL_NAME).is_file():
        raise GateFailed(
            f"{options.provider} compiled {source.ref} and wrote no file",
            "it writes one only of a graph that it takes as a whole: ml-opt build-trt-engine needs no ONNX Runtime",
        )
    _check_signature(source, out / MODEL_NAME)
    facts: dict[str, JSON] = {
        "inputs": [spec.to_json() for spec in source.manifest.inputs],
        "outputs": [spec.to_json() for spec in source.manifest.outputs],
        **ready.facts,
        "engine": {
            "via": "ort",
            "provider": options.provider,
            "precision": precision.value,
            "profiles": [profile.to_json()] if profile else [],
            "tf32": options.tf32,
            "versions": versions,
            "build_seconds": round(seconds, 3),
            **built_on(),
            "compute_capabilities": [gpu["compute_capability"] for gpu in gpu_facts()[:1]],
        },
    }
    return Outcome(facts=facts, model={**source.manifest.model, "prefers": options.provider})


def _profile(source: Artifact, options: BuildEpContext) -> Profile | None:
    """The shapes to compile for: what was asked, or the usual ones."""
    from optimizer.engines.profiles import check_limits, parse, usual

    specs: tuple[TensorSpec, ...] = source.manifest.inputs
    found = parse(options.profile, specs) if options.profile else usual(specs, source.model_info)
    if found is not None:
        check_limits(found, specs, source.model_info)
    return found


def _check_signature(source: Artifact, path: Path) -> None:
    """Refuse a file that is fed or answers with other tensors than the source."""
    from optimizer.graph.facts import fed_inputs, tensor_specs
    from optimizer.graph.io import load

    model = load(path)
    for what, told, found in (
        ("inputs", source.manifest.inputs, tensor_specs(fed_inputs(model))),
        ("outputs", source.manifest.outputs, tensor_specs(model.graph.outputs)),
    ):
        wanted, got = (sorted((spec.name, spec.dtype) for spec in specs) for specs in (told, found))
        if wanted != got:
            raise GateFailed(f"the compiled graph has other {what} than {source.ref}: {got} for {wanted}")


def _verify(options: BuildEpContext, facts: Mapping[str, JSON], source: Source) -> None:
    """Hold the file to what it is for: its products are in the compiled graph, and nowhere else."""
    from optimizer.graph.facts import ATTENTION_OPS, WEIGHTED_OPS

    ops: Mapping[str, int] = facts["ops"]
    left = {op: n for op, n in ops.items() if op.rpartition(".")[2] in (*WEIGHTED_OPS, *ATTENTION_OPS)}
    if ops.get(_CONTEXT) and not left:
        return
    said = ", ".join(f"{op} ({n})" for op, n in list(left.items())[:4])
    raise GateFailed(
        f"{options.provider} compiled {'a part of' if ops.get(_CONTEXT) else 'nothing of'} the graph"
        + (f", and left {said}" if said else ""),
        "the provider cuda takes every node; `ml-opt inspect` lists operators",
    )


def _variant(options: BuildEpContext, source: Source) -> str:
    from optimizer.engines.prepare import precision_asked

    assert isinstance(source, Artifact)
    precision = precision_asked(options.precision, source).value
    return "-".join([precision, *variant_words(source)[1], options.provider, "ctx"])


def _device_bound(options: Any) -> bool:
    """A compiled graph is for the GPU that it was compiled on, and its driver."""
    return True


STAGE = Stage(
    name="build-ep-context",
    help="Let ONNX Runtime's TensorRT or TensorRT-RTX provider compile a graph, and keep that as an ONNX file.",
    details="The artifact opens without compiling, takes the shapes of --profile and no others, and belongs to this "
    "GPU and these versions. Precision comes from the graph, as with build-trt-engine, whose engines need no ONNX "
    "Runtime.",
    options=BuildEpContext,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("onnxruntime", "onnxruntime-gpu", *_LIBRARIES, "onnx-ir"),
    modules=("onnx_ir", "onnxruntime"),
    device_bound=_device_bound,
    redirect=_redirect,
)
