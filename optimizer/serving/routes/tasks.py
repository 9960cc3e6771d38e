"""Texts and images asked directly: ``/v1/classify``, and OpenAI's ``/v1/embeddings``."""

from __future__ import annotations

import base64
import math
import time
from typing import TYPE_CHECKING, Any

from optimizer.serving.answers import json_answer
from optimizer.serving.asking import Answered, ask, named_model, rows_of, truncates, usage
from optimizer.serving.call import Call
from optimizer.serving.forms.tasks import CLASSIFY, EMBEDDINGS, MODEL, MODELS
from optimizer.serving.problems import Problem
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Served
from optimizer.serving.statistics import Counting
from optimizer.tasks.feature_extraction import vectors
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from starlette.responses import Response

__all__ = ["ROUTES"]

_CLASSIFY = ("text-classification", "image-classification")
_EMBED = ("feature-extraction",)


async def _embeddings(call: Call) -> Response:
    """OpenAI's: a vector of length 1 for each text or list of ids, as numbers or as base64 of little-endian float32."""
    document = await call.json()
    served = named_model(call, document, _EMBED)
    with Counting(served.statistics, call.times) as counting:
        form = document.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise Problem(400, "encoding_format should be float or base64", param="encoding_format")
        if document.get("dimensions") is not None:
            raise Problem(400, f"{served.name} has vectors of one size; leave dimensions out", param="dimensions")
        rows = rows_of(call, served, document.get("input"), tokens=True)
        counting.rows = len(rows)
        answered = await ask(call, served, rows, truncate=truncates(document))
        start = time.perf_counter()
        data: list[JSON] = []
        for place, row in enumerate(answered):
            vector = _unit(row, served)
            shown = base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector
            data.append({"object": "embedding", "index": place, "embedding": shown})
        response = json_answer({"object": "list", "data": data, "model": served.name, "usage": usage(answered)})
        call.times["serialize"] = time.perf_counter() - start
    return response


def _unit(row: Answered, served: Served) -> NDArray[np.float32]:
    """The row's vector, pooled as the model pools it, divided by its length."""
    import numpy as np

    (vector,) = vectors(row.outputs, row.feeds, served.model)
    if vector.ndim != 1:
        raise Problem(400, f"{served.name} answers with a vector a token, and says no pooling; use V2's infer")
    wide = vector.astype(np.float64, copy=False)
    length = math.sqrt(float(wide @ wide))
    return (wide / length if length else wide).astype("<f4")


async def _classify(call: Call) -> Response:
    """The classes of each text or image with their scores, the likeliest first."""
    document = await call.json()
    served = named_model(call, document, _CLASSIFY)
    with Counting(served.statistics, call.times) as counting:
        most = document.get("top_k")
        if most is not None and (type(most) is not int or most < 1):
            raise Problem(400, "top_k should be a whole number, at least 1", param="top_k")
        rows = rows_of(call, served, document.get("input"))
        counting.rows = len(rows)
        answered = await ask(call, served, rows, truncate=truncates(document))
        start = time.perf_counter()
        data = [{"index": place, **_classes(row, served, most)} for place, row in enumerate(answered)]
        response = json_answer({"object": "list", "data": data, "model": served.name, "usage": usage(answered)})
        call.times["serialize"] = time.perf_counter() - start
    return response


def _classes(row: Answered, served: Served, most: int | None) -> dict[str, Any]:
    import numpy as np

    logits = row.outputs["logits" if "logits" in row.outputs else next(iter(row.outputs))][0].astype(np.float64)
    labels = list(served.model.get("labels") or ())
    if logits.size == 1:  # a regression has no classes
        return {"label": str(labels[0]) if labels else "score", "score": float(logits.ravel()[0]), "classes": []}
    if served.model.get("problem_type") == "multi_label_classification":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    order = np.argsort(-scores, kind="stable")[:most]
    classes = [
        {"label": str(labels[place]) if place < len(labels) else str(place), "score": float(scores[place])}
        for place in order
    ]
    return {**classes[0], "classes": classes}


async def _models(call: Call) -> Response:
    """OpenAI's list of models."""
    names = dict.fromkeys(served.name for served in call.state.models if served.askable)
    return json_answer({"object": "list", "data": [_card(call, name) for name in names]})


async def _model(call: Call) -> Response:
    return json_answer(_card(call, call.served().name))


def _card(call: Call, name: str) -> dict[str, JSON]:
    served = call.state.models.get(name)
    return {"id": name, "object": "model", "created": int(served.loaded), "owned_by": "ml-opt", "task": served.task}


ROUTES = (
    Route(
        "/v1/embeddings",
        ("POST",),
        Scope.INFER,
        _embeddings,
        "Vectors of texts or images, as OpenAI's API.",
        EMBEDDINGS,
    ),
    Route("/v1/classify", ("POST",), Scope.INFER, _classify, "Classes of texts or images.", CLASSIFY),
    Route("/v1/models", ("GET",), Scope.INFER, _models, "The models that are ready, as OpenAI's API.", MODELS),
    Route("/v1/models/{name}", ("GET",), Scope.INFER, _model, "One model, as OpenAI's API.", MODEL),
)
