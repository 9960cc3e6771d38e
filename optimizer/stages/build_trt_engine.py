"""build-trt-engine: an engine of TensorRT or TensorRT-RTX, verified to be what was asked for, and cached."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optimizer.artifact import ENGINE_NAME, Artifact, Source, variant_words
from optimizer.data.columns import column_opt, named_columns
from optimizer.engines.asked import Asked, capabilities_of, profiles_of, read_batch, read_bytes, specs_of
from optimizer.errors import BadInput, GateFailed
from optimizer.options import Options, opt
from optimizer.runtime import TENSORRT_NATIVE
from optimizer.stage import Outcome, Progress, Redirected, Stage
from optimizer.types import JSON, Kind, Precision

if TYPE_CHECKING:
    from optimizer.engines.flavors import Flavor
    from optimizer.engines.vendor import Built
    from optimizer.store import Store

__all__ = ["LAYERS_NAME", "LOG_NAME", "STAGE", "BuildTrtEngine"]

#: The layers of the network and of the engine, and the vendor's log, beside the engine.
LAYERS_NAME, LOG_NAME = "layers.json", "build.log"

_STORED_AS = {
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
    Precision.INT8: "int8",
    Precision.FP8: "float8e4m3fn",
    Precision.INT4: "int4",
}


class BuildTrtEngine(Options):
    """Options of build-trt-engine."""

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Shapes": ("profile", "profiles_from", "column", "batch"),
        "GPUs": ("compute_capability", "hardware_compatible", "version_compatible"),
        "Builder": ("workspace", "opt_level", "tf32", "strict_nans", "timing_cache"),
        "Weights": ("strip_weights", "refit", "weight_streaming"),
    }

    flavor: str = opt(
        "auto",
        "Whose builder: tensorrt builds on and for the GPU of this machine; rtx for RTX cards, without one; auto takes "
        "the first that is installed.",
        choices=("auto", "tensorrt", "rtx"),
    )
    via: str = opt(
        "builder",
        "Who builds: the builder itself; ort has ONNX Runtime's provider of that flavor do it, into an ONNX file that "
        "holds the engine (`ml-opt build-ep-context`).",
        choices=("builder", "ort"),
    )
    precision: Precision | None = opt(
        None, "What it computes in; fp16 and bf16 are cast first, the others must be in REF [what REF is in]."
    )
    profile: tuple[str, ...] = opt(
        (), "Shapes it takes, smallest:best:largest of one input or of every dimension; may be repeated.",
        metavar="INPUT:MIN:BEST:MAX",
    )  # fmt: skip
    profiles_from: Path | None = opt(
        None, "Data whose lengths choose one to three profiles.", data=True, metavar="FILE"
    )
    column: tuple[str, ...] = column_opt()
    batch: str = opt("", "Rows of profiles that are chosen for you [1:8:32].", metavar="MIN:BEST:MAX")
    compute_capability: tuple[str, ...] = opt(
        (), "GPUs to build for, such as 8.6 (rtx) [8.0 and everything newer].", metavar="X.Y"
    )
    workspace: str = opt("", "Scratch memory on the GPU at most, such as 2GiB [all of it].", metavar="SIZE")
    opt_level: int | None = opt(None, "How long the builder searches, 0 to 5 [the vendor's 3].", ge=0, le=5)
    tf32: bool = opt(True, "Let fp32 products round their factors to 10 bits (TF32), on tensor cores.")
    version_compatible: bool = opt(False, "Runs with later versions of the same major number.")
    hardware_compatible: bool = opt(False, "Runs on every GPU from Ampere on, a little slower (tensorrt).")
    strip_weights: bool = opt(False, "Leave the weights out; they are put back from the ONNX file when it is loaded.")
    refit: bool = opt(False, "Weights can be exchanged without building again.")
    weight_streaming: bool = opt(False, "Weights may stay in host memory, for models larger than the GPU's.")
    timing_cache: Path | None = opt(
        None, "Where timings of kernels are kept, a folder for each version and GPU [the user's cache folder].",
        key=False, metavar="DIR",
    )  # fmt: skip
    strict_nans: bool = opt(False, "NaN and infinity stay exact, at some cost.")
    rebuild: bool = opt(False, "REF is an engine: build it again for this machine, by its recorded recipe.", key=False)

    def check(self) -> None:
        if self.profile and self.profiles_from is not None:
            raise BadInput("--profile and --profiles-from both say the shapes", "leave one of them out")
        if named_columns(self.column) and self.profiles_from is None:
            raise BadInput("--column says what the columns of --profiles-from are, which is not given")
        if self.batch and self.profile:
            raise BadInput("--batch is for profiles that are chosen for you, and --profile says them")
        if self.strip_weights and self.refit:
            raise BadInput("--strip-weights and --refit are two ways to the same: stripped engines are refittable")
        read_batch(self.batch)
        read_bytes(self.workspace)
        for each in self.compute_capability:
            if not re.fullmatch(r"\d{1,2}\.\d", each):
                raise BadInput(f"--compute-capability {each!r}: write it with a point, such as 8.6")


def _redirect(source: Artifact, options: BuildTrtEngine, store: Store) -> Redirected:
    """From an engine to its recipe (``--rebuild``), from a fused graph to the export it was made of."""
    from optimizer.engines.prepare import from_export

    if source.kind is Kind.ENGINE:
        if not options.rebuild:
            raise BadInput(
                f"{source.ref} is an engine already",
                f"to build it again for this machine: ml-opt build-trt-engine {source.ref} --rebuild",
            )
        return Redirected(store.get(source.manifest.source["ref"]), _recorded(source))
    if options.via == "ort":
        return Redirected(source, _context_options(options), stage="build-ep-context")
    if options.rebuild:
        raise BadInput(f"--rebuild is for engines, and {source.ref} is {source.kind.phrase}", "leave it out")
    return from_export(source, options, store)


def _recorded(engine: Artifact) -> BuildTrtEngine:
    """The options that an engine was built with; its own profiles where the data is gone that they were chosen by."""
    from optimizer.engines.profiles import Profile

    values = {name: value for name, value in engine.manifest.options.items() if value is not None}
    if "profiles_from" in values and not Path(values["profiles_from"]).exists():
        for name in ("profiles_from", "column", "batch"):
            del values[name]
        profiles = engine.manifest.facts["engine"]["profiles"]
        values["profile"] = [str(Profile.from_json(each)) for each in profiles]
    return BuildTrtEngine.from_mapping(values, "the recorded recipe")


def _context_options(options: BuildTrtEngine) -> Any:
    """The same for ONNX Runtime's provider; what it has no word for is refused by name."""
    from optimizer.stage import get_stage

    told = {"flavor", "via", "precision", "profile", "tf32"}
    if left := sorted(name for name in options.changed() if name not in told):
        flags = ", ".join("--" + name.replace("_", "-") for name in left)
        raise BadInput(f"ONNX Runtime's provider is not told {flags}", "leave it out, or leave --via ort out")
    if len(options.profile) > 1:
        raise BadInput("ONNX Runtime's provider takes one profile", "write one, or leave --via ort out")
    provider = "rtx" if options.flavor == "rtx" else "tensorrt"
    values: dict[str, Any] = {"provider": provider, "profile": "".join(options.profile), "tf32": options.tf32}
    if options.precision is not None:
        values["precision"] = options.precision
    return get_stage("build-ep-context").options(**values)


