"""Whatever the body, it is read or refused by the field that is to blame; never anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.generating.asked import check_asked
from optimizer.generator import Sampling
from optimizer.serving.problems import Problem
from optimizer.serving.text.asked import Asked
from optimizer.serving.text.openai_asked import chat_asked, completion_asked
from optimizer.serving.text.plain import guide_asked, v2_asked

READERS: dict[str, tuple[Callable[..., Asked], dict[str, Any]]] = {
    "completions": (completion_asked, {"model": "m", "prompt": "def"}),
    "chat": (chat_asked, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    "guide": (guide_asked, {"prompt": "def"}),
    "v2": (lambda body, screen: v2_asked(body, screen, False), {"text_input": "def"}),
}
NAMES = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n",
    "stream", "stream_options", "stop", "seed", "logprobs", "top_logprobs", "response_format", "regex", "echo",
    "best_of", "suffix", "tools", "tool_choice", "logit_bias", "user", "id", "text_input", "parameters", "role",
    "repetition_penalty", "no_repeat_ngram_size", "min_p", "min_tokens", "presence_penalty", "frequency_penalty",
    "num_beams", "length_penalty", "early_stopping", "7",
    "content", "type", "schema", "json_schema", "include_usage", "details", "text",
]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=8),
    st.sampled_from(["user", "text", "json_schema", "json_object", "\ud800", "auto", "none"]),
)  # fmt: skip
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


def same(text: str, param: str) -> str:
    text.encode()  # nothing else reaches what screens a text
    return text


@pytest.mark.parametrize("name", READERS)
def test_any_body_is_read_or_refused(name: str) -> None:
    read, good = READERS[name]

    @settings(max_examples=100, deadline=None)
    @given(st.dictionaries(st.sampled_from(NAMES), ANY, max_size=5), st.booleans())
    def check(more: dict[str, Any], with_good: bool) -> None:
        body = {**good, **more} if with_good else more
        try:
            asked = read(body, same)
        except Problem as problem:
            assert problem.status == 400
            assert problem.message
            assert problem.param
            return
        assert isinstance(asked.sampling, Sampling)
        assert asked.prompts
        assert 0 <= asked.sampling.temperature <= 2
        assert 0 < asked.sampling.top_p <= 1
        assert asked.sampling.seed is None or 0 <= asked.sampling.seed < 2**64
        assert asked.max_tokens is None or asked.max_tokens >= 1
        assert len(asked.stop) <= 4
        check_asked([7], asked.sampling, 128, 10**9)
        assert all(asked.stop)

    check()


def test_what_nothing_says_is_as_each_api_has_it() -> None:
    asked = {name: read(good, same) for name, (read, good) in READERS.items()}
    assert {n: (a.sampling.temperature, a.sampling.top_p, a.default_tokens) for n, a in asked.items()} == {
        "completions": (1.0, 1.0, 16),
        "chat": (1.0, 1.0, None),
        "guide": (0.7, 0.9, 100),
        "v2": (0.0, 1.0, 100),
    }
    assert all(a.n == 1 and not a.stream and not a.stop for a in asked.values())


def test_no_probability_at_all_is_the_likeliest_token() -> None:
    assert completion_asked({"prompt": "a", "top_p": 0}, same).sampling.top_k == 1
