"""quantize-qat: train a model for int8, and write the graph that answers like it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Artifact, Source
from optimizer.errors import GateFailed
from optimizer.options import Options
from optimizer.quantizing.promise import check_symmetric, float_weights, saturation
from optimizer.stage import Outcome, Progress, Stage
from optimizer.stages.train_qat import STAGE as TRAIN
from optimizer.stages.train_qat import TrainQat, words_of
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    import onnx_ir

    from optimizer.training.quantized import QuantizedModel

__all__ = ["STAGE", "QuantizeQat"]

#: What every part of the chain takes (see export-onnx).
_OPSET = 20
#: Share of rows whose decision must be the trained model's; the others have two classes within what a level is worth.
#: Differences of logits are told and bound to nothing: where a value lies within float error of the middle between two
#: levels, PyTorch and a kernel take different ones, and all that follows differs by what a level is worth. That hits
#: some rows of every model, by as much as its levels are coarse; no bound on the worst row parts it from an error.
_AGREEMENT = 0.995
#: … and the cosine of every row's answer, where there is no decision.
_COSINE = 0.98
#: A level of int8 activations to which kernels may round those of int4 weights; see quantize-weights.
_ACCURACY_LEVEL = 4


class QuantizeQat(TrainQat):
    """Options of quantize-qat: those of the training."""


def _first(options: QuantizeQat) -> tuple[str, Options]:
    """The training. What the graph is for decides its numbers and nothing else: one training serves every target."""
    given = {field.name: getattr(options, field.name) for field in TrainQat.fields()}
    scheme = options.name_of_scheme
    return TRAIN.name, TrainQat(**{**given, "scheme": None if scheme == "w8a8" else scheme, "target": "ort"})


def _run(source: Source, out: Path, options: QuantizeQat, progress: Progress) -> Outcome:
    from optimizer.exporting.samples import make_sample
    from optimizer.exporting.transformers_exporter import export
    from optimizer.graph.facts import tensor_specs
    from optimizer.graph.io import save
    from optimizer.graph.ranges import integer_limits
    from optimizer.hf import load_model, quiet_libraries
    from optimizer.quantizing.prepare import check_opens
    from optimizer.training.batchnorm import fold_batch_norms
    from optimizer.training.checkpoint import load_quantized

    assert isinstance(source, Artifact)
    about = source.manifest.model
    task = str(about["task"])
    progress("loading the trained model")
    loaded = load_model(
        source.path, task, class_name=str(about["class"]), attention="eager",
        trust_remote_code=bool(about["trust_remote_code"]),
    )  # fmt: skip
    sample = make_sample(loaded, source.path, task, None)
    inputs = sample.tensors
    fold_batch_norms(loaded.module, inputs)
    quantized = load_quantized(loaded.module, source.path, inputs)
    progress(f"exporting {loaded.class_name} to ONNX")
    with quantized.marking():
        model = export(loaded, sample, _OPSET)
    with tempfile.TemporaryDirectory(dir=out) as work, quiet_libraries():
        progress("writing what training learned into the graph")
        model, facts = _written(model, quantized, Path(work), for_tensorrt=options.target == "tensorrt")
        if quantized.scheme.activation_bits and options.target == "tensorrt":
            check_symmetric(model)
        facts["float_weights"] = float_weights(model)
        file = save(model, out)
    scheme = quantized.scheme
    warnings = saturation(scheme.reduce_range) if scheme.activation_bits else []
    session = check_opens(file, exact=bool(warnings))
    progress("comparing the graph with the trained model")
    facts["parity"] = _compared(source, session)
    if wrong := _wrong(facts["parity"]):
        raise GateFailed(wrong)
    if warnings:
        here = facts["parity_saturated"] = _compared(source, check_opens(file))
        if wrong := _wrong(here):
            warnings = [
                f"this processor has no VNNI, and int8 sums saturate on it: here {wrong}; for this processor, train "
                "with --reduce-range"
            ]
    facts["training"] = source.manifest.facts["training"]
    info = {
        **about,
        "limits": {name: list(limit) for name, limit in integer_limits(model).items()},
        "inputs": [spec.to_json() for spec in tensor_specs(model.graph.inputs)],
        "outputs": [spec.to_json() for spec in tensor_specs(model.graph.outputs)],
    }
    return Outcome(facts, info, [*source.manifest.warnings, *warnings])


def _written(
    model: onnx_ir.Model, quantized: QuantizedModel, work: Path, *, for_tensorrt: bool
) -> tuple[onnx_ir.Model, dict[str, JSON]]:
    """The exported graph in its quantized form, and what was counted."""
    from optimizer.quantizing.marked import write_quantized, write_rounded, write_tables
    from optimizer.training.checkpoint import ranges_of, rounded_of, weights_of

    weights = weights_of(quantized)
    if not for_tensorrt:
        # A table whose rows are signed ONNX Runtime brings back whole, in every run.
        weights |= {name: weights[name].unsigned() for name in quantized.tables}
    if quantized.scheme.weight_bits == 8:
        ranges = ranges_of(quantized)
        if not for_tensorrt:
            # ONNX Runtime multiplies unsigned activations: signed ones it leaves in float.
            ranges = {number: found.unsigned() for number, found in ranges.items()}
        write_quantized(model, ranges, weights, round_bias=not for_tensorrt)
        return model, {}
    from optimizer.graph.io import MODEL_NAME, save
    from optimizer.quantizing.choose import choose_nodes
    from optimizer.quantizing.prepare import load_proto, load_result, save_proto
    from optimizer.quantizing.weights import blocks_in, quantize_blocks

    lookups = write_tables(model, weights)
    # Weights are on their levels already: ONNX Runtime's own quantizer finds the very same ones.
    names = write_rounded(model, rounded_of(quantized))
    proto = load_proto(save(model, work))
    choice = choose_nodes(proto, ("MatMul", "Gemm"), include=names, dynamic=True)
    made = quantize_blocks(
        proto, choice, bits=4, block_size=quantized.scheme.block, symmetric=True, accuracy_level=_ACCURACY_LEVEL,
        tables=False,
    )  # fmt: skip
    target = work / f"blocks-{MODEL_NAME}"
    save_proto(made, target)
    result = load_result(target)
    return result, {"blocks": blocks_in(result), "chosen": dict(choice.counts), "tables_int8": len(lookups)}


def _compared(source: Artifact, session: Any) -> dict[str, JSON]:
    """The graph's answers to real rows, compared with those of the model that was trained."""
    from optimizer.training.probe import compare, read_probe

    outputs = [output.name for output in session.get_outputs()]
    taken = {each.name for each in session.get_inputs()}

    def answer(feeds: dict[str, Any]) -> dict[str, Any]:
        given = {name: array for name, array in feeds.items() if name in taken}
        return dict(zip(outputs, session.run(None, given), strict=True))

    return compare(read_probe(source.path), answer, source.manifest.model)


