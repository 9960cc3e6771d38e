"""Shapes of an engine: read, filled in, derived from data, and held to what the model takes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.engines.profiles import Profile, Range, check_limits, from_lengths, parse, read_range, usual
from optimizer.errors import BadInput, UnknownName
from optimizer.types import TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
IMAGE = TensorSpec("pixel_values", "float32", ("batch", 3, 32, 32))
TEXT = (IDS, MASK)
MODEL = {"min_length": 1, "max_length": 512}
WHOLE = Range((1, 8), (8, 64), (32, 128))


@pytest.mark.parametrize(
    "text",
    [
        "input_ids:1x8:8x64:32x128",
        "attention_mask:1x8:8x64:32x128",
        "input_ids:1×8:8×64:32×128",
        "batch=1:8:32,sequence=8:64:128",
        "input_ids:1x8:8x64:32x128,attention_mask:1x8:8x64:32x128",
        " batch=1:8:32 , input_ids:1x8:8x64:32x128",
    ],
)
def test_one_input_settles_the_others(text: str) -> None:
    assert parse(text, TEXT) == Profile({"input_ids": WHOLE, "attention_mask": WHOLE})


def test_one_shape_is_all_three() -> None:
    (found,) = parse("input_ids:8x128", (IDS,)).ranges.values()
    assert found == Range((8, 128), (8, 128), (8, 128))
    assert str(found) == "8x128"


def test_fixed_dimensions_are_filled_in_and_checked() -> None:
    found = parse("batch=1:4:16", (IMAGE,)).ranges["pixel_values"]
    assert found == Range((1, 3, 32, 32), (4, 3, 32, 32), (16, 3, 32, 32))
    with pytest.raises(BadInput, match="dimension 1 of pixel_values is fixed at 3"):
        parse("pixel_values:1x4x32x32", (IMAGE,))


def test_a_name_may_hold_colons() -> None:
    spec = TensorSpec("x:0", "float32", ("n",))
    assert parse("x:0:1:2:3", (spec,)).ranges["x:0"] == Range((1,), (2,), (3,))


def test_values_that_are_a_shape_are_ranged_as_they_are() -> None:
    shape = TensorSpec("size", "int64", (2,))
    found = parse("size:1x8:4x64:8x512,batch=1:2:4", (shape, TensorSpec("x", "float32", ("batch",))), {"size": 2})
    assert found.ranges["size"] == Range((1, 8), (4, 64), (8, 512))
    assert found.ranges["x"] == Range((1,), (2,), (4,))
    with pytest.raises(BadInput, match="says nothing of size, whose values are a shape"):
        parse("batch=1:2:4", (shape, TensorSpec("x", "float32", ("batch",))), {"size": 2})


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("inputs:1x8", UnknownName, "did you mean input_ids"),
        ("batches=1:2:3,sequence=1", UnknownName, "did you mean batch"),
        ("input_ids", BadInput, "names no shapes"),
        ("", BadInput, "names no input"),
        ("input_ids:1x8:8x64", BadInput, "2 shapes; smallest, best and largest"),
        ("input_ids:1x8:8x64:32", BadInput, "has 2 dimensions, and 1 are written"),
        ("input_ids:0x8", BadInput, "is not a shape"),
        ("input_ids:-1x8", BadInput, "is not a shape"),
        ("input_ids:1xN", BadInput, "is not a shape"),
        ("input_ids:8x8:4x64:32x128", BadInput, "goes from 8 over 4 to 32"),
        ("batch=8:4:32,sequence=1", BadInput, "batch goes from 8 over 4 to 32"),
        ("batch=1:4", BadInput, "'1:4' is no range"),
        ("batch=1:many:32", BadInput, "'1:many:32' is no range"),
        ("batch=1:8:32", BadInput, "leaves sequence of input_ids open"),
        ("input_ids:1x8,attention_mask:2x8", BadInput, "batch is 1:1:1 already"),
    ],
)
def test_what_cannot_be_a_profile_is_refused_by_name(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse(text, TEXT)


def test_a_range_is_three_numbers_in_order_or_one_for_all() -> None:
    asked = ("batch", "--batch", "MIN:BEST:MAX")
    assert read_range("1:8:32", *asked) == (1, 8, 32)
    assert read_range("8", *asked) == (8, 8, 8)
    for text in ("", "1:8", "0:1:2", "1:8:²", "-1", "1:8:32:64"):
        with pytest.raises(BadInput, match=r"--batch: .* is no range") as error:
            read_range(text, *asked)
        assert error.value.hint == "write MIN:BEST:MAX"
    with pytest.raises(BadInput, match="--batch: batch goes from 4 over 2 to 1"):
        read_range("4:2:1", *asked)


sizes = st.tuples(*[st.integers(1, 10**6)] * 3).map(lambda three: tuple(sorted(three)))


@given(sizes, sizes)
def test_what_is_written_is_read_again(batch: Any, sequence: Any) -> None:
    ranges = {name: Range(*zip(batch, sequence, strict=True)) for name in ("input_ids", "attention_mask")}
    made = Profile(ranges)
    assert parse(str(made), TEXT) == made
    assert Profile.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            {"max_length": 100},
            r"input_ids up to 128 in dimension 1 \(sequence\); the model's longest sequence .* is 100",
        ),
        ({"max_batch": 8}, r"input_ids up to 32 in dimension 0 \(batch\); the model's largest batch is 8"),
        ({"min_length": 10}, r"input_ids from 8 in dimension 1 \(sequence\); the model takes no less than 10"),
    ],
)
def test_a_profile_beyond_the_model_is_refused(model: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        check_limits(parse("input_ids:1x8:8x64:32x128", TEXT), TEXT, model)


def test_a_profile_within_the_model_passes() -> None:
    check_limits(parse("input_ids:1x8:8x64:32x128", TEXT), TEXT, {"max_length": 128, "max_batch": 32, "min_length": 8})


def test_the_usual_profile_reaches_to_the_models_longest() -> None:
    found = usual(TEXT, MODEL)
    assert found is not None
    assert found.ranges["input_ids"] == Range((1, 1), (8, 128), (32, 512))
    short = usual(TEXT, {"min_length": 4, "max_length": 77, "max_batch": 4}, (1, 2, 4))
    assert short is not None
    assert short.ranges["attention_mask"] == Range((1, 4), (2, 77), (4, 77))
    assert usual((TensorSpec("x", "float32", (1, 2048)),), {}) is None


def test_a_dimension_that_is_neither_rows_nor_steps_has_to_be_said() -> None:
    with pytest.raises(BadInput, match=r"nothing says how large dimension 2 \(height\) of image gets") as error:
        usual((TensorSpec("image", "float32", ("batch", 3, "height", "width")),), {})
    assert "--profile height=MIN:BEST:MAX" in error.value.hint


def test_like_lengths_make_one_profile_and_unlike_ones_several() -> None:
    random.seed(1)
    (one,) = from_lengths([random.randint(40, 100) for _ in range(200)], TEXT, MODEL)
    assert one.ranges["input_ids"].min == (1, 1)
    assert one.ranges["input_ids"].max == (32, 512), "other rows will come"
    assert 60 <= one.ranges["input_ids"].opt[1] <= 80
    short, long = from_lengths([*[random.randint(20, 30) for _ in range(100)], *[100] * 60], TEXT, MODEL)
    assert short.ranges["input_ids"].max[1] < 100 == long.ranges["input_ids"].opt[1]
    many = [*[random.randint(4, 8) for _ in range(100)], *[random.randint(20, 40) for _ in range(70)], *[256] * 20]
    three = from_lengths(many, TEXT, MODEL, (1, 4, 16))
    assert len(three) == 3
    assert [each.ranges["input_ids"].opt[0] for each in three] == [4, 4, 4]


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200))
def test_every_row_of_the_data_fits_a_profile_that_is_in_order(lengths: list[int]) -> None:
    made = from_lengths(lengths, TEXT, MODEL)
    for length in lengths:
        shapes = {"input_ids": (1, length), "attention_mask": (1, length)}
        assert any(profile.holds(shapes) for profile in made)
    for profile in made:
        found = profile.ranges["input_ids"]
        assert found.min[1] <= found.opt[1] <= found.max[1] <= 512
        check_limits(profile, TEXT, MODEL)
    bounds = [(p.ranges["input_ids"].min[1], p.ranges["input_ids"].max[1]) for p in made]
    assert bounds[0][0] == 1
    assert bounds[-1][1] == 512
    assert all(low <= before + 1 for (_, before), (low, _) in itertools.pairwise(bounds))


def test_lengths_are_for_models_that_have_one() -> None:
    with pytest.raises(BadInput, match="no input of this model has one"):
        from_lengths([1, 2], (IMAGE,), {})
    with pytest.raises(BadInput, match="has no rows"):
        from_lengths([], TEXT, MODEL)


def test_the_nearest_profile_is_the_one_built_for_a_like_shape() -> None:
    near, far = parse("input_ids:1x1:8x32:8x128", TEXT), parse("input_ids:1x1:8x120:8x512", TEXT)
    shapes = {"input_ids": (8, 100), "attention_mask": (8, 100)}
    assert far.distance(shapes) < near.distance(shapes)
    assert near.distance(dict.fromkeys(shapes, (8, 32))) == 1
    assert not near.holds(dict.fromkeys(shapes, (9, 32)))
