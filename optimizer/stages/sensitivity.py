"""sensitivity: which nodes lose most in int8?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from optimizer.artifact import RANKING_NAME, Artifact, Source
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import GateFailed
from optimizer.options import Options, opt
from optimizer.quantizing.options import calib_opt, per_channel_opt, samples_opt, seed_opt, symmetric_opt
from optimizer.quantizing.promise import modifiers, refuse_quantized
from optimizer.quantizing.rows import calibration_rows, few_rows, rows_content
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import JSON, Kind

__all__ = ["SCHEMA", "STAGE", "Sensitivity"]

#: Of ``ranking.json``: raised by one whenever a reader of the older number would misread the file.
SCHEMA = 1
_OP_TYPES = ("MatMul", "Gemm", "Gather", "Conv", "ConvTranspose")
#: Rows of a file that activations are recorded on.
_ROWS = 64


class Sensitivity(Options):
    """Options of sensitivity."""

    calib: Path = calib_opt()
    column: tuple[str, ...] = column_opt()
    samples: int | None = samples_opt("record activations on", _ROWS)
    per_channel: bool = per_channel_opt()
    symmetric: bool = symmetric_opt()
    batch: int = opt(8, "Rows in a batch.", ge=1, le=1024)
    seed: int = seed_opt()

    def check(self) -> None:
        named_columns(self.column)


def _run(source: Source, out: Path, options: Sensitivity, progress: Progress) -> Outcome:
    from optimizer.hf import quiet_libraries
    from optimizer.quantizing.choose import choose_nodes
    from optimizer.quantizing.prepare import load_proto, prepare, save_proto
    from optimizer.quantizing.sensitivity import rank_file

    assert isinstance(source, Artifact)
    refuse_quantized(source)
    progress("reading the data")
    data = calibration_rows(source, options, _ROWS)
    with tempfile.TemporaryDirectory(dir=out) as folder, quiet_libraries():
        progress("preparing the graph")
        proto = load_proto(prepare(source.model_file, Path(folder)))
        choice = choose_nodes(proto, _OP_TYPES)
        graph = Path(folder) / "named.onnx"
        save_proto(proto, graph)
        ranking = rank_file(
            graph,
            choice.chosen,
            data.batches(options.batch),
            len(data.rows),
            symmetric=options.symmetric,
            per_channel=options.per_channel,
            progress=progress,
        )
    document = {
        "report": "sensitivity",
        "schema": SCHEMA,
        "of": source.manifest.key,  # and not its reference, which is another one elsewhere
        "nodes": [asdict(node) for node in ranking],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (out / RANKING_NAME).write_text(text + "\n", encoding="utf-8")
    return Outcome({"calibration": data.summary}, warnings=few_rows(data, options.calib.name))


def _verify(options: Sensitivity, facts: Mapping[str, JSON], source: Source) -> None:
    noises = [node["noise"] for node in facts["ranking"]]
    if noises != sorted(noises, reverse=True):
        raise GateFailed("the ranking that was written is not in order, worst first")


def _variant(options: Sensitivity, source: Source) -> str:
    assert isinstance(source, Artifact)
    words = ["ranking", *modifiers(source)]
    if options.symmetric:
        words.append("sym")
    if not options.per_channel:
        words.append("per-tensor")
    return "-".join(words)


STAGE = Stage(
    name="sensitivity",
    help="Rank the nodes of a float artifact by what int8 would cost each.",
    details="Every node is quantized by itself, activation and weight, on inputs recorded in one pass over the data; "
    "its noise is the power of the error over the power of its answer. The ranking is an artifact of its own, whose "
    "worst nodes `quantize static --exclude-worst N --sensitivity REF` leaves in float. Names are those of the "
    "prepared graph, as --exclude takes them.",
    options=Sensitivity,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.RANKING,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("onnxruntime", "onnxruntime-gpu", "onnx", "tokenizers"),
    modules=("numpy", "onnx", "onnxruntime"),
    contents=(rows_content(_ROWS),),
)
