"""export-onnx: a Hugging Face model, or an ``.onnx`` file as it is, into the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Source, SourceModel
from optimizer.errors import BadInput, GateFailed
from optimizer.exporting.options import allow_pickle_opt, revision_opt, task_opt, trust_remote_code_opt
from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.task import get_task
from optimizer.types import JSON, Kind, Precision

if TYPE_CHECKING:
    import onnx_ir


__all__ = ["STAGE", "ExportOnnx"]

#: What every part of the chain takes: quantizers, fusions and TensorRT alike (attention is one operator from 23 on,
#: which quantizers break and TensorRT refuses).
_DEFAULT_OPSET = 20


class ExportOnnx(Options):
    """Options of export-onnx."""

    task: str | None = task_opt()
    opset: int | None = opt(
        None, f"ONNX opset to target [{_DEFAULT_OPSET}; an .onnx file keeps its own].", ge=17, le=24
    )
    dtype: Precision = opt(Precision.FP32, "Number format of the weights.")
    revision: str | None = revision_opt()
    trust_remote_code: bool = trust_remote_code_opt()
    allow_pickle: bool = allow_pickle_opt()
    max_length: int | None = opt(None, "Most tokens (or audio samples) a row will have [what the model allows].", ge=8)
    max_batch: int | None = opt(None, "Most rows a batch will have; recorded for engines and servers.", ge=1)

    def check(self) -> None:
        if self.dtype in (Precision.INT8, Precision.INT4):
            how = "dynamic" if self.dtype is Precision.INT8 else "weights"
            raise BadInput(
                f"--dtype {self.dtype} is a quantization", f"export in fp32, then run: ml-opt quantize {how} REF"
            )


def _run(source: Source, out: Path, options: ExportOnnx, progress: Progress) -> Outcome:
    if not isinstance(source, SourceModel):
        raise TypeError("export-onnx starts from a model")
    if source.type == "file":
        from optimizer.exporting.onnx_file import import_file

        for name in ("revision", "trust_remote_code", "allow_pickle"):
            if getattr(options, name):
                raise BadInput(f"--{name.replace('_', '-')} is for model folders; {source.spec} is an .onnx file")
        if options.task is not None:
            get_task(options.task)
        return import_file(
            source,
            out,
            opset=options.opset,
            task=options.task,
            max_length=options.max_length,
            max_batch=options.max_batch,
            dtype=options.dtype,
            progress=progress,
        )
    return _export_folder(source, out, options, progress)


def _export_folder(source: SourceModel, out: Path, options: ExportOnnx, progress: Progress) -> Outcome:
    from optimizer.exporting.companions import write_companions, write_golden
    from optimizer.exporting.samples import make_sample
    from optimizer.exporting.transformers_exporter import export
    from optimizer.graph.facts import tensor_specs
    from optimizer.graph.io import save
    from optimizer.graph.ranges import integer_limits
    from optimizer.hf import infer_task, load_model, read_config

    raw = read_config(source.path)
    task = options.task or infer_task(raw)
    if task == "text-generation":
        raise BadInput(
            "--task text-generation: export-onnx is for encoders and classifiers", "ml-opt export-genai MODEL"
        )
    progress("loading the model")
    loaded = load_model(source.path, task, attention="eager", trust_remote_code=options.trust_remote_code)
    sample = make_sample(loaded, source.path, task, options.max_length)
    progress("asking PyTorch for the golden answers")
    outputs = write_golden(loaded, sample, out)
    progress(f"exporting {loaded.class_name} to ONNX")
    model = export(loaded, sample, options.opset or _DEFAULT_OPSET)
    facts: dict[str, JSON] = {}
    if options.dtype is not Precision.FP32:
        from optimizer.graph.cast import cast_model

        progress(f"casting to {options.dtype}")
        model, report = cast_model(model, options.dtype)
        facts["cast"] = report
    _check_outputs(model, outputs)
    progress("writing the artifact")
    save(model, out)
    info, warnings = write_companions(
        loaded, sample, source, out, task, max_batch=options.max_batch, trust_remote_code=options.trust_remote_code
    )
    info["limits"] = {name: list(limit) for name, limit in integer_limits(model).items()}
    info["inputs"] = [spec.to_json() for spec in tensor_specs(model.graph.inputs)]
    info["outputs"] = [spec.to_json() for spec in tensor_specs(model.graph.outputs)]
    return Outcome(facts, info, [*loaded.warnings, *sample.warnings, *warnings])


def _check_outputs(model: onnx_ir.Model, wanted: list[str]) -> None:
    got = [value.name for value in model.graph.outputs]
    if sorted(map(str, got)) != sorted(wanted):
        raise GateFailed(f"PyTorch answers {sorted(wanted)}, and the exported graph {sorted(map(str, got))}")


def _variant(options: ExportOnnx, source: Source) -> str:
    words = [options.dtype.value]
    kept = None if isinstance(source, SourceModel) and source.type == "file" else _DEFAULT_OPSET
    if options.opset not in (None, kept):
        words.append(f"opset{options.opset}")
    if options.max_length is not None:
        words.append(f"len{options.max_length}")
    return "-".join(words)


def _verify(options: ExportOnnx, facts: Mapping[str, JSON], source: Source) -> None:
    opset = facts["opset"].get("", facts["opset"].get("ai.onnx", 0))
    if options.opset is not None and opset != options.opset:
        raise GateFailed(f"opset {options.opset} was asked for, and the file has {opset}")


STAGE = Stage(
    name="export-onnx",
    help="Export a model to ONNX: a folder, a hub id, or an .onnx file as it is.",
    details="The task, the dynamic dimensions and the longest input are read from the model. A tokenizer or processor, "
    "labels, and golden inputs with PyTorch's own answers are kept beside the graph.",
    options=ExportOnnx,
    accepts=frozenset({Kind.SOURCE}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("torch", "transformers", "onnx-ir", "onnxscript"),
    modules=("onnx_ir",),
    aliases=("export",),
)
