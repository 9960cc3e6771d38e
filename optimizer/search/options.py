"""What ``ml-opt optimize`` can be asked, and which of it cannot be asked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from optimizer.benching.shape import Shape
from optimizer.benching.workload import Writing
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import BadInput, UnknownName
from optimizer.exporting.options import task_opt
from optimizer.options import Options, opt
from optimizer.quantizing.options import optional_calib_opt
from optimizer.ref import check_name
from optimizer.search.candidates import TARGETS, split_names
from optimizer.task import FIDELITY, get_task
from optimizer.types import Device, Precision

__all__ = ["METRICS", "REPORT_FORMATS", "TEXTS", "Optimize", "check_formats"]

#: Suffixes that ``--report`` can be given.
REPORT_FORMATS = (".html", ".json")
#: What can be judged; which of it fits is for the task to say (:meth:`Task.metric`).
METRICS = ("accuracy", "f1", "exact-match", "spearman", "pearson", "perplexity", FIDELITY)
#: The task whose models write text; what is tried of them, how they are judged and timed is in :mod:`.texts`.
TEXTS = "text-generation"


_NOT_TEXTS = "leave --metric perplexity out, or write --task text-generation"


class Optimize(Options):
    """Options of optimize."""

    task: str | None = task_opt()
    eval: Path | None = opt(
        None,
        "Rows to judge on, with labels for --max-drop; for text-generation held-out texts, or prompts and answers.",
        data=True,
        metavar="FILE",
    )
    calib: Path | None = optional_calib_opt(
        "Other rows, for static quantization (a file, or a calibration set); other texts, for GPTQ."
    )
    allow_training: Path | None = opt(
        None,
        "Rows to train int8 on, where all that is done after training misses a budget. They calibrate without --calib.",
        data=True,
        metavar="FILE",
    )
    column: tuple[str, ...] = column_opt()
    max_drop: float | None = opt(
        None,
        "Most accuracy, or whatever --metric names, that may be lost: 0.01 is one point. Of perplexity, by what share "
        "it may rise: 2%.",
        ge=0,
        le=1,
        share=True,
    )
    min_agreement: float | None = opt(None, "Smallest share of decisions that must be the original's.", ge=0, le=1)
    min_cosine: float | None = opt(None, "Smallest cosine to the original's answer, of any row.", ge=-1, le=1)
    metric: str | None = opt(
        None, "What is judged [the usual one of the task with --max-drop, fidelity without].", choices=METRICS
    )
    confidence: float = opt(0.95, "Of every bound.", ge=0.5, le=0.9999)
    objective: str = opt("latency", "What the best has most of.", choices=("latency", "throughput", "size"))
    shape: str | None = opt(
        None,
        "Rows × steps of a timed call, e.g. 1x128 [1 row, or 8 for throughput, of the data's median length]; of texts "
        "8x128+64, which have 64 new tokens.",
    )
    shapes_from: Path | None = opt(
        None,
        "Time passes over rows of this file, each with its own length: in batches for throughput, one by one else.",
        data=True,
        metavar="FILE",
    )
    precision: tuple[str, ...] = opt((), "Only these: fp32, fp16, bf16, int8, int4; with commas, or repeated.")
    target: tuple[str, ...] = opt((), "Only these: ort, openvino, tensorrt; with commas, or repeated.")
    device: Device = opt(Device.AUTO, "Where it may run.")
    time_budget: float | None = opt(None, "Stop trying candidates after this long: 90s, 10m, 1h.", ge=0.001, time=True)
    allow_overlap: bool = opt(False, "Take calibration and training rows that are in the evaluation data too.")
    dry_run: bool = opt(False, "Say what would be tried, and stop.")
    name: str | None = opt(None, "The model's name in the store [the source's own name].")
    report: tuple[Path, ...] = opt((), "Where to write the report: FILE.html or FILE.json; repeatable.", key=False)
    threads: int = opt(0, "Threads of every candidate; 0 is one a physical core.", ge=0, le=1024)
    duration: float = opt(2.0, "Seconds that each candidate is timed, at least.", ge=0.01, le=86400, time=True)
    rounds: int = opt(8, "Interleaved rounds that the timing is spread over.", ge=3, le=1000)
    roofline: bool = opt(True, "Say what share of this machine's GEMM peak each candidate reaches.")
    seed: int = opt(0, "Of the order and of the bootstrap.", ge=0)
    timeout: float = opt(600.0, "Seconds after which a silent candidate counts as hung.", ge=0.1, time=True)

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Budgets": ("max_drop", "min_agreement", "min_cosine", "metric", "confidence", "objective"),
        "What is tried": ("precision", "target", "device", "allow_training", "time_budget", "dry_run"),
        "How it is timed": ("shape", "shapes_from", "threads", "duration", "rounds", "roofline", "seed", "timeout"),
    }

    def check(self) -> None:
        if self.task is not None and self.task != TEXTS:
            get_task(self.task)
            if self.metric == "perplexity":
                raise BadInput(f"perplexity is of models that write text, and --task {self.task} does not", _NOT_TEXTS)
        if self.eval is None and not self.dry_run and (self.task == TEXTS or self.metric == "perplexity"):
            raise BadInput("a model that writes text is judged on held-out text", "add --eval FILE, a `text` each row")
        if self.max_drop is not None and self.eval is None:
            raise BadInput("--max-drop is about accuracy, which needs labelled rows", "add --eval FILE")
        if self.max_drop is not None and self.metric == FIDELITY:
            raise BadInput(
                "--max-drop is about accuracy, and --metric fidelity judges without", "leave one of them out"
            )
        if self.labelled and self.eval is None:
            raise BadInput(f"--metric {self.metric} needs labelled rows", "add --eval FILE --max-drop 0.01")
        if self.allow_training is not None and self.eval is None:
            raise BadInput("--allow-training needs rows to judge on that nothing learned from", "add --eval FILE")
        named_columns(self.column)
        targets = split_names(self.target, "value of --target", TARGETS)
        for device, target, where in ((Device.CUDA, "openvino", "processors"), (Device.CPU, "tensorrt", "GPUs")):
            if self.device is device and targets == (target,):
                raise BadInput(
                    f"--target {target} runs on {where}, and --device {device} was asked for", "leave one out"
                )
        split_names(self.precision, "value of --precision", [p.value for p in Precision])
        if self.shape is not None:
            (Writing if "+" in self.shape else Shape).parse(self.shape)
            if self.shapes_from is not None:
                raise BadInput("--shape and --shapes-from contradict each other", "leave one of them out")
        if self.name is not None:
            check_name("model", self.name)
        check_formats(self.report)

    @property
    def labelled(self) -> bool:
        """Whether right answers are asked for, and not only likeness to the original's."""
        return self.max_drop is not None or self.metric not in (None, FIDELITY)


def check_formats(paths: Sequence[Path]) -> None:
    """Refuse a file for a report whose ending names no format, or that is a folder."""
    for path in paths:
        if path.suffix not in REPORT_FORMATS:
            raise UnknownName("report format", path.suffix or str(path), REPORT_FORMATS)
        if path.is_dir():
            raise BadInput(f"--report {path} is a folder", f"name a file in it: --report {path / 'report.html'}")
