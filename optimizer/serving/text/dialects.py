"""What a dialect is: how one API says a whole answer, and a part of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optimizer.serving.text.replies import Reply, Said

__all__ = ["Dialect", "event"]


class Dialect(Protocol):
    """How one API speaks. Parts are JSON objects, which become events of a stream.

    Attributes:
        openai: whether problems are said as OpenAI does.
        done: what ends a stream that went well.
    """

    openai: bool
    done: bytes

    def whole(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> dict[str, Any]:
        """The answer when all texts are over."""

    def first(self, count: int) -> list[dict[str, Any]]:
        """Parts that come before any text."""

    def part(self, number: int, said: Said, reply: Reply) -> list[dict[str, Any]]:
        """What one text has new; its last part says why it ended."""

    def last(self, replies: Sequence[Reply], prompts: Sequence[Sequence[int]], seconds: float) -> list[dict[str, Any]]:
        """Parts that come after all text."""


def event(part: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(part, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
