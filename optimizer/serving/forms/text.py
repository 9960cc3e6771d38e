"""What the three dialects of text take and say: OpenAI's, the guide's, and V2's generate extension."""

from __future__ import annotations

from optimizer.serving.form import (
    AS_JSON,
    COUNT,
    EVENTS,
    NUMBER,
    OBJECT,
    TEXT,
    TRUTH,
    WHOLE,
    Form,
    Schema,
    either,
    listed,
    object_of,
    one_of,
    or_null,
)

__all__ = ["CHAT", "COMPLETIONS", "GENERATE", "GENERATE_STREAM", "GUIDE"]

#: The only one that fits where it is left out or null.
_MODEL: Schema = {"type": ["string", "null"]}


def _between(kind: str, least: float, most: float | None = None) -> Schema:
    return {"type": kind, "minimum": least} | ({} if most is None else {"maximum": most})


def _events(title: str, needed: dict[str, Schema], possible: dict[str, Schema] | None = None) -> Schema:
    return {**object_of(title, needed, possible), "description": "What stands behind `data: ` in each event."}


#: How tokens are chosen, in every dialect.
_CHOOSING: dict[str, Schema] = {
    "max_tokens": _between("integer", 1),
    "temperature": _between("number", 0, 2),
    "top_p": _between("number", 0, 1),
    "seed": WHOLE,
    "presence_penalty": _between("number", -2, 2),
    "frequency_penalty": _between("number", -2, 2),
    "repetition_penalty": _between("number", 0.01, 100),
    "no_repeat_ngram_size": _between("integer", 0, 1000),
    "min_p": _between("number", 0, 1),
    "min_tokens": COUNT,
    "num_beams": _between("integer", 1, 64),
    "length_penalty": _between("number", -10, 10),
    "early_stopping": TRUTH,
    "logit_bias": {"type": "object", "additionalProperties": _between("number", -100, 100)},
    "stop": either(TEXT, listed(TEXT), {"type": "null"}),
}
#: What OpenAI's two routes have beside that.
_OPENAI: dict[str, Schema] = {
    "model": _MODEL,
    **_CHOOSING,
    "n": _between("integer", 1, 128),
    "stream": TRUTH,
    "stream_options": object_of("", {}, {"include_usage": TRUTH}),
    "response_format": object_of("", {"type": one_of("text", "json_object", "json_schema")}, {"json_schema": OBJECT}),
    "regex": TEXT,
    "top_k": COUNT,
}
_USAGE = object_of("TextUsage", {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
#: Of every answer, whole or in parts.
_HEAD: dict[str, Schema] = {
    "id": TEXT,
    "created": {**WHOLE, "description": "Seconds since 1970."},
    "model": TEXT,
    "system_fingerprint": {**TEXT, "description": "Changes when the same seed may give another text."},
}
_END = or_null(one_of("stop", "length"))

_PROMPT_TOKENS = listed(COUNT, 1)
_COMPLETION_ASKED = object_of(
    "CompletionRequest",
    {"prompt": either(TEXT, _PROMPT_TOKENS, listed(either(TEXT, _PROMPT_TOKENS), 1))},
    {**_OPENAI, "echo": TRUTH, "best_of": _between("integer", 1, 128), "logprobs": _between("integer", 0, 5)},
)
_COMPLETION_CHANCES = object_of(
    "CompletionLogprobs",
    {
        "tokens": listed(TEXT),
        "token_logprobs": listed(NUMBER),
        "top_logprobs": or_null(listed({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": listed(COUNT),
    },
)
_COMPLETION_CHOICE = object_of(
    "CompletionChoice",
    {"index": COUNT, "text": TEXT, "logprobs": or_null(_COMPLETION_CHANCES), "finish_reason": _END},
)
_OF_COMPLETION = {**_HEAD, "object": one_of("text_completion"), "choices": listed(_COMPLETION_CHOICE)}
COMPLETIONS = Form(
    {
        AS_JSON: object_of("Completion", {**_OF_COMPLETION, "usage": _USAGE}),
        EVENTS: _events("CompletionChunk", _OF_COMPLETION, {"usage": or_null(_USAGE)}),
    },
    {AS_JSON: _COMPLETION_ASKED},
)

_PART = object_of("", {"type": one_of("text"), "text": TEXT})
_MESSAGE = object_of(
    "ChatMessage",
    {"role": one_of("system", "developer", "user", "assistant"), "content": either(TEXT, listed(_PART))},
)
_CHAT_ASKED = object_of(
    "ChatRequest",
    {"messages": listed(_MESSAGE, 1)},
    {
        **_OPENAI,
        "max_completion_tokens": _between("integer", 1),
        "logprobs": TRUTH,
        "top_logprobs": _between("integer", 0, 20),
    },
)
_CHANCE: dict[str, Schema] = {"token": TEXT, "bytes": listed(_between("integer", 0, 255)), "logprob": NUMBER}
_CHAT_CHANCES = object_of(
    "ChatLogprobs",
    {
        "content": listed(object_of("", {**_CHANCE, "top_logprobs": listed(object_of("TokenLogprob", _CHANCE))})),
        "refusal": {"type": "null"},
    },
)
_SAID = object_of("ChatAnswer", {"role": one_of("assistant"), "content": TEXT, "refusal": {"type": "null"}})
_DELTA = object_of("ChatDelta", {}, {"role": one_of("assistant"), "content": TEXT})
_ENDING = {"logprobs": or_null(_CHAT_CHANCES), "finish_reason": _END}
_CHAT_CHOICE = object_of("ChatChoice", {"index": COUNT, "message": _SAID, **_ENDING})
_CHAT_PART = object_of("ChatChunkChoice", {"index": COUNT, "delta": _DELTA, **_ENDING})
CHAT = Form(
    {
        AS_JSON: object_of(
            "ChatCompletion",
            {**_HEAD, "object": one_of("chat.completion"), "choices": listed(_CHAT_CHOICE), "usage": _USAGE},
        ),
        EVENTS: _events(
            "ChatCompletionChunk",
            {**_HEAD, "object": one_of("chat.completion.chunk"), "choices": listed(_CHAT_PART)},
            {"usage": or_null(_USAGE)},
        ),
    },
    {AS_JSON: _CHAT_ASKED},
)

_GUIDE_SAID = object_of(
    "Generated",
    {
        "generated_text": TEXT,
        "tokens_used": COUNT,
        "latency_ms": NUMBER,
        "model_version": TEXT,
        "finish_reason": one_of("stop", "length"),
    },
)
GUIDE = Form(
    {AS_JSON: _GUIDE_SAID, EVENTS: either(object_of("GeneratedPart", {"text": TEXT}), _GUIDE_SAID)},
    {AS_JSON: object_of("GuideRequest", {"prompt": TEXT}, {"model": _MODEL, **_CHOOSING, "stream": TRUTH})},
)

_V2_ASKED = object_of(
    "GenerateRequest",
    {"text_input": TEXT},
    {
        "id": TEXT,
        "parameters": object_of(
            "GenerateParameters",
            {},
            {
                **_CHOOSING,
                "top_k": COUNT,
                "json_schema": TEXT,
                "regex": TEXT,
                "stream": TRUTH,
                "details": TRUTH,
                "exclude_input_in_output": TRUTH,
            },
        ),
    },
)
_DETAILS = object_of("GenerateDetails", {"finish_reason": one_of("stop", "length"), "generated_tokens": COUNT})
_V2_SAID = object_of(
    "GenerateResponse",
    {"model_name": TEXT, "model_version": TEXT, "text_output": TEXT},
    {"id": TEXT, "details": _DETAILS},
)
GENERATE = Form({AS_JSON: _V2_SAID}, {AS_JSON: _V2_ASKED})
GENERATE_STREAM = Form({EVENTS: _V2_SAID}, {AS_JSON: _V2_ASKED})
