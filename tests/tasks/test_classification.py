"""Tasks with a decision: of whole inputs, of tokens, of a span."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import BadInput, GateFailed
from optimizer.task import get_task

WHOLE = ("text-classification", "image-classification", "audio-classification")


@pytest.mark.parametrize("task", WHOLE)
def test_a_flipped_decision_is_seen(task: str) -> None:
    a = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)
    b = np.array([[2.0, 1.1, 0.0], [0.0, 1.0, 3.0]], np.float32)
    # As many classes as mask columns: classes are no sequence.
    feeds = {"attention_mask": np.array([[1, 0, 0], [1, 1, 0]])}
    got = get_task(task).agree({"logits": a}, {"logits": b}, feeds, {"task": task})
    assert got["top1"].tolist() == [1, 0]
    np.testing.assert_allclose(got["cosine"], [4 + 1.1, 6] / np.array([np.sqrt(5 * 5.21), 10]), rtol=1e-6)


def test_a_regression_has_no_decision() -> None:
    got = get_task("text-classification").agree({"logits": np.ones((3, 1))}, {"logits": np.zeros((3, 1))}, {}, {})
    assert set(got) == {"cosine"}
    assert got["cosine"].max() < 0.8


def test_a_nan_is_neither_near_nor_right() -> None:
    a, b = np.array([[0.0, 1.0]] * 2), np.array([[0.0, 1.0], [0.0, np.nan]])
    got = get_task("text-classification").agree({"logits": a}, {"logits": b}, {}, {})
    assert got["cosine"].tolist() == [pytest.approx(1), -1]
    assert got["top1"].tolist() == [1, 0]


def test_wrong_outputs_are_named() -> None:
    agree = get_task("image-classification").agree
    with pytest.raises(BadInput, match="image-classification should answer with logits"):
        agree({"last_hidden_state": np.ones((1, 2))}, {}, {}, {"task": "image-classification"})
    with pytest.raises(GateFailed, match="no output logits"):
        agree({"logits": np.ones((1, 2))}, {}, {}, {})


@pytest.mark.parametrize("task", ["token-classification", "fill-mask"])
def test_tokens_agree_by_share_and_padding_is_left_out(task: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(2, 4, 5)).astype(np.float32)
    b = a.copy()
    b[0, 1] = -a[0, 1]  # one of four tokens decides otherwise
    b[1, 2:] = -a[1, 2:]  # padding
    feeds = {"attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}
    got = get_task(task).agree({"logits": a}, {"logits": b}, feeds, {"task": task})
    assert got["top1"].tolist() == [0.75, 1]
    assert got["cosine"][0] < 0.99
    assert got["cosine"][1] == pytest.approx(1)


def test_a_span_needs_both_ends() -> None:
    agree = get_task("question-answering").agree
    start = np.array([[0.0, 5.0, 1.0, 9.0]] * 3)
    end = np.array([[0.0, 1.0, 5.0, 9.0]] * 3)
    mask = np.array([[1, 1, 1, 0]] * 3)
    other_end = end.copy()
    other_end[1] = [0, 6, 5, 9]
    other_start = start.copy()
    other_start[2, 3] = -50  # in the padding
    got = agree(
        {"start_logits": start, "end_logits": end},
        {"start_logits": other_start, "end_logits": other_end},
        {"attention_mask": mask},
        {},
    )
    assert got["top1"].tolist() == [1, 0, 1]
    np.testing.assert_allclose(got["cosine"], [1, 31 / np.sqrt(26 * 61), 1])
