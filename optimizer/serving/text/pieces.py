"""Pieces of a text from the thread that writes them into the event loop, with no thread that waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator

from optimizer.generating.stream import Stream
from optimizer.generator import Generation, Piece

__all__ = ["Pieces"]


class Pieces:
    """A generation's pieces in the loop that this is made in; many generations share its one thread.

    The iterator hands out all that came since it was last asked: a reader that is slower than the model gets fewer and
    longer lists, and falls no further behind.
    """

    def __init__(self, generation: Generation) -> None:
        self._loop = asyncio.get_running_loop()
        self._came: deque[Piece | BaseException] = deque()
        self._news = asyncio.Event()
        self._told = False
        self._generation = generation
        if isinstance(generation, Stream):
            generation.listen(self._hear)
        else:
            threading.Thread(target=self._follow, name="ml-opt-follow", daemon=True).start()

    def cancel(self) -> None:
        """End the text before its next step; harmless when it is over."""
        self._generation.cancel()

    def _hear(self, piece: Piece | BaseException) -> None:
        """In the thread that writes. The loop is woken once for all pieces that it has not looked at yet."""
        self._came.append(piece)
        if not self._told:
            self._told = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed: nobody reads any more
                self._generation.cancel()

    def _wake(self) -> None:
        self._told = False  # before the reader looks: what comes after this line wakes it again
        self._news.set()

    def _follow(self) -> None:
        """For generations that cannot be listened to: one thread that waits."""
        try:
            for piece in self._generation:
                self._hear(piece)
        except BaseException as error:
            self._hear(error)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        while True:
            await self._news.wait()
            self._news.clear()
            pieces: list[Piece] = []
            while self._came:
                piece = self._came.popleft()
                if isinstance(piece, BaseException):
                    if pieces:
                        yield pieces
                    raise piece
                pieces.append(piece)
            if pieces:
                yield pieces
                if pieces[-1].finish is not None:
                    return
