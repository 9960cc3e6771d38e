"""What writes text: the protocol that every decoder speaks, beside :class:`optimizer.runtime.Session`.

It is said in tokens. What turns text into tokens and tokens into text (``optimizer.generating``) is the same for all.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from optimizer.discovery import members
from optimizer.environment import need_modules
from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "KV8",
    "Finish",
    "Generation",
    "Generator",
    "GeneratorOptions",
    "GeneratorRuntime",
    "Piece",
    "Sampling",
    "computed_and_kept",
    "discover",
    "open_generator",
    "room",
]


#: Behind a provider's precision (``bf16-kv8``): keys and values are kept in 8 bits.
KV8 = "-kv8"


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
        logprobs: say how likely each token was to the model: by its own logits, before all that bends or limits them.
        top_logprobs: with ``logprobs``, say it also of so many of the likeliest tokens at each place.
        min_tokens: no end token is chosen before so many new tokens; with as many as ``max_tokens`` every text is of
            the same length, as in a benchmark.
        min_p: leave out tokens less likely than this share of the likeliest one's probability; 0 leaves none out.
        repetition_penalty: logits of tokens in the prompt and the text so far are divided by this, negative ones
            multiplied; 1 changes nothing.
        presence_penalty: taken off the logit of each token that was written.
        frequency_penalty: taken off it for each time that it was.
        no_repeat_ngram_size: no sequence of so many tokens comes twice, the prompt included; 0 for no such limit.
        logit_bias: tokens, and what is added to the logit of each.
        num_beams: so many texts are followed at once, and the best is the answer; 1 for the likeliest token each time.
        length_penalty: with beams, a text's score is its log-probability over its length to this power: the larger,
            the longer.
        early_stopping: with beams, end when as many texts have ended as there are beams.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_tokens: tuple[int, ...] = ()
    json_schema: str = ""
    regex: str = ""
    logprobs: bool = False
    min_tokens: int = 0
    top_logprobs: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False


def computed_and_kept(precision: str) -> tuple[str, bool]:
    """What a provider's precision says: what is computed in, and whether keys and values are kept in 8 bits."""
    computed = precision.removesuffix(KV8)
    return computed, computed != precision


def room(prompt: int, context: int, answers: int) -> int:
    """Most tokens of an answer to a prompt of so many.

    Args:
        prompt: tokens of it.
        context: of :class:`Generator`.
        answers: of :class:`Generator`.
    """
    return answers or context - prompt


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
        logprobs: of the tokens, in nats, where they were asked for and the runtime has them; else none.
        top: of each token's place the likeliest tokens and their logprobs, the likeliest first, where asked for.
        at: when it was made, by ``time.perf_counter()``: the reader may come to it later.
    """

    tokens: tuple[int, ...]
    finish: Finish | None = None
    logprobs: tuple[float, ...] = field(default=())
    top: tuple[tuple[tuple[int, float], ...], ...] = field(default=())
    at: float = field(default_factory=time.perf_counter, compare=False)


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
        answers: most tokens of an answer where the prompt is read by an encoder, and ``context`` is about the prompt
            alone; 0 where a text goes on from its prompt.
        vocabulary: how many tokens there are.
        end_tokens: those that end a text.
    """

    facts: dict[str, JSON]
    context: int
    answers: int
    vocabulary: int
    end_tokens: tuple[int, ...]

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Generation:
        """Begin a text. From any thread; several are written at once.

        Raises:
            BadInput: the prompt is empty or fills the context, or a number of ``sampling`` is out of its range.
        """

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits of what follows each token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``; none is padding.

        Args:
            tokens: of texts; or of answers, from the first token that every answer begins with.
            read: the prompts that are answered, ``[rows, tokens of a prompt]``, where an encoder reads them.

        Raises:
            BadInput: a token is none of the vocabulary, there are too many, or prompts are given to what has no
                encoder, or none to what has one.
        """

    def close(self) -> None:
        """End every text, and give back memory and threads."""


@dataclass(frozen=True)
class GeneratorOptions:
    """How to open a generator.

    Attributes:
        runtime: ``onnxruntime``, ``openvino``, ``genai``, …; ``auto`` for the first that takes the provider.
        provider: ``cpu``, ``openvino-native:bf16``, ``cuda``, …
        threads: intra-op threads; 0 means one a physical core that this process may use.
        slots: most texts that are written at once; 0 for what the runtime takes by itself.
    """

    runtime: str = "auto"
    provider: str = "cpu"
    threads: int = 0
    slots: int = 0


@dataclass(frozen=True)
class GeneratorRuntime:
    """One library that writes text.

    Attributes:
        name: ``onnxruntime``, ``openvino``, ``genai``.
        help: one sentence.
        providers: what it can compute with, the one it takes by itself first.
        modules: imports without which it cannot run.
        open: ``open(folder, options)`` → :class:`Generator`. ``folder`` has ``genai_config.json``.
        rank: of those that take a provider, the one with the lowest opens it.
    """

    name: str
    help: str
    providers: tuple[str, ...]
    modules: tuple[str, ...]
    open: Callable[[Path, GeneratorOptions], Generator]
    rank: int


@functools.cache
def discover() -> dict[str, GeneratorRuntime]:
    """Every ``GENERATOR`` of :mod:`optimizer.runtimes`, by name, the lowest rank first."""
    found: dict[str, GeneratorRuntime] = members("optimizer.runtimes", "GENERATOR")
    return dict(sorted(found.items(), key=lambda item: item[1].rank))


def open_generator(folder: Path, options: GeneratorOptions = GeneratorOptions()) -> Generator:
    """Open a generator's folder.

    Raises:
        BadInput: the folder is no generator, or the runtime does not take the provider.
        UnknownName: there is no such runtime.
        MissingPiece: the runtime, or its provider, is not installed.
    """
    runtimes = discover()
    if options.runtime != "auto" and options.runtime not in runtimes:
        raise UnknownName("runtime of generators", options.runtime, (*runtimes, "auto"))
    named = list(runtimes.values()) if options.runtime == "auto" else [runtimes[options.runtime]]
    able = [runtime for runtime in named if options.provider in runtime.providers]
    if not able:
        known = ", ".join(dict.fromkeys(name for runtime in named for name in runtime.providers))
        raise BadInput(f"no text is generated with the provider {options.provider} here", f"there is: {known}")
    need_modules(able[0].modules, f"generating text with {able[0].name}")
    return able[0].open(folder, options)
