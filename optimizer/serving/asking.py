"""Texts and images into a model's inputs, through its queue, and out again as rows."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.data.preprocess import Preprocessor, RowTexts
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

    from optimizer.serving.state import Guard

__all__ = ["Answered", "Fed", "Way", "ask", "named_model", "rows_of", "truncates", "usage", "using_tokenizer"]

T = TypeVar("T")

#: Characters that a request's texts have together at most to be tokenized on the event loop. They take a third of a
#: millisecond; a thread that is woken, and wakes the loop again, takes as long, and the others wait for it as well.
_SHORT = 1000
#: Where rows come from, in messages.
_SOURCE = Path("input")
#: Most tokens of a window of a question and its context: those of SQuAD, which nearly every such model is trained on.
_WINDOW = 384


class Way(Enum):
    """How a row becomes what the model is given."""

    WHOLE = "whole"
    PLACED = "placed"  # the same, with where each token stands in the text
    WINDOWS = "windows"  # as many as a question's context takes, each with that


@dataclass(frozen=True)
class Fed:
    """What the model is given at once.

    Attributes:
        row: place of the row that it is made from.
        feeds: arrays ``[1, …]`` by input name.
        texts: where its tokens stand, where that was asked for.
    """

    row: int
    feeds: dict[str, NDArray[np.generic]]
    texts: RowTexts | None = None

    @property
    def tokens(self) -> int:
        """Tokens of it; 0 for what is no text."""
        ids = self.feeds.get("input_ids")
        return 0 if ids is None else int(ids.size)


@dataclass(frozen=True)
class Answered(Fed):
    """The same, answered.

    Attributes:
        outputs: what the model answered, ``[1, …]`` by output name.
    """

    outputs: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def real(self) -> list[int]:
        """Places of its tokens along the model's axis of tokens, padding left out."""
        import numpy as np

        mask = self.feeds.get("attention_mask")
        count = len(self.texts.tokens) if self.texts is not None else self.tokens
        return list(range(count)) if mask is None else [int(place) for place in np.flatnonzero(mask[0])]


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
    call: Call,
    served: Served,
    value: JSON,
    param: str = "input",
    *,
    roles: Collection[str] = ("text", "text_pair", "image"),
    needs: Collection[str] = (),
    tokens: bool = False,
) -> list[dict[str, Any]]:
    """What a request asks about, a mapping by role for each row.

    A string is a text; an object has ``text`` (and ``text_pair``), or ``image``: a picture's file in base64, with or
    without ``data:image/png;base64,`` before it. Nothing names a file or an address: the server opens neither. Where
    ``tokens`` may be sent, a list of whole numbers is one row, and a list of such lists one row each; its role is
    ``ids``, and its text is looked at when it is fed.

    Args:
        call: the request.
        served: the model, whose own settings say what texts may hold.
        value: of the field.
        param: the field.
        roles: that an object may have.
        needs: those that each has.
        tokens: whether ids of tokens may stand for a text.

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
        found = {"text": each} if isinstance(each, str) and "text" in roles else each
        if not isinstance(found, dict) or not found or not set(needs) <= set(found) <= set(roles):
            raise Problem(400, f"{where} should be {_wanted(roles, needs, tokens)}", param=param)
        row: dict[str, Any] = {}
        for role, content in found.items():
            if not isinstance(content, str):
                raise Problem(400, f"{where}: {role} should be a string", param=param)
            if role == "image":
                row[role] = {"bytes": _picture(content, where, param)}
            else:
                row[role] = call.screen(content, served.name, where)
        rows.append(row)
    return rows


def _are_tokens(value: JSON) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _wanted(roles: Collection[str], needs: Collection[str], tokens: bool) -> str:
    if needs:
        return f"an object with {' and '.join(needs)}"
    also = ", a list of token ids" if tokens else ""
    return f"a text{also}, or an object with text or image" if "image" in roles else f"a text{also}"


async def ask(
    call: Call, served: Served, rows: Sequence[dict[str, Any]], *, truncate: bool = False, way: Way = Way.WHOLE
) -> list[Answered]:
    """Answers to rows, each in a place of its own in the queue, so that they may share runs with anybody's.

    Args:
        call: the request.
        served: has a queue and a preprocessor.
        rows: of :func:`rows_of`.
        truncate: cut texts that are longer than the model takes, instead of refusing them.
        way: how a row is fed; one that is fed in windows has several answers, one after the other.

    Raises:
        Problem: 400: a row cannot be fed, or is too long; 413: it is too large; 429 and 504 of the queue; 499.
    """
    if served.batcher is None or served.preprocessor is None or served.prepare is None:
        raise Problem(400, f"{served.name} has no tokenizer or image processor here: {served.reason or 'send arrays'}")
    end = deadline(call)
    served.batcher.need_room(len(rows), end)
    start = time.perf_counter()
    prepared = await _prepared(call.state.guard, served, rows, truncate, way)
    call.times["tokenize"] = took = time.perf_counter() - start
    if served.metrics is not None:
        served.metrics.tokenize.observe(took)
    async with call.spending(sum(fed.tokens for fed in prepared)):
        outputs = await answered(call, served, [fed.feeds for fed in prepared], end)
    return [Answered(fed.row, fed.feeds, fed.texts, output) for fed, output in zip(prepared, outputs, strict=True)]


def truncates(document: dict[str, Any]) -> bool:
    """The field ``truncate`` of a request; raises :class:`Problem` 400."""
    found = document.get("truncate", False)
    if not isinstance(found, bool):
        raise Problem(400, "truncate should be true or false", param="truncate")
    return found


def usage(fed: Sequence[Fed]) -> dict[str, int]:
    """What a request came to, as OpenAI says it."""
    tokens = sum(each.tokens for each in fed)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


async def using_tokenizer(served: Served, work: Callable[[], T], *, short: bool) -> T:
    """What some work comes to that uses the model's tokenizer, which is for one at a time.

    Args:
        served: the model.
        work: needs nobody else.
        short: it may be done here and now, where nobody has the tokenizer; else it is in the model's own thread.
    """
    lock = served.preparing
    if short and lock.acquire(blocking=False):
        try:
            return work()
        finally:
            lock.release()

    def locked() -> T:
        with lock:
            return work()

    return await asyncio.get_running_loop().run_in_executor(served.prepare, locked)


async def _prepared(
    guard: Guard, served: Served, rows: Sequence[dict[str, Any]], truncate: bool, way: Way = Way.WHOLE
) -> list[Fed]:
    """What the model is given of each row: of short texts here and now, of all else in the model's own thread."""
    return await using_tokenizer(served, lambda: _fed(guard, served, rows, truncate, way), short=_short(rows))


