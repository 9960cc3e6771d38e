"""Correlations against scipy: of samples, of weights, and of a real model's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import phrases, tiny_bert

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import get_task
from optimizer.tasks._aggregate import mean, pearson, spearman
from optimizer.tasks._similarity import PEARSON, SPEARMAN

INPUTS = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in ("input_ids", "attention_mask")]
MODEL: dict[str, Any] = {"task": "feature-extraction", "inputs": INPUTS, "max_length": 32, "pooling": "mean"}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3), st.integers(0, 3)), min_size=4, max_size=30))
def test_a_weight_is_how_often_a_row_stands_there(rows: list[tuple[int, int, int]]) -> None:
    x, y, often = np.array(rows, np.float64).T
    sample = [np.repeat(side, often.astype(int)) for side in (x, y)]
    if not often.sum():
        return
    numbers, weights = np.stack([x, y], axis=1), often[None]
    assert mean(numbers, weights)[0] == pytest.approx(sample[0].mean())
    if min(len(set(side)) for side in sample) < 2:
        assert spearman(numbers, weights)[0] == pearson(numbers, weights)[0] == 0, "what stays the same tells nothing"
        return
    assert spearman(numbers, weights)[0] == pytest.approx(stats.spearmanr(*sample).statistic, abs=1e-9)
    assert pearson(numbers, weights)[0] == pytest.approx(stats.pearsonr(*sample).statistic, abs=1e-9)


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(Path("f.jsonl"), number, value) for number, value in enumerate(values, 1)]


def test_it_is_scipys_number_on_a_real_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_bert(tmp_path / "embedder", "BertModel")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [" ".join(words) for words in phrases(60, 1)]
    drawn = np.random.default_rng(0)
    scores = drawn.integers(0, 11, 30) / 2
    rows = rows_of(
        *({"sentence1": a, "sentence2": b, "score": s} for a, b, s in zip(texts[::2], texts[1::2], scores, strict=True))
    )
    pre = Preprocessor.open(folder, MODEL)
    assert SPEARMAN.parts is not None
    inputs = [each for row in rows for each in SPEARMAN.parts(row, pre.columns)]
    truths = SPEARMAN.truths(rows, pre, MODEL)
    feeds = pre.feeds(inputs)
    with torch.inference_mode():
        states = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
        alone = [
            model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=32)).last_hidden_state[0].mean(0)
            for t in texts
        ]
        cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(alone[::2], alone[1::2], strict=True)]
    numbers = SPEARMAN.score({"last_hidden_state": states}, feeds, truths, MODEL)
    np.testing.assert_allclose(numbers[:, 1], cosines, atol=1e-5)
    assert SPEARMAN.value(numbers) == pytest.approx(stats.spearmanr(scores, cosines).statistic, abs=1e-6)
    assert PEARSON.value(numbers) == pytest.approx(stats.pearsonr(scores, cosines).statistic, abs=1e-4)


def test_an_embedder_reads_one_text_at_a_time(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "embedder", "BertModel")
    pre = Preprocessor.open(folder, MODEL)
    pair, first = rows_of({"sentence1": "a b", "sentence2": "c"}, {"text": "a b"})
    np.testing.assert_array_equal(pre.feeds([pair])["input_ids"], pre.feeds([first])["input_ids"])
    judge = Preprocessor.open(folder, {**MODEL, "task": "text-classification"})
    assert judge.lengths([pair]) == [6]


def test_scores_may_be_text_and_named_otherwise() -> None:
    pre = Preprocessor.open(Path(), {"inputs": []}, columns={"score": "label"})
    rows = rows_of({"label": "4.5"}, {"label": 1}, {"label": np.float32(2)})
    assert SPEARMAN.truths(rows, pre, MODEL) == [4.5, 1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{}] * 3, "row 1 has no column for score: wanted score or"),
        ([{"score": 1}] * 3, "every pair has the score 1"),
        ([{"score": 1}, {"score": "much"}, {"score": 2}], "row 2: score should be a number, and is 'much'"),
        ([{"score": 1}, {"score": float("nan")}, {"score": 2}], "row 2: score should be a number"),
        ([{"score": 1}, {"score": True}, {"score": 2}], "row 2: score should be a number"),
        ([{"score": 1}, {"score": 2}], "needs 3 pairs or more, and here are 2"),
    ],
)
def test_scores_that_cannot_be_used(values: list[dict[str, Any]], message: str) -> None:
    pre = Preprocessor.open(Path(), {"inputs": []})
    with pytest.raises(BadInput, match=message):
        SPEARMAN.truths(rows_of(*values), pre, MODEL)


def test_half_a_pair_is_refused() -> None:
    pre = Preprocessor.open(Path(), {"inputs": []})
    assert SPEARMAN.parts is not None
    with pytest.raises(BadInput, match="no column for text_pair: wanted text_pair or sentence2"):
        SPEARMAN.parts(rows_of({"text": "a", "score": 1})[0], pre.columns)
    with pytest.raises(BadInput, match="no column for text: wanted text or"):
        SPEARMAN.parts(rows_of({"text_pair": "a", "score": 1})[0], pre.columns)


def test_states_that_nobody_pools_are_no_vectors() -> None:
    states = {"last_hidden_state": np.ones((2, 3, 4), np.float32)}
    mask = {"attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    with pytest.raises(BadInput, match="one vector a text") as found:
        SPEARMAN.score(states, mask, [1.0], {**MODEL, "pooling": "none"})
    assert "--min-cosine" in found.value.hint


def test_both_are_the_tasks() -> None:
    task = get_task("feature-extraction")
    assert task.metric(None, {}) is SPEARMAN
    assert task.metric("pearson", {}) is PEARSON
