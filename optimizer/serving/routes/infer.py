"""V2's infer: the path that has to be short."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from optimizer.serving.cache import answered
from optimizer.serving.call import Call
from optimizer.serving.forms.v2 import INFER
from optimizer.serving.inference import HEADER_LENGTH, encoded, parse, parse_raw
from optimizer.serving.problems import Problem
from optimizer.serving.route import Route, Scope
from optimizer.serving.statistics import Counting
from optimizer.serving.waiting import deadline

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _infer(call: Call) -> Response:
    from starlette.responses import Response

    served = call.served()
    with Counting(served.statistics, call.times) as counting:
        if served.batcher is None:
            raise Problem(400, f"{served.name} writes text: ask /v1/completions or /generate")
        batcher = served.batcher
        if call.state.cache is None:  # an answer that is kept needs no room
            batcher.need_room(1)
        body = await call.body()
        served.need_open()
        start = time.perf_counter()
        length = call.request.headers.get(HEADER_LENGTH)
        limits = served.model.get("limits") or {}
        if length == "0":
            asked = parse_raw(body, served.inputs, served.outputs, limits)
        else:
            asked = parse(body, length, served.inputs, served.outputs, limits)
        call.times["parse"] = time.perf_counter() - start
        ids = asked.feeds.get("input_ids")
        async with call.spending(0 if ids is None else int(ids.size)):
            end = deadline(call, asked.timeout)
            counting.rows, pieces = batcher.pieces(asked.feeds)
            outputs = batcher.plan.whole(await answered(call, served, pieces, end, asked.parameters))
        start = time.perf_counter()
        content, headers = encoded(asked, outputs, served.name, served.version)
        call.times["serialize"] = time.perf_counter() - start
    return Response(content, 200, headers)


ROUTES = (
    Route("/v2/models/{name}/infer", ("POST",), Scope.INFER, _infer, "Ask a model: JSON or binary tensors.", INFER),
    Route(
        "/v2/models/{name}/versions/{version}/infer",
        ("POST",),
        Scope.INFER,
        _infer,
        "Ask one version of a model.",
        INFER,
    ),
)
