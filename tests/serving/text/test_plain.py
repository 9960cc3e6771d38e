"""The guide's generate and V2's generate, as curl sends them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

PROMPT = "    if self."
GREEDY = {"temperature": 0, "max_tokens": 24}


def post(url: str, body: Any) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(url, data) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ok(url: str, body: Any) -> Any:
    status, text = post(url, body)
    assert status == 200, text
    return json.loads(text)


def events(url: str, body: Any) -> list[Any]:
    status, text = post(url, body)
    assert status == 200, text
    assert text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text[:-2].split("\n\n")]


def test_the_guides_generate(text_server: str) -> None:
    url = f"{text_server}/generate"
    wanted = ok(f"{text_server}/v1/completions", {"model": "llama", "prompt": PROMPT, **GREEDY})
    got = ok(url, {"prompt": PROMPT, "model": "llama", **GREEDY})
    assert got["generated_text"] == wanted["choices"][0]["text"]
    assert got["tokens_used"] == wanted["usage"]["completion_tokens"] == 24
    assert got["latency_ms"] > 0
    assert got["model_version"] == "llama@1:fp32"
    assert got["finish_reason"] == "length"
    *parts, last = events(url, {"prompt": PROMPT, "model": "llama", **GREEDY, "stream": True})
    assert "".join(part["text"] for part in parts) == got["generated_text"]
    assert {**last, "latency_ms": 0} == {**got, "latency_ms": 0}


def test_what_the_guide_takes_by_itself(text_server: str) -> None:
    """A hundred tokens, drawn at a temperature of 0.7 from the likeliest nine tenths."""
    url = f"{text_server}/generate"
    seeded = {"prompt": "def ", "model": "llama", "seed": 5}
    got = ok(url, seeded)
    assert got["tokens_used"] == 100 or got["finish_reason"] == "stop"
    said = ok(url, {**seeded, "max_tokens": 100, "temperature": 0.7, "top_p": 0.9, "stream": False})
    assert said["generated_text"] == got["generated_text"]
    assert ok(url, {**seeded, "temperature": 1.9})["generated_text"] != got["generated_text"]
    filled = ok(url, {"prompt": "def read " * 10, "model": "llama", "temperature": 0})  # what the context leaves
    assert filled["tokens_used"] < 100


def test_v2_generate(text_server: str) -> None:
    url = f"{text_server}/v2/models/llama"
    wanted = ok(f"{text_server}/v1/completions", {"model": "llama", "prompt": PROMPT, **GREEDY})["choices"][0]["text"]
    asked = {"id": "42", "text_input": PROMPT, "parameters": {**GREEDY, "details": True}}
    got = ok(f"{url}/generate", asked)
    assert got == {
        "id": "42",
        "model_name": "llama",
        "model_version": "1",
        "text_output": wanted,
        "details": {"finish_reason": "length", "generated_tokens": 24},
    }
    assert ok(f"{url}/versions/1/generate", asked) == got
    parts = events(f"{url}/generate_stream", asked)
    assert "".join(part["text_output"] for part in parts) == wanted
    assert [part["details"] for part in parts if "details" in part] == [got["details"]]
    assert {(part["id"], part["model_name"], part["model_version"]) for part in parts} == {("42", "llama", "1")}
    plain = ok(f"{url}/generate", {"text_input": PROMPT})
    assert plain["text_output"].startswith(wanted)  # greedy
    assert set(plain) == {"model_name", "model_version", "text_output"}
    both = {"text_input": PROMPT, "parameters": {**GREEDY, "exclude_input_in_output": False}}
    assert ok(f"{url}/generate", both)["text_output"] == PROMPT + wanted
    assert "".join(part["text_output"] for part in events(f"{url}/generate_stream", both)) == PROMPT + wanted
    bent = {"text_input": PROMPT, "parameters": {**GREEDY, "repetition_penalty": 1.6}}
    guides = {"model": "llama", "prompt": PROMPT, **GREEDY, "repetition_penalty": 1.6}
    assert ok(f"{url}/generate", bent)["text_output"] != wanted
    assert ok(f"{text_server}/generate", guides)["generated_text"] == ok(f"{url}/generate", bent)["text_output"]
    digits = {"text_input": PROMPT, "parameters": {"regex": "[0-9]{5}"}}
    assert ok(f"{url}/generate", digits)["text_output"].isdigit()


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("generate", {"prompt": "def "}, 400, "broken, llama, plain"),  # which of them?
        ("generate", {"model": "nobody", "prompt": "def "}, 404, "nobody"),
        ("generate", {"model": "classes", "prompt": "def "}, 400, "is a model for"),
        ("generate", {"model": "llama"}, 400, "prompt"),
        ("generate", {"model": "llama", "prompt": ""}, 400, "prompt"),
        ("generate", {"model": "llama", "prompt": 5}, 400, "prompt"),
        ("generate", {"model": "llama", "prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ("generate", {"model": "llama", "prompt": "a", "max_tokens": 128}, 400, "128"),
        ("generate", {"model": "llama", "prompt": "a", "temperature": -1}, 400, "temperature"),
        ("generate", {"model": "llama", "prompt": "a", "top_p": 0}, 400, "top_p"),
        ("generate", {"model": "llama", "prompt": "a", "stream": 1}, 400, "stream"),
        ("generate", {"model": "llama", "prompt": "a", "tokens": 1}, 400, "tokens"),
        ("generate", {"model": "llama", "prompt": "a", "repetition_penalty": 0}, 400, "repetition_penalty"),
        ("generate", b"{", 400, "JSON"),
        ("v2/models/nobody/generate", {"text_input": "a"}, 404, "nobody"),
        ("v2/models/llama/versions/9/generate", {"text_input": "a"}, 404, "9"),
        ("v2/models/llama/generate", {"prompt": "a"}, 400, "prompt"),
        ("v2/models/classes/generate", {"text_input": "a"}, 400, "is a model for"),
        ("v2/models/llama/generate", {}, 400, "text_input"),
        ("v2/models/llama/generate", {"text_input": ["a"]}, 400, "text_input"),
        ("v2/models/llama/generate", {"text_input": "a", "id": 5}, 400, "id"),
        ("v2/models/llama/generate", {"text_input": "a", "parameters": [1]}, 400, "parameters"),
        ("v2/models/llama/generate", {"text_input": "a", "parameters": {"beams": 3}}, 400, "parameters.beams"),
        (
            "v2/models/llama/generate",
            {"text_input": "a", "parameters": {"logit_bias": {"512": 1}}},
            400,
            "logit_bias has the token 512",
        ),
        ("v2/models/llama/generate", {"text_input": "a", "parameters": {"stream": True}}, 400, "parameters.stream"),
        ("v2/models/llama/generate", {"text_input": "a", "parameters": {"json_schema": "{"}}, 400, "JSON"),
        ("v2/models/llama/generate_stream", {"text_input": "a", "parameters": {"top_p": 2}}, 400, "parameters.top_p"),
        ("v2/models/llama/infer", {"inputs": []}, 400, "writes text"),
    ],
)
def test_what_is_refused_says_what_it_was(text_server: str, path: str, body: Any, status: int, named: str) -> None:
    got, text = post(f"{text_server}/{path}", body)
    assert got == status
    error = json.loads(text)
    assert set(error) == {"error"}
    assert named in error["error"]
