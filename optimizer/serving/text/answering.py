"""A request for text, from the place it gets to the last event; whoever hangs up stops it before the next step."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.serving.answers import json_answer
from optimizer.serving.problems import Problem, as_problem
from optimizer.serving.statistics import Counting
from optimizer.serving.text.asked import Asked
from optimizer.serving.text.dialects import Dialect, event
from optimizer.serving.text.replies import Reply, Said
from optimizer.serving.text.writers import Writer

if TYPE_CHECKING:
    from starlette.responses import Response

    from optimizer.serving.call import Call
    from optimizer.serving.guard.redaction import Redactor
    from optimizer.serving.guard.scopes import Reservation

__all__ = ["Work", "answer", "unless_gone"]

T = TypeVar("T")


class Work:
    """Texts of one request, begun and not over.

    Args:
        call: the request.
        writer: what writes.
        asked: which texts.
        dialect: how they are said.
    """

    def __init__(self, call: Call, writer: Writer, asked: Asked, dialect: Dialect) -> None:
        self._call, self._writer, self.asked, self._dialect = call, writer, asked, dialect
        self._deadline = _seconds(call)
        self._began = time.perf_counter()
        self._spoke = 0.0
        self._counting = Counting(writer.statistics, call.times)
        self._counting.rows = self._counting.executions = asked.rows
        self._written = self._told = False
        self._places = contextlib.ExitStack()
        self._budget = contextlib.AsyncExitStack()
        self._reserved: Reservation | None = None
        self._prompts: list[list[int]] = []
        self._replies: list[Reply] = []
        self._said: AsyncGenerator[tuple[int, Said], None] | None = None
        self._first: tuple[int, Said] | None = None

    @property
    def seconds(self) -> float:
        """Since it was asked."""
        return time.perf_counter() - self._began

    async def begin(self) -> None:
        """Take places, read the prompts, and wait for the first token.

        Raises:
            Problem: 429, 400; 504 where it did not come in time.
        """
        asked = self.asked
        usual = self._call.state.settings.deadline
        wanted = usual if self._deadline is None else min(usual, self._deadline)
        self._places.enter_context(self._writer.places(asked.rows, wanted))
        with _in_time():
            async with asyncio.timeout(wanted):
                with self._call.timed("tokenize"):
                    self._prompts = await self._writer.encode(asked)
                    await self._screen_tokens()
                most = self._writer.most_tokens(asked, self._prompts)
                self._reserved = await self._budget.enter_async_context(self._call.spending(most))
                with self._call.timed("first_token"):
                    self._replies = await self._writer.begin(asked, self._prompts, self._began, self._redactor)
                    self._said = _merged(self._replies)
                    self._first = await anext(self._said)
                self._spoke = time.perf_counter()

    async def _screen_tokens(self) -> None:
        """Have the guard look at prompts that came as tokens."""
        call, decode = self._call, self._writer.tokenizer.decode
        for given, tokens in zip(self.asked.prompts, self._prompts, strict=True):
            if given == tokens:
                text = functools.partial(decode, tokens)
                await asyncio.to_thread(call.state.guard.screen_tokens, text, call.model, self.asked.prompt_field)

    def _redactor(self) -> Redactor | None:
        """What an answer goes through on its way out."""
        made = self._call.state.guard.output(self._call.model)
        if made is not None and self.asked.sampling.logprobs:
            raise Problem(400, "logprobs are not told of texts that are redacted", param="logprobs")
        return made

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as a stream. An error that comes in the middle of it is its last event."""
        assert self._said is not None
        assert self._first is not None
        dialect, replies = self._dialect, self._replies
        try:
            number, said = self._first
            parts = [*dialect.first(len(replies)), *dialect.part(number, said, replies[number])]
            yield b"".join(map(event, parts))  # which may be none: the status is sent all the same
            async for number, said in self._rest():
                if parts := dialect.part(number, said, replies[number]):
                    yield b"".join(map(event, parts))
            parts = dialect.last(replies, self._prompts, self.seconds)
            yield b"".join(map(event, parts)) + dialect.done
        except Exception as error:
            yield event(self._failed(error).document(dialect.openai))

    def _failed(self, error: Exception) -> Problem:
        """An error that no status can say any more, as the first words were sent: counted and logged here."""
        call, problem = self._call, as_problem(error)
        self._written = False
        call.notes["error"], call.notes["reason"] = problem.message, problem.reason
        if problem.status == 500:
            call.notes["traceback"] = "".join(traceback.format_exception(error))
        call.state.metrics.failed.labels(call.model, call.version, problem.reason).inc()
        return problem

    def hung_up(self) -> None:
        """The client went away in the middle of a stream."""
        call = self._call
        call.notes["error"], call.notes["reason"] = "the client hung up", "disconnected"
        call.state.metrics.cancelled.labels(call.model, call.version, "disconnected").inc()

    async def whole(self) -> dict[str, Any]:
        """The answer when all of it is there; raises :class:`Problem`."""
        async for _ in self._rest():
            pass
        return self._dialect.whole(self._replies, self._prompts, self.seconds)

    async def _rest(self) -> AsyncGenerator[tuple[int, Said], None]:
        """What is said after the first word, while there is time. How long the client takes to read is not counted."""
        assert self._said is not None
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - self.seconds)
            try:
                with _in_time():
                    async with asyncio.timeout(left):
                        item = await anext(self._said)
            except StopAsyncIteration:
                break
            yield item
        self._written = True
        self._places.close()

    def close(self) -> None:
        """End what is not over, and give its places back; harmless when that was done."""
        for reply in self._replies:
            reply.close()
        self._places.close()
        if self._spoke and "write" not in self._call.times:
            self._call.times["write"] = time.perf_counter() - self._spoke
        if self._written:
            self._counting.succeeded()
        else:
            self._counting.failed()
        if self._replies:
            self._call.notes["prompt_tokens"] = sum(map(len, self._prompts))
            self._call.notes["tokens"] = sum(reply.tokens for reply in self._replies)
            if not self._told:
                self._told = True
                for reply in self._replies:
                    self._call.tell("answer", reply.text)

    async def end(self) -> None:
        """:meth:`close`, and pay for what was read and written."""
        self.close()
        if self._reserved is not None:
            read = sum(map(len, self._prompts)) if self._replies else 0
            await self._reserved.settle(read + sum(reply.tokens for reply in self._replies))

    def __del__(self) -> None:
        self.close()  # a response that was made and never sent


