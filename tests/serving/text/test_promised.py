"""Texts, whole and in parts, are as the server's own OpenAPI document has them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from serving.promised import Promised

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def promised(text_server: str) -> Promised:
    with urllib.request.urlopen(f"{text_server}/openapi.json") as response:
        return Promised(json.load(response))


def asked(url: str, promised: Promised, path: str, body: dict[str, Any], status: int = 200) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode())
    try:
        response = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        content = response.read()
        assert response.status == status, content
        return promised.check("POST", path, response.status, dict(response.headers), content)


@pytest.mark.parametrize(
    ("path", "body", "more"),
    [
        ("/v1/completions", {"model": "llama", "prompt": "def f"},
         [{"n": 2}, {"logprobs": 2}, {"echo": True}, {"stream_options": {"include_usage": True}, "stream": True}]),
        ("/v1/chat/completions", {"model": "llama", "messages": USER},
         [{"n": 2}, {"logprobs": True, "top_logprobs": 2},
          {"stream_options": {"include_usage": True}, "stream": True}]),
        ("/generate", {"model": "llama", "prompt": "def f"}, [{"seed": 3}]),
    ],
)  # fmt: skip
def test_texts_are_as_the_document_has_them(
    text_server: str, promised: Promised, path: str, body: dict[str, Any], more: list[dict[str, Any]]
) -> None:
    body = {**body, "max_tokens": 6}
    asked(text_server, promised, path, body)
    for each in more:
        asked(text_server, promised, path, {**body, **each})
        if "stream" not in each:
            # Tokens that came while the server had other things to do are told of in one event.
            assert len(asked(text_server, promised, path, {**body, **each, "stream": True})) >= 1
    error = asked(text_server, promised, path, {**body, "max_tokens": "many"}, 400)
    assert "error" in error


def test_texts_of_v2_are_as_the_document_has_them(text_server: str, promised: Promised) -> None:
    for path in ("/v2/models/llama", "/v2/models/llama/versions/1"):
        for details in (True, False):
            body = {"id": "mine", "text_input": "def f", "parameters": {"max_tokens": 6, "details": details}}
            assert ("details" in asked(text_server, promised, f"{path}/generate", body)) == details
            parts = asked(text_server, promised, f"{path}/generate_stream", body)
            assert ("details" in parts[-1]) == details
