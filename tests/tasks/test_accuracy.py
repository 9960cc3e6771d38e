"""Accuracy: labels by name or number, logits by their largest, and nothing in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import get_task
from optimizer.tasks._accuracy import ACCURACY

MODEL: dict[str, Any] = {"task": "text-classification", "labels": ["no", "yes", "7"]}


def rows(*labels: Any) -> list[Row]:
    return [Row(Path("f.jsonl"), n, {"label": label}) for n, label in enumerate(labels, 1)]


def preprocessor(**columns: str) -> Preprocessor:
    return Preprocessor.open(Path(), {"inputs": []}, columns=columns)


def test_a_label_is_a_name_or_a_number() -> None:
    assert ACCURACY.truths(rows("yes", 0, "1", np.int64(2)), preprocessor(), MODEL) == [1, 0, 1, 2]
    # A name comes before a number: class 2 is called "7".
    assert ACCURACY.truths(rows("7", "no"), preprocessor(), MODEL) == [2, 0]
    assert ACCURACY.truths(rows(5, 0), preprocessor(), {}) == [5, 0]


def test_the_share_of_right_rows() -> None:
    logits = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.3], [np.nan, 9.0, 0.0]], np.float32)
    scores = ACCURACY.score({"logits": logits}, {}, [1, 2, 1], MODEL)
    assert scores.tolist() == [1.0, 0.0, 0.0], "a row with a NaN is wrong"
    assert ACCURACY.value(scores) == pytest.approx(1 / 3)


def test_what_has_no_classes_has_no_accuracy() -> None:
    for shape in ((2, 1), (2, 3, 4)):
        with pytest.raises(BadInput, match="two classes or more"):
            ACCURACY.score({"logits": np.zeros(shape, np.float32)}, {}, [0, 0], MODEL)
    with pytest.raises(BadInput, match="a label is 5, and the model has 3 classes"):
        ACCURACY.score({"logits": np.zeros((2, 3), np.float32)}, {}, [0, 5], {})


def test_the_label_may_have_another_name() -> None:
    rated = [Row(Path("f.jsonl"), n, {"stars": n % 2}) for n in range(4)]
    assert ACCURACY.truths(rated, preprocessor(label="stars"), MODEL) == [0, 1, 0, 1]
    with pytest.raises(BadInput, match=r"accuracy needs a column label or labels") as found:
        ACCURACY.truths(rated, preprocessor(), MODEL)
    assert "--column label=COLUMN" in found.value.hint
    with pytest.raises(BadInput, match="row 0 has no column for label: wanted rating, found stars"):
        ACCURACY.truths(rated, preprocessor(label="rating"), MODEL)


def test_a_model_of_no_known_task_is_judged_by_its_only_output() -> None:
    truths = [0, 1]
    logits = np.eye(2, 3, dtype=np.float32)
    assert ACCURACY.score({"y": logits}, {}, truths, {}).tolist() == [1, 1]
    assert ACCURACY.score({"logits": logits, "states": logits}, {}, truths, {}).tolist() == [1, 1]
    for outputs, message in (
        ({"y": logits, "z": logits}, "which output decides"),
        ({"y": logits[:, None]}, r"rows, classes"),
        ({"y": logits[:1]}, r"rows, classes"),
    ):
        with pytest.raises(BadInput, match=message):
            ACCURACY.score(outputs, {}, truths, {})


@pytest.mark.parametrize("name", ["text-classification", "image-classification", "audio-classification", "generic"])
def test_classifiers_have_it(name: str) -> None:
    assert get_task(name).metric(None, {}) is get_task(name).metric("accuracy", {}) is ACCURACY


def test_a_metric_that_a_task_has_not_is_refused() -> None:
    with pytest.raises(BadInput, match="accuracy cannot be measured here: the task fill-mask has no metric") as found:
        get_task("fill-mask").metric(None, {})
    assert "--min-cosine" in found.value.hint
    with pytest.raises(BadInput, match="f1 cannot be measured here: the task text-classification has accuracy"):
        get_task("text-classification").metric("f1", {})
    with pytest.raises(
        BadInput, match=r"accuracy cannot .* the task feature-extraction has spearman, pearson"
    ) as found:
        get_task("feature-extraction").metric("accuracy", {})
    assert found.value.hint == "judge by --metric spearman"
