"""Answers as OpenAI's completions and chat completions have them, whole and in parts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from optimizer.generator import Finish
from optimizer.serving.text.asked import Asked
from optimizer.serving.text.replies import Reply, Said, Told

__all__ = ["Chat", "Completions"]

#: OpenAI names two ends of a text that the model comes to by itself; others are errors.
_ENDS = {Finish.STOP: "stop", Finish.LENGTH: "length"}


class _OpenAI:
    """What both have in common.

    Args:
        asked: what was asked.
        model: its name.
        fingerprint: changes when the same seed may give another text.
        echoes: texts of the prompts, where they are to be said first.
    """

    openai = True
    done = b"data: [DONE]\n\n"
    _prefix, _whole, _part = "", "", ""

    def __init__(self, asked: Asked, model: str, fingerprint: str) -> None:
        self._asked = asked
        self._head = {
            "id": f"{self._prefix}-{uuid.uuid4().hex}",
            "object": self._whole,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> dict[str, Any]:
        choices = [self._choice(number, reply) for number, reply in enumerate(replies)]
        return {**self._head, "choices": choices, "usage": _usage(replies, prompts)}

    def last(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> list[dict[str, Any]]:
        """How many tokens it took, once, where that was asked for; such a part has no choices."""
        if not self._asked.usage:
            return []
        return [{**self._head, "object": self._part, "choices": [], "usage": _usage(replies, prompts)}]

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "object": self._part, "choices": [choice]}
        return {**chunk, "usage": None} if self._asked.usage else chunk

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        raise NotImplementedError


class Completions(_OpenAI):
    """``/v1/completions``."""

    _prefix, _whole, _part = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Asked, model: str, fingerprint: str) -> None:
        super().__init__(asked, model, fingerprint)
        self._offsets: dict[int, int] = {}

    def first(self, count: int) -> list[dict[str, Any]]:
        return [self._chunk(self._said(number, self._echo(number), (), None)) for number in range(count)
                if self._asked.echo]  # fmt: skip

    def part(self, number: int, said: Said, reply: Reply) -> list[dict[str, Any]]:
        if not (said.text or said.told or said.finish):
            return []
        return [self._chunk(self._said(number, said.text, said.told, said.finish))]

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        return self._said(number, self._echo(number) + reply.text, reply.told, reply.finish)

    def _echo(self, number: int) -> str:
        prompt = self._asked.prompts[number // self._asked.n]
        return prompt if self._asked.echo and isinstance(prompt, str) else ""

    def _said(self, number: int, text: str, told: Sequence[Told], finish: Finish | None) -> dict[str, Any]:
        chances = None
        if self._asked.sampling.logprobs and told:
            offsets = []
            for one in told:
                offsets.append(at := self._offsets.get(number, 0))
                self._offsets[number] = at + len(one.text)
            chances = {
                "tokens": [one.text for one in told],
                "token_logprobs": [one.logprob for one in told],
                "top_logprobs": [dict(one.top) for one in told] if self._asked.sampling.top_logprobs else None,
                "text_offset": offsets,
            }
        return {"index": number, "text": text, "logprobs": chances, "finish_reason": finish and _ENDS[finish]}


class Chat(_OpenAI):
    """``/v1/chat/completions``."""

    _prefix, _whole, _part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self, count: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(_delta(number, delta, None, None)) for number in range(count)]

    def part(self, number: int, said: Said, reply: Reply) -> list[dict[str, Any]]:
        """The last word and the end are two parts, as OpenAI sends them."""
        made = []
        if said.text or said.told:
            made.append(self._chunk(_delta(number, {"content": said.text}, self._chances(said.told), None)))
        if said.finish is not None:
            made.append(self._chunk(_delta(number, {}, None, said.finish)))
        return made

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        return {
            "index": number,
            "message": {"role": "assistant", "content": reply.text, "refusal": None},
            "logprobs": self._chances(reply.told),
            "finish_reason": reply.finish and _ENDS[reply.finish],
        }

    def _chances(self, told: Sequence[Told]) -> dict[str, Any] | None:
        if not self._asked.sampling.logprobs:
            return None
        content = [
            {**_token(one.text, one.logprob), "top_logprobs": [_token(*other) for other in one.top]} for one in told
        ]
        return {"content": content, "refusal": None}


def _delta(number: int, delta: dict[str, Any], chances: dict[str, Any] | None, finish: Finish | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": chances, "finish_reason": finish and _ENDS[finish]}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob}


def _usage(replies: Sequence[Reply], prompts: Sequence[Sequence[int]]) -> dict[str, int]:
    """A prompt is counted once, however many answers it got."""
    read, written = sum(map(len, prompts)), sum(reply.tokens for reply in replies)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