def _wrong(found: Mapping[str, JSON]) -> str:
    """Why the graph is not the model that was trained; empty where it is."""
    agreement = found["agreement"]
    # One row may always have two classes within what a level is worth.
    if agreement is not None and not found["rows"] * (1 - agreement) <= max(1.01, found["rows"] * (1 - _AGREEMENT)):
        return f"the graph decides as the trained model does in only {agreement:.1%} of {found['rows']} rows"
    if agreement is None and not found["worst_cosine"] >= _COSINE:
        return f"the graph's answer to a row has a cosine of only {found['worst_cosine']:.4f} with PyTorch's"
    return ""


def _verify(options: QuantizeQat, facts: Mapping[str, JSON], source: Source) -> None:
    made = facts.get("blocks", {}).get("products") if "blocks" in facts else facts["quantized"]["total"]
    if not made:
        raise GateFailed("quantize-qat quantized nothing: no trained weight is left in the graph")


def _variant(options: QuantizeQat, source: Source) -> str:
    words = words_of(options)
    bits = "int4" if "w4a16" in words else "int8"
    return "-".join([bits, *(word for word in words if word != "w4a16")])


STAGE = Stage(
    name="quantize-qat",
    help="Train a model for int8 (quantization-aware training), and write the graph that answers like it.",
    details="For models that lose too much when they are quantized after training. Takes the model folder and data, "
    "labelled or not: by default the float model itself is the teacher. Makes two artifacts: the trained float model, "
    "and its int8 graph in Q/DQ form. A training that was stopped goes on when the same command is typed again.",
    options=QuantizeQat,
    accepts=frozenset({Kind.SOURCE}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    # 2: signed activations are smoothed; 3: scales of softmax that its kernel takes as they are; 4: tables beside
    # weights of 4 bits have 8
    version=4,
    needs=("torch", "transformers", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "onnx"),
    modules=("torch", "transformers", "accelerate", "onnxruntime", "onnx", "onnx_ir"),
    command=("quantize", "qat"),
    first=_first,
)
