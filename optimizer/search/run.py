"""``optimize`` from a model to a verdict: plan, make, judge, time, decide, keep."""

from __future__ import annotations

import functools
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.artifact import Artifact
from optimizer.benching.candidates import Entrant, check_source, default_baseline, parse, usually_batched
from optimizer.benching.measure import Plan as Timing
from optimizer.benching.shape import Shape
from optimizer.benching.workload import Load, Workload
from optimizer.data.batching import ONE_BY_ONE, budgets
from optimizer.data.calibration import digest_data
from optimizer.data.columns import ANSWERS, named_columns
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import format_of, kept_set, read_rows
from optimizer.environment import cpu_threads, describe
from optimizer.errors import BadInput
from optimizer.located import located
from optimizer.quantizing.sensitivity import NodeNoise
from optimizer.ref import is_name
from optimizer.search.bootstrap import HIGHEST_CONFIDENCE
from optimizer.search.build import build, export, ranked
from optimizer.search.candidates import TARGETS, Idea, LeftOut, Plan, plan, split_names
from optimizer.search.contest import Contender, Rules, hold
from optimizer.search.evalset import EvalSet, refuse_overlap
from optimizer.search.keep import check_writable, keep
from optimizer.search.kin import Kin
from optimizer.search.machine import Machine
from optimizer.search.options import Optimize, seconds_of
from optimizer.search.report import OptimizeReport, PlanReport
from optimizer.search.summary import summarized
from optimizer.source import resolve_source
from optimizer.stage import Progress
from optimizer.store import Store
from optimizer.task import Metric, get_task
from optimizer.types import JSON, Device, Kind, Precision

__all__ = ["optimize"]

#: Fewest timed calls in a round: a slow model should not take minutes for percentiles that nothing is decided by.
_CALLS_A_ROUND = 3
#: Rows of a pass one by one: enough to have every length, and few enough for many passes.
_ROWS_ONE_BY_ONE = 64
#: How many of the most sensitive nodes a report names.
_WORST_NODES = 20


def optimize(model: str, options: Optimize, store: Store, progress: Progress) -> OptimizeReport | PlanReport:
    """Find the best artifact of a model that keeps its budgets.

    Args:
        model: a folder, an ``.onnx`` file, a hub id, or the reference of a float export.
        options: what is asked.
        store: where artifacts, the verdict and the alias ``best`` go.
        progress: told of every step.

    Raises:
        MlOptError: there is no verdict: bad data, a model that cannot be exported, options that contradict each other.
    """
    started = time.monotonic()
    options, paths = located(options, store)
    machine = Machine.here()
    for path in filter(None, (options.eval, paths.calib, options.shapes_from)):
        format_of(path)  # say now, and not after the export, that it is not there
    columns = _columns_of(paths.calib, options)
    planned = _planned(options, machine, columns)
    if options.dry_run:
        if not _is_reference(model, store):
            resolve_source(model)
        else:
            _exported(model, options, store, progress)
        rules = Rules(options.objective, _timing(options, Shape(1)))
        return PlanReport(model, planned, rules.timing_s(1 + len(planned.ideas)), describe())
    if not any(value is not None for value in (options.max_drop, options.min_agreement, options.min_cosine)):
        raise BadInput(
            "no budget is given, so that nothing could miss it",
            "add --max-drop 0.01 (accuracy), --min-agreement 0.98 or --min-cosine 0.999 (likeness to the original)",
        )
    if options.eval is None and options.calib is None:
        raise BadInput("there are no rows to judge on", "add --eval FILE")
    check_writable(options.report)
    began = time.monotonic()
    artifact = _exported(model, options, store, progress)
    export_s = time.monotonic() - began
    info = artifact.model_info
    rows, metric, data = _data(artifact, info, options, paths.calib, columns, progress)
    load = _load(artifact, info, rows, options)
    base = parse(artifact.ref, store)
    original = default_baseline([base], store)
    if options.objective == "throughput" and isinstance(load, Workload):
        original = usually_batched(original)
    rules = Rules(
        objective=options.objective,
        plan=_timing(options, load),
        metric=metric,
        max_drop=options.max_drop,
        min_agreement=options.min_agreement,
        min_cosine=options.min_cosine,
        confidence=options.confidence,
        budget_s=seconds_of(options.time_budget) if options.time_budget else None,
        started=started,
    )
    with tempfile.TemporaryDirectory(prefix="ml-opt-build-") as logs:

        def contend(idea: Idea) -> Contender:
            make = functools.partial(_make, idea, artifact, store, rules, Path(logs))
            return Contender(idea.name, make, idea.family, idea.asked, idea.plain)

        kin = _kin(planned.ideas, contend, artifact, options, columns, store, rules, Path(logs))
        beside = _yardstick(artifact, options, machine, store)
        contest = hold(original, [contend(idea) for idea in planned.ideas], rows, info, rules, progress, kin, beside)
    made = [idea for each in kin.values() for idea in each.made.values()]
    held_back = (LeftOut(kin[family].untried, reason) for family, reason in contest.held_back.items())
    planned = replace(planned, left_out=(*planned.left_out, *held_back))
    report = summarized(contest, original, planned, made, rules, store)
    ranking = next((each.ranking for each in kin.values() if each.ranking), ())
    report = replace(
        report,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["ml-opt", "optimize", model, *options.to_flags()]),
        model=model,
        data=data,
        notes=(
            *report.notes,
            *(each.trouble for each in kin.values() if each.trouble),
            *_notes(options, metric, contest.original.right, rows.labels),
        ),
        sensitivity=tuple(asdict(node) for node in ranking[:_WORST_NODES]),
        seconds={"export": export_s, **contest.seconds, "total": time.monotonic() - started},
        winner_s=None if contest.winner_s is None else export_s + contest.winner_s,
    )
    return keep(report, artifact, store, options)


