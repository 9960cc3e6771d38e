"""One text on its way from the thread that writes it to the one that reads it."""

from __future__ import annotations

import queue
import threading
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
        self._heard: Callable[[Piece | BaseException], None] = self._pieces.put
        self._turn = threading.Lock()
        self.cancelled = False

    def put(self, piece: Piece) -> None:
        """Hand a piece to the reader."""
        with self._turn:
            self._heard(piece)

    def fail(self, error: BaseException) -> None:
        """End it with an error, which the reader gets raised."""
        with self._turn:
            self._heard(error)

    def end(self, finish: Finish) -> None:
        """End it without another token."""
        with self._turn:
            self._heard(Piece((), finish))

    def listen(self, heard: Callable[[Piece | BaseException], None]) -> None:
        """Hand every piece to a function instead of the iterator, so that no thread has to wait for it.

        Args:
            heard: gets pieces in their order, those that came before first, and at the end the last piece or the error.
                It is called by the thread that writes, which waits for it: it must be quick, and raise nothing.
        """
        with self._turn:
            while not self._pieces.empty():
                heard(self._pieces.get())
            self._heard = heard

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
