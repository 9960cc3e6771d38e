"""Texts in the log: none unless they are asked for, and then without personal data and in one line."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("uvicorn")

from served_texts import TEMPLATE, put_text
from serving.conftest import Process
from serving.test_app import call
from serving.test_why import play, why

from optimizer.errors import BadInput
from optimizer.serving.guard.screening import PrivacySettings, Screen
from optimizer.serving.logged import loggable
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.store import Store

SECRET = "write to ada.lovelace@example.org, 4111 1111 1111 1111"


def lines(store: Path, requests: list[tuple[str, Any]], refs: tuple[str, ...] = ("vectors",), **options: Any) -> Any:
    """The log's events of some requests, and the records of them."""
    events: list[Any] = []
    kept: list[Any] = []

    async def scene(app: Any, state: State) -> None:
        state.log = events.append
        for number, (path, document) in enumerate(requests):
            await call(app, "POST", path, json.dumps(document).encode(), (b"x-request-id", str(number).encode()))
        kept.extend([await why(app, str(number)) for number in range(len(requests))])

    play(store, scene, refs, **options)
    return events[: len(requests)], kept


EMBED = [("/v1/embeddings", {"input": [SECRET, {"text": "a", "text_pair": "b\nc"}], "truncate": True})]


def test_no_text_is_in_the_log_unless_it_is_asked_for(tiny_store: Path) -> None:
    events, kept = lines(tiny_store, EMBED)
    assert events[0]["status"] == 200
    assert "texts" not in events[0]
    for word in ("write", "lovelace", "EMAIL"):
        assert word not in json.dumps([events, kept])


def test_what_was_asked_is_there_without_personal_data(tiny_store: Path) -> None:
    events, kept = lines(tiny_store, EMBED, log_text=True)
    assert events[0]["texts"] == {"input[0]": "write to [EMAIL], [CARD]", "input[1]": "a", "input[1] (2)": "b\\nc"}
    assert "write" not in json.dumps(kept), "records know of no text"


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_written_is_there_too(store: Store, llama_generator: Path, stream: bool) -> None:
    put_text(store, llama_generator, "plain", TEMPLATE)
    requests = [
        ("/v1/completions", {"prompt": f"Once upon a midnight {SECRET}", "max_tokens": 8, "stream": stream}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}], "stream": stream}),
        ("/generate", {"prompt": SECRET, "max_tokens": 4, "temperature": 0, "stream": stream}),
    ]  # fmt: skip
    events, kept = lines(store.root, requests, ("plain",), log_text=True)
    completion, chat, guide = (event["texts"] for event in events)
    assert completion["prompt"] == "Once upon a midnight write to [EMAIL], [CARD]"
    assert chat["messages"] == guide["prompt"] == "write to [EMAIL], [CARD]"
    assert all(len(texts["answer"]) > 0 and len(texts) == 2 for texts in (completion, chat, guide))
    assert all("EMAIL" not in json.dumps(each) and "midnight" not in json.dumps(each) for each in kept)


def test_what_is_refused_is_there_redacted(tiny_store: Path) -> None:
    """What a model is not given for the personal data in it is not in the log either."""
    events: list[Any] = []

    async def scene(app: Any, state: State) -> None:
        screen = Screen(usual=PrivacySettings.from_mapping({"prompts": "reject", "kinds": ["phone"]}))
        state.guard.screen = screen.prompt  # type: ignore[method-assign]
        state.log = events.append
        body = json.dumps({"input": f"call +1 415 555 2671 or {SECRET}"}).encode()
        assert (await call(app, "POST", "/v1/embeddings", body))[0] == 400

    play(tiny_store, scene, ("vectors",), log_text=True)
    assert events[0]["texts"] == {"input": "call [PHONE] or write to [EMAIL], [CARD]"}


def test_no_text_forges_a_line_of_the_log(tiny_store: Path) -> None:
    process = Process(["vectors", "--store", str(tiny_store), "--log-text"])
    forged = 'a"}\n{"event": "request", "id": "forged", "status": 200}\r\x1b[2J\u202e\u2028\u0085\ud800'
    client = http.client.HTTPConnection(process.address)
    try:
        body = json.dumps({"input": [forged[:-1], "b"]}).encode()
        client.request("POST", "/v1/embeddings", body, {"x-request-id": "mine"})
        assert client.getresponse().status == 400, "control characters are refused, and logged all the same"
    finally:
        client.close()
        assert process.end() == 0
    (event,) = [each for each in process.log if each["event"] == "request"]
    assert event["id"] == "mine"
    assert event["texts"]["input[0]"] == loggable(forged[:-1])
    assert loggable(forged).endswith(r"\r\x1b[2J\u202e\u2028\x85\ud800")


@given(st.text(max_size=60), st.integers(0, 600))
def test_a_line_is_printable_short_and_never_tells_of_a_cut_address(before: str, length: int) -> None:
    address = "ada.lovelace@example.org"
    for padding in ("x " * length, "x " * (4096 - length)):
        line = loggable(f"{before} {padding} {address} and more")
        assert line.isprintable()
        assert len(line) <= 10 * 500 + 1
        assert "lovelace" not in line


def test_many_addresses_and_a_cut_one_are_all_taken_out() -> None:
    whole = " ".join(f"person.number{number}@mail.example.org" for number in range(1000))
    assert set(loggable(whole).rstrip("…").split(" ")) <= {"[EMAIL]", "[EMAI", "[EMA", "[EM", "[E", "[", "[EMAIL"}
    # Of long ones so little is left that the place is shown where reading ends, in the middle of another.
    long = f"{'a' * 60}@{('b' * 60 + '.') * 3}example.org "
    for length in range(60):
        text = long * (8120 // len(long))
        text += "x" * (8120 - len(text) + length) + " ada.lovelace@example.org " + long * 20
        assert text.index("ada") < 8192 < len(text)
        assert "lovelace" not in loggable(text)


def test_a_request_of_many_texts_tells_of_some(tiny_store: Path) -> None:
    events, _ = lines(tiny_store, [("/v1/embeddings", {"input": ["a b c"] * 40})], log_text=True)
    assert len(events[0]["texts"]) == 16


def test_texts_need_a_log() -> None:
    with pytest.raises(BadInput, match="--no-access-log"):
        Settings(log_text=True, access_log=False)
