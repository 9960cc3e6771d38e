"""The guide's ``/generate``, and V2's ``generate`` and ``generate_stream``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.serving.call import Call
from optimizer.serving.forms.text import GENERATE, GENERATE_STREAM, GUIDE
from optimizer.serving.route import Route, Scope
from optimizer.serving.text.answering import answer
from optimizer.serving.text.models import writer_of
from optimizer.serving.text.plain import V2, Guide, guide_asked, v2_asked

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _generate(call: Call) -> Response:
    body = await call.json()
    writer = writer_of(call, body)
    with writer.statistics.failing():
        asked = guide_asked(body, lambda text, param: call.screen(text, call.model, param))
    return await answer(call, writer, asked, Guide(writer.ref))


async def _v2_generate(call: Call) -> Response:
    return await _v2(call, stream=False)


async def _v2_stream(call: Call) -> Response:
    return await _v2(call, stream=True)


async def _v2(call: Call, stream: bool) -> Response:
    writer = writer_of(call)
    with writer.statistics.failing():
        body = await call.json()
        asked = v2_asked(body, lambda text, param: call.screen(text, call.model, param), stream)
    details = bool((body.get("parameters") or {}).get("details"))
    return await answer(call, writer, asked, V2(asked, writer.name, writer.version, body.get("id") or "", details))


_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")

ROUTES = (
    Route("/generate", ("POST",), Scope.INFER, _generate, "Go on from a prompt.", GUIDE),
    *(
        Route(f"{path}/generate", ("POST",), Scope.INFER, _v2_generate, "Go on from a text (V2).", GENERATE)
        for path in _MODELS
    ),
    *(
        Route(
            f"{path}/generate_stream",
            ("POST",),
            Scope.INFER,
            _v2_stream,
            "The same while it is written (V2).",
            GENERATE_STREAM,
        )
        for path in _MODELS
    ),
)
