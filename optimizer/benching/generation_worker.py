"""The process that one text generator is timed in: ``python -m optimizer.benching.generation_worker``.

It speaks the lines of :mod:`optimizer.benching.worker`; "open" may have ``slots``, the most texts of a call. Its
"shapes" are texts: the file beside one says how many, from how many tokens and of how many. What "time" answers has,
beside the nanoseconds of every call, its ``parts``:

    prefill_ns   the same prompts with one new token each, begun to ended: a call of its own, right before
    first_ns     of each text, from the beginning of the call to its first token
    last_ns      of each text, to its last one
    tokens       of each text, how many it wrote
    rss          bytes, the most that was held in memory meanwhile, with what is left of other shapes

and there is one request more, for a process that has written nothing yet:

    {"do": "memory", "shape": "8x512+64", "feeds": "….json"}  → {"ok": true, "rss"}

Every text is greedy, and told to write as many tokens at least as it may at most (``Sampling.min_tokens``), so that no
end token ends it and all candidates write the same number. Every call has prompts of its own, so that no cache of
prompts can help. A peer takes part by calling :func:`main` with what opens its models behind
:class:`optimizer.generator.Generator`, in an environment of its own; nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.benching import worker
from optimizer.benching.candidates import candidate_from_json
from optimizer.errors import BadInput
from optimizer.generator import Generation, Generator, GeneratorOptions, Sampling, open_generator
from optimizer.runtime import Candidate
from optimizer.types import JSON

__all__ = ["GenerationWorker", "main", "timed_texts"]

#: New tokens of a text that only warms up.
_WARM_TOKENS = 8
#: What resets the peak of memory (``VmHWM``), written to ``clear_refs`` (proc(5)).
_RESET_PEAK = "5"


@dataclass(frozen=True)
class _Asked:
    """Texts to be written at once, again and again.

    Attributes:
        batch: how many.
        prompt: tokens of each prompt.
        new: tokens to be written.
        below: prompts are made of numbers below this one.
        text: tokens that prompts are cut from; empty for random ones.
        seed: of the cutting.
    """

    batch: int
    prompt: int
    new: int
    below: int
    text: tuple[int, ...]
    seed: str

    def prompts(self, call: int, shunned: Sequence[int]) -> list[list[int]]:
        """Of one call; the same for every candidate, and other ones in the next call."""
        drawn = random.Random(f"{self.seed}:{self.batch}:{self.prompt}:{call}")
        if len(self.text) > self.prompt:
            starts = [drawn.randrange(len(self.text) - self.prompt) for _ in range(self.batch)]
            return [list(self.text[start : start + self.prompt]) for start in starts]
        known = [token for token in range(self.below) if token not in shunned]
        return [drawn.choices(known, k=self.prompt) for _ in range(self.batch)]


def timed_texts(generator: Generator, prompts: Sequence[Sequence[int]], new: int) -> dict[str, Any]:
    """Write a text from each prompt, all at once.

    Returns:
        ``ns`` until all are over, and for each ``first_ns``, ``last_ns`` and ``tokens``.
    """
    clock = time.perf_counter_ns
    sampling = Sampling(max_tokens=new, min_tokens=new)

    def read(text: Generation) -> tuple[int, int, int]:
        first = last = count = 0
        for piece in text:
            if piece.tokens:
                last = int(piece.at * 1e9)  # of the same clock as this one
                first = first or last
                count += len(piece.tokens)
        return first, last, count

    # Threads that only wait, one a text: read by turns, a text would be seen when the one before it lets go.
    with ThreadPoolExecutor(len(prompts)) if len(prompts) > 1 else contextlib.nullcontext() as pool:
        if pool is not None:
            list(pool.map(time.sleep, [0.001] * len(prompts)))  # started before the clock is
        started = clock()
        begun = [generator.submit(prompt, sampling) for prompt in prompts]
        found = [read(begun[0])] if pool is None else list(pool.map(read, begun))
        ended = clock()
    if any(count == 0 for _, _, count in found):
        raise BadInput("a text ended before its first token", "its runtime does not keep end tokens away when asked to")
    return {
        "ns": ended - started,
        "first_ns": [first - started for first, _, _ in found],
        "last_ns": [last - started for _, last, _ in found],
        "tokens": [count for _, _, count in found],
    }


class GenerationWorker(worker.Worker):
    """Answers requests about one generator.

    Args:
        opener: opens a candidate with so many threads; None for what ml-opt's runtimes open.
    """

    def __init__(self, opener: Callable[[Candidate, int], Generator] | None = None) -> None:
        super().__init__()
        self._opener_of_texts = opener
        self._generator: Generator | None = None
        self._asked: dict[str, _Asked] = {}
        self._calls_made: dict[str, int] = {}

    def _open(self, request: dict[str, JSON]) -> dict[str, JSON]:
        started = time.perf_counter()
        candidate, threads = candidate_from_json(request["candidate"]), request["threads"]
        if self._opener_of_texts is not None:
            self._generator = self._opener_of_texts(candidate, threads)
        else:
            self._generator = _opened(candidate, threads, int(request.get("slots", 0)))
        facts = {**self._generator.facts, "context": self._generator.context, "vocabulary": self._generator.vocabulary}
        return {"load_s": time.perf_counter() - started, "inputs": [], "outputs": [], "facts": facts}

    def _shape(self, request: dict[str, JSON]) -> dict[str, JSON]:
        return {"first_s": self._first(request)["ns"] / 1e9, "outputs": {}}

    def _memory(self, request: dict[str, JSON]) -> dict[str, JSON]:
        _reset_peak()
        self._first(request)
        return {"rss": worker.peak_rss()}

    def _first(self, request: dict[str, JSON]) -> dict[str, Any]:
        """The first call at a shape."""
        asked = json.loads(Path(request["feeds"]).read_text(encoding="utf-8"))
        name = request["shape"]
        self._asked[name] = _Asked(**{**asked, "text": tuple(asked["text"])})
        self._calls_made[name] = 0
        return self._write(name, self._asked[name].new)

    def _warm(self, request: dict[str, JSON]) -> dict[str, JSON]:
        name = request["shape"]
        new = min(_WARM_TOKENS, self._asked[name].new)
        medians, stable = worker.warm_up(lambda: _nothing(self._write(name, new)), request["limit_s"], 1)
        return {"windows_ns": medians, "stable": stable}

    def _time(self, request: dict[str, JSON]) -> dict[str, JSON]:
        name = request["shape"]
        times: list[int] = []
        parts: list[dict[str, JSON]] = []
        _reset_peak()
        with worker.undisturbed():
            self._write(name, 1)  # another candidate has just had the caches
            end = time.perf_counter_ns() + int(request["seconds"] * 1e9)
            while time.perf_counter_ns() < end or len(times) < request["samples"]:
                prefill = self._write(name, 1)
                whole = self._write(name, self._asked[name].new)
                times.append(whole.pop("ns"))
                parts.append({"prefill_ns": prefill["ns"], **whole})
        return {"ns": times, "parts": [{**each, "rss": worker.peak_rss()} for each in parts]}

    def _close(self, request: dict[str, JSON]) -> dict[str, JSON]:
        del request
        self._opened_one.close()
        return {}

    def _write(self, name: str, new: int) -> dict[str, Any]:
        asked = self._asked[name]
        self._calls_made[name] += 1
        prompts = asked.prompts(self._calls_made[name], self._opened_one.end_tokens)
        return timed_texts(self._opened_one, prompts, new)

    @property
    def _opened_one(self) -> Generator:
        if self._generator is None:
            raise BadInput("nothing is open yet")
        return self._generator


def _reset_peak() -> None:
    """Let the most memory that was held be what is held now, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _nothing(value: object) -> None:
    del value


def _opened(candidate: Candidate, threads: int, slots: int) -> Generator:
    """A generator with room for all texts of a call; one that has no room for so many writes as many as it can."""
    options = GeneratorOptions(provider=str(candidate.provider), threads=threads, slots=slots)
    try:
        return open_generator(candidate.path, options)
    except BadInput:
        # It may be for another reason than its room, which is then said again.
        return open_generator(candidate.path, replace(options, slots=0))


def main(opener: Callable[[Candidate, int], Generator] | None = None) -> None:
    """Answer requests until stdin ends."""
    worker.main(worker=lambda: GenerationWorker(opener))


if __name__ == "__main__":
    main()