def _planned(options: Optimize, machine: Machine, columns: tuple[str, ...]) -> Plan:
    """What is worth trying here, of what was asked for."""
    return plan(
        machine,
        calib=options.calib,
        columns=columns,
        precisions=split_names(options.precision, "value of --precision", [p.value for p in Precision]),
        targets=split_names(options.target, "value of --target", TARGETS),
        device=options.device,
        objective=options.objective,
    )


def _kin(
    ideas: Sequence[Idea],
    contend: Callable[[Idea], Contender],
    artifact: Artifact,
    options: Optimize,
    columns: tuple[str, ...],
    store: Store,
    rules: Rules,
    logs: Path,
) -> dict[str, Kin]:
    """By family: the milder candidates that may be tried when its plain members lose too much."""
    if options.calib is None:
        return {}
    data: dict[str, JSON] = {"calib": str(options.calib), "column": list(columns)}

    def ranking() -> tuple[str, Sequence[NodeNoise]]:
        return ranked(artifact, data, store, logs / "ranking.log", rules.plan.threads, _patience(rules))

    families = dict.fromkeys(idea.family for idea in ideas if idea.family)
    return {family: Kin([idea for idea in ideas if idea.family == family], contend, ranking) for family in families}


def _yardstick(artifact: Artifact, options: Optimize, machine: Machine, store: Store) -> Entrant | None:
    """bf16 where only int8 was asked for: whoever insists on int8 shall know when bf16 would have been faster."""
    if set(split_names(options.precision, "value of --precision", Precision)) != {Precision.INT8}:
        return None
    if (
        not (machine.bf16 and machine.openvino in machine.providers)
        or options.device is Device.CUDA
        or options.objective == "size"
    ):
        return None
    return parse(f"{artifact.ref}+{machine.openvino}:bf16", store)


def _patience(rules: Rules) -> float:
    """Seconds that making something may take."""
    return rules.plan.timeout if rules.budget_s is None else min(rules.plan.timeout, max(1.0, rules.left()))


def _is_reference(model: str, store: Store) -> bool:
    """Whether what was typed names an artifact: nothing of that name lies in this folder, and the store knows it."""
    if Path(model).exists() or model.endswith(".onnx"):
        return False
    head = model.partition("@")[0].partition(":")[0]
    return is_name(head) and (head != model or head in store.names())


def _exported(model: str, options: Optimize, store: Store, progress: Progress) -> Artifact:
    """The float export that every candidate is made from."""
    if not _is_reference(model, store):
        progress("exporting")
        return export(model, options.name, store, options.threads or cpu_threads(), options.timeout)
    if options.name is not None:
        raise BadInput(f"{model} is in the store under its own name; --name is for models that are not")
    artifact = store.get(model)
    artifact.expect(Kind.ONNX)
    artifact.check(store.digests)
    check_source(artifact, store)
    facts = artifact.manifest.facts
    weights = facts.get("weights", {})
    if facts.get("quantized", {}).get("total") or weights.get("float32", 0) * 2 < sum(weights.values()):
        raise BadInput(
            f"{artifact.ref} is not in fp32 any more, and every candidate is made from fp32",
            "give the model itself, or the reference of its fp32 export",
        )
    return artifact


