"""What writes text: the protocol that every decoder speaks, beside :class:`optimizer.runtime.Session`.

It is said in tokens. What turns text into tokens and tokens into text (``optimizer.generating``) is the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from optimizer.discovery import members
from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Finish", "Generation", "Generator", "GeneratorRuntime", "Piece", "Sampling", "discover", "open_generator"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop. The defaults are greedy.

    Attributes:
        max_tokens: most new tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: smallest set of tokens whose probability is at least this; 1 leaves none out.
        top_k: so many of the likeliest tokens; 0 leaves none out.
        seed: the same one gives the same tokens; None for another one each time.
        stop_tokens: tokens that end the text, beside the model's own.
        json_schema: the text is JSON that fits this schema; empty for none.
        regex: the text matches this expression; empty for none.
        min_tokens: no end token is chosen before so many new tokens; with as many as ``max_tokens`` every text is of
            the same length, as in a benchmark.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_tokens: tuple[int, ...] = ()
    json_schema: str = ""
    regex: str = ""
    min_tokens: int = 0


class Finish(StrEnum):
    """Why a text ended; the words are those of OpenAI's API where it has them."""

    STOP = "stop"  # an end token, or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Piece:
    """One step of one text.

    Attributes:
        tokens: new tokens; none in a piece that only says why the text ended. End tokens are left out.
        finish: why it ended, in the last piece.
        logprobs: of the tokens, in nats, where the runtime has them.
    """

    tokens: tuple[int, ...]
    finish: Finish | None = None
    logprobs: tuple[float, ...] = field(default=())


class Generation(Protocol):
    """One text that is being written."""

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come; the last one has :attr:`Piece.finish`."""

    def cancel(self) -> None:
        """End it before the next step, and free its place; harmless when it is over. From any thread."""


@runtime_checkable
class Generator(Protocol):
    """An open decoder.

    Attributes:
        facts: what was really got: runtime, provider, threads, load seconds, how many texts are written at once.
        context: most tokens of a prompt and its answer together.
        vocabulary: how many tokens there are.
        end_tokens: those that end a text.
    """

    facts: dict[str, JSON]
    context: int
    vocabulary: int
    end_tokens: tuple[int, ...]

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Generation:
        """Begin a text. From any thread; several are written at once.

        Raises:
            BadInput: the prompt is empty or fills the context, or a number of ``sampling`` is out of its range.
        """

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of what follows each token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``; none is padding."""

    def close(self) -> None:
        """End every text, and give back memory and threads."""


@dataclass(frozen=True)
class GeneratorRuntime:
    """One library that opens decoders; a module of ``optimizer/runtimes/`` has it as ``GENERATOR``.

    Attributes:
        name: ``torch``, ``genai``.
        help: one sentence.
        providers: names of the back ends that it has, with the precisions each one takes.
        opens: whether a folder is of the sort that it opens.
        open: ``open(folder, provider, precision, threads)`` → :class:`Generator`; 0 threads are one a physical core.
    """

    name: str
    help: str
    providers: Mapping[str, tuple[str, ...]]
    opens: Callable[[Path], bool]
    open: Callable[[Path, str, str, int], Generator]


@functools.cache
def discover() -> dict[str, GeneratorRuntime]:
    """Every runtime of decoders in :mod:`optimizer.runtimes`, by name."""
    return members("optimizer.runtimes", "GENERATOR")


def open_generator(folder: Path, provider: str = "cpu", threads: int = 0) -> Generator:
    """Open a decoder with the library that knows its folder and has the provider.

    Args:
        folder: an artifact of the kind ``generator``, or a Hugging Face model folder.
        provider: back end, with a precision behind a colon where it has a choice: ``cpu``, ``torch``, ``torch:bf16``.
        threads: 0 are one a physical core.

    Raises:
        BadInput: no library opens such a folder, or none of those that do has the provider.
        UnknownName: the provider does not take this precision.
    """
    fitting = [each for each in discover().values() if each.opens(folder)]
    if not fitting:
        raise BadInput(
            f"{folder} holds no decoder",
            "name an artifact of the kind generator, or a Hugging Face folder of a causal language model",
        )
    name, _, precision = provider.partition(":")
    for each in fitting:
        if name in each.providers:
            if precision and precision not in each.providers[name]:
                raise UnknownName(f"precision of {name}", precision, each.providers[name] or ("none: leave it out",))
            return each.open(folder, name, precision, threads)
    known = sorted({known for each in fitting for known in each.providers})
    raise BadInput(f"the provider {name} does not open {folder}", f"use one of: {', '.join(known)}")
