"""PyTorch behind the protocol of decoders: the tokens of ``transformers.generate``, the logits of a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.decoders import decoder
from optimizer.errors import BadInput
from optimizer.generator import Finish, Generator, GeneratorOptions, Sampling, open_generator

PROMPTS = [[0, 40, 41, 42], [0, 99, 17], [0, 7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return decoder(request.param, size="tiny")


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    found = open_generator(folder, GeneratorOptions(provider="torch", threads=1))
    yield found
    found.close()


def text(generator: Generator, prompt: list[int], **sampling: Any) -> tuple[list[int], Finish | None]:
    pieces = list(generator.submit(prompt, Sampling(**sampling)))
    return [token for piece in pieces for token in piece.tokens], pieces[-1].finish


def reference(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_it_is_a_generator_that_says_what_it_is(opened: Any) -> None:
    assert isinstance(opened, Generator)
    assert (opened.context, opened.vocabulary) == (128, 512)
    assert opened.end_tokens
    assert opened.facts["threads"] == 1


def test_texts_written_together_are_those_that_generate_writes_alone(folder: Path, opened: Any) -> None:
    import torch

    model = reference(folder)
    begun = [opened.submit(prompt, Sampling(max_tokens=24, min_tokens=24)) for prompt in PROMPTS]
    for prompt, each in zip(PROMPTS, begun, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False)
        pieces = list(each)
        assert [t for piece in pieces for t in piece.tokens] == whole[0, len(prompt) :].tolist()
        assert pieces[-1].finish is Finish.LENGTH
        assert all(piece.finish is None for piece in pieces[:-1])


def test_they_are_written_in_one_call(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    generate = opened._module.generate
    monkeypatch.setattr(opened._module, "generate", lambda **k: (rows.append(len(k["input_ids"])), generate(**k))[1])
    begun = [opened.submit(prompt, Sampling(max_tokens=2)) for prompt in PROMPTS]
    for each in begun:
        list(each)
    assert rows == [3]


def test_logits_are_those_of_a_forward_pass(folder: Path, opened: Any) -> None:
    import torch

    ids = np.array([PROMPTS[2], PROMPTS[2][::-1]])
    with torch.inference_mode():
        wanted = reference(folder)(input_ids=torch.tensor(ids)).logits.numpy()
    assert opened.score(ids) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("asked", [{}, {"min_tokens": 20}, {"repetition_penalty": 3.0}, {"logit_bias": ((77, 50.0),)}])
def test_logprobs_are_the_scores_of_the_tokens(opened: Any, asked: dict[str, Any]) -> None:
    """The model's own, of texts written together; and nothing is kept where none are asked for."""
    how = Sampling(max_tokens=20, logprobs=True, top_logprobs=2, **asked)
    begun = [opened.submit(prompt, how) for prompt in PROMPTS]
    for prompt, each in zip(PROMPTS, begun, strict=True):
        pieces = list(each)
        written = [token for piece in pieces for token in piece.tokens]
        scores = opened.score(np.array([prompt + written]))[0].astype(np.float64)[len(prompt) - 1 : -1]
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        wanted = scores[np.arange(len(written)), written].tolist()
        assert [chance for piece in pieces for chance in piece.logprobs] == pytest.approx(wanted, abs=1e-4)
        top = [chance for piece in pieces for place in piece.top for _, chance in place]
        assert top == pytest.approx(np.sort(scores, axis=1)[:, :-3:-1].ravel().tolist(), abs=1e-4)
    assert not any(piece.logprobs or piece.top for piece in opened.submit(PROMPTS[0], Sampling(max_tokens=3)))
    assert not opened._module._forward_hooks
    with pytest.raises(BadInput, match="top_logprobs is 513"):
        opened.submit(PROMPTS[0], Sampling(logprobs=True, top_logprobs=513))


def test_what_bends_the_choice_reaches_generate(folder: Path, opened: Any) -> None:
    import torch

    model, usual = reference(folder), text(opened, PROMPTS[0], max_tokens=24)[0]
    for asked, theirs in (
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"logit_bias": ((usual[0], -100.0),)}, {"sequence_bias": {(usual[0],): -100.0}}),
    ):
        whole = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=24, do_sample=False, **theirs)
        got = text(opened, PROMPTS[0], max_tokens=24, **asked)[0]
        assert got == [token for token in whole[0, 4:].tolist() if token not in opened.end_tokens] != usual


def test_an_end_token_ends_a_text_and_is_left_out(opened: Any) -> None:
    written, _ = text(opened, PROMPTS[0], max_tokens=12, min_tokens=12)
    last = written[5]
    ended, finish = text(opened, PROMPTS[0], max_tokens=12, stop_tokens=(last,))
    assert ended == written[: written.index(last)]
    assert finish is Finish.STOP


def test_a_seed_repeats_and_another_one_does_not(opened: Any) -> None:
    first, again, other = (text(opened, PROMPTS[0], max_tokens=32, temperature=1.5, seed=seed)[0] for seed in (3, 3, 4))
    assert first == again != other


def test_a_cancelled_text_ends_and_the_others_go_on(opened: Any) -> None:
    gone, stays = (opened.submit(prompt, Sampling(max_tokens=100, min_tokens=100)) for prompt in PROMPTS[:2])
    seen = iter(gone)
    next(seen)
    gone.cancel()
    assert [piece.finish for piece in seen][-1] is Finish.CANCELLED
    assert sum(len(piece.tokens) for piece in stays) == 100


def test_one_that_waits_can_be_cancelled(opened: Any) -> None:
    gone = opened.submit(PROMPTS[0], Sampling())
    gone.cancel()
    assert [piece.finish for piece in gone] == [Finish.CANCELLED]


@pytest.mark.parametrize(
    ("prompt", "asked", "said"),
    [
        ([], {}, "empty"),
        ([1] * 128, {}, "context holds 128"),
        ([512], {}, "vocabulary"),
        ([-1], {}, "vocabulary"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"temperature": -1}, "temperature"),
        ([1], {"top_p": 0}, "top_p"),
        ([1], {"top_k": -1}, "top_k"),
        ([1], {"regex": "a"}, "expression"),
        ([1], {"frequency_penalty": 1.0}, "frequency penalties"),
        ([1], {"num_beams": 2}, "no beams"),
    ],
)
def test_what_cannot_be_written_is_refused(opened: Any, prompt: list[int], asked: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        opened.submit(prompt, Sampling(**asked))


def test_what_cannot_be_scored_is_refused(opened: Any) -> None:
    for rows in (np.zeros((1, 129), np.int64), np.zeros((0, 4), np.int64), np.full((1, 4), 512)):
        with pytest.raises(BadInput):
            opened.score(rows)


def test_the_context_ends_a_text(opened: Any) -> None:
    written, finish = text(opened, PROMPTS[0] * 30, max_tokens=100, min_tokens=100)
    assert (len(written), finish) == (8, Finish.LENGTH)


def test_a_number_format_is_asked_for_with_the_provider(folder: Path) -> None:
    found = open_generator(folder, GeneratorOptions(provider="torch:bf16", threads=1))
    assert found.facts["precision"] == "bf16"
    assert len(list(found.submit([1], Sampling(max_tokens=3, min_tokens=3)))) == 4
    with pytest.raises(BadInput, match="torch:int8"):
        open_generator(folder, GeneratorOptions(provider="torch:int8"))


def test_a_closed_one_writes_no_more(folder: Path) -> None:
    found = open_generator(folder, GeneratorOptions(provider="torch", threads=1))
    found.close()
    with pytest.raises(BadInput, match="closed"):
        found.submit([1], Sampling())