def _run(source: Source, out: Path, options: BuildTrtEngine, progress: Progress) -> Outcome:
    from optimizer.engines.flavors import built_on, choose
    from optimizer.engines.layers import summary
    from optimizer.engines.prepare import precision_asked, prepared
    from optimizer.engines.timing import TimingCache
    from optimizer.engines.vendor import load

    assert isinstance(source, Artifact)
    flavor = choose(options.flavor)
    precision = precision_asked(options.precision, source)
    capabilities = capabilities_of(flavor, precision, options.compute_capability, options.hardware_compatible)
    progress(f"loading {flavor.title}")
    vendor = load(flavor)
    with tempfile.TemporaryDirectory(prefix="ml-opt-engine-") as folder:
        ready = prepared(source, precision, Path(folder), progress)
        progress(f"{flavor.title} reads the graph")
        network = vendor.parse(ready.path)
        shapes = options.profile, options.profiles_from, options.column, options.batch
        profiles, why = profiles_of(source, network.inputs, *shapes)
        timing = TimingCache.of(options.timing_cache, flavor, vendor.version)
        asked = Asked(
            profiles=tuple(profiles),
            values=frozenset(each.name for each in network.inputs if each.values),
            capabilities=tuple(options.compute_capability),
            workspace=read_bytes(options.workspace),
            level=options.opt_level,
            tf32=options.tf32,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            strip=options.strip_weights,
            refit=options.refit,
            stream=options.weight_streaming,
            strict_nans=options.strict_nans,
            timing_cache=timing.read() if timing else None,
        )
        built = vendor.build(network, asked, progress)
        before = network.layers()
    if timing and built.timing_cache:
        timing.write(built.timing_cache)
    progress("writing the engine")
    (out / ENGINE_NAME).write_bytes(built.plan)
    (out / LOG_NAME).write_text("\n".join(built.log) + "\n", encoding="utf-8")
    layers = {"network": [each.to_json() for each in before], "engine": [each.to_json() for each in built.layers]}
    (out / LAYERS_NAME).write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    facts: dict[str, JSON] = {
        "inputs": [each.to_json() for each in specs_of(network.inputs, source.manifest.inputs)],
        "outputs": [each.to_json() for each in specs_of(network.outputs, source.manifest.outputs)],
        **ready.facts,
        "engine": {
            "flavor": flavor.name,
            "version": vendor.version,
            "precision": precision.value,
            "compute_capabilities": list(capabilities),
            "profiles": [each.to_json() for each in profiles],
            "profiles_why": why,
            "memory": built.memory,
            "build_seconds": round(built.seconds, 3),
            **built_on(),
        },
        "network": summary(before),
        "layers": summary(built.layers),
    }
    info = {**source.manifest.model, "prefers": TENSORRT_NATIVE}
    return Outcome(facts=facts, model=info, warnings=_warnings(built, options, flavor))


