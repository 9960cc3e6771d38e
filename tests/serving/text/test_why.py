"""Where the time of a text went, as its server tells afterwards."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest


def fetch(url: str, body: Any = None, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=60) as response:
        return bytes(response.read())


def told(url: str, id: str) -> Any:
    """A streamed request is kept when its last byte was sent, which its client may have before."""
    end = time.monotonic() + 30
    while True:
        try:
            return json.loads(fetch(f"{url}/v2/requests/{id}"))
        except urllib.error.HTTPError as error:
            assert error.code == 404
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_tells_of_its_prompt_and_its_writing(text_server: str, stream: bool) -> None:
    id = f"told-{stream}"
    body = {"model": "plain", "prompt": "Once upon a midnight", "max_tokens": 8, "stream": stream}
    fetch(f"{text_server}/v1/completions", body, X_Request_Id=id, Content_Type="application/json")
    found = told(text_server, id)
    took = {part["part"]: part["seconds"] for part in found["parts"]}
    assert list(took) == ["tokenize", "first_token", "write", "rest"]
    assert min(took["tokenize"], took["first_token"], took["write"]) > 0
    assert sum(took.values()) == pytest.approx(found["seconds"])
    assert (found["model"], found["tokens"]) == ("plain", 8)
    assert found["prompt_tokens"] > 0
    assert "midnight" not in json.dumps(found)
