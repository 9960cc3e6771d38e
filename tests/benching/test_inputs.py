import json

import numpy as np
import pytest

from optimizer.benching.inputs import Examples, save
from optimizer.benching.shape import Shape
from optimizer.data.golden import Golden
from optimizer.errors import BadInput
from optimizer.types import TensorSpec

SPECS = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
IDS = np.array([[11, 12, 13, 0], [21, 22, 0, 0]])
GOLDEN = Golden({"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64)}, {})


def test_timed_inputs_are_the_examples_own_tokens_without_padding():
    examples = Examples(SPECS, {}, GOLDEN)
    assert examples.source == "golden"
    feeds = examples.of_shape(Shape(3, 5))
    assert feeds["input_ids"].tolist() == [[11, 12, 13, 11, 12], [21, 22, 21, 22, 21], [11, 12, 13, 11, 12]]
    assert (feeds["attention_mask"] == 1).all()
    assert examples.of_shape(Shape(1, 2))["input_ids"].tolist() == [[11, 12]]


def test_a_shape_without_a_length_keeps_the_examples():
    assert Examples(SPECS, {}, GOLDEN).of_shape(Shape(1))["input_ids"].shape == (1, 4)


def test_images_are_repeated_along_the_batch():
    spec = TensorSpec("pixel_values", "float32", ("batch", 3, 2, 2))
    pixels = np.random.default_rng(0).random((2, 3, 2, 2)).astype(np.float32)
    feeds = Examples((spec,), {}, Golden({"pixel_values": pixels}, {})).of_shape(Shape(3))
    assert np.array_equal(feeds["pixel_values"], pixels[[0, 1, 0]])


def test_without_examples_values_are_made_up_within_limits():
    examples = Examples(SPECS, {"limits": {"input_ids": [7, 9]}}, seed=1)
    assert examples.source == "synthetic"
    ids = examples.of_shape(Shape(4, 32))["input_ids"]
    assert set(np.unique(ids)) == {7, 8, 9}


def test_examples_of_another_signature_are_not_used():
    other = (*SPECS, TensorSpec("token_type_ids", "int64", ("batch", "sequence")))
    assert Examples(other, {}, GOLDEN).source == "synthetic"


@pytest.mark.parametrize("golden", [None, Golden({"x": np.ones((2, 3), np.float32)}, {})])
def test_a_length_for_a_model_without_one_is_refused(golden):
    examples = Examples((TensorSpec("x", "float32", ("batch", 3)),), {}, golden)
    assert examples.of_shape(Shape(2))["x"].shape == (2, 3)
    with pytest.raises(BadInput, match="write --shape 2"):
        examples.of_shape(Shape(2, 128))


def test_answers_are_compared_on_the_examples_with_their_padding():
    (batch,) = Examples(SPECS, {}, GOLDEN).to_compare(Shape(8, 128))
    assert np.array_equal(batch["input_ids"], IDS)
    assert batch["attention_mask"].min() == 0


def test_answers_are_compared_on_rows_of_a_file(tmp_path):
    rows = [{"input_ids": [n, n, n], "attention_mask": [1, 1, 1]} for n in range(1, 12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    batches = Examples(SPECS, {}, GOLDEN, tmp_path, path).to_compare(Shape(1, 3))
    assert [len(batch["input_ids"]) for batch in batches] == [8, 3]
    assert sorted(int(row[0]) for batch in batches for row in batch["input_ids"]) == list(range(1, 12))


def test_rows_need_an_artifact_to_be_read_with(tmp_path):
    with pytest.raises(BadInput, match="--data needs an artifact"):
        Examples(SPECS, {}, data=tmp_path / "rows.jsonl").to_compare(Shape(1, 3))


def test_what_is_saved_is_what_is_read(tmp_path):
    paths = save(tmp_path, "timed", [{"x": np.arange(3)}, {"x": np.arange(5)}])
    assert [len(np.load(path)["x"]) for path in paths] == [3, 5]
