"""OpenAI's API, judged by OpenAI's own client against a server in a process of its own."""

from __future__ import annotations

import json
import math
import re
import threading
import time
import urllib.request
from typing import Any

import openai
import pytest
from generators import greedy, prompts, reference

PROMPT = "    if self."
USER = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["def", "class"]}},
    "required": ["count", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(text_server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{text_server}/v1", api_key="none", max_retries=0, timeout=30)


def complete(client: openai.OpenAI, **more: Any) -> Any:
    return client.completions.create(**{"model": "llama", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, **more})


def chat(client: openai.OpenAI, **more: Any) -> Any:
    asked = {"model": "llama", "messages": USER, "temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(**asked)


def sample(url: str, name: str, **labels: str) -> float:
    """A number of /metrics, summed over the labels that are not given."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    rows = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows if all(f'{k}="{v}"' in row for k, v in labels.items()))


def test_models_are_listed(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert {model.id for model in models} >= {"llama", "plain", "broken"}
    assert client.models.retrieve("plain").id == "plain"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_a_greedy_completion_is_that_of_transformers(client: openai.OpenAI) -> None:
    tokenizer = reference()[1]
    asked = tokenizer(PROMPT)["input_ids"]
    got = complete(client)
    assert got.choices[0].text == tokenizer.decode(greedy(asked, 24))
    assert (got.choices[0].finish_reason, got.choices[0].logprobs) == ("length", None)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(asked), 24)
    assert got.usage.total_tokens == len(asked) + 24
    assert complete(client, prompt=asked).choices[0].text == got.choices[0].text  # tokens instead of text
    assert complete(client, echo=True).choices[0].text == PROMPT + got.choices[0].text


def test_penalties_bend_the_text_and_are_those_of_transformers(client: openai.OpenAI) -> None:
    tokenizer = reference()[1]
    asked = tokenizer(PROMPT)["input_ids"]
    usual = complete(client).choices[0].text
    beams = {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True}
    for theirs in ({"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, beams):
        wanted = tokenizer.decode(greedy(asked, 24, **theirs))
        assert complete(client, extra_body=theirs).choices[0].text == wanted != usual
    parts = complete(client, extra_body=beams, stream=True, temperature=None)  # nothing is drawn unless it is asked for
    assert "".join(part.choices[0].text for part in parts) == wanted
    first = greedy(asked, 1)[0]
    wanted = tokenizer.decode(greedy(asked, 24, sequence_bias={(first,): -100.0}))
    assert complete(client, logit_bias={str(first): -100}).choices[0].text == wanted != usual
    for name in ("presence_penalty", "frequency_penalty"):
        assert complete(client, **{name: 2.0}).choices[0].text != usual
        assert chat(client, **{name: 2.0}).choices[0].message.content != chat(client).choices[0].message.content


def test_a_conversation_goes_through_the_template(client: openai.OpenAI) -> None:
    prompt = "# system: be kind\n# user: hello\ndef "
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    got = chat(client, messages=messages)
    assert got.choices[0].message.content == complete(client, prompt=prompt).choices[0].text
    assert got.choices[0].message.role == "assistant"


def test_without_a_most_a_conversation_may_fill_the_context(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="llama", messages=USER, temperature=0)
    assert got.usage.total_tokens == 128 or got.choices[0].finish_reason == "stop"
    assert complete(client, max_tokens=openai.NOT_GIVEN).usage.completion_tokens == 16


@pytest.mark.parametrize("usage", [True, False])
def test_streams_say_what_is_said_at_once(client: openai.OpenAI, usage: bool) -> None:
    more: dict[str, Any] = {"stream": True}
    if usage:
        more["stream_options"] = {"include_usage": True}
    whole, parts = complete(client), list(complete(client, **more))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert [part.usage for part in parts if part.usage] == ([whole.usage] if usage else [])
    whole, parts = chat(client), list(chat(client, **more))
    deltas = [part.choices[0].delta for part in parts if part.choices]
    assert (deltas[0].role, {delta.role for delta in deltas[1:]}) == ("assistant", {None})
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    ends = [part.choices[0].finish_reason for part in parts if part.choices and part.choices[0].finish_reason]
    assert ends == ["length"]
    assert [part.usage for part in parts if part.usage] == ([whole.usage] if usage else [])
    assert len({part.id for part in parts}) == 1


def test_a_stop_string_is_found_wherever_tokens_cut_it(client: openai.OpenAI) -> None:
    """Strings of several lengths from the answer, as one stop and beside others."""
    text = complete(client, max_tokens=40).choices[0].text
    assert len(set(text)) > 15
    for start, length in [(3, 1), (7, 2), (12, 3), (20, 5), (9, 4), (30, 9)]:
        stop = text[start : start + length]
        for asked in (stop, ["never there", stop]):
            got = complete(client, max_tokens=40, stop=asked).choices[0]
            assert got.text == text[: text.index(stop)]
            assert got.finish_reason == "stop"
        parts = list(complete(client, max_tokens=40, stop=stop, stream=True))
        assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]
    assert complete(client, max_tokens=40, stop="never there").choices[0].text == text


def test_no_half_characters_are_streamed(client: openai.OpenAI) -> None:
    """Guided to characters of two, three and four bytes, which this model has no tokens for."""
    parts = list(complete(client, stream=True, max_tokens=60, extra_body={"regex": "[é€😀]{6}"}))
    assert re.fullmatch("[é€😀]{6}", "".join(part.choices[0].text for part in parts))
    assert not any("\ufffd" in part.choices[0].text for part in parts)


def test_seeds_repeat_and_answers_differ(client: openai.OpenAI) -> None:
    def texts(**more: Any) -> list[str]:
        got = complete(client, temperature=1, **more)
        return [choice.text for choice in sorted(got.choices, key=lambda choice: choice.index)]

    three = texts(seed=7, n=3)
    assert len(set(three)) == 3
    assert texts(seed=7, n=3) == three
    assert texts(seed=7) == three[:1]
    assert texts(seed=-1) == texts(seed=-1)
    assert texts() != texts()


def test_many_answers_to_many_prompts(client: openai.OpenAI) -> None:
    two = ["def ", "class "]
    got = complete(client, prompt=two, n=2, max_tokens=9)
    alone = [complete(client, prompt=one, max_tokens=9) for one in two]
    assert [choice.text for choice in got.choices] == [one.choices[0].text for one in alone for _ in range(2)]
    assert got.usage.completion_tokens == 36
    assert got.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    said: dict[int, str] = {}
    for part in complete(client, prompt=two, n=2, max_tokens=9, stream=True):
        for choice in part.choices:
            said[choice.index] = said.get(choice.index, "") + choice.text
    assert [said[number] for number in range(4)] == [choice.text for choice in got.choices]


def test_logprobs_are_those_of_transformers(client: openai.OpenAI) -> None:
    import torch

    model, tokenizer = reference()
    asked = tokenizer(PROMPT)["input_ids"]
    new = greedy(asked, 8)
    with torch.inference_mode():
        wanted = torch.log_softmax(model(torch.tensor([asked + new])).logits[0], -1)[len(asked) - 1 : -1]
    got = complete(client, max_tokens=8, logprobs=3).choices[0]
    assert "".join(got.logprobs.tokens) == got.text
    assert [
        got.text[at:][: len(token)] for at, token in zip(got.logprobs.text_offset, got.logprobs.tokens, strict=True)
    ] == got.logprobs.tokens
    for place, token in enumerate(new):
        assert math.isclose(got.logprobs.token_logprobs[place], float(wanted[place, token]), abs_tol=1e-3)
        best = sorted(map(float, wanted[place]), reverse=True)[:3]
        assert sorted(got.logprobs.top_logprobs[place].values(), reverse=True) == pytest.approx(best, abs=1e-3)
    talk = chat(client, max_tokens=5, logprobs=True, top_logprobs=2)
    content = talk.choices[0].logprobs.content
    assert "".join(one.token for one in content) == talk.choices[0].message.content
    assert all(one.top_logprobs[0].logprob == one.logprob and len(one.top_logprobs) == 2 for one in content)
    parts = list(chat(client, max_tokens=5, logprobs=True, top_logprobs=2, stream=True))
    streamed = [one for part in parts if part.choices[0].logprobs for one in part.choices[0].logprobs.content]
    assert streamed == content


def test_json_that_fits_its_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    for more in ({"temperature": 0}, {"temperature": 1.5, "seed": 3}):
        got = chat(client, max_tokens=60, response_format=form, **more).choices[0]
        found = json.loads(got.message.content)
        assert 0 <= found["count"] <= 99
        assert found["kind"] in ("def", "class")
        assert got.finish_reason == "stop"
    short = chat(client, max_tokens=1, response_format={"type": "json_object"}).choices[0]
    assert short.message.content.startswith("{")
    assert short.finish_reason == "length"


BAD: dict[str, tuple[dict[str, Any], str | None]] = {
    "empty prompt": ({"prompt": ""}, "prompt"),
    "no tokens": ({"prompt": []}, "prompt"),
    "prompt of another sort": ({"prompt": {"a": 1}}, "prompt"),
    "prompts of several sorts": ({"prompt": ["a", 1]}, "prompt"),
    "token that is none": ({"prompt": [1, 512]}, "prompt"),
    "prompt longer than the context": ({"prompt": "def read " * 200}, "prompt"),
    "more than the context": ({"max_tokens": 128}, "max_tokens"),
    "no tokens asked": ({"max_tokens": 0}, "max_tokens"),
    "negative": ({"max_tokens": -5}, "max_tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "max_tokens true": ({"max_tokens": True}, "max_tokens"),
    "max_tokens of another sort": ({"max_tokens": "9"}, "max_tokens"),
    "temperature below": ({"temperature": -0.1}, "temperature"),
    "temperature above": ({"temperature": 2.1}, "temperature"),
    "top_p above": ({"top_p": 1.01}, "top_p"),
    "top_p below": ({"top_p": -1}, "top_p"),
    "n": ({"n": 0}, "n"),
    "n above": ({"n": 129}, "n"),
    "too many texts": ({"n": 100, "prompt": ["a", "b"]}, "n"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "empty stop": ({"stop": ["a", ""]}, "stop"),
    "stop of another sort": ({"stop": [1]}, "stop"),
    "seed": ({"seed": "x"}, "seed"),
    "seed too large": ({"extra_body": {"seed": 2**63}}, "seed"),
    "logprobs": ({"logprobs": 6}, "logprobs"),
    "penalty": ({"presence_penalty": 2.5}, "presence_penalty"),
    "penalty of another sort": ({"frequency_penalty": "1"}, "frequency_penalty"),
    "bias": ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    "bias of no token": ({"logit_bias": {"def": 5}}, "logit_bias"),
    "bias of another model's token": ({"logit_bias": {"512": 5}}, "logit_bias"),
    "bias of another sort": ({"logit_bias": [5]}, "logit_bias"),
    "too many biases": ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    "repetition": ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
    "least": ({"extra_body": {"min_tokens": 25}}, "min_tokens"),
    "min_p": ({"extra_body": {"min_p": -0.1}}, "min_p"),
    "beams": ({"extra_body": {"num_beams": 0}}, "num_beams"),
    "more beams than rows": ({"extra_body": {"num_beams": 17}}, "num_beams"),
    "beams that are drawn": ({"extra_body": {"num_beams": 2}, "temperature": 1}, "temperature"),
    "beams and a grammar": ({"extra_body": {"num_beams": 2, "regex": "a"}}, "num_beams"),
    "beams and several answers": ({"extra_body": {"num_beams": 2}, "n": 2}, "n"),
    "beams and chances": ({"extra_body": {"num_beams": 2}, "logprobs": 1}, "logprobs"),
    "n-gram": ({"extra_body": {"no_repeat_ngram_size": 2, "regex": "a+"}}, "no_repeat_ngram_size"),
    "suffix": ({"suffix": "end"}, "suffix"),
    "best of": ({"best_of": 3}, "best_of"),
    "stream": ({"extra_body": {"stream": "yes"}}, "stream"),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "unknown field": ({"extra_body": {"temprature": 1}}, "temprature"),
    "regex": ({"extra_body": {"regex": "("}}, "regex"),
    "no such model": ({"model": "gpt-9"}, "model"),
    "no model that writes": ({"model": "vectors"}, "model"),
}
BAD_CHAT: dict[str, tuple[dict[str, Any], str | None]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages of another sort": ({"messages": "hello"}, "messages"),
    "role": ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    "no content": ({"messages": [*USER, {"role": "user"}]}, "messages[1].content"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "two limits": ({"max_completion_tokens": 9}, "max_tokens"),
    "refused by the template": ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    "no template": ({"model": "plain"}, "model"),
    "broken template": ({"model": "broken"}, "messages"),
    "format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
    ),
    "schema that cannot be followed": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "what"}}}},
        "response_format",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_completed_is_refused_by_its_name(client: openai.OpenAI, name: str, stream: bool) -> None:
    asked, param = BAD[name]
    _refused(lambda: complete(client, **({"stream": True} if stream and "stream" not in name else {}), **asked), param)


@pytest.mark.parametrize("name", BAD_CHAT)
def test_what_cannot_be_answered_is_refused_by_its_name(client: openai.OpenAI, name: str) -> None:
    asked, param = BAD_CHAT[name]
    _refused(lambda: chat(client, **asked), param)


def _refused(ask: Any, param: str | None) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        ask()
    assert caught.value.param == param
    assert caught.value.type == ("not_found_error" if caught.value.status_code == 404 else "invalid_request_error")
    assert set(caught.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"model": "llama"', b'{"model": 5}', b'{"model": "llama", "prompt": "\xff"}',
             b'{"model": "llama", "prompt": "\\ud800"}', b'{"model": "llama", "prompt": "a", "temperature": NaN}'],
)  # fmt: skip
def test_what_is_no_body_is_refused(text_server: str, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{text_server}/v1/completions", body)
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["type"] == "invalid_request_error"


def test_fields_that_change_nothing_are_taken(client: openai.OpenAI) -> None:
    nothing: dict[str, Any] = {
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "user": "me",
        "best_of": 1,
    }
    assert complete(client, **nothing).choices[0].text == complete(client).choices[0].text
    more: dict[str, Any] = {"tools": [], "tool_choice": "auto", "metadata": {"a": "b"}, "store": False}
    asked = chat(client, **more, response_format={"type": "text"})
    assert asked.choices[0].message.content == chat(client).choices[0].message.content


def test_sixteen_clients_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    asked = [(reference()[1].decode(prompt), 4 + 5 * number) for number, prompt in enumerate(prompts(16))]
    alone = [complete(client, prompt=prompt, max_tokens=most).choices[0].text for prompt, most in asked]
    got: dict[tuple[int, int], str] = {}
    start = threading.Barrier(len(asked))

    def ask(number: int) -> None:
        prompt, most = asked[number]
        start.wait()
        for turn in range(3):
            parts = complete(client, prompt=prompt, max_tokens=most, stream=True)
            got[number, turn] = "".join(part.choices[0].text for part in parts)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {(number, turn): alone[number] for number in range(len(asked)) for turn in range(3)}


def test_hanging_up_in_the_middle_frees_the_places(client: openai.OpenAI, text_server: str) -> None:
    """128 texts, of which sixteen are written at a time: those that were never begun are not written either."""
    before = sample(text_server, "ml_texts_total", model="llama", finish="cancelled")
    stream = complete(client, n=128, max_tokens=100, stream=True)
    next(iter(stream))
    stream.response.close()
    until = time.monotonic() + 20
    while sample(text_server, "ml_texts_active", model="llama") and time.monotonic() < until:
        time.sleep(0.02)
    assert sample(text_server, "ml_texts_active", model="llama") == 0
    assert sample(text_server, "ml_texts_total", model="llama", finish="cancelled") > before + 50
    assert sample(text_server, "ml_requests_cancelled_total", model="llama") >= 1


def test_tokens_are_counted_once(client: openai.OpenAI, text_server: str) -> None:
    names = ("ml_prompt_tokens_total", "ml_generated_tokens_total", "ml_time_to_first_token_seconds_count",
             "ml_inter_token_seconds_count")  # fmt: skip
    before = [sample(text_server, name, model="plain") for name in names]
    got = complete(client, model="plain", prompt=["def ", "class "], n=2, max_tokens=9)
    after = [sample(text_server, name, model="plain") for name in names]
    assert [a - b for a, b in zip(after, before, strict=True)] == [got.usage.prompt_tokens, 36, 4, 32]
    assert sample(text_server, "ml_tokens_per_second", model="plain") > 0