def _warnings(built: Built, options: BuildTrtEngine, flavor: Flavor) -> list[str]:
    found = []
    if not built.layers:
        found.append(f"{flavor.title} did not list the engine's layers: its precision is known from the network alone")
    if options.strip_weights:
        found.append("this engine has no weights of its own: they come from the ONNX file that it was built from")
    return found


def _verify(options: BuildTrtEngine, facts: Mapping[str, JSON], source: Source) -> None:
    """Hold the engine to the precision that was asked for: by its own layers where they are known."""
    assert isinstance(source, Artifact)
    engine = facts["engine"]
    if facts["plan"]["written_by"] != engine["flavor"]:
        raise GateFailed(
            f"{engine['flavor']} was asked for, and the engine was written by {facts['plan']['written_by']}"
        )
    precision = Precision(engine["precision"])
    found = facts["layers"] if facts["layers"]["layers"] else facts["network"]  # a builder may not tell its layers
    name = _STORED_AS[precision]
    products: Mapping[str, int] = found["products"]
    total = sum(products.values())
    if precision is Precision.INT4:  # 4 bits are a form of weights: products take them in another format
        enough = name in found["weights"] or "dequantize" in found["types"]
    elif precision in (Precision.INT8, Precision.FP8):  # what was left in float on purpose stays so
        enough = products.get(name, 0) > 0 or (found is facts["network"] and "quantize" in found["types"])
    else:
        enough = products.get(name, 0) * 2 > total
    if total and not enough:
        got = ", ".join(f"{count} in {dtype}" for dtype, count in products.items())
        raise GateFailed(
            f"{precision} was asked for, and of the engine's {total} products are {got}",
            f"`ml-opt inspect {source.ref} --layers` says what the graph asks for",
        )


def _variant(options: BuildTrtEngine, source: Source) -> str:
    from optimizer.engines.flavors import choose
    from optimizer.engines.prepare import precision_asked

    assert isinstance(source, Artifact)
    words = [precision_asked(options.precision, source).value, *variant_words(source)[1]]
    return "-".join([*words, {"tensorrt": "trt"}.get(name := choose(options.flavor).name, name)])


def _device_bound(options: Any) -> bool:
    """TensorRT times kernels on the GPU it finds; TensorRT-RTX compiles for the GPU where it is loaded."""
    from optimizer.engines.flavors import FLAVORS

    return bool(options.flavor == "tensorrt" or (options.flavor == "auto" and FLAVORS["tensorrt"].installed))


STAGE = Stage(
    name="build-trt-engine",
    help="Build a TensorRT or TensorRT-RTX engine, read its precision back, and keep it with its recipe.",
    details="Precision comes from the graph: fp16 and bf16 are cast first, int8 wants symmetric static quantization, "
    "int4 symmetric blocks of weights. A graph that was fused for ONNX Runtime is exchanged for the export it was made "
    "of. --flavor rtx needs no GPU.",
    options=BuildTrtEngine,
    accepts=frozenset({Kind.ONNX, Kind.ENGINE}),
    produces=Kind.ENGINE,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "onnx-ir"),
    modules=("onnx_ir",),
    device_bound=_device_bound,
    aliases=("build-engine",),
    redirect=_redirect,
)
