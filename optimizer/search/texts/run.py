"""``optimize`` for a model that writes text: the same contest as for others, with another maker, judge and timer."""

from __future__ import annotations

import functools
import math
import shlex
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.benching.candidates import Entrant, check_source, default_baseline, parse
from optimizer.benching.shape import Shape
from optimizer.benching.timed import plan_of
from optimizer.benching.workload import Writing
from optimizer.data.calibration import digest_data
from optimizer.data.columns import named_columns
from optimizer.data.documents import Document, read_documents
from optimizer.data.readers import format_of
from optimizer.environment import cpu_threads, describe
from optimizer.errors import BadInput
from optimizer.evalset import histogram, refuse_shared
from optimizer.evaluate.generation import Sliding
from optimizer.evaluate.judged import read_judged
from optimizer.generating.config import read_config as generator_config
from optimizer.generator import room
from optimizer.hf import generator_class, read_config
from optimizer.search.asked import columns_of
from optimizer.search.bootstrap import HIGHEST_CONFIDENCE
from optimizer.search.build import export
from optimizer.search.candidates import TARGETS, TEXT_EXPORT, Idea, Plan, split_names
from optimizer.search.contest import Contender, Contest, Rules, contested
from optimizer.search.keep import check_writable, keep
from optimizer.search.machine import Machine
from optimizer.search.making import is_reference, make
from optimizer.search.options import TEXTS, Optimize
from optimizer.search.report import OptimizeReport, PlanReport
from optimizer.search.summary import summarized
from optimizer.search.texts.candidates import TEXT_TARGETS, plan_texts
from optimizer.search.texts.gates import FEWEST, PERPLEXITY
from optimizer.search.texts.judge import TextJudge
from optimizer.search.texts.scores import TextScores
from optimizer.source import resolve_source
from optimizer.stage import Progress
from optimizer.store import Store
from optimizer.types import JSON, Kind, Precision

__all__ = ["optimize_texts", "writes_text"]

#: Options that mean nothing for text, and why.
_NOT_FOR_TEXTS: Mapping[str, str] = {
    "allow_training": "no decoder is trained for int8",
    "shapes_from": "texts are timed at a size: --shape 8x128+64",
    "min_cosine": "what a decoder answers is judged by --max-drop (of perplexity) and --min-agreement",
}
#: What is timed when nobody says: so many texts at once, tokens of a prompt, new tokens.
_BATCHES = {"latency": (1, 8), "throughput": (8, 1), "size": (1, 8)}
_PROMPT, _NEW = 128, 64
#: Options of an export that all candidates of it share.
_COMMON = ("max_length", "revision", "trust_remote_code", "allow_pickle")


def writes_text(model: str, options: Optimize, store: Store) -> bool:
    """Whether a model is to be optimized for writing text: it was asked for, or what it is says so.

    A hub id says nothing before it was downloaded: name ``--task text-generation`` for one.
    """
    if options.task is not None:
        return options.task == TEXTS
    if options.metric == PERPLEXITY:
        return True
    if is_reference(model, store):
        return store.get(model).kind is Kind.GENERATOR
    if not (Path(model) / "config.json").is_file():
        return False
    try:
        raw = read_config(Path(model))
        return bool(generator_class(raw))
    except BadInput:
        return False


def optimize_texts(model: str, options: Optimize, store: Store, progress: Progress) -> OptimizeReport | PlanReport:
    """Find the best artifact of a model that writes text and keeps its budgets.

    Args:
        model: a folder, a hub id, or the reference of a text generator.
        options: what is asked.
        store: where artifacts, the verdict and the alias ``best`` go.
        progress: told of every step.

    Raises:
        MlOptError: there is no verdict: bad data, a model that writes no text, options that contradict each other.
    """
    started = time.monotonic()
    _refuse(options)
    pairs = _reads_apart(model, options, store)
    for path in filter(None, (options.eval, options.calib)):
        format_of(path)
    base = _found(model, options, store) if is_reference(model, store) else None
    machine = Machine.here(texts=True)
    precisions = split_names(options.precision, "value of --precision", [p.value for p in Precision])

    def plan(pairs: bool) -> Plan:
        if pairs and options.calib is not None:
            raise BadInput(
                f"--calib is for GPTQ, and {model} reads with an encoder: its 4 bits learn from no text", "leave it out"
            )
        common, learned = _common(base), _learned(options)
        return plan_texts(
            machine,
            common=common,
            learned=learned,
            precisions=precisions,
            targets=_targets(options),
            device=options.device,
            pairs=pairs,
        )

    planned = plan(pairs)
    if options.dry_run:
        if base is None:
            resolve_source(model)
        rules = _rules(options, started, _loads(options, 10**9, 10**9 if pairs else 0))
        return PlanReport(model, planned, rules.timing_s(1 + len(planned.ideas)), describe())
    _check_budgets(options)
    assert options.eval is not None
    check_writable(options.report)
    began = time.monotonic()
    if base is None:
        progress("exporting")
        threads = options.threads or cpu_threads()
        base = export(model, options.name, store, threads, options.timeout, progress, stage=TEXT_EXPORT)
        if not pairs and _reads_apart(base.ref, options, store):  # a hub id, of which nothing was known before
            planned = plan(True)
    export_s = time.monotonic() - began
    progress("reading the data")
    context = int(base.model_info["max_length"])
    documents = _documents(options.eval, base, options)
    calib = _calib(options, base, documents)
    sliding = Sliding.within(context)
    rules = _rules(options, started, _loads(options, context, generator_config(base.path).answers))
    original = default_baseline([parse(base.ref, store)], store)
    contest = _held(original, base, planned, documents, sliding, rules, store, progress)
    report = summarized(contest, original, planned, [], rules, store)
    report = replace(
        report,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["ml-opt", "optimize", model, *options.to_flags()]),
        model=model,
        data={"eval": _about(options.eval, documents), "calib": calib},
        notes=(*report.notes, *_shared_notes(options), *_notes(documents, sliding, context, contest, base)),
        seconds={"export": export_s, **contest.seconds, "total": time.monotonic() - started},
        winner_s=None if contest.winner_s is None else export_s + contest.winner_s,
    )
    return keep(report, base, store, options)


