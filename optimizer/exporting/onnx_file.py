"""Taking an ``.onnx`` file as it is: bring-your-own models, whatever they were made with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import SourceModel
from optimizer.errors import BadInput, GateFailed
from optimizer.exporting.probe import Probe, probe, same_answers
from optimizer.graph.facts import fed_inputs, tensor_specs
from optimizer.graph.io import load, save, weight_bytes
from optimizer.graph.ranges import integer_limits
from optimizer.stage import Outcome, Progress
from optimizer.types import JSON, Precision, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["import_file"]

#: ONNX's version converter takes the model as one protobuf message.
_CONVERTER_LIMIT = 2**31 - 1


def import_file(
    source: SourceModel,
    out: Path,
    *,
    opset: int | None,
    task: str | None,
    max_length: int | None,
    max_batch: int | None,
    dtype: Precision,
    progress: Progress,
) -> Outcome:
    """Bring an ONNX file into an artifact.

    The graph is kept as it is; its weights move into one file, or into ``model.onnx.data`` beyond 2 GB. With ``opset``
    it is converted upwards by ONNX's own version converter, and must answer as before. Golden inputs are made up from
    the signature and the tables that inputs index; golden answers are the original file's own, on ONNX Runtime.

    Raises:
        BadInput: ONNX Runtime cannot load the file, it takes or gives something else than tensors of numbers, the
            opset is below its own, it cannot be converted, or nothing can be found to check the conversion with.
        GateFailed: the converted file answers differently.
    """
    progress("reading the file")
    original = load(source.path)
    specs = _numbers(tensor_specs(fed_inputs(original)), source.path, "input")
    outputs = _numbers(tensor_specs(original.graph.outputs), source.path, "output")
    _refuse_fixed(specs, max_length, max_batch)
    limits = integer_limits(original)
    before = _opset(original)
    model = original
    facts: dict[str, JSON] = {}
    if opset is not None and opset != before:
        progress(f"converting opset {before} to {opset}")
        model = _converted(source.path, original, before, opset)
        facts["converted"] = {"from": before, "to": opset}
    progress("asking the file for its golden answers")
    found = probe(source.path, specs, integer_limits(original, sensible=True), max_length)
    if facts and (found.golden is None or not found.repeats):
        raise BadInput(
            f"the conversion of {source.path.name} to opset {opset} cannot be checked: {'; '.join(found.warnings)}",
            "leave --opset out to keep the file as it is",
        )
    if dtype is not Precision.FP32:
        from optimizer.graph.cast import cast_model

        progress(f"casting to {dtype}")
        model, facts["cast"] = cast_model(model, dtype)
    progress("writing the artifact")
    written = save(model, out)
    if found.golden is not None:
        found.golden.save(out)
        if opset is not None and "converted" in facts and dtype is Precision.FP32:
            same_answers(written, found.golden, opset)
    return Outcome(facts, _info(source, original, specs, outputs, limits, found, task, max_length, max_batch),
                   list(found.warnings))  # fmt: skip


def _info(
    source: SourceModel,
    model: onnx_ir.Model,
    specs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    limits: dict[str, tuple[float, float]],
    found: Probe,
    task: str | None,
    max_length: int | None,
    max_batch: int | None,
) -> dict[str, JSON]:
    """What the manifest says the model is."""
    fixed = _fixed_batch(specs)
    return {
        "task": task or "generic",
        "modality": "tensor",
        "architecture": model.producer_name or "onnx",
        "class": "",
        "model_type": "onnx",
        "min_length": found.min_length,
        "max_length": max_length or found.max_length,
        "max_batch": max_batch or (fixed if fixed is not None else found.max_batch),
        "pooling": "",
        "labels": [],
        "trust_remote_code": False,
        "limits": {name: list(limit) for name, limit in limits.items()},
        "source": source.to_json(),
        "inputs": [spec.to_json() for spec in specs],
        "outputs": [spec.to_json() for spec in outputs],
    }


def _opset(model: onnx_ir.Model) -> int:
    """The standard operators' opset; 0 when the model uses none of them."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))


def _numbers(specs: tuple[TensorSpec, ...], path: Path, what: str) -> tuple[TensorSpec, ...]:
    """The same specs, if all of them are tensors of plain numbers: no runtime here takes anything else."""
    import numpy as np

    for spec in specs:
        try:
            plain = np.dtype(spec.dtype).kind in "biuf"
        except TypeError:
            plain = False
        if not plain:
            raise BadInput(
                f"{path}: {what} {spec.name!r} is {spec.dtype}; only tensors of plain numbers can be used here",
                "cut the graph before it (onnx.utils.extract_model), and bring what is left",
            )
    if not specs:
        raise BadInput(f"{path} has no {what}s", "a model here is fed arrays, and answers with arrays")
    return specs


def _fixed_batch(specs: tuple[TensorSpec, ...]) -> int | None:
    """The batch of a file whose inputs all begin with the same fixed number."""
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    only = firsts.pop() if len(firsts) == 1 else None
    return only if isinstance(only, int) else None


def _refuse_fixed(specs: tuple[TensorSpec, ...], max_length: int | None, max_batch: int | None) -> None:
    """Refuse limits for what the file has fixed."""
    if max_length is not None and all(isinstance(dim, int) for spec in specs for dim in spec.shape[1:]):
        raise BadInput("--max-length is for models with a sequence; every dimension of this file is fixed")
    fixed = _fixed_batch(specs)
    if max_batch is not None and fixed is not None and max_batch != fixed:
        raise BadInput(f"--max-batch {max_batch} cannot be: the file takes batches of {fixed} only")


def _converted(path: Path, model: onnx_ir.Model, before: int, opset: int) -> onnx_ir.Model:
    """The same graph in a newer opset, by ONNX's version converter."""
    import onnx
    import onnx_ir

    keep = "leave --opset out to keep the file as it is"
    if opset < before:
        raise BadInput(f"--opset {opset} is below the file's own {before}; only upgrades keep every answer", keep)
    if weight_bytes(model) > _CONVERTER_LIMIT:
        raise BadInput(f"{path.name} has more than 2 GB of weights, which ONNX's version converter does not take", keep)
    try:
        converted = onnx.version_converter.convert_version(onnx.load(str(path)), opset)
    except Exception as error:  # the converter's C++ raises plain RuntimeError and ConvertError
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"ONNX's version converter cannot bring {path.name} from opset {before} to {opset}: {reason[0]}", keep
        ) from error
    converted.ir_version = max(converted.ir_version, onnx.helper.find_min_ir_version_for(converted.opset_import, True))
    found = onnx_ir.from_proto(converted)
    if _opset(found) != opset:
        raise GateFailed(f"opset {opset} was asked for, and the converter made {_opset(found)}")
    return found
