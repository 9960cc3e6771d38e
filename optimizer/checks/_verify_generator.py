"""verify, for a text generator: its perplexity on held-out text, and how far it is from what it was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from optimizer.errors import BadInput
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.artifact import Artifact
    from optimizer.benching.candidates import Entrant
    from optimizer.checks.verify import Verify
    from optimizer.evaluate.generation_report import GenerationLimits, GenerationReport
    from optimizer.evaluate.replay import ReplayReport
    from optimizer.generator import Generator
    from optimizer.stage import Progress
    from optimizer.store import Store
    from optimizer.types import Precision

__all__ = ["verify_generator"]


def verify_generator(
    judged: Entrant, options: Verify, store: Store, progress: Progress
) -> GenerationReport | ReplayReport:
    """Hold a generator beside its original, beside another one, or to what was kept of its original.

    Raises:
        BadInput: there is no text to compare on, or an option is about sessions.
    """
    from optimizer.benching.candidates import check_source, parse
    from optimizer.checks.verify import precision_of
    from optimizer.data.columns import named_columns
    from optimizer.digest import digest_file
    from optimizer.environment import describe
    from optimizer.evaluate.generation import Sliding, compare
    from optimizer.evaluate.generation_report import GenerationReport, judge_generation
    from optimizer.evaluate.judged import read_judged

    artifact = judged.artifact
    assert artifact is not None
    _refuse(options, artifact.ref)
    if options.against == "golden":
        return _replayed(judged, artifact, options, progress)
    assert options.data is not None
    if options.against.partition(":")[0] == "source":
        check_source(artifact, store)
    other = parse(options.against, store, artifact)
    folders = [each for each in (artifact.path, other.candidate.path) if (each / "tokenizer.json").is_file()]
    tokenizer = folders[0] if folders else artifact.path
    documents = read_judged(options.data, artifact, named_columns(options.column), options.samples, tokenizer)
    progress("opening the candidate")
    candidate = _opened(judged, options.threads)
    try:
        progress("opening the reference")
        reference = _opened(other, options.threads)
        try:
            context = min(candidate.context, reference.context)
            sliding = Sliding.within(context, options.window, options.stride)
            compared = compare(
                reference,
                candidate,
                documents,
                sliding,
                continuations=options.continuations,
                new_tokens=options.new_tokens,
                progress=progress,
            )
            facts: dict[str, JSON] = {"candidate": candidate.facts, "reference": reference.facts}
        finally:
            reference.close()
    finally:
        candidate.close()
    facts["data"] = {"file": options.data.name, "sha256": digest_file(options.data) if options.data.is_file() else ""}
    facts["environment"] = describe()
    precision = precision_of(artifact, judged.candidate)
    limits = _limits(precision, options)
    failures, doubts = judge_generation(compared, limits)
    return GenerationReport(
        judged.label, other.label, precision.value, limits, compared, tuple(failures), tuple(doubts), facts
    )


def _opened(entrant: Entrant, threads: int) -> Generator:
    """A generator's artifact, or the folder that one was made from."""
    from optimizer.generator import GeneratorOptions, open_generator

    candidate = entrant.candidate
    return open_generator(candidate.path, GeneratorOptions(provider=str(candidate.provider), threads=threads))


def _replayed(judged: Entrant, artifact: Artifact, options: Verify, progress: Progress) -> ReplayReport:
    """What a generator writes after the prompts whose continuations were kept."""
    from optimizer.checks.verify import precision_of
    from optimizer.data.continuations import load_continuations
    from optimizer.environment import describe
    from optimizer.evaluate.replay import ReplayReport, replay
    from optimizer.generating.golden import reach

    golden = load_continuations(artifact.path)
    if not golden:
        raise BadInput(f"{artifact.ref} has no golden continuations", "compare with its source: --against source")
    progress("opening the candidate")
    candidate = _opened(judged, options.threads)
    near = reach(artifact.manifest.facts, judged.candidate.provider.precision)
    try:
        progress("writing golden continuations")
        rows, failures = replay(candidate, golden, near)
        facts: dict[str, JSON] = {"candidate": candidate.facts, "environment": describe()}
    finally:
        candidate.close()
    precision = precision_of(artifact, judged.candidate)
    return ReplayReport(judged.label, precision.value, near, rows, failures, facts)


#: What is about held-out text.
_ABOUT_TEXT = ("data", "samples", "column", "max_drop", "max_kl", "min_top1", "window", "stride", "continuations")


def _refuse(options: Verify, ref: str) -> None:
    if options.against == "golden":
        for name in _ABOUT_TEXT:
            if name in options.changed():
                flag = "--" + name.replace("_", "-")
                raise BadInput(f"{flag} is about held-out text, and golden continuations are kept", "leave it out")
    elif options.data is None:
        raise BadInput(
            f"{ref} writes text, and is judged on held-out text",
            "add --data FILE, rows with a text each; or replay what PyTorch wrote: --against golden",
        )
    for name in ("max_abs", "min_cosine"):
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise BadInput(f"{flag} is not for a text generator", "hold it by --max-drop, --max-kl and --min-top1")


def _limits(precision: Precision, options: Verify) -> GenerationLimits:
    from optimizer.benching.gates import share_of
    from optimizer.evaluate.generation_report import LIMITS

    asked: dict[str, float | None] = {
        "max_drop": share_of(options.max_drop, "--max-drop", "%", "2%"),
        "max_kl": options.max_kl,
        "min_top1": options.min_top1,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(LIMITS[precision], **given)
