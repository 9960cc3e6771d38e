"""Golden values, and the shapes that are made of them."""

import numpy as np
import pytest

from optimizer.data.golden import GOLDEN_NAME, Golden, counts_rows, is_batch, is_sequence, unpadded
from optimizer.errors import Damaged
from optimizer.types import TensorSpec

SPECS = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
IDS = np.array([[11, 12, 13, 9], [21, 22, 9, 9]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
TEXT = Golden({"input_ids": IDS, "attention_mask": MASK}, {"logits": np.eye(2, dtype=np.float32)})


def test_what_is_saved_is_loaded(tmp_path):
    TEXT.save(tmp_path)
    found = Golden.load(tmp_path)
    assert np.array_equal(found.inputs["input_ids"], IDS)
    assert found.outputs["logits"].dtype == np.float32
    assert Golden.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_an_unreadable_file_is_damage(content, tmp_path):
    (tmp_path / GOLDEN_NAME).write_bytes(content)
    with pytest.raises(Damaged, match=r"golden\.npz cannot be read"):
        Golden.load(tmp_path)


def test_pickles_in_it_are_not_loaded(tmp_path):
    np.savez(tmp_path / GOLDEN_NAME, **{"input/x": np.array([{}], dtype=object)})
    with pytest.raises(Damaged):
        Golden.load(tmp_path)


def test_rows_repeat_without_their_padding():
    feeds = TEXT.feeds(SPECS, 3, 5)
    assert feeds["input_ids"].tolist() == [[11, 12, 13, 11, 12], [21, 22, 21, 22, 21], [11, 12, 13, 11, 12]]
    assert feeds["attention_mask"].tolist() == [[1] * 5] * 3
    assert {a.dtype for a in feeds.values()} == {np.dtype(np.int64)}


def test_padding_goes_from_the_longest_row_to_half_of_it():
    feeds = TEXT.feeds(SPECS, 3, 4, padded=True)
    assert feeds["attention_mask"].sum(1).tolist() == [4, 3, 2]
    # Padded places hold what the golden rows are padded with, not zeros.
    assert feeds["input_ids"].tolist() == [[11, 12, 13, 11], [21, 22, 21, 9], [11, 12, 9, 9]]


def test_one_step_is_never_all_padding():
    assert TEXT.feeds(SPECS, 8, 1, padded=True)["attention_mask"].tolist() == [[1]] * 8


def test_a_fixed_sequence_is_masked_over_its_own_length():
    fixed = tuple(TensorSpec(spec.name, "int64", ("batch", 4)) for spec in SPECS)
    assert TEXT.feeds(fixed, 2, 1)["attention_mask"].tolist() == [[1] * 4] * 2
    assert TEXT.feeds(fixed, 2, 1, padded=True)["attention_mask"].tolist() == [[1] * 4, [1, 1, 0, 0]]


def test_pictures_keep_their_size():
    golden = Golden({"pixel_values": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)}, {})
    spec = TensorSpec("pixel_values", "float32", ("batch", 3, 2, 2))
    feeds = golden.feeds([spec], 3, 99)
    assert feeds["pixel_values"].shape == (3, 3, 2, 2)
    assert np.array_equal(feeds["pixel_values"][2], golden.inputs["pixel_values"][0])


def test_scalars_and_fixed_rows_are_left_as_they_are():
    golden = Golden({"k": np.float32(3), "x": np.ones((5, 2), np.float32)}, {})
    specs = [TensorSpec("k", "float32", ()), TensorSpec("x", "float32", (5, 2))]
    feeds = golden.feeds(specs, 8, 16)
    assert (feeds["k"].shape, feeds["x"].shape) == ((), (5, 2))


def test_a_sequence_may_come_first():
    golden = Golden({"x": np.arange(6).reshape(3, 2)}, {})
    feeds = golden.feeds([TensorSpec("x", "int64", ("sequence", "batch"))], 4, 2)
    assert feeds["x"].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_a_mask_of_another_form_is_an_input_like_others():
    golden = Golden({"attention_mask": np.ones((2, 1, 1, 4), np.int64)}, {})
    feeds = golden.feeds([TensorSpec("attention_mask", "int64", ("batch", 1, 1, "sequence"))], 3, 6, padded=True)
    assert feeds["attention_mask"].shape == (3, 1, 1, 6)
    assert unpadded(np.zeros((3, 1, 5)), feeds).all()


def test_what_dimensions_are_called():
    assert [is_batch(d) for d in ("batch", "batch_size", "N", "sequence", "n_tokens", 4)] == [True] * 3 + [False] * 3
    assert [is_sequence(d) for d in ("sequence", "seq_len", "samples", "batch", 16)] == [True] * 3 + [False] * 2
    assert [counts_rows(*d) for d in (("s1", 0), ("s1", 1), ("sequence", 0), (4, 0), ("batch", 1))] == [
        True, False, False, False, True,
    ]  # fmt: skip


def test_padding_never_counts():
    keep = unpadded(np.zeros((2, 4, 3)), TEXT.inputs)
    assert keep[..., 0].tolist() == MASK.astype(bool).tolist()
    assert unpadded(np.zeros((2, 3)), TEXT.inputs).all()  # logits are no sequence
