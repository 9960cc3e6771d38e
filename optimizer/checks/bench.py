"""bench: how fast, how large and how faithful, against each other and against PyTorch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from optimizer.benching.candidates import Entrant, default_baseline, entrants, parse, provider_of, usually_batched
from optimizer.benching.gates import Limits, share_of
from optimizer.benching.github import annotations_of, github_opt
from optimizer.benching.scenario import Scenario
from optimizer.benching.shape import Shape, default_shapes
from optimizer.benching.writing import check_formats, handed_out, report_opt
from optimizer.check import Check, keep
from optimizer.data.batching import Batching
from optimizer.data.columns import column_opt, named_columns
from optimizer.engines.profiles import Profile
from optimizer.errors import BadInput
from optimizer.options import Options, opt
from optimizer.search.options import METRICS
from optimizer.stage import Progress
from optimizer.store import Store
from optimizer.types import JSON, Device

if TYPE_CHECKING:
    # What measures is imported where it is used: every command's --help imports this file.
    from optimizer.benching.generation_report import GenerationBench
    from optimizer.benching.report import BenchReport
    from optimizer.benching.workload import Load

__all__ = ["CHECK", "Bench"]


class Bench(Options):
    """Options of bench."""

    shape: tuple[str, ...] = opt(
        (), "Rows × steps of a call, e.g. 8x128; repeatable [1x16, 1x128 and 8x128 for text, 1 and 8 rows otherwise]."
    )
    shapes_from: Path | None = opt(
        None,
        "Time passes over rows of this file, each with its own length, instead of shapes.",
        data=True,
        metavar="FILE",
    )
    batching: str = opt(
        "tokens:2048", "How those rows are batched: tokens:N (padded, sorted by length), sorted:N or order:N."
    )
    scenario: Scenario = opt(
        Scenario.SINGLE_STREAM,
        "Latency of one query after another (closed loop), throughput of all at once, or latency under --qps random "
        "arrivals a second (open loop); passes over --shapes-from are always offline.",
    )
    qps: float = opt(0.0, "Queries a second that --scenario server sends to each candidate.", ge=0.0, le=1e6)
    streams: int = opt(1, "Queries that a candidate answers at once in --scenario server.", ge=1, le=1024)
    prompt_lengths: str | None = opt(
        None, "Of text generators: tokens of prompts [16,128,512, as far as the context has room].", metavar="N,N…"
    )
    new_tokens: int = opt(64, "Of text generators: tokens that each text has.", ge=1, le=1_000_000)
    batch: str | None = opt(None, "Of text generators: how many texts are written at once [1,8].", metavar="N,N…")
    against: str | None = opt(
        None,
        "What the others are compared with: a reference, or `source` [the first one's source in PyTorch].",
        ref=True,
    )
    provider: tuple[str, ...] = opt(
        (), "Where to run references that name no provider: cpu, openvino:bf16, cuda, …; repeatable."
    )
    fail_if_slower: str | None = opt(
        None, "Fail when a reference is known to take so much longer than the baseline: 5%.", metavar="N%"
    )
    fail_if_worse: str | None = opt(
        None, "Fail when it is known to lose so much of the metric on the labels of --data: 0.5pt.", metavar="Npt"
    )
    fail_if_larger: str | None = opt(None, "Fail when it is larger than the baseline by so much: 1%.", metavar="N%")
    fail_if_degraded: bool = opt(
        False, "Fail when its graph has more nodes, or fewer fused or quantized ones, or more that fell back."
    )
    min_agreement: float | None = opt(None, "Smallest share of decisions that must be the baseline's.", ge=0, le=1)
    min_cosine: float | None = opt(None, "Smallest cosine to the baseline's answer, of any row.", ge=-1, le=1)
    self_check: bool = opt(
        False, "Also time the baseline against itself: what comes out is this machine's noise floor."
    )
    metric: str | None = opt(None, "What is judged on the labels of --data [the task's usual one].", choices=METRICS)
    device: Device = opt(Device.AUTO, "Where references run that name no provider; auto prefers a GPU.")
    threads: int = opt(0, "Threads of every candidate; 0 is one a physical core.", ge=0, le=1024)
    data: Path | None = opt(None, "Rows to compare answers on [the model's own examples].", data=True)
    column: tuple[str, ...] = column_opt()
    duration: float = opt(2.0, "Seconds that a candidate is measured at a shape.", ge=0.0, le=86400, time=True)
    min_samples: int = opt(64, "Calls of a candidate at a shape, at least.", ge=1, le=10_000_000)
    rounds: int = opt(8, "Interleaved rounds that the measuring is spread over.", ge=1, le=1000)
    max_rounds: int = opt(32, "Rounds at most, which are added while --fail-if-slower is undecided.", ge=1, le=100_000)
    roofline: bool = opt(True, "Count operations, and measure this machine's GEMM peaks and bandwidth to compare with.")
    seed: int = opt(0, "Of the order, of made-up inputs and of the bootstrap.", ge=0)
    timeout: float = opt(300.0, "Seconds after which a silent candidate counts as hung.", ge=0.1, time=True)
    report: tuple[Path, ...] = report_opt()
    github: bool = github_opt()

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "What is timed": ("shape", "shapes_from", "batching", "scenario", "qps", "streams"),
        "What is timed of text generators": ("prompt_lengths", "new_tokens", "batch"),
        "Gates": (
            "fail_if_slower", "fail_if_worse", "fail_if_larger", "fail_if_degraded", "min_agreement", "min_cosine",
            "metric", "self_check",
        ),
        "How it is timed": (
            "threads", "duration", "min_samples", "rounds", "max_rounds", "roofline", "seed", "timeout",
        ),
    }  # fmt: skip

    def check(self) -> None:
        for text in self.shape:
            Shape.parse(text)
        Batching.parse(self.batching)
        if self.shapes_from is not None and self.shape:
            raise BadInput("--shape and --shapes-from contradict each other", "leave one of them out")
        if named_columns(self.column) and self.data is None and self.shapes_from is None:
            raise BadInput("--column says what the columns of --data are, which is not given", "add --data FILE")
        check_formats(self.report)
        for typed, flag in ((self.prompt_lengths, "--prompt-lengths"), (self.batch, "--batch")):
            if typed is not None:
                from optimizer.benching.generation import numbers

                numbers(typed, flag)
        self._check_scenario()
        self._check_gates()

    def _check_scenario(self) -> None:
        if self.scenario is not Scenario.SERVER:
            if self.qps or self.streams != 1:
                raise BadInput("--qps and --streams belong to --scenario server", "add it, or leave them out")
        elif self.shapes_from is not None:
            raise BadInput("--scenario server sends calls of one shape, not passes over --shapes-from", "use --shape")
        elif not self.qps:
            raise BadInput(
                "--scenario server needs the rate of its queries, --qps N",
                "a good start is 70 % of what one query after another reaches: 700 over the p50 in milliseconds that "
                "`ml-opt bench` shows",
            )

    def _check_gates(self) -> None:
        limits = self.limits
        if limits.slower is not None and self.rounds < 3:
            raise BadInput("--fail-if-slower needs an interval, which takes three rounds", "leave --rounds out")
        if (limits.worse is not None or self.metric is not None) and self.data is None:
            raise BadInput("accuracy is judged on labelled rows", "add --data FILE")

    @property
    def limits(self) -> Limits:
        """What candidates are held to."""
        return Limits(
            slower=share_of(self.fail_if_slower, "--fail-if-slower", "%", "5%"),
            worse=share_of(self.fail_if_worse, "--fail-if-worse", "pt", "0.5pt"),
            larger=share_of(self.fail_if_larger, "--fail-if-larger", "%", "1%"),
            degraded=self.fail_if_degraded,
            min_agreement=self.min_agreement,
            min_cosine=self.min_cosine,
        )


def _run(refs: tuple[str, ...], options: Bench, store: Store, progress: Progress) -> BenchReport | GenerationBench:
    from optimizer.benching.run import bench
    from optimizer.benching.timed import plan_of
    from optimizer.checks._bench_generators import bench_texts, wants_texts
    from optimizer.search.labelled import Labelled

    if not refs:
        raise BadInput("nothing to measure", "name a reference (`ml-opt ls`), an .onnx file or torch:FOLDER")
    if options.data is not None and not options.data.exists():
        raise BadInput(f"no such file: {options.data}")
    taking_part = entrants(refs, options.provider, store, provider_of(options.device))
    baseline, taking_part = _with_baseline(taking_part, options, store)
    command = shlex.join(["ml-opt", "bench", *refs, *options.to_flags()])
    if wants_texts(taking_part, options):
        found = bench_texts(taking_part, baseline, options, store, progress)
        found = replace(found, settings={**found.settings, "command": command})
        return _kept(found, taking_part, store)
    if options.limits.any and len(taking_part) == 1:
        raise BadInput(f"{baseline} is the baseline itself, and nothing is held against it", "add --against REF")
    model = next((e.candidate.model for e in taking_part if e.candidate.model), {})
    shapes = _shapes(options, taking_part, model)
    if options.shapes_from is not None:
        taking_part = [usually_batched(e) if e.label == baseline else e for e in taking_part]
    plan = plan_of(
        options,
        shapes,
        options.min_samples,
        scenario=Scenario.OFFLINE if options.shapes_from is not None else options.scenario,
        qps=options.qps,
        streams=options.streams,
        max_rounds=max(options.rounds, options.max_rounds if options.limits.slower is not None else 0),
    )
    report = bench(
        taking_part,
        baseline,
        plan,
        progress,
        options.data,
        named_columns(options.column),
        options.limits,
        options.self_check,
    )
    if options.data is not None:
        asked = options.metric is not None or options.limits.worse is not None
        judged = Labelled.open(options.data, taking_part, options.metric, named_columns(options.column), insist=asked)
        if judged is not None:
            report = judged.judge(report, taking_part, options.limits.worse, plan, progress)
    report = replace(report, settings={**report.settings, "command": command})
    return _kept(report, taking_part, store)


R = TypeVar("R", bound="BenchReport | GenerationBench")


def _kept(report: R, taking_part: list[Entrant], store: Store) -> R:
    """The report, kept beside the first artifact that took part."""
    about = next((e.artifact for e in taking_part if e.artifact), None)
    return keep(report, "bench", about.ref, store) if about is not None and about.ref else report


def _shapes(options: Bench, taking_part: list[Entrant], model: Mapping[str, JSON]) -> tuple[Load, ...]:
    """What is timed: shapes, or a pass over the rows of a file."""
    from optimizer.benching.workload import Workload
    from optimizer.data.preprocess import Preprocessor

    if options.shapes_from is not None:
        artifact = next((e.artifact for e in taking_part if e.artifact is not None), None)
        if artifact is None:
            raise BadInput(
                "--shapes-from needs an artifact of the store, whose tokenizer reads the rows", "name a reference first"
            )
        preprocessor = Preprocessor.open(artifact.path, model, columns=named_columns(options.column))
        return (Workload.open(options.shapes_from, preprocessor, Batching.parse(options.batching), model),)
    shapes = tuple(dict.fromkeys(map(Shape.parse, options.shape)))
    shapes = shapes or tuple(default_shapes(model, _engines(taking_part)))
    for shape in shapes:
        shape.check(model)
    return shapes


def _engines(taking_part: list[Entrant]) -> list[list[Profile]]:
    """The profiles of every engine, which has no other shapes."""
    records = [(e.artifact.manifest.facts if e.artifact is not None else {}).get("engine", {}) for e in taking_part]
    found = [[Profile.from_json(each) for each in record.get("profiles", ())] for record in records]
    return [profiles for profiles in found if profiles]


def _with_baseline(taking_part: list[Entrant], options: Bench, store: Store) -> tuple[str, list[Entrant]]:
    """The baseline's label, and every candidate with the baseline among them, first."""
    if options.against is None and options.self_check and not options.limits.any and len(taking_part) == 1:
        base = taking_part[0]  # A against A is all that is asked
    elif options.against is None:
        base = default_baseline(taking_part, store)
    else:
        same = [e for e in taking_part if e.label == options.against]
        base = same[0] if same else parse(options.against, store, taking_part[0].artifact, provider_of(options.device))
    if all(e.label != base.label for e in taking_part):
        taking_part = [base, *taking_part]
    return base.label, taking_part


CHECK = Check(
    name="bench",
    help="Measure latency, throughput, memory, size and agreement, one process a candidate, in interleaved rounds.",
    details="A reference may carry a provider (minilm:fp32+openvino:bf16); source is the PyTorch model that the first "
    "reference was exported from, torch:FOLDER any other one (source:bf16, source:compiled, source:cuda-fp16 too), "
    "and an .onnx file is taken as it is. Exit code 1 when a candidate could not be measured or breaks a limit, 3 when "
    "it cannot be told whether one does.",
    options=Bench,
    run=handed_out(_run),
    lines=annotations_of,
    many=True,
    modules=("numpy",),
)