def _held(
    original: Entrant,
    base: Artifact,
    planned: Plan,
    documents: Sequence[Document],
    sliding: Sliding,
    rules: Rules,
    store: Store,
    progress: Progress,
) -> Contest:
    """The contest of all that was planned."""
    with tempfile.TemporaryDirectory(prefix="ml-opt-build-") as logs:

        def contend(idea: Idea) -> Contender:
            making = functools.partial(make, idea, base, store, rules, Path(logs), progress)
            return Contender(idea.name, making, plain=idea.name == "fp32")

        return contested(
            lambda scratch: TextJudge(original, documents, sliding, rules, scratch, progress),
            [contend(idea) for idea in planned.ideas],
            rules,
            progress,
        )


def _refuse(options: Optimize) -> None:
    """Say now what cannot be asked of a model that writes text."""
    for name, why in _NOT_FOR_TEXTS.items():
        if name in options.changed():
            raise BadInput(f"--{name.replace('_', '-')} is not for models that write text: {why}", "leave it out")
    if options.metric not in (None, PERPLEXITY):
        raise BadInput(
            f"--metric {options.metric} is not measured of a model that writes text", f"write --metric {PERPLEXITY}"
        )
    for target in _targets(options):
        if target not in TEXT_TARGETS:
            known = " or ".join(f"--target {each}" for each in TEXT_TARGETS)
            raise BadInput(f"--target {target}: no text is written by it here", f"write {known}, or leave it out")
    if options.confidence > HIGHEST_CONFIDENCE:
        raise BadInput(
            f"--confidence {options.confidence} is more than the bounds of {PERPLEXITY} can be drawn for",
            f"ask for {HIGHEST_CONFIDENCE} at most",
        )


def _targets(options: Optimize) -> tuple[str, ...]:
    return split_names(options.target, "value of --target", TARGETS)


def _reads_apart(model: str, options: Optimize, store: Store) -> bool:
    """Whether a model reads with an encoder; of a hub id that is not known before it was downloaded.

    Raises:
        BadInput: it writes no text.
    """
    if is_reference(model, store):
        return "encoder" in store.get(model).manifest.facts
    if model.endswith(".onnx"):
        raise BadInput(f"{model} is an .onnx file, and text generators are made from a model folder or a hub id")
    if (Path(model) / "config.json").is_file():
        try:
            raw = read_config(Path(model))
            generator_class(raw)
        except BadInput as error:
            asked = "--task text-generation" if options.task else f"--metric {PERPLEXITY}"
            raise BadInput(error.message, f"leave {asked} out") from None
        return bool(raw.get("is_encoder_decoder"))
    return False


def _check_budgets(options: Optimize) -> None:
    if options.max_drop is None and options.min_agreement is None:
        raise BadInput(
            "no budget is given, so that nothing could miss it",
            "add --max-drop 2% (perplexity), or --min-agreement 0.95 (the likeliest token is the original's)",
        )
    if options.eval is None:
        raise BadInput("a model that writes text is judged on held-out text", "add --eval FILE, a `text` each row")


def _found(model: str, options: Optimize, store: Store) -> Artifact:
    """The generator that was named: every candidate is made from the model that it was made from."""
    if options.name is not None:
        raise BadInput(f"{model} is in the store under its own name; --name is for models that are not")
    artifact = store.get(model)
    artifact.expect(Kind.GENERATOR)
    artifact.check(store.digests)
    check_source(artifact, store)
    return artifact


def _common(base: Artifact | None) -> dict[str, JSON]:
    """Options of the export that was named, as far as all candidates must have them too."""
    given = base.manifest.options if base is not None else {}
    return {name: given[name] for name in _COMMON if given.get(name)}


