"""One text on its way from the thread that writes it to the one that reads it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

from optimizer.generator import Finish, Piece

__all__ = ["Stream"]


class Stream:
    """A :class:`optimizer.generator.Generation` between two threads.

    Args:
        wake: called when it is cancelled, from the thread that does.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._pieces: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        self._wake = wake
        self._read = False
        self.cancelled = False

    def put(self, piece: Piece) -> None:
        """Hand a piece to the reader."""
        self._pieces.put(piece)

    def fail(self, error: BaseException) -> None:
        """End it with an error, which the reader gets raised."""
        self._pieces.put(error)

    def end(self, finish: Finish) -> None:
        """End it without another token."""
        self._pieces.put(Piece((), finish))

    def cancel(self) -> None:
        """End it before the next step; harmless when it is over."""
        self.cancelled = True
        self._wake()

    def __iter__(self) -> Iterator[Piece]:
        while not self._read:
            piece = self._pieces.get()
            if isinstance(piece, BaseException):
                self._read = True
                raise piece
            self._read = piece.finish is not None
            yield piece
