"""bench, for text generators: what is asked of them, and what cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.errors import BadInput
from optimizer.types import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimizer.benching.candidates import Entrant
    from optimizer.benching.generation_report import GenerationBench
    from optimizer.checks.bench import Bench
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["bench_texts", "wants_texts"]

#: What is asked of sessions alone.
_OF_SESSIONS = (
    "shape", "shapes_from", "batching", "scenario", "qps", "streams", "fail_if_slower", "fail_if_worse",
    "fail_if_larger", "fail_if_degraded", "min_agreement", "min_cosine", "self_check", "metric",
)  # fmt: skip
#: Texts that are written at once when nobody says.
_BATCHES = "1,8"


def wants_texts(taking_part: Sequence[Entrant], options: Bench) -> bool:
    """Whether texts are timed: an artifact writes them, or their lengths were asked for."""
    asked = options.prompt_lengths is not None or options.batch is not None
    return asked or any(_writes(each) for each in taking_part)


def bench_texts(
    taking_part: Sequence[Entrant], baseline: str, options: Bench, store: Store, progress: Progress
) -> GenerationBench:
    """Time text generators.

    Raises:
        BadInput: something takes part that writes no text, or an option is about sessions.
    """
    from optimizer.benching.generation import bench_generation, numbers, writings
    from optimizer.benching.timed import plan_of
    from optimizer.benching.writing import format_of, no_generation
    from optimizer.data.columns import named_columns

    del store
    for each in taking_part:
        if not _writes(each) and each.candidate.provider.name != "torch":
            raise BadInput(f"{each.label} writes no text", "name generators, or the folder of one: torch:FOLDER")
    for name in _OF_SESSIONS:
        if name in options.changed():
            flag = "--" + name.replace("_", "-")
            raise BadInput(f"{flag} is not for text generators", "leave it out")
    for path in options.report:
        if (format_ := format_of(path)).generation is None:
            raise no_generation(format_.name)
    prompts = numbers(options.prompt_lengths, "--prompt-lengths") if options.prompt_lengths else ()
    batches = numbers(options.batch or _BATCHES, "--batch")
    folders = [each.candidate.path for each in taking_part]
    loads = writings(folders, prompts, batches, options.new_tokens)
    text: list[int] = []
    if options.data is not None:
        from optimizer.data.documents import read_documents

        folder = next((each for each in folders if (each / "tokenizer.json").is_file()), folders[0])
        for document in read_documents(options.data, folder, named_columns(options.column)):
            text += document.tokens
        if len(text) <= max(load.prompt for load in loads):
            raise BadInput(f"{options.data} has {len(text)} tokens, too few to cut prompts from", "give more text")
    plan = plan_of(options, loads, options.rounds)
    return bench_generation(taking_part, baseline, plan, progress, text)


def _writes(entrant: Entrant) -> bool:
    return (
        entrant.artifact is not None
        and entrant.candidate.path == entrant.artifact.path
        and (entrant.artifact.kind is Kind.GENERATOR)
    )