async def answer(call: Call, writer: Writer, asked: Asked, dialect: Dialect) -> Response:
    """Answer a request.

    The server's deadline is for the first token. All of the answer has one only where the client says so, with
    ``X-Request-Timeout``: a long text takes long.

    Args:
        call: the request; its body was read.
        writer: what writes.
        asked: which texts.
        dialect: how they are said.

    Raises:
        Problem: whatever goes wrong before the first token of a stream, or the last of another answer.
    """
    work = Work(call, writer, asked, dialect)
    try:
        if not asked.stream:
            whole = await unless_gone(call.hung_up(), _all_of(work))
            await work.end()
            return json_answer(whole)
        await unless_gone(call.hung_up(), work.begin())
    except BaseException:
        await work.end()
        raise
    return _Events(work)  # what a response is to Starlette


async def _all_of(work: Work) -> dict[str, Any]:
    await work.begin()
    return await work.whole()


class _Events:
    """A stream's response: events until the last one, or until the client goes away."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As an ASGI application."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        try:
            await unless_gone(gone(), self._speak(send))
        except Problem:  # nobody is there to be told
            self._work.hung_up()
        finally:
            await self._work.end()

    async def _speak(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(self._work.events()) as events:
            async for body in events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(gone: Awaitable[None], work: Coroutine[Any, Any, T]) -> T:
    """What some work comes to; it is cancelled when the client goes away first.

    Raises:
        Problem: 499: it did.
    """
    watch, doing = asyncio.ensure_future(gone), asyncio.create_task(work)
    try:
        await asyncio.wait((watch, doing), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise Problem(499, "the client hung up", reason="disconnected")
    finally:
        watch.cancel()
        doing.cancel()
        await asyncio.gather(watch, doing, return_exceptions=True)


def _seconds(call: Call) -> float | None:
    """In which the client wants all of its answer."""
    said = call.request.headers.get("x-request-timeout")
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise Problem(400, f"X-Request-Timeout {said[:20]!r} is no number of seconds")
    return seconds


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        message = "the answer was not there in the time that it was wanted in"
        raise Problem(504, message, code="deadline_exceeded", reason="deadline") from None


async def _merged(replies: list[Reply]) -> AsyncGenerator[tuple[int, Said], None]:
    """What several texts say, as it comes, each with its text's number."""
    if len(replies) == 1:
        async for said in replies[0]:
            yield 0, said
        return
    came: asyncio.Queue[tuple[int, Said] | Exception] = asyncio.Queue()

    async def follow(number: int) -> None:
        try:
            async for said in replies[number]:
                came.put_nowait((number, said))
        except Exception as error:
            came.put_nowait(error)

    tasks = [asyncio.create_task(follow(number)) for number in range(len(replies))]
    try:
        left = len(replies)
        while left:
            item = await came.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1].finish is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
