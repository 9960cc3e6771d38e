"""OpenAI's API for text: completions and chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.serving.call import Call
from optimizer.serving.forms.text import CHAT, COMPLETIONS
from optimizer.serving.route import Route, Scope
from optimizer.serving.text.answering import answer
from optimizer.serving.text.models import writer_of
from optimizer.serving.text.openai_asked import chat_asked, completion_asked
from optimizer.serving.text.openai_said import Chat, Completions

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _completions(call: Call) -> Response:
    body = await call.json()
    writer = writer_of(call, body)
    with writer.statistics.failing():
        asked = completion_asked(body, _screen(call))
    return await answer(call, writer, asked, Completions(asked, writer.name, writer.fingerprint))


async def _chat(call: Call) -> Response:
    body = await call.json()
    writer = writer_of(call, body)
    with writer.statistics.failing():
        asked = chat_asked(body, _screen(call))
    return await answer(call, writer, asked, Chat(asked, writer.name, writer.fingerprint))


def _screen(call: Call) -> Any:
    return lambda text, param: call.screen(text, call.model, param)


ROUTES = (
    Route("/v1/completions", ("POST",), Scope.INFER, _completions, "Go on from a prompt (OpenAI).", COMPLETIONS),
    Route("/v1/chat/completions", ("POST",), Scope.INFER, _chat, "Answer a conversation (OpenAI).", CHAT),
)
