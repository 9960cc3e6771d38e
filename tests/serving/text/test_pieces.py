"""From the thread that writes into the event loop: nothing lost, nothing out of order, no thread that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from optimizer.generating.stream import Stream
from optimizer.generator import Finish, Piece
from optimizer.serving.text.pieces import Pieces


async def read(pieces: Pieces) -> list[Piece]:
    return [piece async for several in pieces for piece in several]


def test_pieces_of_many_texts_come_in_order_without_threads_of_their_own() -> None:
    async def inside() -> None:
        streams = [Stream() for _ in range(50)]
        reading = [asyncio.ensure_future(read(Pieces(stream))) for stream in streams]
        before = threading.active_count()

        def write() -> None:
            for token in range(200):
                for stream in streams:
                    stream.put(Piece((token,), Finish.LENGTH if token == 199 else None))

        writer = threading.Thread(target=write)
        writer.start()
        assert threading.active_count() <= before + 1
        for got in await asyncio.gather(*reading):
            assert [token for piece in got for token in piece.tokens] == list(range(200))
        writer.join()

    asyncio.run(inside())


def test_what_came_before_anyone_listened_comes_first() -> None:
    async def inside() -> None:
        stream = Stream()
        stream.put(Piece((1,)))
        stream.put(Piece((2,)))
        pieces = Pieces(stream)
        stream.put(Piece((3,)))
        stream.end(Finish.STOP)
        assert [piece.tokens for piece in await read(pieces)] == [(1,), (2,), (3,), ()]

    asyncio.run(inside())


def test_an_error_comes_behind_what_was_written() -> None:
    async def inside() -> None:
        stream = Stream()
        stream.put(Piece((1,)))
        stream.fail(ValueError("late"))
        got: list[Piece] = []
        with pytest.raises(ValueError, match="late"):
            async for several in Pieces(stream):
                got += several
        assert [piece.tokens for piece in got] == [(1,)]

    asyncio.run(inside())


def test_a_loop_that_is_closed_ends_the_text() -> None:
    stream = Stream()

    async def inside() -> None:
        Pieces(stream)

    asyncio.run(inside())
    stream.put(Piece((1,)))
    assert stream.cancelled


def test_generations_of_another_sort_are_followed() -> None:
    class Own:
        cancelled = False

        def __iter__(self) -> Iterator[Piece]:
            yield Piece((1,))
            yield Piece((2,), Finish.STOP)

        def cancel(self) -> None:
            self.cancelled = True

    async def inside() -> None:
        own = Own()
        pieces = Pieces(own)
        assert [piece.tokens for piece in await read(pieces)] == [(1,), (2,)]
        pieces.cancel()
        assert own.cancelled

    asyncio.run(inside())