def _short(rows: Sequence[dict[str, Any]]) -> bool:
    left = _SHORT
    for row in rows:
        for content in row.values():
            left -= len(content) if isinstance(content, str | list) else _SHORT + 1
        if left < 0:
            return False
    return True


def _fed(guard: Guard, served: Served, rows: Sequence[dict[str, Any]], truncate: bool, way: Way) -> list[Fed]:
    """What the model is given of each row; the lock is held."""
    preprocessor = served.preprocessor
    assert preprocessor is not None
    longest = served.model.get("max_length")
    found: list[Fed] = []
    for place, values in enumerate(rows):
        row = Row(_SOURCE, place, values)
        try:
            fed = _parts(guard, served, preprocessor, row, place, way)
            # One that comes out at the longest may have been cut there: only then it is worth tokenizing it again.
            full = longest is not None and way is not Way.WINDOWS and fed[0].tokens >= int(longest)
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
        found += fed
    return found


def _beyond(preprocessor: Preprocessor, row: Row, longest: JSON) -> int:
    """Tokens of a row that the model does not take."""
    given = row.values.get("ids")
    return preprocessor.cut([row])[0] if given is None else max(0, len(given) - int(longest))


def _parts(guard: Guard, served: Served, preprocessor: Preprocessor, row: Row, place: int, way: Way) -> list[Fed]:
    if (ids := row.values.get("ids")) is not None:
        feeds, encoder = preprocessor.token_feeds(row, ids), preprocessor.text
        assert encoder is not None
        guard.screen_tokens(lambda: encoder.decoded(ids, special=False), served.name, f"input[{place}]")
        return [Fed(place, feeds)]
    if way is Way.WHOLE:
        return [Fed(place, preprocessor.feeds([row]))]
    if way is Way.PLACED:
        return [Fed(place, *preprocessor.placed(row))]
    assert served.batcher is not None
    return [Fed(place, *window) for window in preprocessor.windows(row, _WINDOW, served.batcher.limits.queue)]


def _picture(text: str, where: str, param: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"{where}: image should be a picture's file in base64", param=param) from None
