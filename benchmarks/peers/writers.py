"""What the workers of text generators share: a thread that steps, and what they answer when asked for tokens.

    python -m benchmarks.peers.NAME prepare SOURCE FOLDER WEIGHTS…     makes the models
    python -m benchmarks.peers.NAME write PATH PRECISION THREADS       writes texts, asked on stdin (:func:`answer`)
    python -m benchmarks.peers.NAME                                    is the worker that they are timed in

As ``benchmarks.peers.writers`` it writes what ml-opt's own runtimes write. Imported in every peer's environment.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from optimizer.benching import generation_worker
from optimizer.errors import BadInput
from optimizer.generator import Finish, Generator, GeneratorOptions, Piece, Sampling, open_generator
from optimizer.runtime import Candidate, Provider
from optimizer.types import JSON

__all__ = ["Engine", "SteppedGenerator", "main", "tokens_of"]

Opener = Callable[[Candidate, int], Generator]


class Engine(Protocol):
    """A library that writes all texts under way by a token each time that it is told to.

    Attributes:
        facts, context, vocabulary, end_tokens: of :class:`optimizer.generator.Generator`.
    """

    facts: dict[str, JSON]
    context: int
    vocabulary: int
    end_tokens: tuple[int, ...]

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        """Take one text more, and return what it is known by."""

    def step(self, texts: Sequence[Any]) -> list[tuple[tuple[int, ...], bool]]:
        """New tokens of each text that was begun, and whether it is over."""


class SteppedGenerator:
    """One thread steps the engine and hands tokens on; what is submitted meanwhile is begun before the next step."""

    def __init__(self, engine: Engine) -> None:
        self.facts, self.context = engine.facts, engine.context
        self.vocabulary, self.end_tokens = engine.vocabulary, engine.end_tokens
        self._engine = engine
        self._waiting: queue.SimpleQueue[tuple[Sequence[int], Sampling, _Text] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> _Text:
        """Begin a text."""
        text = _Text()
        self._waiting.put((prompt, sampling, text))
        return text

    def score(self, tokens: Any, read: Any = None) -> Any:
        """Logits are not handed out."""
        raise NotImplementedError

    def close(self) -> None:
        """End the thread."""
        self._waiting.put(None)

    def _work(self) -> None:
        running: dict[Any, _Text] = {}
        while True:
            while not self._waiting.empty() or not running:
                asked = self._waiting.get()
                if asked is None:
                    return
                prompt, sampling, text = asked
                try:
                    running[self._engine.begin(prompt, sampling)] = text
                except Exception as error:  # whatever a peer's library raises: whoever reads the text is told
                    text.pieces.put(error)
            try:
                found = self._engine.step(list(running))
            except Exception as error:
                for text in running.values():
                    text.pieces.put(error)
                return
            for (known, text), (tokens, over) in zip(list(running.items()), found, strict=True):
                if tokens:
                    text.pieces.put(Piece(tokens))
                if over:
                    text.pieces.put(Piece((), Finish.LENGTH))
                    del running[known]


class _Text:
    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Piece]:
        while True:
            piece = self.pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if piece.finish is not None:
                return

    def cancel(self) -> None:
        """Nobody does."""


def answer(opener: Opener, path: str, precision: str, threads: str) -> None:
    """Write texts all at once, as they are when they are timed.

    ``{"prompts": [[…], …], "new": 32}`` on stdin is answered by ``{"tokens": [[…], …]}`` on stdout, in its last line.
    """
    asked = json.load(sys.stdin)
    generator = opener(Candidate("asked", Path(path), Provider("peer", precision)), int(threads))
    sampling = Sampling(max_tokens=asked["new"], min_tokens=asked["new"])
    texts = [generator.submit(prompt, sampling) for prompt in asked["prompts"]]
    found = [[int(token) for piece in text for token in piece.tokens] for text in texts]
    generator.close()
    print(json.dumps({"tokens": found}), flush=True)


def tokens_of(said: str, texts: int, new: int) -> list[list[int]]:
    """What :func:`answer` printed, with whatever a library printed before it.

    Raises:
        BadInput: the last line is no answer, or has other texts than were asked for.
    """
    try:
        found: list[list[int]] = json.loads(said.strip().splitlines()[-1])["tokens"]
    except (IndexError, KeyError, TypeError, ValueError):
        raise BadInput(f"it answered no tokens but {said.strip()[-200:]!r}") from None
    if [len(text) for text in found] != [new] * texts:
        raise BadInput(f"it wrote {[len(text) for text in found]} tokens, and not {texts} times {new}")
    return found


def main(opener: Opener, prepare: Callable[..., None] | None = None) -> None:
    """What a peer's module does when it is run."""
    words = sys.argv[1:]
    if not words:
        generation_worker.main(opener)
    elif words[0] == "write":
        answer(opener, *words[1:])
    elif prepare is not None:
        prepare(*words[1:])


def _ours(candidate: Candidate, threads: int) -> Generator:
    provider = candidate.provider.precision or "cpu"
    return open_generator(candidate.path, GeneratorOptions(provider=provider, threads=threads))


if __name__ == "__main__":
    main(_ours)
