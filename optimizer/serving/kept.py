"""Where kept answers lie: this process's memory, or Redis. Neither decides whether an answer is the right one."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from optimizer.errors import BadInput, missing_package
from optimizer.options import parse_size

__all__ = ["Kept", "Memory", "Redis", "check_place", "kept_in", "memory_of"]

#: What an entry costs beside its key and its value: three objects and a place in a table.
_ENTRY = 300
#: Seconds that an answer lies in Redis.
_EXPIRES = 86400
#: Largest entry that is sent to Redis; fetching a larger one is hardly faster than computing it.
_LARGEST = 4 << 20
#: Entries that Redis is asked for by one question.
_AT_ONCE = 64
#: Seconds that Redis may take, and seconds without it once it took longer or was not there.
_PATIENCE, _PAUSE = 0.25, 5.0


class Kept(Protocol):
    """A place for entries: where one lies → the key and the value that lie there."""

    #: Whether its size is this process's own.
    local: bool

    @property
    def size(self) -> int:
        """Bytes of all entries; 0 where that is not known here."""

    @property
    def entries(self) -> int:
        """How many there are; 0 where that is not known here."""

    async def get(self, places: Sequence[bytes]) -> list[tuple[bytes, bytes] | None]:
        """The key and the value that lie in each place, which may be another key's; None where nothing does."""

    async def put(self, place: bytes, key: bytes, value: bytes) -> None:
        """Lay them there, in place of what lay there."""

    async def close(self) -> None:
        """Give everything back."""


class Memory:
    """Entries of this process, the one that was not used for longest being the first to go.

    Args:
        most: bytes of keys, values and what holds them.
    """

    local = True

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        self.size = 0

    @property
    def entries(self) -> int:
        return len(self._held)

    async def get(self, places: Sequence[bytes]) -> list[tuple[bytes, bytes] | None]:
        for place in places:
            if place in self._held:
                self._held.move_to_end(place)
        return [self._held.get(place) for place in places]

    async def put(self, place: bytes, key: bytes, value: bytes) -> None:
        self._drop(self._held.pop(place, None), place)
        size = _cost(place, key, value)
        if size > self._most:
            return
        while self.size + size > self._most:
            oldest, entry = self._held.popitem(last=False)
            self._drop(entry, oldest)
        self._held[place] = (key, value)
        self.size += size

    def _drop(self, entry: tuple[bytes, bytes] | None, place: bytes) -> None:
        if entry is not None:
            self.size -= _cost(place, *entry)

    async def close(self) -> None:
        self._held.clear()
        self.size = 0


class Redis:
    """Entries in Redis, for several processes. A Redis that is slow or gone is no answer, and stops none.

    Its own ``maxmemory`` and ``allkeys-lru`` bound it; each entry is gone after a day.

    Args:
        url: ``redis://HOST:6379/0``.
        told: is told, in words, when it cannot be reached; goes to the log.

    Raises:
        BadInput: the URL is none of Redis.
        MissingPiece: the package ``redis`` is not installed.
    """

    local = False
    size = entries = 0

    def __init__(self, url: str, told: Callable[[str], None]) -> None:
        try:
            import redis.asyncio as redis
            from redis.exceptions import RedisError
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "redis", "keeping answers in Redis") from None
        try:
            self._redis: Any = redis.from_url(
                url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE, retry=None
            )
        except ValueError as error:
            raise BadInput(f"--cache {url!r} is no address of Redis: {error}", "write redis://HOST:6379/0") from None
        import asyncio  # whose settings these are too need not wait for it at every command's start

        self._in_time = asyncio.timeout
        self._errors = (RedisError, OSError, TimeoutError)
        self._told = told
        self._until = 0.0

    async def get(self, places: Sequence[bytes]) -> list[tuple[bytes, bytes] | None]:
        found: list[Any] = []
        for start in range(0, len(places), _AT_ONCE):
            found += await self._several(places[start : start + _AT_ONCE])
        return [_entry(each) for each in found]

    async def _several(self, places: Sequence[bytes]) -> Sequence[Any]:
        """What lies in these places, by one question."""
        if time.monotonic() < self._until:
            return [None] * len(places)
        try:
            async with self._in_time(_PATIENCE):
                found: Sequence[Any] = await self._redis.mget([_name(place) for place in places])
                return found
        except self._errors as error:
            self._gone(error)
            return [None] * len(places)

    async def put(self, place: bytes, key: bytes, value: bytes) -> None:
        if time.monotonic() < self._until or len(key) + len(value) > _LARGEST:
            return
        try:
            async with self._in_time(_PATIENCE):
                await self._redis.set(_name(place), b"".join((len(key).to_bytes(8, "little"), key, value)), ex=_EXPIRES)
        except self._errors as error:
            self._gone(error)

    def _gone(self, error: Exception) -> None:
        self._until = time.monotonic() + _PAUSE
        self._told(f"kept answers cannot be reached, and are not asked for {_PAUSE:g} s: {error}")

    async def close(self) -> None:
        await self._redis.aclose()


def _entry(lying: Any) -> tuple[bytes, bytes] | None:
    if not isinstance(lying, bytes) or len(lying) < 8:
        return None
    end = 8 + int.from_bytes(lying[:8], "little")
    return lying[8:end], lying[end:]


def _name(place: bytes) -> str:
    return f"ml-opt:answer:{place.hex()}"


def _cost(place: bytes, key: bytes, value: bytes) -> int:
    return _ENTRY + len(place) + len(key) + len(value)


def memory_of(text: str) -> int:
    """Bytes of a ``--cache`` that is a size, as in ``256MiB``; raises :class:`BadInput`, for a bare number too."""
    try:
        if not text.strip().isdigit():  # nobody means 256 bytes
            return parse_size(text, "--cache")
    except BadInput:
        pass
    raise BadInput(f"--cache takes a size or an address of Redis, not {text!r}", "write 256MiB, or redis://HOST:6379/0")


def check_place(text: str) -> None:
    """Whether a ``--cache`` names a place; raises :class:`BadInput`."""
    if not _is_redis(text):
        memory_of(text)


def kept_in(text: str, told: Callable[[str], None]) -> Kept:
    """The place that ``--cache`` names.

    Args:
        text: a size, or an address of Redis.
        told: is told when Redis cannot be reached.

    Raises:
        BadInput: it is neither.
        MissingPiece: the package ``redis`` is not installed.
    """
    return Redis(text, told) if _is_redis(text) else Memory(memory_of(text))


def _is_redis(text: str) -> bool:
    return text.startswith(("redis://", "rediss://", "unix://"))
