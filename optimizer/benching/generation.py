"""Timing text generators against each other: the same processes and interleaved rounds as for any other candidate.

A call writes texts, all begun at once; before it the same number of other prompts are read and one token written from
each, by which reading prompts (prefill) and writing (decode) are told apart whatever the runtime does at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from optimizer.benching.busy import Others, is_busy
from optimizer.benching.candidates import Entrant
from optimizer.benching.decoding import Traffic, configuration, context_of, traffic_of
from optimizer.benching.generation_report import GenerationBench, GenerationCell, GenerationRow, faster
from optimizer.benching.held import held_at
from optimizer.benching.measure import Feeds, Lane, Plan, measure
from optimizer.benching.report import Caution, Doubt
from optimizer.benching.roofline import Bandwidth, measure_bandwidths, on_gpu
from optimizer.benching.stats import summarize
from optimizer.benching.workload import Load, Writing
from optimizer.environment import describe
from optimizer.errors import BadInput
from optimizer.stage import Progress
from optimizer.types import TensorSpec

__all__ = ["ENDS", "bench_generation", "numbers", "writings"]

#: What settings say of the length of texts.
ENDS = "greedy, and no end token before the last token that is asked for (Sampling.min_tokens)"
_WORKER = (sys.executable, "-m", "optimizer.benching.generation_worker")
#: Prompts that are tried when nobody says: those of them that the context has room for.
_PROMPTS = (16, 128, 512)
_NOISY = 1.25


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """``16,128`` as numbers, each once; raises :class:`BadInput` for anything else, and for 0."""
    try:
        found = tuple(dict.fromkeys(int(each) for each in text.split(",")))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise BadInput(f"{flag} {text!r} is no list of numbers", f"write {flag} 1,8")
    return found


def writings(folders: Sequence[Path], prompts: Sequence[int], batches: Sequence[int], new: int) -> tuple[Writing, ...]:
    """What is timed.

    Args:
        folders: of all that take part.
        prompts: lengths that were asked for; none for the usual ones that every context has room for.
        batches: numbers of texts at once.
        new: tokens of each.

    Raises:
        BadInput: a length is beyond a context.
    """
    known = [(context, folder) for folder in folders if (context := context_of(folder)) is not None]
    room, where = min(known, default=(10**9, Path()))
    usual = [length for length in _PROMPTS if length + new <= room] or [max(1, min(_PROMPTS[0], room - new))]
    chosen = list(prompts) or usual
    if max(chosen) + new > room:
        raise BadInput(
            f"prompts of {max(chosen)} tokens and {new} new ones are more than the context of {where}, {room}",
            "ask for shorter --prompt-lengths, or fewer --new-tokens",
        )
    return tuple(Writing(batch, prompt, new) for batch in batches for prompt in chosen)


def bench_generation(
    taking_part: Sequence[Entrant],
    baseline: str,
    plan: Plan,
    progress: Progress,
    text: Sequence[int] = (),
    traffic: Mapping[str, Traffic] | None = None,
    *,
    memory: bool = True,
) -> GenerationBench:
    """Measure text generators against each other and against the baseline among them.

    Args:
        taking_part: every candidate, the baseline too; labels are unique.
        baseline: its label.
        plan: how to measure; its shapes are :class:`Writing`.
        progress: told of every step.
        text: tokens that prompts are cut from; empty for random ones.
        traffic: by label, what a step of a candidate reads whose files do not say it.
        memory: find out what each size takes in a process of its own; else it is what the timed one holds by then.

    Returns:
        the report; a candidate that fails is no error but a row that says why.
    """
    others = Others()
    candidates = [replace(each.candidate, command=each.candidate.command or _WORKER) for each in taking_part]
    with tempfile.TemporaryDirectory(prefix="ml-opt-bench-") as name:
        scratch = Path(name)

        asked = _asked(taking_part, plan, text, scratch)

        def feeds_for(specs: tuple[TensorSpec, ...]) -> Feeds:
            del specs
            return Feeds(asked, [])

        lanes = measure(candidates, plan, feeds_for, scratch, progress, others=others)
        providers = [lane.candidate.provider for lane in lanes if lane.alive]
        living = [place for place, lane in enumerate(lanes) if lane.alive and memory]
        held = dict(zip(living, held_at([candidates[n] for n in living], plan, asked, scratch, progress), strict=True))
        bandwidths: tuple[Bandwidth, ...] = ()
        if plan.roofline and providers:
            bandwidths = measure_bandwidths(providers, plan, scratch, progress, reading=True)
    rows = []
    for place, (lane, entrant) in enumerate(zip(lanes, taking_part, strict=True)):
        reads = (traffic or {}).get(entrant.label) or traffic_of(entrant)
        rows.append(_row(lane, entrant, reads, bandwidths, held.get(place, {})))
    base = next(row for row in rows if row.label == baseline)
    rows = [row if row is base else _beside(row, base, plan.seed) for row in rows]
    return GenerationBench(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings={
            "loads": [str(load) for load in plan.shapes],
            "threads": plan.threads,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "seed": plan.seed,
            "prompts": "text" if text else "random tokens",
            "ends": ENDS,
        },
        environment=describe(),
        baseline=baseline,
        rows=tuple(rows),
        cautions=(*_cautions(rows, lanes, plan, others), *(_shared_memory(rows) if memory else ())),
        bandwidths=tuple(bandwidths),
    )


def _asked(taking_part: Sequence[Entrant], plan: Plan, text: Sequence[int], scratch: Path) -> dict[Load, list[Path]]:
    """A file for each load, which says what to write; tokens are those that every candidate knows."""
    sizes = [configuration(each.candidate.path).get("vocab_size") for each in taking_part]
    below = min((int(size) for size in sizes if size), default=256)
    found: dict[Load, list[Path]] = {}
    for number, load in enumerate(plan.shapes):
        assert isinstance(load, Writing)
        path = scratch / f"texts-{number}.json"
        asked = {**vars(load), "below": below, "text": list(text), "seed": str(plan.seed)}
        path.write_text(json.dumps(asked), encoding="utf-8")
        found[load] = [path]
    return found


def _row(
    lane: Lane,
    entrant: Entrant,
    traffic: Traffic | None,
    bandwidths: Sequence[Bandwidth],
    held: Mapping[Load, int],
) -> GenerationRow:
    candidate = lane.candidate
    row = GenerationRow(
        candidate.label, str(candidate.path), str(candidate.provider), candidate.key, _weights(candidate.path)
    )
    if lane.opened:
        row = replace(row, load_s=float(lane.opened["load_s"]), facts=lane.opened["facts"], traffic=traffic)
    if not lane.alive:
        return replace(row, error=lane.error, hint=lane.hint)
    device = candidate.provider.name if on_gpu(candidate.provider) else "cpu"
    bandwidth = next((each for each in bandwidths if each.device == device), None)
    cells = []
    for load in (loads[0] for loads in lane.loads):
        assert isinstance(load, Writing)
        needed = traffic.step(load) if traffic else None
        rate = bandwidth.read_gb_per_s(needed) if bandwidth and needed else None
        took = (lane.first_s[load], lane.rounds[load], lane.parts[load])
        cells.append(GenerationCell(load, *took, {}, needed, rate, held.get(load)))
    return replace(row, cells=tuple(cells))


def _weights(path: Path) -> int:
    """Bytes of what must be shipped: files of weights, or the one file."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    files = [each for each in path.iterdir() if each.suffix in (".safetensors", ".onnx", ".data", ".bin", ".xml")]
    return sum(each.stat().st_size for each in files)


