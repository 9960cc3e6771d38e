"""One text as it comes, in the event loop: characters whole, stop strings found, tokens with how likely they were."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from optimizer.errors import MissingPiece
from optimizer.generating.stops import Stops
from optimizer.generating.tokens import TextTokenizer
from optimizer.generator import Finish, Generation, Piece
from optimizer.serving.text.observer import Observer
from optimizer.serving.text.pieces import Pieces

__all__ = ["Reply", "Said", "Told"]


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


class Reply:
    """One text that is being written, with what it came to when it is over.

    Args:
        generation: begun just now.
        tokenizer: the model's.
        prompt: tokens.
        stop: strings that end it.
        begun: when it was asked for, by ``time.perf_counter()``.
        observer: is told of tokens and times.

    Attributes:
        text: all that was said so far.
        tokens: how many were written so far.
        finish: why it ended; None while it has not.
    """

    def __init__(
        self,
        generation: Generation,
        tokenizer: TextTokenizer,
        prompt: Sequence[int],
        stop: Sequence[str],
        begun: float,
        observer: Observer,
    ) -> None:
        self._pieces = Pieces(generation)
        self._decoded = tokenizer.after(prompt)
        self._stops = Stops(stop)
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
                top = tuple((self._decoded.would(other), chance) for other, chance in others)
                new = self._decoded.add((token,))
                said += self._stops.add(new)
                if piece.logprobs:
                    told.append(Told(new, piece.logprobs[place], top))
            if piece.finish is Finish.CANCELLED:
                raise MissingPiece("the server ended this text: it is shutting down, or unloads the model")
            if piece.finish is not None and not self._stops.stopped:
                said += self._stops.add(self._decoded.end()) + self._stops.end()
                self.finish = piece.finish
            if self._stops.stopped:
                self.finish = Finish.STOP
                break  # what the model wrote behind it is of no use, and is not counted
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
