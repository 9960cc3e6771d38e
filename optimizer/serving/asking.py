"""Texts and images into a model's inputs, through its queue, and out again as rows."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput, TooLarge
from optimizer.serving.cache import answered
from optimizer.serving.call import Call
from optimizer.serving.problems import Problem
from optimizer.serving.served import Served
from optimizer.serving.waiting import deadline
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Answered", "ask", "named_model", "rows_of"]

#: Characters that a request's texts have together at most to be tokenized on the event loop. They take a third of a
#: millisecond; a thread that is woken, and wakes the loop again, takes as long, and the others wait for it as well.
_SHORT = 1000
#: Where rows come from, in messages.
_SOURCE = Path("input")


@dataclass(frozen=True)
class Answered:
    """One row, answered.

    Attributes:
        feeds: what the model was given, ``[1, …]`` by input name.
        outputs: what it answered, ``[1, …]`` by output name.
    """

    feeds: dict[str, NDArray[np.generic]]
    outputs: dict[str, NDArray[np.generic]]

    @property
    def tokens(self) -> int:
        """Tokens that the model was given; 0 for what is no text."""
        ids = self.feeds.get("input_ids")
        return 0 if ids is None else int(ids.size)


def named_model(call: Call, document: dict[str, Any], tasks: Sequence[str]) -> Served:
    """The model that a request names in ``model``, as ``name`` or ``name@version``; the only one for the task, else.

    Raises:
        Problem: 400: none is named and there is not exactly one, or it is for another task; 404, 503.
    """
    name = document.get("model")
    if name is None:
        fitting = {served.name for served in call.state.models if served.askable and served.task in tasks}
        if len(fitting) != 1:
            known = ", ".join(sorted(fitting)) or "none"
            raise Problem(400, f"model should name one; for {' or '.join(tasks)} there is: {known}", param="model")
        (name,) = fitting
    if not isinstance(name, str):
        raise Problem(400, "model should be a string", param="model")
    name, _, version = name.partition("@")
    served = call.served(name, version)
    if served.task not in tasks:
        raise Problem(400, f"{name} is a model for {served.task}, and this is for {' or '.join(tasks)}", param="model")
    return served


def rows_of(
    call: Call, served: Served, value: JSON, param: str = "input", *, tokens: bool = False
) -> list[dict[str, Any]]:
    """What a request asks about, a mapping by role for each row.

    A string is a text; an object has ``text`` (and ``text_pair``), or ``image``: a picture's file in base64, with or
    without ``data:image/png;base64,`` before it. Nothing names a file or an address: the server opens neither. Where
    ``tokens`` may be sent, a list of whole numbers is one row, and a list of such lists one row each; its role is
    ``ids``, and nobody can look for personal data in it.

    Raises:
        Problem: 400, naming the row.
    """
    if tokens and _are_tokens(value):
        return [{"ids": value}]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise Problem(400, f"{param} is empty", param=param)
    rows = []
    for place, each in enumerate(values):
        where = f"{param}[{place}]" if isinstance(value, list) else param
        if tokens and _are_tokens(each):
            rows.append({"ids": each})
            continue
        found = {"text": each} if isinstance(each, str) else each
        if not isinstance(found, dict) or not found or not set(found) <= {"text", "text_pair", "image"}:
            also = ", a list of token ids" if tokens else ""
            raise Problem(400, f"{where} should be a text{also}, or an object with text or image", param=param)
        row: dict[str, Any] = {}
        for role, content in found.items():
            if not isinstance(content, str):
                raise Problem(400, f"{where}: {role} should be a string", param=param)
            if role == "image":
                row[role] = {"bytes": _picture(content, where, param)}
            else:
                row[role] = call.state.guard.screen(content, served.name, where)
        rows.append(row)
    return rows


def _are_tokens(value: JSON) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


async def ask(call: Call, served: Served, rows: Sequence[dict[str, Any]], *, truncate: bool = False) -> list[Answered]:
    """Answers to rows, each in a place of its own in the queue, so that they may share runs with anybody's.

    Args:
        call: the request.
        served: has a queue and a preprocessor.
        rows: of :func:`rows_of`.
        truncate: cut texts that are longer than the model takes, instead of refusing them.

    Raises:
        Problem: 400: a row cannot be fed, or is too long; 413: a picture is too large; 429 and 504 of the queue; 499.
    """
    if served.batcher is None or served.preprocessor is None or served.prepare is None:
        raise Problem(400, f"{served.name} has no tokenizer or image processor here: {served.reason or 'send arrays'}")
    end = deadline(call)
    served.batcher.need_room(len(rows), end)
    start = time.perf_counter()
    prepared = await _prepared(served, rows, truncate)
    call.times["tokenize"] = took = time.perf_counter() - start
    if served.metrics is not None:
        served.metrics.tokenize.observe(took)
    async with call.spending(sum(Answered(feeds, {}).tokens for feeds in prepared)):
        outputs = await answered(call, served, prepared, end)
    return [Answered(feeds, output) for feeds, output in zip(prepared, outputs, strict=True)]


async def _prepared(served: Served, rows: Sequence[dict[str, Any]], truncate: bool) -> list[dict[str, Any]]:
    """Each row's arrays, ``[1, …]``: of short texts here and now, of all else in the model's own thread."""
    lock = served.preparing
    if _short(rows) and lock.acquire(blocking=False):
        try:
            return _arrays(served, rows, truncate)
        finally:
            lock.release()

    def locked() -> list[dict[str, Any]]:
        with lock:
            return _arrays(served, rows, truncate)

    return await asyncio.get_running_loop().run_in_executor(served.prepare, locked)


def _short(rows: Sequence[dict[str, Any]]) -> bool:
    left = _SHORT
    for row in rows:
        for content in row.values():
            left -= len(content) if isinstance(content, str | list) else _SHORT + 1
        if left < 0:
            return False
    return True


def _arrays(served: Served, rows: Sequence[dict[str, Any]], truncate: bool) -> list[dict[str, Any]]:
    """Each row's arrays; the lock is held."""
    preprocessor = served.preprocessor
    assert preprocessor is not None
    longest = served.model.get("max_length")
    found = []
    for place, values in enumerate(rows):
        row = Row(_SOURCE, place, values)
        try:
            given = values.get("ids")
            feeds = preprocessor.feeds([row]) if given is None else preprocessor.token_feeds(row, given)
            # One that comes out at the longest may have been cut there: only then it is worth tokenizing it again.
            ids = feeds.get("input_ids")
            full = longest is not None and ids is not None and ids.shape[1] >= int(longest)
            if full and not truncate and (cut := _beyond(preprocessor, row, longest)):
                message = f"input[{place}] is {cut} tokens longer than the {longest} that {served.name} takes"
                raise Problem(400, f"{message}; shorten it, or send truncate: true", param="input", code="too_long")
        except TooLarge as error:
            message = f"{error.message} (--max-megapixels)"
            raise Problem(413, message, param="input", reason="too_large") from None
        except BadInput as error:
            raise Problem(400, error.message, param="input") from None
        except MemoryError:
            raise Problem(413, f"input[{place}] is too large", param="input") from None
        found.append(feeds)
    return found


def _beyond(preprocessor: Preprocessor, row: Row, longest: JSON) -> int:
    """Tokens of a row that the model does not take."""
    given = row.values.get("ids")
    return preprocessor.cut([row])[0] if given is None else max(0, len(given) - int(longest))


def _picture(text: str, where: str, param: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"{where}: image should be a picture's file in base64", param=param) from None
