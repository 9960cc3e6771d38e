"""What models that read say of a text: ``/v1/ner``, ``/v1/answer``, ``/v1/fill``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from optimizer.data.text import TextEncoder
from optimizer.serving.answers import json_answer
from optimizer.serving.asking import Answered, Way, ask, named_model, rows_of, truncates, usage, using_tokenizer
from optimizer.serving.call import Call
from optimizer.serving.forms.reading import ANSWER, FILL, NER
from optimizer.serving.problems import Problem
from optimizer.serving.reading.entities import AGGREGATIONS, entities
from optimizer.serving.reading.masks import masks
from optimizer.serving.reading.spans import spans
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Served
from optimizer.serving.statistics import Counting
from optimizer.types import JSON

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]

#: What a row of ``/v1/answer`` has.
_ASKED = ("question", "context")
#: Most answers that one row is given, and tokens of the longest.
_MOST = 1000
#: Tokens in place of masks that one request is given, and those that are put into their texts on the event loop: each
#: makes a text.
_FILLS, _FEW_FILLS = 2000, 50
#: Tokens whose answers are made on the event loop; more are left to the model's thread.
_FEW = 512


async def _ner(call: Call) -> Response:
    """The entities of each text."""
    document = await call.json()
    served = named_model(call, document, ("token-classification",))
    with Counting(served.statistics, call.times) as counting:
        aggregation = document.get("aggregation_strategy")
        if aggregation is not None and aggregation not in AGGREGATIONS:
            raise Problem(
                400, f"aggregation_strategy should be {' or '.join(AGGREGATIONS)}", param="aggregation_strategy"
            )
        ignored = document.get("ignore_labels", ["O"])
        if not isinstance(ignored, list) or not all(isinstance(label, str) for label in ignored):
            raise Problem(400, "ignore_labels should be a list of labels", param="ignore_labels")
        rows = rows_of(call, served, document.get("input"), roles=("text",))
        counting.rows = len(rows)
        answered = await ask(call, served, rows, truncate=truncates(document), way=Way.PLACED)
        labels = [str(label) for label in served.model.get("labels") or ()]
        encoder = _encoder(served)

        def read() -> list[JSON]:
            found = [entities(each, labels, encoder, aggregation or "simple", ignored) for each in answered]
            return [{"index": place, "entities": each} for place, each in enumerate(found)]

        return await _answer(call, served, answered, read)


async def _answers(call: Call) -> Response:
    """The answers to each question out of its context."""
    document = await call.json()
    served = named_model(call, document, ("question-answering",))
    with Counting(served.statistics, call.times) as counting:
        top = _count(document, "top_k", 1)
        longest = _count(document, "max_answer_len", 15)
        may_be_none = document.get("handle_impossible_answer", False)
        if not isinstance(may_be_none, bool):
            raise Problem(400, "handle_impossible_answer should be true or false", param="handle_impossible_answer")
        asked = document.get("input")
        if asked is None:
            asked = {name: document[name] for name in _ASKED if name in document}
        elif any(name in document for name in _ASKED):
            raise Problem(400, "question and context stand in input, or in its place", param="input")
        rows = rows_of(call, served, asked, roles=_ASKED, needs=_ASKED)
        counting.rows = len(rows)
        for place, row in enumerate(rows):
            for name, text in row.items():
                if not text.strip():
                    raise Problem(400, f"input[{place}]: {name} is empty", param="input")
        answered = await ask(call, served, rows, way=Way.WINDOWS)
        special = _encoder(served).special("cls_token")
        first = special[1] if special is not None else None

        def read() -> list[JSON]:
            data: list[JSON] = []
            for place in range(len(rows)):
                windows = [each for each in answered if each.row == place]
                found = spans(windows, first, top=top, longest=longest, may_be_none=may_be_none)
                if not found:  # a context that the tokenizer has no tokens for, or a model that answers with no numbers
                    raise Problem(400, f"input[{place}]: nothing in the context can be an answer", param="input")
                data.append({"index": place, **found[0], "answers": found})
            return data

        return await _answer(call, served, answered, read)


async def _fill(call: Call) -> Response:
    """The likeliest tokens in place of each mask of each text."""
    document = await call.json()
    served = named_model(call, document, ("fill-mask",))
    with Counting(served.statistics, call.times) as counting:
        top = _count(document, "top_k", 5)
        if call.state.guard.output(served.name) is not None:
            # Personal data may come to be by a single token, which is none by itself.
            raise Problem(
                400, f"{served.name} may not tell of personal data, and no mask is filled in so", param="model"
            )
        special = _encoder(served).special("mask_token")
        if special is None:
            raise Problem(400, f"the tokenizer of {served.name} names no mask token", param="model")
        word, mask = special
        rows = rows_of(call, served, document.get("input"), roles=("text",))
        counting.rows = len(rows)
        targets = _targets(document, served)
        answered = await ask(call, served, rows, truncate=truncates(document), way=Way.PLACED)
        for each in answered:
            if mask not in each.feeds["input_ids"][0]:
                raise Problem(400, f"input[{each.row}] has no mask; write {word} for it", param="input", code="no_mask")
        count = sum(int((each.feeds["input_ids"][0] == mask).sum()) for each in answered)
        if (fills := count * min(top, len(targets) if targets else top)) > _FILLS:
            message = f"{count} masks with {top} tokens each are {fills}, and {_FILLS} are the most"
            raise Problem(400, message, param="top_k")
        encoder = _encoder(served)

        def read() -> list[JSON]:
            found = [masks(each, encoder, mask, top, targets) for each in answered]
            return [{"index": place, "masks": each} for place, each in enumerate(found)]

        return await _answer(call, served, answered, read, short=fills <= _FEW_FILLS)


def _targets(document: dict[str, JSON], served: Served) -> list[int] | None:
    """The tokens that a request allows, by their ids; None for all."""
    found = document.get("targets")
    if found is None:
        return None
    if not isinstance(found, list) or not found or not all(isinstance(word, str) for word in found):
        raise Problem(400, "targets should be a list of tokens", param="targets")
    ids = [_encoder(served).number(word) for word in found]
    if None in ids:
        unknown = found[ids.index(None)][:100]
        raise Problem(400, f"targets: {unknown!r} is no token of {served.name}", param="targets")
    return [each for each in ids if each is not None]


def _count(document: dict[str, JSON], name: str, usual: int) -> int:
    """A field that counts something; null is as good as not there."""
    found = document.get(name)
    if found is None:
        return usual
    if type(found) is not int or not 1 <= found <= _MOST:
        raise Problem(400, f"{name} should be a whole number from 1 to {_MOST}", param=name)
    return found


def _encoder(served: Served) -> TextEncoder:
    """The model's tokenizer; raises :class:`Problem` 400 where it has none."""
    encoder = served.preprocessor.text if served.preprocessor is not None else None
    if encoder is None:
        raise Problem(400, f"{served.name} has no tokenizer here: {served.reason or 'send arrays'}", param="model")
    return encoder


async def _answer(
    call: Call, served: Served, answered: list[Answered], read: Callable[[], list[JSON]], *, short: bool = True
) -> Response:
    """What ``read()`` makes of the answers, one object a row, in the form of OpenAI's lists."""
    with call.timed("serialize"):
        short = short and sum(each.tokens for each in answered) <= _FEW
        data = await using_tokenizer(served, read, short=short)
        return json_answer({"object": "list", "data": data, "model": served.name, "usage": usage(answered)})


ROUTES = (
    Route("/v1/ner", ("POST",), Scope.INFER, _ner, "Entities of texts, or the classes of their tokens.", NER),
    Route("/v1/answer", ("POST",), Scope.INFER, _answers, "Answers to questions out of a context.", ANSWER),
    Route("/v1/fill", ("POST",), Scope.INFER, _fill, "Tokens in place of the masks of texts.", FILL),
)
