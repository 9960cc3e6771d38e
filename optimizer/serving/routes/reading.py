"""What models that read say of a text: ``/v1/ner``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from optimizer.data.text import TextEncoder
from optimizer.serving.answers import json_answer
from optimizer.serving.asking import Answered, Way, ask, named_model, rows_of, truncates, usage, using_tokenizer
from optimizer.serving.call import Call
from optimizer.serving.forms.reading import NER
from optimizer.serving.problems import Problem
from optimizer.serving.reading.entities import AGGREGATIONS, entities
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Served
from optimizer.types import JSON

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]

#: Tokens whose answers are made on the event loop; more are left to the model's thread.
_FEW = 512


async def _ner(call: Call) -> Response:
    """The entities of each text."""
    document = await call.json()
    served = named_model(call, document, ("token-classification",))
    aggregation = document.get("aggregation_strategy")
    if aggregation is not None and aggregation not in AGGREGATIONS:
        raise Problem(400, f"aggregation_strategy should be {' or '.join(AGGREGATIONS)}", param="aggregation_strategy")
    ignored = document.get("ignore_labels", ["O"])
    if not isinstance(ignored, list) or not all(isinstance(label, str) for label in ignored):
        raise Problem(400, "ignore_labels should be a list of labels", param="ignore_labels")
    rows = rows_of(call, served, document.get("input"), roles=("text",))
    answered = await ask(call, served, rows, truncate=truncates(document), way=Way.PLACED)
    labels = [str(label) for label in served.model.get("labels") or ()]
    encoder = _encoder(served)

    def read() -> list[JSON]:
        found = [entities(each, labels, encoder, aggregation or "simple", ignored) for each in answered]
        return [{"index": place, "entities": each} for place, each in enumerate(found)]

    return await _answer(call, served, answered, read)


def _encoder(served: Served) -> TextEncoder:
    """The model's tokenizer, which :func:`ask` has used."""
    encoder = served.preprocessor.text if served.preprocessor is not None else None
    assert encoder is not None
    return encoder


async def _answer(call: Call, served: Served, answered: list[Answered], read: Callable[[], list[JSON]]) -> Response:
    """What ``read()`` makes of the answers, one object a row, in the form of OpenAI's lists."""
    with call.timed("serialize"):
        short = sum(each.tokens for each in answered) <= _FEW
        data = await using_tokenizer(served, read, short=short)
        return json_answer({"object": "list", "data": data, "model": served.name, "usage": usage(answered)})


ROUTES = (Route("/v1/ner", ("POST",), Scope.INFER, _ner, "Entities of texts, or the classes of their tokens.", NER),)
