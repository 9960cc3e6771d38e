"""sensitivity: which nodes lose most in int8?"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.check import Check, keep
from optimizer.errors import UnknownName
from optimizer.files import write_report
from optimizer.options import Options, opt
from optimizer.stage import Progress
from optimizer.store import Store
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.quantizing.sensitivity import NodeNoise

__all__ = ["CHECK", "SCHEMA", "Sensitivity", "SensitivityReport"]

#: Raised by one whenever a reader of the older number would misread the report.
SCHEMA = 1
_OP_TYPES = ("MatMul", "Gemm", "Gather", "Conv", "ConvTranspose")


class Sensitivity(Options):
    """Options of sensitivity."""

    calib: Path = opt(
        help="Data like the model will see: jsonl, csv, parquet, npz, txt, or a folder of images.",
        data=True,
        metavar="FILE",
    )
    samples: int = opt(64, "Rows to record activations on, chosen by length and label.", ge=1, le=100000)
    per_channel: bool = opt(True, "One scale for each output channel of a weight instead of one for the whole.")
    symmetric: bool = opt(False, "Signed activations around zero, the only int8 that TensorRT takes.")
    batch: int = opt(8, "Rows in a batch.", ge=1, le=1024)
    seed: int = opt(0, "Another seed chooses other rows.", ge=0)
    report: Path | None = opt(None, "Also write the ranking to this file.", key=False, metavar="FILE.json")

    def check(self) -> None:
        if self.report is not None and self.report.suffix != ".json":
            raise UnknownName("report format", self.report.suffix or str(self.report), [".json"])


@dataclass(frozen=True)
class SensitivityReport:
    """Every node that can be ranked, worst first.

    Attributes:
        ref: whose nodes they are.
        key: the artifact's key.
        options: what was asked.
        nodes: the ranking.
        calibration: the rows it was made on.
        path: where it is kept; empty where the store cannot be written to.
    """

    ref: str
    key: str
    options: dict[str, JSON]
    nodes: tuple[NodeNoise, ...]
    calibration: dict[str, JSON]
    path: str = ""

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "sensitivity",
            "schema": SCHEMA,
            "ref": self.ref,
            "key": self.key,
            "options": self.options,
            "calibration": self.calibration,
            "nodes": [asdict(node) for node in self.nodes],
            "path": self.path,
        }

    def written(self, path: Path) -> SensitivityReport:
        """Write the ranking as JSON, and return it knowing its path."""
        known = replace(self, path=str(path))
        write_report(path, known.to_json())
        return known


def _run(refs: tuple[str, ...], options: Sensitivity, store: Store, progress: Progress) -> SensitivityReport:
    from optimizer.data.calibration import CalibrationSet
    from optimizer.data.preprocess import Preprocessor
    from optimizer.hf import quiet_libraries
    from optimizer.quantizing.choose import choose_nodes
    from optimizer.quantizing.prepare import load_proto, prepare, save_proto
    from optimizer.quantizing.promise import refuse_quantized
    from optimizer.quantizing.sensitivity import rank_file

    artifact = store.get(refs[0])
    artifact.check(store.digests)
    refuse_quantized(artifact)
    model = {"inputs": artifact.manifest.facts["inputs"], **artifact.model_info}
    progress("reading the data")
    data = CalibrationSet.open(
        options.calib, Preprocessor.open(artifact.path, model), samples=options.samples, seed=options.seed
    )
    batch = min(options.batch, int(model.get("max_batch") or options.batch))
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        progress("preparing the graph")
        proto = load_proto(prepare(artifact.model_file, Path(folder)))
        choice = choose_nodes(proto, _OP_TYPES)
        graph = Path(folder) / "named.onnx"
        save_proto(proto, graph)
        ranking = rank_file(
            graph,
            choice.chosen,
            data.batches(batch),
            len(data.rows),
            symmetric=options.symmetric,
            per_channel=options.per_channel,
            progress=progress,
        )
    report = SensitivityReport(artifact.ref, artifact.manifest.key, options.to_json(), tuple(ranking), data.summary)
    report = keep(report, "sensitivity", artifact.ref, store)
    if options.report is not None:
        report = report.written(options.report)
    return report


CHECK = Check(
    name="sensitivity",
    help="Rank the nodes of a float artifact by what int8 would cost each.",
    details="Every node is quantized by itself, activation and weight, on inputs recorded in one pass over the data; "
    "its noise is the power of the error over the power of its answer. `quantize static --exclude-worst N "
    "--sensitivity FILE` leaves the worst in float. Names are those of the prepared graph, as --exclude takes them.",
    options=Sensitivity,
    run=_run,
    modules=("numpy", "onnx", "onnxruntime"),
)
