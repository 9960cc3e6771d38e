"""Bodies of ``/v1/completions`` and ``/v1/chat/completions`` as OpenAI documents them, read into what is asked.

Fields that change nothing here are taken and not used; those that would change the answer and cannot be honoured are
refused, as are fields that OpenAI does not know. ``top_k``, ``regex``, and what ``transformers`` calls so are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from optimizer.generator import Sampling
from optimizer.serving.text.asked import CHOOSING, Asked, Fields, choosing, stops

__all__ = ["chat_asked", "completion_asked"]

#: What both take and use.
_USED = {
    "model", "max_tokens", "top_p", "n", "stream", "stream_options", "stop", "seed", "logprobs",
    "response_format", "top_k", "regex", *CHOOSING,
}  # fmt: skip
#: What both take and do not use: it says nothing of the text.
_UNUSED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
#: What cannot be honoured, with the value that asks for nothing.
_CHAT_HARMLESS: dict[str, Any] = {
    "tools": None, "functions": None, "tool_choice": "none", "function_call": "none",
    "parallel_tool_calls": None, "modalities": ["text"], "audio": None, "prediction": None,
    "reasoning_effort": "none", "web_search_options": None, "verbosity": "medium",
}  # fmt: skip
_ROLES = ("system", "developer", "user", "assistant")
#: Prompts and messages of one request.
_MANY = 1024
#: Alternatives of a token that are told: as many as OpenAI tells.
_MOST_TOP, _MOST_TOP_CHAT = 5, 20


def completion_asked(body: Any, screen: Callable[[str, str], str]) -> Asked:
    """What ``/v1/completions`` was asked.

    Args:
        body: parsed JSON.
        screen: ``screen(text, param)`` → the text as the model may see it.

    Raises:
        Problem: 400, naming the field.
    """
    fields = Fields(body)
    fields.only({*_USED, *_UNUSED, "prompt", "echo", "best_of", "suffix"})
    fields.not_used({"suffix": ""})
    n = fields.integer("n", 1, 128) or 1
    if fields.integer("best_of", 1, 128) not in (None, n):
        raise fields.refuse("best_of", "other than n is not supported by this server")
    top = fields.integer("logprobs", 0, _MOST_TOP)
    echo = fields.flag("echo")
    if echo and top is not None:
        raise fields.refuse("logprobs", "of a prompt (echo) are not supported by this server")
    if echo and not all(isinstance(one, str) for one in _prompts(fields)):
        raise fields.refuse("echo", "needs prompts that are text")
    prompts = tuple(screen(one, "prompt") if isinstance(one, str) else one for one in _prompts(fields))
    most = fields.integer("max_tokens", 1, 2**31)
    return Asked(
        prompts,
        _sampling(fields, most, top is not None, top or 0),
        most,
        default_tokens=16,
        guided_field="regex" if "regex" in fields else "response_format",
        n=n,
        stop=stops(fields),
        stream=fields.flag("stream"),
        usage=_usage(fields),
        echo=echo,
    )


def _prompts(fields: Fields) -> tuple[Any, ...]:
    """One text or several, or one list of tokens or several."""
    value = fields.raw("prompt")
    if isinstance(value, list) and value and all(_is_token(one) for one in value):
        return (value,)
    if isinstance(value, list):
        if not 1 <= len(value) <= _MANY:
            raise fields.refuse("prompt", f"must have from 1 to {_MANY} prompts, not {len(value)}")
        for one in value:
            if not (isinstance(one, list) and one and all(_is_token(token) for token in one)):
                fields.string("prompt", one)
        return tuple(value)
    return (fields.text("prompt"),)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def chat_asked(body: Any, screen: Callable[[str, str], str]) -> Asked:
    """What ``/v1/chat/completions`` was asked; arguments and errors as :func:`completion_asked`."""
    fields = Fields(body)
    fields.only({*_USED, *_UNUSED, *_CHAT_HARMLESS, "messages", "max_completion_tokens", "top_logprobs"})
    if fields.raw("tool_choice") == "auto" and not fields.raw("tools"):
        fields = Fields({**body, "tool_choice": None})
    fields.not_used(_CHAT_HARMLESS)
    logprobs = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, _MOST_TOP_CHAT)
    if top is not None and not logprobs:
        raise fields.refuse("top_logprobs", "needs logprobs to be true")
    most, newer = fields.integer("max_tokens", 1, 2**31), fields.integer("max_completion_tokens", 1, 2**31)
    if most is not None and newer is not None and most != newer:
        raise fields.refuse("max_tokens", "and max_completion_tokens say different things")
    return Asked(
        (_messages(fields, screen),),
        _sampling(fields, most or newer, logprobs, top or 0),
        most or newer,
        max_field="max_tokens" if most else "max_completion_tokens",
        prompt_field="messages",
        guided_field="regex" if "regex" in fields else "response_format",
        n=fields.integer("n", 1, 128) or 1,
        stop=stops(fields),
        stream=fields.flag("stream"),
        usage=_usage(fields),
    )


def _messages(fields: Fields, screen: Callable[[str, str], str]) -> list[dict[str, str]]:
    value = fields.raw("messages")
    if not isinstance(value, list) or not 1 <= len(value) <= _MANY:
        raise fields.refuse("messages", f"must be a list of 1 to {_MANY} messages")
    found = []
    for number, one in enumerate(value):
        message = Fields(one, f"messages[{number}].")
        role = message.text("role")
        if role not in _ROLES:
            raise message.refuse("role", f"must be one of {', '.join(_ROLES)}")
        text = _content(message)
        if message.raw("tool_calls") or message.raw("function_call"):
            raise message.refuse("tool_calls", "is not supported by this server")
        # OpenAI's newer name for the same role, which templates do not know.
        found.append({"role": "system" if role == "developer" else role, "content": screen(text, "messages")})
    return found


def _content(message: Fields) -> str:
    """A text, or a list of parts that are texts."""
    value = message.raw("content")
    if not isinstance(value, list):
        return message.text("content")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise message.refuse("content", "may have parts of the type text only: the model reads nothing else")
        texts.append(message.string("content", part.get("text")))
    return "".join(texts)


def _sampling(fields: Fields, most: int | None, logprobs: bool, top: int) -> Sampling:
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    top_k = fields.integer("top_k", 0, 2**31) or 0
    seed = fields.integer("seed", -(2**63), 2**63 - 1)
    schema = _schema(fields)
    regex = fields.text("regex", "")
    if schema and regex:
        raise fields.refuse("regex", "and response_format cannot both be followed")
    chosen = choosing(fields, 1.0, most, bool(schema or regex))
    if logprobs and chosen["num_beams"] > 1:
        raise fields.refuse("logprobs", "are not told of a text that is searched with num_beams")
    return Sampling(
        top_p=top_p or 1.0,
        top_k=top_k if top_p else 1,  # of no probability at all the likeliest token is left
        seed=None if seed is None else seed % 2**64,
        json_schema=schema,
        regex=regex,
        logprobs=logprobs,
        top_logprobs=top,
        **chosen,
    )


def _schema(fields: Fields) -> str:
    """The JSON schema that a text has to fit; empty for none."""
    if "response_format" not in fields:
        return ""
    asked = Fields(fields.raw("response_format"), "response_format.")
    kind = asked.text("type")
    if kind == "text":
        return ""
    if kind == "json_object":
        return '{"type": "object"}'
    if kind != "json_schema":
        raise asked.refuse("type", "must be text, json_object or json_schema")
    inner = Fields(asked.raw("json_schema"), "response_format.json_schema.")
    schema = inner.raw("schema")
    if not isinstance(schema, dict):
        raise inner.refuse("schema", "must be a JSON schema: an object")
    return json.dumps(schema)


def _usage(fields: Fields) -> bool:
    if "stream_options" not in fields:
        return False
    if not fields.flag("stream"):
        raise fields.refuse("stream_options", "needs stream to be true")
    options = Fields(fields.raw("stream_options"), "stream_options.")
    options.only({"include_usage", "include_obfuscation"})
    return options.flag("include_usage")
