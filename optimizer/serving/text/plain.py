"""The guide's ``/generate`` and V2's ``generate``: what was asked, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optimizer.generator import Sampling
from optimizer.serving.text.asked import CHOOSING, Asked, Fields, choosing, stops
from optimizer.serving.text.replies import Reply, Said

__all__ = ["V2", "Guide", "guide_asked", "v2_asked"]

#: New tokens where nobody says how many, in both.
_TOKENS = 100


def guide_asked(body: Any, screen: Callable[[str, str], str]) -> Asked:
    """What the guide's ``/generate`` was asked: its five fields, ``model``, ``seed``, ``stop``, how to choose.

    Args:
        body: parsed JSON.
        screen: ``screen(text, param)`` → the text as the model may see it.

    Raises:
        Problem: 400, naming the field.
    """
    fields = Fields(body)
    fields.only({"prompt", "max_tokens", "top_p", "stream", "model", "seed", "stop", *CHOOSING})
    most = fields.integer("max_tokens", 1, 2**31)
    sampling = Sampling(
        top_p=fields.number("top_p", 0.9, 1e-6, 1.0),
        seed=fields.integer("seed", 0, 2**64 - 1),
        **choosing(fields, 0.7, most, guided=False),
    )
    return Asked(
        (screen(fields.text("prompt"), "prompt"),),
        sampling,
        most,
        default_tokens=_TOKENS,
        stop=stops(fields),
        stream=fields.flag("stream"),
    )


def v2_asked(body: Any, screen: Callable[[str, str], str], stream: bool) -> Asked:
    """What V2's ``generate`` was asked: ``text_input`` and ``parameters``; arguments and errors as above.

    ``parameters`` are those that servers with this extension have in common; none of them is drawn by default.
    """
    fields = Fields(body)
    fields.only({"id", "text_input", "parameters"})
    if "id" in fields:
        fields.text("id")
    given = Fields(fields.raw("parameters") or {}, "parameters.")
    given.only({
        "max_tokens", "top_p", "top_k", "seed", "stop", "json_schema", "regex", "stream", "details",
        "exclude_input_in_output", *CHOOSING,
    })  # fmt: skip
    schema, regex = given.text("json_schema", ""), given.text("regex", "")
    if schema and regex:
        raise given.refuse("regex", "and json_schema cannot both be followed")
    if "stream" in given and given.flag("stream") != stream:
        raise given.refuse("stream", "is what generate_stream is for, and generate is not")
    given.flag("details")
    most = given.integer("max_tokens", 1, 2**31)
    sampling = Sampling(
        top_p=given.number("top_p", 1.0, 1e-6, 1.0),
        top_k=given.integer("top_k", 0, 2**31) or 0,
        seed=given.integer("seed", 0, 2**64 - 1),
        json_schema=schema,
        regex=regex,
        **choosing(given, 0.0, most, bool(schema or regex)),
    )
    return Asked(
        (screen(fields.text("text_input"), "text_input"),),
        sampling,
        most,
        default_tokens=_TOKENS,
        max_field="parameters.max_tokens",
        prompt_field="text_input",
        guided_field="parameters.json_schema" if schema else "parameters.regex",
        prefix="parameters.",
        stop=stops(given),
        stream=stream,
        echo="exclude_input_in_output" in given and not given.flag("exclude_input_in_output"),
    )


class Guide:
    """The guide's answer.

    Args:
        version: said as ``model_version``.
    """

    openai = False
    done = b""

    def __init__(self, version: str) -> None:
        self._version = version

    def whole(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> dict[str, Any]:
        reply = replies[0]
        return {
            "generated_text": reply.text,
            "tokens_used": reply.tokens,
            "latency_ms": round(1000 * seconds, 3),
            "model_version": self._version,
            "finish_reason": reply.finish,
        }

    def first(self, count: int) -> list[dict[str, Any]]:
        return []

    def part(self, number: int, said: Said, reply: Reply) -> list[dict[str, Any]]:
        return [{"text": said.text}] if said.text else []

    def last(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> list[dict[str, Any]]:
        """The whole answer once more, as it is without a stream."""
        return [self.whole(replies, prompts, seconds)]


class V2:
    """V2's answer.

    Args:
        asked: what was asked.
        name: of the model.
        version: of the model.
        id: of the request, which is said again; empty for none.
        details: say why the text ended, and how many tokens it took.
    """

    openai = False
    done = b""

    def __init__(self, asked: Asked, name: str, version: str, id: str, details: bool) -> None:
        head = {"model_name": name, "model_version": version}
        self._head = {"id": id, **head} if id else head
        self._details = details
        self._before = str(asked.prompts[0]) if asked.echo else ""

    def whole(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> dict[str, Any]:
        return {**self._head, "text_output": self._before + replies[0].text, **self._more(replies[0])}

    def first(self, count: int) -> list[dict[str, Any]]:
        return [{**self._head, "text_output": self._before}] if self._before else []

    def part(self, number: int, said: Said, reply: Reply) -> list[dict[str, Any]]:
        if not (said.text or said.finish):
            return []
        return [{**self._head, "text_output": said.text, **(self._more(reply) if said.finish else {})}]

    def last(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> list[dict[str, Any]]:
        return []

    def _more(self, reply: Reply) -> dict[str, Any]:
        if not self._details:
            return {}
        return {"details": {"finish_reason": reply.finish, "generated_tokens": reply.tokens}}
