"""``optimize`` from a model to a verdict: plan, make, judge, time, decide, keep."""

from __future__ import annotations

import functools
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.benching.candidates import Entrant, check_source, default_baseline, parse, usually_batched
from optimizer.benching.shape import Shape
from optimizer.benching.workload import Workload
from optimizer.data.readers import format_of
from optimizer.environment import cpu_threads, describe
from optimizer.errors import BadInput
from optimizer.located import located
from optimizer.quantizing.sensitivity import NodeNoise
from optimizer.search.accuracy import Scores
from optimizer.search.asked import columns_of, data_notes, load_of, rows_of, timing_of
from optimizer.search.build import export, ranked
from optimizer.search.candidates import TARGETS, Idea, LeftOut, Plan, plan, split_names
from optimizer.search.contest import Contender, Contest, Rules, hold
from optimizer.search.keep import check_writable, keep
from optimizer.search.kin import Kin
from optimizer.search.machine import Machine
from optimizer.search.making import is_reference, make, patience
from optimizer.search.options import Optimize
from optimizer.search.report import OptimizeReport, PlanReport
from optimizer.search.summary import summarized
from optimizer.search.trained import Trained, training_of, untrainable
from optimizer.source import resolve_source
from optimizer.stage import Progress
from optimizer.store import Store
from optimizer.types import JSON, Device, Kind, Precision

__all__ = ["optimize"]

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
    if options.calib is None:  # whoever lets a candidate be trained on rows lets others be calibrated on them
        options = replace(options, calib=options.allow_training)
    options, paths = located(options, store)
    machine = Machine.here()
    for path in filter(None, (options.eval, paths.calib, options.allow_training, options.shapes_from)):
        format_of(path)  # say now, and not after the export, that it is not there
    columns = columns_of(paths.calib, options)
    planned = _planned(options, machine, columns)
    if options.dry_run:
        if not is_reference(model, store):
            resolve_source(model)
        else:
            _exported(model, options, store, progress)
        rules = Rules(options.objective, timing_of(options, Shape(1)))
        return PlanReport(model, planned, rules.timing_s(1 + len(planned.ideas)), describe())
    _check_budgets(options)
    check_writable(options.report)
    began = time.monotonic()
    artifact = _exported(model, options, store, progress)
    export_s = time.monotonic() - began
    info = artifact.model_info
    rows, metric, data = rows_of(artifact, info, options, paths.calib, columns, progress)
    load = load_of(artifact, info, rows, options)
    base = parse(artifact.ref, store)
    original = default_baseline([base], store)
    if options.objective == "throughput" and isinstance(load, Workload):
        original = usually_batched(original)
    rules = Rules(
        objective=options.objective,
        plan=timing_of(options, load),
        metric=metric,
        max_drop=options.max_drop,
        min_agreement=options.min_agreement,
        min_cosine=options.min_cosine,
        confidence=options.confidence,
        budget_s=options.time_budget,
        started=started,
    )
    with tempfile.TemporaryDirectory(prefix="ml-opt-build-") as logs:

        def contend(idea: Idea) -> Contender:
            making = functools.partial(make, idea, artifact, store, rules, Path(logs), progress)
            return Contender(idea.name, making, idea.family, idea.asked, idea.plain)

        kin = _kin(planned.ideas, contend, artifact, options, columns, store, rules, Path(logs))
        trained, no_training = _trained(planned.ideas, contend, artifact, options)
        beside = _yardstick(artifact, options, machine, store)
        contenders = [contend(idea) for idea in planned.ideas]
        contest = hold(original, contenders, rows, info, rules, progress, kin, beside, trained)
    last: list[Kin | Trained] = [*kin.values(), *trained.values()]
    made = [idea for each in last for idea in each.made.values()]
    untried = (*_untried(kin, trained, contest), *no_training)
    planned = replace(planned, left_out=(*planned.left_out, *untried))
    report = summarized(contest, original, planned, made, rules, store)
    known = contest.original
    assert isinstance(known, Scores)
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
            *data_notes(options, metric, known.right, rows.labels),
        ),
        sensitivity=tuple(asdict(node) for node in ranking[:_WORST_NODES]),
        seconds={"export": export_s, **contest.seconds, "total": time.monotonic() - started},
        winner_s=None if contest.winner_s is None else export_s + contest.winner_s,
    )
    return keep(report, artifact, store, options)


def _check_budgets(options: Optimize) -> None:
    """Refuse a search that nothing could fail, or that has nothing to judge on."""
    if not any(value is not None for value in (options.max_drop, options.min_agreement, options.min_cosine)):
        raise BadInput(
            "no budget is given, so that nothing could miss it",
            "add --max-drop 0.01 (accuracy), --min-agreement 0.98 or --min-cosine 0.999 (likeness to the original)",
        )
    if options.eval is None and options.calib is None:
        raise BadInput("there are no rows to judge on", "add --eval FILE")


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
        return ranked(artifact, data, store, logs / "ranking.log", rules.plan.threads, patience(rules))

    families = dict.fromkeys(idea.family for idea in ideas if idea.family)
    return {family: Kin([idea for idea in ideas if idea.family == family], contend, ranking) for family in families}


def _trained(
    ideas: Sequence[Idea], contend: Callable[[Idea], Contender], artifact: Artifact, options: Optimize
) -> tuple[dict[str, Trained], tuple[LeftOut, ...]]:
    """By family: the candidate that may be trained when all else loses too much; or why none may be."""
    if options.allow_training is None:
        return {}, ()
    families = {idea.family: idea for idea in reversed(ideas) if idea.family}
    reason = untrainable(artifact) or ("" if families else "it would take the place of static int8, which is left out")
    if reason:
        return {}, (LeftOut("int8-qat", reason),)
    training = training_of(options.allow_training, columns_of(options.allow_training, options), artifact)
    return {family: Trained(plain, training, contend) for family, plain in families.items()}, ()


def _untried(kin: Mapping[str, Kin], trained: Mapping[str, Trained], contest: Contest) -> Iterator[LeftOut]:
    """What could have been tried when something lost too much, and was not."""
    for family, reason in contest.held_back.items():
        for each in (kin.get(family), trained.get(family)):
            if each is not None and each.untried:
                yield LeftOut(each.untried, reason)
    for family, last in trained.items():
        if last.untried and family not in contest.held_back:
            yield LeftOut(last.untried, last.unneeded(contest.contenders))


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


def _exported(model: str, options: Optimize, store: Store, progress: Progress) -> Artifact:
    """The float export that every candidate is made from."""
    if not is_reference(model, store):
        progress("exporting")
        asked = {} if options.task is None else {"task": options.task}
        threads = options.threads or cpu_threads()
        return export(model, options.name, store, threads, options.timeout, progress, asked=asked)
    if options.name is not None:
        raise BadInput(f"{model} is in the store under its own name; --name is for models that are not")
    artifact = store.get(model)
    artifact.expect(Kind.ONNX)
    if options.task not in (None, (task := artifact.model_info.get("task"))):
        raise BadInput(f"{artifact.ref} was exported for {task}", f"leave --task {options.task} out")
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