def _data(
    artifact: Artifact,
    info: Mapping[str, JSON],
    options: Optimize,
    calib: Path | None,
    columns: tuple[str, ...],
    progress: Progress,
) -> tuple[EvalSet, Metric | None, dict[str, JSON]]:
    """The rows that are judged on, the metric that judges them, and what a report says of both files.

    Args:
        artifact: the export.
        info: its ``model``.
        options: what is asked.
        calib: where the calibration data lies.
        columns: what its columns are, as ``--column`` has it.
        progress: told that data is read.
    """
    progress("reading the data")
    metric = None
    if options.labelled:
        metric = get_task(str(info.get("task") or "generic")).metric(options.metric, info)
        if not metric.binary and options.confidence > HIGHEST_CONFIDENCE:
            raise BadInput(
                f"--confidence {options.confidence} is more than the bounds of {metric.name} can be drawn for",
                f"ask for {HIGHEST_CONFIDENCE} at most",
            )
    preprocessor = Preprocessor.open(artifact.path, info, columns=named_columns(options.column))
    path = options.eval or calib
    assert path is not None
    rows = EvalSet.open(path, preprocessor, metric, info)
    data: dict[str, JSON] = {"eval": rows.summary, "calib": None}
    if options.calib is not None and calib is not None and options.eval is not None:
        if not options.allow_overlap:
            of_calib = Preprocessor.open(artifact.path, info, columns=named_columns(columns))
            refuse_overlap(calib, rows, preprocessor, of_calib)
        data["calib"] = {"file": options.calib.name, "sha256": digest_data(calib)}
    return rows, metric, data


def _load(artifact: Artifact, info: Mapping[str, JSON], rows: EvalSet, options: Optimize) -> Load:
    """What is timed."""
    if options.shapes_from is not None:
        # In batches, each candidate will get its own: see `Contest`.
        batching = budgets(1)[-1] if options.objective == "throughput" else ONE_BY_ONE
        count = {} if options.objective == "throughput" else {"rows": _ROWS_ONE_BY_ONE}
        columns = named_columns(_columns_of(options.shapes_from, options))
        preprocessor = Preprocessor.open(artifact.path, info, columns=columns)
        return Workload.open(options.shapes_from, preprocessor, batching, info, **count)
    shape = Shape.parse(options.shape) if options.shape else _usual_shape(rows, options.objective, info)
    shape.check(info)
    return shape


def _columns_of(path: Path | None, options: Optimize) -> tuple[str, ...]:
    """``--column`` for other data than ``--eval``: what is right is not asked there, so that it may be missing there.

    The columns of a calibration set are called what they are to the model already.
    """
    if not options.column or path is None or kept_set(path) is not None:
        return ()
    (first,) = read_rows(path, limit=1)
    chosen = named_columns(options.column)
    return tuple(f"{role}={name}" for role, name in chosen.items() if role not in ANSWERS or name in first.values)


def _usual_shape(rows: EvalSet, objective: str, info: Mapping[str, JSON]) -> Shape:
    """The shape of the data itself: its median length, and one row, or eight where throughput counts."""
    batch = min(8 if objective == "throughput" else 1, int(info.get("max_batch") or 8))
    return Shape(batch, rows.median_length)


def _timing(options: Optimize, load: Load) -> Timing:
    return Timing(
        shapes=(load,),
        threads=options.threads or cpu_threads(),
        rounds=options.rounds,
        seconds=options.duration,
        # A pass over data is many calls by itself.
        samples=(1 if isinstance(load, Workload) else _CALLS_A_ROUND) * options.rounds,
        seed=options.seed,
        timeout=options.timeout,
        roofline=options.roofline,
    )


def _make(idea: Idea, artifact: Artifact, store: Store, rules: Rules, logs: Path) -> Entrant:
    """Build one candidate, or find it in the store."""
    made = build(artifact, idea.steps, store, logs / f"{idea.name}.log", rules.plan.threads, _patience(rules))
    provider = "" if str(idea.provider) == "cpu" else f"+{idea.provider}"
    return parse(made.ref + provider, store)


def _notes(
    options: Optimize, metric: Metric | None, right: Sequence[Any] | None, labels: Sequence[int] | None
) -> list[str]:
    """What to know of the data before trusting the verdict.

    Args:
        options: what was asked.
        metric: that judged; None where fidelity was judged.
        right: the original's scores; None where fidelity was judged.
        labels: the classes of the rows, where they have some.
    """
    notes = []
    if metric is None or right is None:
        notes.append(
            "Judged by likeness to the original's answers; that is not accuracy: nothing here knows the right ones."
        )
    elif labels and sum(right) < (most := max(labels.count(each) for each in set(labels))):
        notes.append(
            f"The original is right in {sum(right) / len(labels):.1%} of rows, less than always giving the commonest "
            f"label ({most / len(labels):.1%}): are the labels those of this model?"
        )
    elif metric.value(right) <= 0:
        notes.append(f"The original's {metric.name} is {metric.value(right):.2f}: are the labels those of this model?")
    if options.eval is None:
        notes.append("Judged on the calibration data, for want of --eval: static candidates have seen these rows.")
    elif options.calib is not None and options.allow_overlap:
        notes.append("Calibration and evaluation data may share rows (--allow-overlap): accuracy may look too good.")
    return notes
