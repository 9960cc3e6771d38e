"""Long prompts are read a part at a time, and texts under way go on between the parts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generators import greedy, prompts

from optimizer.errors import BadInput
from optimizer.generator import Finish, Generation, Generator, GeneratorOptions, Sampling, open_generator
from optimizer.runtimes import _decode_loop, _openvino_decoder
from optimizer.runtimes._openvino_decoder import PagedDecoder
from optimizer.runtimes._ort_decoder import Decoder

#: Tokens of a part here.
PART = 8
LOOPS = [("cpu", Decoder), ("openvino-native", PagedDecoder)]


def tokens(generation: Generation) -> list[int]:
    return [token for piece in generation for token in piece.tokens]


def long(number: int, size: int) -> list[int]:
    """A prompt of so many tokens."""
    return (prompts(number + 4)[number] * size + prompts(3)[2] * size)[:size]


class Seen:
    """What a decoder is asked for, in order: ``("read", tokens)`` and ``("step", rows)``; a read may be held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, decoder: Any) -> None:
        self.calls: list[tuple[str, int]] = []
        self.before_read: Callable[[int], None] = lambda count: None
        read, step = decoder.read, decoder.step

        def reads(rows: Any, row: int, parts: Any, begin: int = 0) -> Any:
            self.calls.append(("read", sum(part.size for part in parts)))
            self.before_read(sum(name == "read" for name, _ in self.calls))
            return read(rows, row, parts, begin)

        def steps(rows: Any, given: list[int], lengths: list[int]) -> Any:
            self.calls.append(("step", len(given)))
            return step(rows, given, lengths)

        monkeypatch.setattr(decoder, "read", reads)
        monkeypatch.setattr(decoder, "step", steps)


@pytest.fixture(params=LOOPS, ids=["onnxruntime", "openvino"])
def loop(
    request: pytest.FixtureRequest, llama_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Generator, Seen]]:
    provider, decoder = request.param
    seen = Seen(monkeypatch, decoder)
    monkeypatch.setattr(_decode_loop, "_READ_AT_ONCE", PART)
    monkeypatch.setattr(Decoder, "part", PART)
    monkeypatch.setattr(_openvino_decoder, "_READ_AT_ONCE", PART)
    opened = open_generator(llama_generator, GeneratorOptions(provider=provider, threads=1, slots=4))
    yield opened, seen
    opened.close()


def test_texts_under_way_go_on_while_a_long_prompt_is_read(loop: tuple[Generator, Seen]) -> None:
    opened, seen = loop
    short, other, asked = prompts(4)[1][:PART], prompts(4)[2], long(0, 90)
    all_asked = threading.Event()
    seen.before_read = lambda count: all_asked.wait(20) and None
    first = opened.submit(short, Sampling(max_tokens=60))
    second, third = opened.submit(asked, Sampling(max_tokens=20)), opened.submit(other, Sampling(max_tokens=9))
    all_asked.set()
    assert tokens(first) == greedy(short, 60)
    assert tokens(second) == greedy(asked, 20)
    assert tokens(third) == greedy(other, 9)
    reads = [place for place, (name, _) in enumerate(seen.calls) if name == "read"]
    assert all(count <= PART for name, count in seen.calls if name == "read")
    # Each step between two parts takes a token of the prompt along.
    between = [seen.calls[one + 1 : other] for one, other in itertools.pairwise(reads[1:11])]
    assert between == [[("step", 2)]] * 9
    assert sum(count for name, count in seen.calls if name == "read") < PART + len(asked) + len(other)


def test_with_nothing_under_way_a_prompt_is_read_without_steps(loop: tuple[Generator, Seen]) -> None:
    opened, seen = loop
    asked = long(1, 75)
    assert tokens(opened.submit(asked, Sampling(max_tokens=5))) == greedy(asked, 5)
    assert [name for name, _ in seen.calls[:10]] == ["read"] * 10
    assert sum(count for name, count in seen.calls if name == "read") == 75


def test_a_prompt_that_is_read_can_be_cancelled(loop: tuple[Generator, Seen]) -> None:
    """Its row is free after the part that is being read, for whoever waits."""
    opened, seen = loop
    held, go_on = threading.Event(), threading.Event()

    def hold(count: int) -> None:
        if count == 3:
            held.set()
            assert go_on.wait(20)

    seen.before_read = hold
    asked = prompts(4)[1][:PART]
    leaving, waiting = opened.submit(long(2, 100), Sampling(max_tokens=9)), opened.submit(asked, Sampling(max_tokens=9))
    assert held.wait(20)
    leaving.cancel()
    go_on.set()
    assert [piece.finish for piece in leaving] == [Finish.CANCELLED]
    assert tokens(waiting) == greedy(asked, 9)
    assert sum(count for name, count in seen.calls if name == "read") == 3 * PART + len(asked)


def test_rows_that_leave_make_place_under_a_prompt_that_is_read(loop: tuple[Generator, Seen]) -> None:
    """Texts before it end at every other part, so that its row becomes another one while it is half full."""
    opened, _ = loop
    asked = [(prompts(6)[number + 1], 2 + 3 * number) for number in range(3)]
    begun = [opened.submit(prompt, Sampling(max_tokens=new)) for prompt, new in asked]
    reading = [long(number, 100) for number in range(2)]
    begun += [opened.submit(prompt, Sampling(max_tokens=12)) for prompt in reading]
    wanted = [greedy(prompt, new) for prompt, new in asked] + [greedy(prompt, 12) for prompt in reading]
    assert [tokens(generation) for generation in begun] == wanted


def test_beams_leave_and_begin_beside_a_prompt_that_is_read(
    llama_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decode_loop, "_READ_AT_ONCE", PART)
    monkeypatch.setattr(Decoder, "part", PART)
    opened = open_generator(llama_generator, GeneratorOptions(threads=1, slots=7))
    asked = [
        (prompts(4)[1], 4, {"num_beams": 3}),
        (long(0, 90), 20, {}),
        (long(1, 60), 9, {"num_beams": 3}),
        (long(2, 50), 15, {}),
    ]
    try:
        begun = [opened.submit(prompt, Sampling(max_tokens=new, **how)) for prompt, new, how in asked]
        assert [tokens(text) for text in begun] == [greedy(prompt, new, **how) for prompt, new, how in asked]
    finally:
        opened.close()


def test_a_part_that_fails_ends_its_own_text_alone(loop: tuple[Generator, Seen]) -> None:
    opened, seen = loop

    def fail(count: int) -> None:
        if count == 4:
            raise BadInput("no memory for this one")

    seen.before_read = fail
    first = prompts(4)[1][:PART]
    begun = opened.submit(first, Sampling(max_tokens=40))
    failing, other = opened.submit(long(3, 80), Sampling(max_tokens=5)), prompts(4)[3][:PART]
    with pytest.raises(BadInput, match="no memory"):
        tokens(failing)
    assert tokens(opened.submit(other, Sampling(max_tokens=7))) == greedy(other, 7)
    assert tokens(begun) == greedy(first, 40)
    assert sum(count for name, count in seen.calls if name == "read") == 4 * PART + len(other)
