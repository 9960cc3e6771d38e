"""Models of which nothing is known but their arrays."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import BadInput, GateFailed
from optimizer.hf import AUTO_CLASSES
from optimizer.task import discover, get_task

agree = get_task("generic").agree
FEEDS = {"x": np.zeros((3, 7), np.int32)}


def test_the_worst_output_of_a_row_speaks_for_it() -> None:
    rng = np.random.default_rng(0)
    a = {"scores": rng.normal(size=(3, 4)), "map": rng.normal(size=(3, 2, 5)), "best": np.arange(3)}
    b = {name: array.copy() for name, array in a.items()}
    b["map"][1] *= -1
    b["best"][:] = 9  # integers follow from the scores: they do not count beside them
    got = agree(a, b, FEEDS, {})
    np.testing.assert_allclose(got["cosine"], [1, -1, 1])
    assert got["top1"].tolist() == [1, 1, 1]


def test_no_decision_without_classes() -> None:
    for shape in ((3,), (3, 1), (3, 4, 5)):
        a = {"y": np.ones(shape)}
        assert set(agree(a, a, FEEDS, {})) == {"cosine"}


def test_padding_is_left_out_where_there_is_a_mask() -> None:
    a = np.ones((2, 3, 4))
    b = a.copy()
    b[:, 2] = -5
    feeds = {"input_ids": np.zeros((2, 3)), "attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    first, second = agree({"y": a}, {"y": b}, feeds, {})["cosine"]
    assert first == pytest.approx(1)
    assert second < 0


def test_an_output_without_rows_speaks_for_all() -> None:
    got = agree({"y": np.array([1.0, 0.0])}, {"y": np.array([0.0, 1.0])}, FEEDS, {})
    assert got["cosine"].tolist() == [0, 0, 0]
    assert agree({"y": np.float32(2)}, {"y": np.float32(2)}, FEEDS, {})["cosine"].tolist() == [pytest.approx(1)] * 3


def test_integers_and_strings_alone_must_be_equal() -> None:
    a = {"class": np.array([1, 2, 3]), "name": np.array(["a", "b", "c"], object)}
    b = {"class": np.array([1, 2, 4]), "name": np.array(["a", "x", "c"], object)}
    assert agree(a, a, FEEDS, {})["cosine"].tolist() == [1, 1, 1]
    assert agree(a, b, FEEDS, {})["cosine"].tolist() == [1, 0, 0]


def test_shapes_and_names_must_be_the_same() -> None:
    with pytest.raises(GateFailed, match="no output y"):
        agree({"y": np.ones((3, 2))}, {"z": np.ones((3, 2))}, FEEDS, {})
    with pytest.raises(GateFailed, match=r"\[3, 3\]"):
        agree({"y": np.ones((3, 2))}, {"y": np.ones((3, 3))}, FEEDS, {})
    with pytest.raises(BadInput, match="no outputs"):
        agree({}, {}, FEEDS, {})


def test_every_task_is_found_and_names_itself() -> None:
    tasks = discover()
    assert set(tasks) == {
        "audio-classification", "feature-extraction", "fill-mask", "generic", "image-classification",
        "question-answering", "text-classification", "token-classification",
    }  # fmt: skip
    assert set(AUTO_CLASSES) == set(tasks) - {"generic"}, "what PyTorch loads, and what is brought as ONNX"
    for task in tasks.values():
        assert set(task.modalities) <= {"text", "image", "audio", "tensor"}
