"""One text as it comes, in the event loop: characters whole, stop strings found, tokens with how likely they were."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.errors import MissingPiece
from optimizer.generating.stops import Stops
from optimizer.generating.tokens import TextTokenizer
from optimizer.generator import Finish, Generation, Piece
from optimizer.serving.text.observer import Observer
from optimizer.serving.text.pieces import Pieces

if TYPE_CHECKING:
    from optimizer.serving.guard.redaction import Redactor

__all__ = ["Reply", "Said", "Text", "Told"]


@dataclass(frozen=True)
class Told:
    """One token of an answer.

    Attributes:
        text: what it added to the text; empty for one that only begins a character.
        logprob: of the token, in nats.
        top: what the likeliest tokens would have added at its place, and their logprobs.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Said:
    """What came at once.

    Attributes:
        text: to be said now.
        told: its tokens, where their chances were asked for.
        finish: why the text ended, in the last one.
    """

    text: str
    told: tuple[Told, ...] = ()
    finish: Finish | None = None


class Text:
    """Tokens on their way to text that can be said: whole characters, no stop string, no personal data.

    Args:
        tokenizer: the model's.
        prompt: tokens that it goes on from.
        stop: strings that end it.
        redactor: takes personal data out; None for none.
    """

    def __init__(
        self, tokenizer: TextTokenizer, prompt: Sequence[int], stop: Sequence[str], redactor: Redactor | None
    ) -> None:
        self._decoded = tokenizer.after(prompt)
        self._stops, self._redactor = Stops(stop), redactor

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.stopped

    def would(self, token: int) -> str:
        """What a token would add."""
        return self._decoded.would(token)

    def add(self, token: int) -> tuple[str, str]:
        """What a token adds, and what can be said of it and of those before."""
        new = self._decoded.add((token,))
        said = self._stops.add(new)
        return new, said if self._redactor is None else self._redactor.feed(said)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        said = "" if self.stopped else self._stops.add(self._decoded.end()) + self._stops.end()
        return said if self._redactor is None else self._redactor.feed(said) + self._redactor.finish()


class Reply:
    """One text that is being written, with what it came to when it is over.

    Args:
        generation: begun just now.
        text: what its tokens become.
        begun: when it was asked for, by ``time.perf_counter()``.
        observer: is told of tokens and times.

    Attributes:
        text: all that was said so far.
        tokens: how many were written so far.
        finish: why it ended; None while it has not.
    """

    def __init__(self, generation: Generation, text: Text, begun: float, observer: Observer) -> None:
        self._pieces = Pieces(generation)
        self._text = text
        self._begun, self._last = begun, begun
        self._observer = observer
        self.text, self.tokens = "", 0
        self.told: list[Told] = []
        self.finish: Finish | None = None
        self._closed = False

    def close(self) -> None:
        """End it before the model's next step, unless it is over; harmless when that was done."""
        self._pieces.cancel()
        if not self._closed:
            self._closed = True
            self._observer.ended(time.perf_counter() - self._begun, self.tokens, self.finish)

    async def __aiter__(self) -> AsyncIterator[Said]:
        """What can be said, as it comes; the last one says why it ended.

        Raises:
            MissingPiece: the server ended it.
        """
        async for pieces in self._pieces:
            begins = self.tokens == 0
            said = self._take(pieces)
            # The first token is told of even where it has no text yet: it is what one waits for.
            if said.text or said.told or said.finish or begins:
                yield said
            if said.finish:
                self.close()  # at a stop string the model would write on
                return

    def _take(self, pieces: Sequence[Piece]) -> Said:
        said, told = "", []
        for piece in pieces:
            self._observe(len(piece.tokens), piece.at)
            for place, token in enumerate(piece.tokens):
                others = piece.top[place] if piece.top else ()
                top = tuple((self._text.would(other), chance) for other, chance in others)
                new, more = self._text.add(token)
                said += more
                if piece.logprobs:
                    told.append(Told(new, piece.logprobs[place], top))
            if piece.finish is Finish.CANCELLED:
                raise MissingPiece("the server ended this text: it is shutting down, or unloads the model")
            if piece.finish is not None or self._text.stopped:
                said += self._text.end()
                self.finish = Finish.STOP if self._text.stopped else piece.finish
                break  # what the model wrote behind a stop string is of no use, and is not counted
        self.text += said
        self.told += told
        return Said(said, tuple(told), self.finish)

    def _observe(self, tokens: int, at: float) -> None:
        for _ in range(tokens):
            if self.tokens == 0:
                self._observer.first(at - self._begun)
            else:
                self._observer.between((at - self._last) / tokens)
            self.tokens += 1
        if tokens:
            self._last = at
