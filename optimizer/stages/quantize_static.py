"""quantize-static: int8 weights and activations in Q/DQ form, ranges calibrated on real data."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact, Source
from optimizer.data.columns import column_opt, named_columns
from optimizer.digest import digest_json
from optimizer.environment import cpu_facts, version_of
from optimizer.errors import BadInput
from optimizer.options import Options, opt
from optimizer.quantizing.options import (
    calib_opt,
    exclude_opt,
    include_opt,
    per_channel_opt,
    reduce_range_opt,
    samples_opt,
    seed_opt,
    symmetric_opt,
)
from optimizer.quantizing.promise import (
    check_quantized,
    check_symmetric,
    finished,
    modifiers,
    refuse_quantized,
    refuse_unquantizable,
    saturation,
)
from optimizer.quantizing.rows import calibration_rows, few_rows, rows_content
from optimizer.stage import Content, Outcome, Progress, Stage
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    from optimizer.data.calibration import CalibrationSet
    from optimizer.quantizing.choose import Choice
    from optimizer.quantizing.kept import Kept
    from optimizer.quantizing.sensitivity import NodeNoise

__all__ = ["STAGE", "QuantizeStatic"]

#: Where the arithmetic is. Quantizing every operator as well (Add, Softmax, LayerNorm …) costs accuracy and gains
#: nothing that was ever measured here.
_DEFAULT_OPS = ("MatMul", "Gemm", "Gather", "Conv")
_EVERY = ("all",)
#: Rows of a file that ranges are calibrated on.
_ROWS = 200


class QuantizeStatic(Options):
    """Options of quantize-static."""

    calib: Path = calib_opt()
    column: tuple[str, ...] = column_opt()
    samples: int | None = samples_opt("calibrate on", _ROWS)
    method: str = opt("minmax", "How a range is made of what was seen.", choices=("minmax", "entropy", "percentile"))
    per_channel: bool = per_channel_opt()
    symmetric: bool = symmetric_opt()
    reduce_range: bool = reduce_range_opt()
    activation_products: bool = opt(False, "Also quantize products of two activations (attention scores).")
    include: tuple[str, ...] = include_opt()
    exclude: tuple[str, ...] = exclude_opt()
    op_types: tuple[str, ...] = opt(
        _DEFAULT_OPS,
        "Operator types to quantize; `all` for every one that has an int8 form.",
        metavar="TYPE",
    )
    smooth: bool = opt(False, "SmoothQuant: move outlier channels of activations into the weights first.")
    alpha: float | None = opt(
        None, "How much --smooth moves, 0 to 1 [searched on a quarter of the calibration rows].", ge=0, le=1
    )
    exclude_worst: int = opt(0, "Leave this many of the most sensitive nodes in float.", ge=0, metavar="N")
    sensitivity: Path | None = opt(
        None,
        "A ranking for --exclude-worst, from `ml-opt sensitivity` [ranked anew].",
        data=True,
        metavar="FILE|REF",
        kind=Kind.RANKING,
    )
    exclude_store: str = opt(
        "float",
        "How --exclude-worst stores weights; the arithmetic is float either way.",
        choices=("float", "int8"),
    )
    batch: int = opt(8, "Rows in a calibration batch.", ge=1, le=1024)
    seed: int = seed_opt()

    def check(self) -> None:
        named_columns(self.column)
        if "all" in self.op_types and len(self.op_types) > 1:
            raise BadInput("--op-types all stands alone")
        if self.alpha is not None and not self.smooth:
            raise BadInput("--alpha is the strength of --smooth, which is not given", "add --smooth")
        for flag, given in (("--sensitivity", self.sensitivity is not None), ("--exclude-store", self.stores_int8)):
            if given and not self.exclude_worst:
                raise BadInput(f"{flag} says how to leave nodes out, and none are", "add --exclude-worst N")

    @property
    def stores_int8(self) -> bool:
        return self.exclude_store == "int8"

    @property
    def every(self) -> bool:
        return self.op_types == _EVERY


def _run(source: Source, out: Path, options: QuantizeStatic, progress: Progress) -> Outcome:
    from optimizer.hf import quiet_libraries
    from optimizer.quantizing.choose import choose_nodes
    from optimizer.quantizing.kept import Kept
    from optimizer.quantizing.prepare import load_proto, load_result, prepare, save_proto
    from optimizer.quantizing.rounding import store_int8

    assert isinstance(source, Artifact)
    refuse_quantized(source)
    if options.op_types == _DEFAULT_OPS:
        refuse_unquantizable(source, taken=0)
    progress("reading the calibration data")
    data = calibration_rows(source, options, _ROWS)
    warnings = few_rows(data, options.calib.name)
    facts: dict[str, JSON] = {"calibration": data.summary}
    kept = Kept.beside(out, _decides(source, options, data))
    with tempfile.TemporaryDirectory(dir=out) as folder, quiet_libraries():
        work = Path(folder)
        progress("preparing the graph")
        proto = load_proto(prepare(source.model_file, work))
        choice = choose_nodes(
            proto,
            _op_types(options, {node.op_type for node in proto.graph.node}),
            include=options.include,
            exclude=options.exclude,
            activation_products=options.activation_products or options.every,
        )
        if choice.inside:
            warnings.append(
                f"{choice.inside} nodes inside of If and Loop stay in float: their ranges cannot be calibrated"
            )
        graph = work / "named.onnx"
        large = save_proto(proto, graph)
        int8 = functools.partial(_int8, options=options, large=large, progress=progress)
        if options.smooth:
            from optimizer.quantizing.alpha import smooth_file

            graph, facts["smooth"] = smooth_file(
                graph,
                work,
                choice.chosen,
                data,
                options.batch,
                options.alpha,
                lambda path, rows, folder: int8(path, rows, folder, choice, Kept()),
                source.model_info,
                _form(options, choice),
                kept,
                progress,
            )
        left_out = _worst(options, graph, choice, data, progress) if options.exclude_worst else []
        choice = choice.without({each.node: each.op_type for each in left_out})
        target = int8(graph, data, work, choice, kept)
        progress("writing the artifact")
        quantized = load_result(target)
        if options.symmetric:
            check_symmetric(quantized)
        if left_out:
            stored = store_int8(quantized, {each.node for each in left_out}) if options.stores_int8 else []
            facts["left_out"] = [
                {"node": each.node, "noise": each.noise, "stored": "int8" if each.node in stored else "float"}
                for each in left_out
            ]
        outcome = finished(source, quantized, choice, out, facts)
    return replace(outcome, warnings=[*warnings, *saturation(options.reduce_range), *outcome.warnings])


def _int8(
    graph: Path,
    data: CalibrationSet,
    folder: Path,
    choice: Choice,
    kept: Kept,
    *,
    options: QuantizeStatic,
    large: bool,
    progress: Progress,
) -> Path:
    """The int8 form of a prepared graph, with ranges from these rows, written into the folder."""
    from optimizer.quantizing.calibrate import calibrate, quantize

    def calibrated() -> bytes:
        return calibrate(
            graph,
            folder,
            data.batches(options.batch),
            len(data.rows),
            choice.op_types,
            options.method,
            symmetric=options.symmetric,
            large=large,
            progress=progress,
        ).read_bytes()

    ranges = folder / "ranges.json"
    ranges.write_bytes(kept.recall("ranges", graph, calibrated, **_ranged(options, choice)))
    progress(f"quantizing {len(choice.chosen)} nodes")
    return quantize(
        graph,
        folder,
        ranges,
        choice,
        options.method,
        symmetric=options.symmetric,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
        round_answers=options.every,
    )


def _decides(source: Artifact, options: QuantizeStatic, data: CalibrationSet) -> dict[str, JSON]:
    """What decides, beside a graph, what flows through it: the rows, what feeds them to it, and what computes."""
    return {
        "stage": [STAGE.version, version_of("ml-opt")],
        "source": [source.digest, source.manifest.key],
        "rows": data.summary["rows_sha256"],
        "batch": options.batch,
        "libraries": {name: version_of(name) for name in (*STAGE.needs, "numpy", "pillow")},
        # Other processors have other kernels, which round otherwise.
        "processor": {name: cpu_facts()[name] for name in ("machine", "model", "cores", "features")},
    }


def _ranged(options: QuantizeStatic, choice: Choice) -> dict[str, JSON]:
    """What ranges depend on: every activation of these operators has one, those of nodes that stay in float too."""
    return {"op_types": list(choice.op_types), "method": options.method, "symmetric": options.symmetric}


def _form(options: QuantizeStatic, choice: Choice) -> dict[str, JSON]:
    """What decides the int8 form of a graph beside its ranges and the chosen nodes."""
    others = {name: getattr(options, name) for name in ("per_channel", "reduce_range", "every")}
    return {**_ranged(options, choice), **others}


def _worst(
    options: QuantizeStatic, graph: Path, choice: Choice, data: CalibrationSet, progress: Progress
) -> list[NodeNoise]:
    """The nodes to leave out, by the ranking that was given or by one of this very graph."""
    from optimizer.quantizing.sensitivity import rank_file, read_ranking, worst

    if options.sensitivity is not None:
        ranking = read_ranking(options.sensitivity)
    else:
        ranking = rank_file(
            graph,
            choice.chosen,
            data.batches(options.batch),
            len(data.rows),
            symmetric=options.symmetric,
            per_channel=options.per_channel,
            progress=progress,
        )
    return worst(ranking, options.exclude_worst, choice)


def _ranking(options: QuantizeStatic, source: Source) -> str:
    """What stands in the key for the ranking: the nodes in their order, which is all that decides what is left out."""
    from optimizer.quantizing.sensitivity import read_ranking

    assert options.sensitivity is not None
    return digest_json([each.node for each in read_ranking(options.sensitivity)])


def _op_types(options: QuantizeStatic, present: set[str]) -> tuple[str, ...]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    from optimizer.errors import UnknownName

    possible = sorted({*QDQRegistry, *QLinearOpsRegistry})
    if options.every:
        return tuple(op for op in possible if op in present)
    for op in options.op_types:
        if op not in possible:
            raise UnknownName("operator type in --op-types", op, possible)
    if options.op_types == _DEFAULT_OPS:
        return tuple(op for op in _DEFAULT_OPS if op in present) or _DEFAULT_OPS
    return options.op_types


def _verify(options: QuantizeStatic, facts: Mapping[str, JSON], source: Source) -> None:
    check_quantized("quantize-static", facts, source)


def _variant(options: QuantizeStatic, source: Source) -> str:
    assert isinstance(source, Artifact)
    words = ["int8", "static", *modifiers(source)]
    if options.symmetric:
        words.append("sym")
    if options.method != "minmax":
        words.append(options.method)
    if not options.per_channel:
        words.append("per-tensor")
    if options.every:
        words.append("all")
    if options.smooth:
        words.append("smooth")
    if options.exclude_worst:
        words.append(f"x{options.exclude_worst}")
    return "-".join(words)


STAGE = Stage(
    name="quantize-static",
    help="Quantize weights and activations to int8 (Q/DQ), with ranges calibrated on real data.",
    details="Calibration data is required and never made up: it goes into the cache key by content and is described in "
    "the manifest. Refused when nothing was quantized or nothing shrank.",
    options=QuantizeStatic,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=3,  # 3: scales of softmax that its kernel takes as they are
    needs=("onnxruntime", "onnxruntime-gpu", "onnx", "tokenizers"),
    modules=("onnxruntime", "onnx", "onnx_ir"),
    command=("quantize", "static"),
    contents=(rows_content(_ROWS), Content(("sensitivity",), _ranking)),
)