def _beside(row: GenerationRow, base: GenerationRow, seed: int) -> GenerationRow:
    """The row with how it stands to the baseline."""
    if row.error or base.error:
        return row
    cells = [
        replace(cell, faster=faster(theirs, cell, seed)) for cell, theirs in zip(row.cells, base.cells, strict=True)
    ]
    return replace(row, cells=tuple(cells))


def _shared_memory(rows: Sequence[GenerationRow]) -> Iterator[Caution]:
    for row in rows:
        for cell in row.cells:
            if cell.held is None:
                yield Caution(Doubt.SHARED_MEMORY, f"{row.label} at {cell.load}")


def _cautions(rows: Sequence[GenerationRow], lanes: Sequence[Lane], plan: Plan, others: Others) -> Iterator[Caution]:
    if others.used is not None and is_busy(others.used, plan.threads):
        yield Caution(Doubt.LOAD, detail=f"{others.used:.1f} cores")
    if plan.rounds < 3:
        yield Caution(Doubt.FEW_ROUNDS, detail=f"{plan.rounds} rounds")
    for row, lane in zip(rows, lanes, strict=True):
        for load in lane.unstable if not row.error else ():
            yield Caution(Doubt.UNSTABLE, f"{row.label} at {load}")
        for cell in row.cells:
            if (spread := summarize(cell.rounds_ns).spread) > _NOISY:
                yield Caution(Doubt.NOISY, f"{row.label} at {cell.load}", f"{spread:.2f} times")
            places = row.facts.get("slots")
            if places and places < cell.load.batch:
                yield Caution(Doubt.FEW_PLACES, f"{row.label} at {cell.load}", f"{places} at once")
            if cell.short:
                yield Caution(Doubt.SHORT, f"{row.label} at {cell.load}", f"{cell.short} texts")