def _loads(options: Optimize, context: int, answers: int) -> tuple[Writing, ...]:
    """What is timed, the objective's first.

    Args:
        options: what is asked.
        context: most tokens of a prompt and its answer.
        answers: most tokens of an answer where the context is about the prompt alone; 0 where it is not.

    Raises:
        BadInput: it is beyond the context.
    """
    new = min(_NEW, answers or max(1, context // 4))
    prompt = min(_PROMPT, context if answers else context - new)
    if options.shape is None:
        return tuple(Writing(batch, prompt, new) for batch in _BATCHES[options.objective])
    if "+" in options.shape:
        load = Writing.parse(options.shape)
    else:
        shape = Shape.parse(options.shape)
        load = Writing(shape.batch, shape.sequence or prompt, new)
    if load.prompt > context or load.new > room(load.prompt, context, answers):
        apart = f"{context} for a prompt and {answers} for its answer" if answers else f"{context}"
        raise BadInput(
            f"--shape {load}: prompts of {load.prompt} tokens and {load.new} new ones are more than the context of "
            f"{apart}",
            f"write --shape {load.batch}x{prompt}+{new}",
        )
    return (load,)


def _rules(options: Optimize, started: float, loads: tuple[Writing, ...]) -> Rules:
    return Rules(
        objective=options.objective,
        plan=plan_of(options, loads, options.rounds),
        max_drop=options.max_drop,
        min_agreement=options.min_agreement,
        confidence=options.confidence,
        budget_s=options.time_budget,
        started=started,
        judged_by=PERPLEXITY,
    )


def _documents(path: Path, base: Artifact, options: Optimize) -> list[Document]:
    """The texts that are judged on.

    Raises:
        BadInput: there are too few of which anything can be scored.
    """
    found = read_judged(path, base, named_columns(options.column))
    if len(found) < FEWEST:
        raise BadInput(
            f"{path} has {len(found)} text{'' if len(found) == 1 else 's'} of two tokens or more: how texts differ, "
            f"and so any bound, takes {FEWEST} at least",
            "give more texts, one a row",
        )
    return found


def _learned(options: Optimize) -> dict[str, JSON]:
    """Options of an export that learns from ``--calib``."""
    if options.calib is None:
        return {}
    columns = columns_of(options.calib, options)
    return {"calib": str(options.calib), **({"column": list(columns)} if columns else {})}


def _calib(options: Optimize, base: Artifact, documents: Sequence[Document]) -> dict[str, JSON] | None:
    """What a report says of the text that was learned from.

    Raises:
        BadInput: it cannot be read, or some of it is judged on.
    """
    if options.calib is None:
        return None
    learned = read_documents(options.calib, base.path, named_columns(columns_of(options.calib, options)))
    judged = {each.tokens for each in documents}
    shared = [each.name for each in learned if each.tokens in judged]
    if not options.allow_overlap:
        refuse_shared(shared, "calibration", "evaluation")
    return {"file": options.calib.name, "sha256": digest_data(options.calib)}


def _shared_notes(options: Optimize) -> list[str]:
    if options.calib is None or not options.allow_overlap:
        return []
    return ["Calibration and evaluation data may share texts (--allow-overlap): perplexity may look too good."]


def _about(path: Path, documents: Sequence[Document]) -> dict[str, JSON]:
    """What a report says of the data."""
    lengths = [len(each.read) + len(each.tokens) for each in documents]
    return {
        "file": path.name,
        "sha256": digest_data(path),
        "rows": len(documents),
        "tokens": sum(lengths),
        "lengths": {"min": min(lengths), "median": int(statistics.median_low(lengths)), "max": max(lengths)},
        "labels": None,
        "histogram": histogram(lengths),
    }


def _notes(
    documents: Sequence[Document], sliding: Sliding, context: int, contest: Contest, base: Artifact
) -> list[str]:
    """What to know of the data before trusting the verdict."""
    notes = []
    longest = max(len(each.read or each.tokens) for each in documents)
    if longest < sliding.window:
        what = "prompt" if documents[0].read else "text"
        notes.append(
            f"The longest {what} has {longest:,} tokens, and the model takes {context:,}: what it does with more "
            "before a token was not seen."
        )
    known = contest.original
    assert isinstance(known, TextScores)
    tokens = sum(each.tokens for each in known.documents)
    nats = sum(each.nll for each in known.documents) / tokens
    vocabulary = int(base.model_info["vocabulary"])
    if nats >= math.log(vocabulary):
        notes.append(
            f"The original knows these texts no better than chance among its {vocabulary:,} tokens: are they what it "
            "was made for?"
        )
    judged = [c.scores for c in contest.contenders if isinstance(c.scores, TextScores) and not c.is_original]
    if judged and (blind := sum(each.kl != each.kl for each in judged[0].documents)):
        notes.append(
            f"The divergence is that of {len(documents) - blind} of {len(documents)} texts: there was no room to keep "
            "the original's probabilities of all."
        )
    return notes
