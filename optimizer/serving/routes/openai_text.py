"""OpenAI's API for text: completions, chat completions, and the list of models."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Served
from optimizer.serving.text.answering import answer
from optimizer.serving.text.asked import Fields
from optimizer.serving.text.models import writer_of
from optimizer.serving.text.openai_asked import chat_asked, completion_asked
from optimizer.serving.text.openai_said import Chat, Completions

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _completions(call: Call) -> Response:
    body = await call.json()
    writer = await writer_of(call, Fields(body).text("model"))
    asked = completion_asked(body, _screen(call))
    return await answer(call, writer, asked, Completions(asked, writer.name, writer.fingerprint))


async def _chat(call: Call) -> Response:
    body = await call.json()
    writer = await writer_of(call, Fields(body).text("model"))
    asked = chat_asked(body, _screen(call))
    return await answer(call, writer, asked, Chat(asked, writer.name, writer.fingerprint))


def _screen(call: Call) -> Any:
    return lambda text, param: call.state.guard.screen(text, call.model, param)


async def _models(call: Call) -> Response:
    newest = {served.name: served for served in call.state.models if served.ready}
    return json_answer({"object": "list", "data": [_model(served) for served in newest.values()]})


async def _one_model(call: Call) -> Response:
    return json_answer(_model(call.served()))


def _model(served: Served) -> dict[str, Any]:
    made = served.artifact.manifest.created if served.artifact is not None else ""
    try:
        created = int(datetime.fromisoformat(made).timestamp())
    except ValueError:
        created = 0
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "ml-opt",
        "ref": served.ref,
        "task": served.task,
    }


ROUTES = (
    Route("/v1/completions", ("POST",), Scope.INFER, _completions, "Go on from a prompt (OpenAI)."),
    Route("/v1/chat/completions", ("POST",), Scope.INFER, _chat, "Answer a conversation (OpenAI)."),
    Route("/v1/models", ("GET",), Scope.INFER, _models, "Every model that is ready (OpenAI)."),
    Route("/v1/models/{name}", ("GET",), Scope.INFER, _one_model, "One model (OpenAI)."),
)
