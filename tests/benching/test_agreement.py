import numpy as np
import pytest

from optimizer.benching.agreement import compare
from optimizer.benching.inputs import save
from optimizer.errors import GateFailed

FEEDS = [{"x": np.ones((4, 2), np.float32)}]
LOGITS = np.array([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 1, 0]], np.float32)


def agreement(tmp_path, reference, candidate, feeds=FEEDS, model=None):
    folders = [save(tmp_path, name, [b]) for name, b in (("ref", reference), ("cand", candidate), ("in", feeds[0]))]
    return compare(*folders, model or {})


def test_the_same_agrees_fully(tmp_path):
    found = agreement(tmp_path, {"y": LOGITS}, {"y": LOGITS * 2})
    assert found.rows == 4
    assert found.cosine_worst == pytest.approx(1.0)
    assert found.top1 == 1.0


def test_another_decision_is_counted(tmp_path):
    other = LOGITS.copy()
    other[3] = [1, 3, 0]
    found = agreement(tmp_path, {"y": LOGITS}, {"y": other})
    assert found.top1 == 0.75
    assert found.cosine_worst == pytest.approx(6 / 10)
    assert found.cosine_mean == pytest.approx((3 + 0.6) / 4)


def test_the_task_says_how(tmp_path):
    """Mean pooling over real tokens: what stands at padded positions does not matter."""
    states = np.random.default_rng(0).random((1, 3, 4)).astype(np.float32)
    other = states.copy()
    other[0, 2] = 99
    feeds = [{"attention_mask": np.array([[1, 1, 0]])}]
    model = {"task": "feature-extraction", "pooling": "mean"}
    left, right = {"last_hidden_state": states}, {"last_hidden_state": other}
    found = agreement(tmp_path, left, right, feeds, model)
    assert found.cosine_worst == pytest.approx(1.0)
    assert found.top1 is None


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"z": LOGITS}, "no output in common"),
        ({"y": LOGITS[:, :2]}, r"'y' has shape 4 × 2, the baseline's has 4 × 3"),
        ({"y": np.full_like(LOGITS, np.nan)}, "'y' holds NaN"),
        ({"y": np.full_like(LOGITS, np.inf)}, "'y' holds NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_an_error(tmp_path, candidate, message):
    with pytest.raises(GateFailed, match=message):
        agreement(tmp_path, {"y": LOGITS}, candidate)
