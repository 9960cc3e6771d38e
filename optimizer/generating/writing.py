"""One answer as text, while it is being written, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimizer.generating.stops import Stops
from optimizer.generating.tokens import TextTokenizer
from optimizer.generator import Finish, Generator, Sampling
from optimizer.types import JSON

__all__ = ["Answer", "Likely", "Writing"]


@dataclass(frozen=True)
class Likely:
    """A token that might have come.

    Attributes:
        token: its number.
        text: what it would have added to the text; none where it is special, or begins a character only.
        logprob: the logarithm of its probability, in nats.
    """

    token: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Answer:
    """A text that is over.

    Attributes:
        text: without the stop string that ended it.
        tokens: as the model wrote them; the text of the last ones may have been cut off by a stop string.
        finish: why it ended.
        prompt_tokens: how many tokens the prompt had.
        first_seconds: from asking to the first token; None where none came.
        seconds: from asking to the end.
        logprobs: of the tokens, in nats, where they were asked for.
        top: of each token's place the likeliest tokens, the likeliest first, where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    first_seconds: float | None
    seconds: float
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[Likely, ...], ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first, by the time they took; None for fewer than two."""
        if self.first_seconds is None or len(self.tokens) < 2:
            return None
        return (len(self.tokens) - 1) / max(self.seconds - self.first_seconds, 1e-9)

    def to_json(self) -> dict[str, JSON]:
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish": self.finish.value,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "first_token_seconds": self.first_seconds,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "logprobs": list(self.logprobs),
            "top_logprobs": [[vars(each) for each in place] for place in self.top],
        }


class Writing:
    """Text as it comes; :attr:`answer` is there when the iterator is over.

    Raises:
        BadInput: what :meth:`optimizer.generator.Generator.submit` refuses.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: TextTokenizer,
        prompt: Sequence[int],
        sampling: Sampling,
        stop: Sequence[str] = (),
    ) -> None:
        self._begun = time.perf_counter()
        self._generation = generator.submit(prompt, sampling)
        self._text = tokenizer.after(() if generator.answers else prompt)
        self._stops = Stops(stop)
        self._prompt = len(prompt)
        self.answer: Answer | None = None

    def cancel(self) -> None:
        """End it; the iterator then says the rest that it has."""
        self._generation.cancel()

    def __iter__(self) -> Iterator[str]:
        said: list[str] = []
        tokens: list[int] = []
        logprobs: list[float] = []
        top: list[tuple[Likely, ...]] = []
        first: float | None = None
        last: float | None = None
        finish = Finish.CANCELLED
        try:
            for piece in self._generation:
                if piece.tokens and first is None:
                    first = piece.at - self._begun
                last = piece.at
                tokens += piece.tokens
                logprobs += piece.logprobs
                for place in piece.top:  # one, of the one token of a step
                    top.append(tuple(Likely(token, self._text.would(token), chance) for token, chance in place))
                text = self._stops.add(self._text.add(piece.tokens)) if piece.tokens else ""
                if piece.finish is not None and not self._stops.stopped:
                    finish = piece.finish
                    text += self._stops.add(self._text.end())
                    text += self._stops.end()
                if self._stops.stopped:
                    finish = Finish.STOP
                if text:
                    said.append(text)
                    yield text
                if self._stops.stopped:
                    break
        finally:
            self._generation.cancel()  # whoever reads no further needs no more of it
            seconds = (last or time.perf_counter()) - self._begun
            chances = (tuple(logprobs), tuple(top))
            self.answer = Answer("".join(said), tuple(tokens), finish, self._prompt, first, seconds, *chances)
