"""Perplexity, divergence and continuations, beside what PyTorch computes and what is known by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.decoders import decoder
from optimizer.data.documents import Document, read_documents
from optimizer.errors import BadInput, GateFailed
from optimizer.evaluate.bounds import Bounds
from optimizer.evaluate.generation import Score, Sliding, compare, paired_ratio, perplexity, score_documents
from optimizer.generator import GeneratorOptions, open_generator

from .doubles import Graph, Planted


def peaked(height: float) -> Any:
    """The next number is likeliest, by so much."""
    return lambda token, place: np.eye(8)[(token + 1) % 8] * height


COUNTING = [Document(f"row {n}", tuple((n + i) % 8 for i in range(6 + 9 * n))) for n in range(4)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return decoder(request.param, size="tiny")


def test_perplexity_is_that_of_cross_entropy_in_pytorch(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    documents = read_documents(folder / "heldout.jsonl", folder, limit=3)
    opened = open_generator(folder, GeneratorOptions(provider="torch", threads=1))
    found = list(score_documents(opened, documents, Sliding.within(opened.context)))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    nats = tokens = 0.0
    for document in documents:
        done = 1
        for begin in range(0, len(document.tokens), 64):
            ids = torch.tensor([document.tokens[begin : begin + 128]])
            labels = ids.clone()
            labels[:, : done - begin] = -100
            count = int((labels != -100).sum())
            if not count:
                break
            with torch.inference_mode():
                # The library's own loss: the mean over what is not left out.
                nats += model(input_ids=ids, labels=labels).loss.item() * count
            tokens += count
            done = begin + ids.shape[1]
    assert sum(each.tokens for each in found) == tokens == sum(len(each.tokens) - 1 for each in documents)
    assert perplexity(found) == pytest.approx(math.exp(nats / tokens), rel=1e-5)


def test_a_graph_of_the_builder_agrees_with_the_folder_that_it_was_made_from(tmp_path: Path) -> None:
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    folder = decoder("llama", size="tiny")
    asked = (None, str(folder), str(tmp_path / "out"), "fp32", "cpu", str(tmp_path / "cache"))
    builder.create_model(*asked, **builder.parse_extra_options(*asked, []))
    documents = read_documents(folder / "heldout.jsonl", folder, limit=3)
    documents = [Document(each.name, each.tokens[:300]) for each in documents]
    found = compare(
        open_generator(folder, GeneratorOptions(provider="torch", threads=1)),
        Graph(tmp_path / "out"),
        documents,
        continuations=3,
        new_tokens=16,
    )
    assert found.ratio.value == pytest.approx(1, abs=1e-3)
    assert found.candidate == pytest.approx(found.original, rel=1e-3)
    assert found.kl < 1e-5
    assert found.top1 > 0.99
    assert found.match_whole == 1.0


def test_numbers_that_are_known_by_hand() -> None:
    found = compare(Planted(peaked(2.0)), Planted(peaked(1.0)), COUNTING, Sliding(8, 3))
    sums = [math.log(math.exp(height) + 7) for height in (2.0, 1.0)]
    assert found.original == pytest.approx(math.exp(sums[0] - 2))
    assert found.candidate == pytest.approx(math.exp(sums[1] - 1))
    assert found.ratio.value == pytest.approx(found.candidate / found.original)
    likely = math.exp(2 - sums[0])
    assert found.kl == pytest.approx(likely * (1 - sums[0] + sums[1]) + (1 - likely) * (sums[1] - sums[0]), rel=1e-5)
    assert found.top1 == 1.0
    assert [each.tokens for each in found.documents] == [len(each.tokens) - 1 for each in COUNTING]


def test_equal_decoders_are_at_no_distance() -> None:
    found = compare(Planted(peaked(2.0)), Planted(peaked(2.0)), COUNTING, continuations=2, new_tokens=5)
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == (1.0, 1.0, 1.0)
    assert (found.kl, found.top1, found.match, found.match_whole) == (0.0, 1.0, 5, 1.0)


def test_windows_are_those_that_were_asked_for() -> None:
    one = Planted(peaked(1.0))
    list(score_documents(one, COUNTING[3:], Sliding(8, 3)))
    assert {len(row) for row in one.seen} == {8, 33 - 27}
    assert one.seen[1] == list(COUNTING[3].tokens[3:11])


def test_how_far_texts_go_on_alike() -> None:
    def other(token: int, place: int) -> Any:
        return np.eye(8)[0 if place > 6 else (token + 1) % 8]

    found = compare(Planted(peaked(1.0)), Planted(other), COUNTING[1:2], continuations=1, prompt=4, new_tokens=9)
    (one,) = found.continuations
    assert (one.prompt, one.length, one.whole) == (4, 9, False)
    # Prompt 1 2 3 4, and then 5 6 7 by both; at place 7 the candidate says 0 as the original does.
    assert one.matched == 4
    assert found.match == 4


def test_a_token_that_cannot_come_adds_nothing() -> None:
    def never(token: int, place: int) -> Any:
        return np.where(np.arange(8) == (token + 3) % 8, -np.inf, 0.0)

    found = compare(Planted(never), Planted(never), COUNTING)
    assert found.kl == 0.0
    assert math.isfinite(found.original)


def test_logits_that_are_not_finite_fail_by_the_document_that_showed_it() -> None:
    with pytest.raises(GateFailed, match="row 0"):
        compare(Planted(peaked(1.0)), Planted(lambda token, place: np.full(8, np.nan)), COUNTING)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(GateFailed, match="8 tokens, and this has 9"):
        compare(Planted(peaked(1.0)), Planted(peaked(1.0), vocabulary=9), COUNTING)
    with pytest.raises(BadInput, match="no document"):
        compare(Planted(peaked(1.0)), Planted(peaked(1.0)), [])
    with pytest.raises(BadInput, match="longer than the context"):
        Sliding.within(16, 17)
    with pytest.raises(BadInput, match="stride"):
        Sliding.within(16, 8, 8)
    assert Sliding.within(100_000) == Sliding(2048, 1024)


def test_bounds_hold_the_true_ratio_as_often_as_they_say() -> None:
    """Documents of other lengths and skewed differences, paired: what both share must not widen the bounds."""
    random = np.random.default_rng(0)
    true, below, above, runs = 0.02, 0, 0, 400
    for run in range(runs):
        tokens = random.integers(50, 400, 25)
        hard = random.normal(3, 1, 25)
        more = true + 0.05 * (random.exponential(1, 25) - 1)
        found = paired_ratio(
            [
                Score(str(i), int(t), h * t, (h + m) * t)
                for i, (t, h, m) in enumerate(zip(tokens, hard, more, strict=True))
            ],
            seed=run,
        )
        below += found.high < math.exp(true)
        above += found.low > math.exp(true)
        assert found.high - found.low < 0.15  # unpaired they would be ten times as wide
    assert below / runs <= 0.11  # skewed, and few: a little more than the 5 % of many documents
    assert above / runs <= 0.08


def test_of_fewer_than_three_documents_nothing_is_known() -> None:
    found = paired_ratio([Score("a", 10, 20.0, 21.0), Score("b", 10, 20.0, 21.0)])
    assert (found.value, found.low, found.high) == (pytest.approx(math.exp(0.1)), 0.0, math.inf)
    assert found.to_json()["high"] is None


def test_a_broken_decoder_is_infinitely_perplexed() -> None:
    found = paired_ratio([Score(str(i), 1, 1.0, 5000.0) for i in range(5)])
    assert found.value == math.inf
    assert isinstance(found, Bounds)
