import numpy as np
import pytest

from optimizer.data.synthetic import symbol_sizes, synthetic_feeds
from optimizer.errors import BadInput
from optimizer.types import TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
TYPES = TensorSpec("token_type_ids", "int64", ("batch", "sequence"))
IMAGE = TensorSpec("pixel_values", "float32", ("batch", 3, 4, 4))


def test_named_dimensions_are_filled_by_their_names():
    specs = [TensorSpec("a", "float32", ("N", "feature_length", "width"))]
    assert symbol_sizes(specs, 3, 7) == {"N": 3, "feature_length": 7, "width": 1}


def test_unnamed_dimensions_are_filled_by_their_place():
    specs = [TensorSpec("a", "float32", ("s18", "s41")), TensorSpec("b", "float32", ("s43", 5, "s9"))]
    assert symbol_sizes(specs, 3, 7) == {"s18": 3, "s41": 7, "s43": 3, "s9": 1}


def test_a_first_dimension_that_is_a_sequence_is_one():
    assert symbol_sizes([TensorSpec("a", "float32", ("time", "batch"))], 3, 7) == {"time": 7, "batch": 3}


def test_text_is_ids_within_limits_full_masks_and_one_segment():
    feeds = synthetic_feeds([IDS, MASK, TYPES], 4, 50, seed=1, limits={"input_ids": (5, 9)})
    assert feeds["input_ids"].shape == (4, 50)
    assert set(np.unique(feeds["input_ids"])) == {5, 6, 7, 8, 9}
    assert (feeds["attention_mask"] == 1).all()
    assert (feeds["token_type_ids"] == 0).all()
    assert all(array.dtype == np.int64 for array in feeds.values())


def test_without_limits_ids_stay_in_the_smallest_table():
    feeds = synthetic_feeds([IDS], 8, 64, seed=0)
    assert set(np.unique(feeds["input_ids"])) == {0, 1}


def test_floats_are_normal_or_within_limits():
    free = synthetic_feeds([IMAGE], 64, 1, seed=0)["pixel_values"]
    assert free.dtype == np.float32
    assert free.shape == (64, 3, 4, 4)
    assert abs(free.mean()) < 0.1
    assert 0.9 < free.std() < 1.1
    bound = synthetic_feeds([IMAGE], 64, 1, seed=0, limits={"pixel_values": (2.0, 3.0)})["pixel_values"]
    assert 2.0 <= bound.min() < 2.1
    assert 2.9 < bound.max() <= 3.0


def test_positions_count_up():
    spec = TensorSpec("position_ids", "int32", ("batch", "sequence"))
    assert synthetic_feeds([spec], 2, 3, seed=0)["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_the_seed_decides_and_other_inputs_do_not():
    alone = synthetic_feeds([IDS], 2, 99, seed=3)["input_ids"]
    together = synthetic_feeds([IMAGE, IDS], 2, 99, seed=3)["input_ids"]
    other = synthetic_feeds([IDS], 2, 99, seed=4)["input_ids"]
    assert (alone == together).all()
    assert (alone != other).any()


@pytest.mark.parametrize("dtype", ["object", "bfloat16"])
def test_a_type_without_made_up_values_is_named(dtype):
    with pytest.raises(BadInput, match="'words'"):
        synthetic_feeds([TensorSpec("words", dtype, ("batch",))], 1, 1, seed=0)
