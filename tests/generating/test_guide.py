"""Guides: complete is one thing, and given up another."""

from __future__ import annotations

from typing import Any

import llguidance
import numpy as np
import pytest

from benchmarks.decoders import decoder
from optimizer.errors import BadInput
from optimizer.generating.guide import Guide, Guides
from optimizer.generating.tokens import TextTokenizer
from optimizer.generator import Sampling

#: It has to remember where each a was: that takes ever more states.
HARD = ".*a.{20}b"


def guide_of(regex: str) -> Guide:
    guide = Guides(decoder("llama", size="tiny"), 512, (1,)).guide(Sampling(regex=regex))
    assert guide is not None
    return guide


def token_of(text: str) -> int:
    (token,) = TextTokenizer(decoder("llama", size="tiny")).encode(text, special=False)
    return token


def limit(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    """Let the library give up sooner."""

    class Limited:
        grammar_from_regex = llguidance.LLMatcher.grammar_from_regex

        def __new__(cls, *given: Any, **named: Any) -> Any:
            return matcher(*given, **named, limits=llguidance.LLParserLimits(**limits))

    matcher = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", Limited)


def test_a_text_is_complete_with_the_token_behind_which_nothing_can_follow() -> None:
    guide, letter = guide_of("a{3}"), token_of("a")
    assert [guide.take(letter) for _ in range(3)] == [False, False, True]


def test_a_token_outside_of_the_grammar_completes_nothing() -> None:
    guide = guide_of("a{5}")
    with pytest.raises(BadInput, match="cannot be held to its grammar any further: Parser Error: token") as caught:
        guide.take(token_of("d"))
    assert "\n" not in caught.value.message
    assert "simpler" in caught.value.hint


def test_a_limit_that_is_hit_lets_no_end_token_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own answer is then that the end token, and nothing else, may come."""
    limit(monkeypatch, max_lexer_states=30)
    guide, letter = guide_of(HARD), token_of("a")
    logits = np.zeros(512, np.float32)
    with pytest.raises(BadInput, match="any further: lexer error: too many states"):
        for _ in range(40):
            assert np.isfinite(guide.allow(logits)).sum() > 1
            guide.take(letter)
