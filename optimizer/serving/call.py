"""One request on its way through: what an endpoint is given."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optimizer.serving.answers import parsed
from optimizer.serving.guard.scopes import Admitted, Reservation, joined
from optimizer.serving.logged import TEXTS, loggable
from optimizer.serving.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from optimizer.serving.record import Part
    from optimizer.serving.served import Served
    from optimizer.serving.state import State

__all__ = ["Call"]

_MIB = 1 << 20
#: Content-Encoding → zlib's ``wbits``: a gzip frame, and what HTTP calls deflate (a zlib frame).
_ENCODINGS = {"gzip": 31, "deflate": 15}


@dataclass
class Call:
    """One request.

    Attributes:
        request: Starlette's.
        state: what all requests share.
        id: of the request, the client's own (``X-Request-Id``) or a new one; in the log and in the response.
        model: the name of the model that answers, for metrics and the log; an endpoint that has one sets it.
        version: of the model.
        times: part → seconds, for ``Server-Timing`` and the log, in the order that they came.
        notes: more for the log (rows, tokens, why it was refused).
        admitted: who asks, and what the answer says about rates.
        answering: the model that answers.
        runs: the runs of it that the request shared, for its record.
        texts: what was asked and written, as the log may have it; empty unless ``log_text`` asks for it.
    """

    request: Request
    state: State
    id: str
    model: str = ""
    version: str = ""
    times: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    admitted: Admitted = field(default_factory=Admitted)
    answering: Served | None = None
    runs: Sequence[Part] = ()
    texts: dict[str, str] = field(default_factory=dict)

    def screen(self, text: str, model: str, param: str) -> str:
        """A text that is about to be given to a model, as it may see it.

        Args:
            text: what was asked.
            model: the model's name.
            param: where in the request it stands.

        Raises:
            Problem: 400: it may not be given this text, by the guard.
        """
        self.tell(param, text)
        return self.state.guard.screen(text, model, param)

    def tell(self, name: str, text: str) -> None:
        """Have the log say a text, where texts are wanted in it; several of a name are told apart by number."""
        if not self.state.settings.log_text or len(self.texts) >= TEXTS:
            return
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        while name in self.texts:
            name = next(numbered)
        self.texts[name] = loggable(text)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count what is done inside as a part of this request's time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[part] = self.times.get(part, 0.0) + time.perf_counter() - start

    def served(self, name: str | None = None, version: str = "") -> Served:
        """The model that the request names (in its path, or as given), ready to answer.

        Raises:
            Problem: 404: there is none; 503: it is not ready, and why.
        """
        params = self.request.path_params
        named = params["name"] if name is None else name
        found = self.state.models.get(named, version or params.get("version", ""))
        self.model, self.version, self.answering = found.name, found.version, found
        if found is not self.state.proving:
            found.need_ready()
        return found

    async def body(self) -> bytes:
        """The whole body, decompressed.

        Raises:
            Problem: 413: it is larger than ``max_body`` allows, before or after decompression; 400: it is cut short
                or not what its ``Content-Encoding`` says; 415: an encoding that is not known here.
        """
        limit = self.state.settings.max_body * _MIB
        headers = self.request.headers
        said = headers.get("content-length", "")
        if said.isdigit() and int(said) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        try:
            async for part in self.request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
        except Exception as error:
            if type(error).__name__ == "ClientDisconnect":
                raise Problem(499, "the client hung up", reason="disconnected") from None
            raise
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        return body if encoding == "identity" else _decompressed(body, encoding, limit)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object; raises as :meth:`body` does, and 400 where it is none."""
        return parsed(await self.body())

    @asynccontextmanager
    async def spending(self, tokens: int) -> AsyncIterator[Reservation]:
        """Take what the request may at most come to from the caller's budget of tokens while it is answered.

        Whoever knows better in the end says so by ``settle``; a request that fails costs nothing.

        Args:
            tokens: those it brings, and those it may generate.

        Raises:
            Problem: 429 or 400 of the budget.
        """
        reserved = await self.state.guard.reserve(self.admitted.who, tokens)
        if reserved.headers:
            self.admitted = replace(self.admitted, headers=joined(self.admitted.headers, reserved.headers))
        try:
            yield reserved
        except BaseException:
            await reserved.settle(0)
            raise

    async def hung_up(self) -> None:
        """Returns when the client goes away; the body must have been read."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than {limit // _MIB} MiB (--max-body)", reason="too_large")


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding not in _ENCODINGS:
        known = ", ".join(_ENCODINGS)
        raise Problem(415, f"Content-Encoding {encoding[:40]!r} is not known here; there is {known}")
    inflate = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        made = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Problem(400, f"the body is not {encoding}: {error}") from None
    if len(made) > limit:
        raise _too_large(limit)
    if not inflate.eof:
        raise Problem(400, f"the body ends in the middle of its {encoding} stream")
    if inflate.unused_data:
        raise Problem(400, f"there is something behind the end of the {encoding} stream")
    return made
