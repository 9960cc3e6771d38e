"""Taking an ``.onnx`` file as it is: bring-your-own models, whatever they were made with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import SourceModel
from optimizer.data.golden import Golden, is_batch, is_sequence
from optimizer.errors import BadInput, GateFailed, MlOptError
from optimizer.graph.facts import tensor_specs
from optimizer.graph.io import load, save
from optimizer.stage import Outcome, Progress
from optimizer.types import JSON, Precision, TensorSpec

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["import_file"]

#: Two graphs that differ only in the spelling of their operators differ by less than this.
_UPGRADE_TOLERANCE = 1e-4
_GOLDEN_ROWS, _GOLDEN_STEPS, _GOLDEN_SEED = 2, 16, 0


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
        BadInput: the opset is below the file's, or the file cannot be converted.
        GateFailed: the converted file answers differently.
    """
    progress("reading the file")
    original = load(source.path)
    before = int(original.opset_imports.get("", 0))
    specs = tensor_specs([v for v in original.graph.inputs if v.name not in original.graph.initializers])
    limits = _limits(original)
    model = original
    if opset is not None and opset != before:
        progress(f"converting opset {before} to {opset}")
        model = _converted(source.path, original, before, opset)
    facts: dict[str, JSON] = {}
    if opset is not None and before != opset:
        facts["converted"] = {"from": before, "to": opset}
    if dtype is not Precision.FP32:
        from optimizer.graph.cast import cast_model

        progress(f"casting to {dtype}")
        model, facts["cast"] = cast_model(model, dtype)
    progress("writing the artifact")
    written = save(model, out)
    warnings: list[str] = []
    golden = None
    try:
        golden = _golden(source.path, specs, limits)
    except MlOptError as error:
        warnings.append(f"no golden inputs could be made up: {error.message}")
    if golden is not None:
        golden.save(out)
        if model is not original and dtype is Precision.FP32:
            _same_answers(written, golden, opset)
    info: dict[str, JSON] = {
        "task": task or "generic",
        "modality": "tensor",
        "architecture": original.producer_name or "onnx",
        "class": "",
        "model_type": "onnx",
        "min_length": 1 if any(is_sequence(d) for s in specs for d in s.shape) else None,
        "max_length": max_length,
        "max_batch": max_batch or _fixed_batch(specs),
        "pooling": "",
        "labels": [],
        "trust_remote_code": False,
        "limits": {name: list(limit) for name, limit in limits.items()},
        "source": source.to_json(),
        "inputs": [spec.to_json() for spec in specs],
        "outputs": [spec.to_json() for spec in tensor_specs(model.graph.outputs)],
    }
    return Outcome(facts, info, warnings)


def _limits(model: onnx_ir.Model) -> dict[str, tuple[float, float]]:
    from optimizer.graph.ranges import integer_limits

    return integer_limits(model)


def _fixed_batch(specs: tuple[TensorSpec, ...]) -> int | None:
    """The batch of a file whose first dimensions are fixed numbers."""
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    if firsts and all(isinstance(f, int) for f in firsts):
        return int(max(f for f in firsts if isinstance(f, int)))
    return None


def _converted(path: Path, model: onnx_ir.Model, before: int, opset: int) -> onnx_ir.Model:
    """The same graph in a newer opset, by ONNX's version converter."""
    import onnx
    import onnx_ir

    if opset < before:
        raise BadInput(
            f"--opset {opset} is below the file's own {before}; only upgrades keep every answer",
            "leave --opset out to keep the file as it is",
        )
    try:
        converted = onnx.version_converter.convert_version(onnx.load(str(path)), opset)
    except Exception as error:  # the converter's C++ raises plain RuntimeError and ConvertError
        raise BadInput(
            f"ONNX's version converter cannot bring {path.name} from opset {before} to {opset}: "
            f"{str(error).strip().splitlines()[0]}",
            "leave --opset out to keep the file as it is",
        ) from error
    found = onnx_ir.from_proto(converted)
    if found.opset_imports.get("") != opset:
        raise GateFailed(f"opset {opset} was asked for, and the converter made {found.opset_imports.get('')}")
    return found


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Plain execution: the reference must not owe its answers to an optimization.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadInput(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error


def _golden(path: Path, specs: tuple[TensorSpec, ...], limits: dict[str, tuple[float, float]]) -> Golden:
    """Made-up inputs in the ranges that the graph allows, and the original file's answers to them."""
    from optimizer.data.synthetic import synthetic_feeds
    from optimizer.environment import has_module

    if not has_module("onnxruntime"):
        raise BadInput("onnxruntime is not installed")
    feeds: dict[str, NDArray[Any]] = synthetic_feeds(specs, _GOLDEN_ROWS, _GOLDEN_STEPS, _GOLDEN_SEED, limits)
    session = _session(path)
    names = [output.name for output in session.get_outputs()]
    try:
        answers = session.run(names, feeds)
    except Exception as error:
        raise BadInput(f"the model does not take them: {str(error).splitlines()[0]}") from error
    kept = {name: a for name, a in zip(names, answers, strict=True) if hasattr(a, "dtype") and a.dtype.kind in "biuf"}
    return Golden(feeds, kept)


def _same_answers(path: Path, golden: Golden, opset: int | None) -> None:
    """Hold a converted graph to the original's answers."""
    import numpy as np

    names = list(golden.outputs)
    answers = _session(path).run(names, golden.inputs)
    for name, got in zip(names, answers, strict=True):
        want = golden.outputs[name].astype(np.float64)
        gap = float(np.abs(want - got).max(initial=0.0))
        if got.shape != want.shape or not gap <= _UPGRADE_TOLERANCE * max(1.0, float(np.abs(want).max(initial=0.0))):
            raise GateFailed(
                f"converted to opset {opset}, output {name!r} differs by {gap:.2e}",
                "leave --opset out to keep the file as it is",
            )
