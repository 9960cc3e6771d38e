"""Accuracy: labels by name or number, logits by their largest, and nothing in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import get_task
from optimizer.tasks._accuracy import ACCURACY

MODEL: dict[str, Any] = {"task": "text-classification", "labels": ["no", "yes", "7"]}


def rows(*labels: Any) -> list[Row]:
    return [Row(Path("f.jsonl"), n, {"label": label}) for n, label in enumerate(labels, 1)]


def test_a_label_is_a_name_or_a_number() -> None:
    assert ACCURACY.truths(rows("yes", 0, "1", np.int64(2)), MODEL) == [1, 0, 1, 2]
    # A name comes before a number: class 2 is called "7".
    assert ACCURACY.truths(rows("7", "no"), MODEL) == [2, 0]
    assert ACCURACY.truths(rows(5, 0), {}) == [5, 0]


def test_the_share_of_right_rows() -> None:
    logits = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.3], [np.nan, 9.0, 0.0]], np.float32)
    scores = ACCURACY.score({"logits": logits}, [1, 2, 1], MODEL)
    assert scores.tolist() == [1.0, 0.0, 0.0], "a row with a NaN is wrong"
    assert ACCURACY.aggregate(scores) == pytest.approx(1 / 3)


def test_what_has_no_classes_has_no_accuracy() -> None:
    for shape in ((2, 1), (2, 3, 4)):
        with pytest.raises(BadInput, match="two classes or more"):
            ACCURACY.score({"logits": np.zeros(shape, np.float32)}, [0, 0], MODEL)
    with pytest.raises(BadInput, match="a label is 5, and the model has 3 classes"):
        ACCURACY.score({"logits": np.zeros((2, 3), np.float32)}, [0, 5], {})


@pytest.mark.parametrize("name", ["text-classification", "image-classification", "audio-classification"])
def test_classifiers_have_it(name: str) -> None:
    assert get_task(name).metric is ACCURACY


@pytest.mark.parametrize("name", ["feature-extraction", "generic", "fill-mask"])
def test_other_tasks_have_none(name: str) -> None:
    assert get_task(name).metric is None
