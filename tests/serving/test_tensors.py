"""V2's tensors: what goes in comes out, to the last bit, and what a type cannot hold is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("orjson")

from optimizer.serving.answers import json_answer
from optimizer.serving.inference import decoded, encoded, parse, parse_raw, written
from optimizer.serving.problems import Problem
from optimizer.serving.tensors import DATATYPES, from_bytes, from_json, to_bytes, to_json
from optimizer.types import TensorSpec

PLAIN = sorted(set(DATATYPES) - {"BF16", "BYTES"})
shapes = hnp.array_shapes(max_dims=3, max_side=4)


def arrays(name: str, finite: bool) -> st.SearchStrategy[Any]:
    dtype = np.dtype(DATATYPES[name])
    options = {"allow_nan": not finite, "allow_infinity": not finite} if dtype.kind == "f" else None
    elements = hnp.from_dtype(dtype, **options) if options else None
    return hnp.arrays(dtype, shapes, elements=elements)


@given(st.sampled_from(PLAIN).flatmap(lambda name: st.tuples(st.just(name), arrays(name, finite=False))))
def test_bytes_come_back_as_they_were(case: tuple[str, np.ndarray]) -> None:
    name, array = case
    back = from_bytes(memoryview(to_bytes(array)), name, array.shape, "x")
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@given(st.sampled_from(PLAIN).flatmap(lambda name: st.tuples(st.just(name), arrays(name, finite=True))), st.booleans())
def test_json_comes_back_as_it_was(case: tuple[str, np.ndarray], nested: bool) -> None:
    name, array = case
    document = json.loads(json_answer({"data": to_json(array)}).body)["data"]
    data = np.array(document, array.dtype).reshape(array.shape).tolist() if nested else document
    back = from_json(data, name, array.shape, "x")
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@given(hnp.arrays(object, shapes, elements=st.text(max_size=5)))
def test_strings_come_back_by_both_ways(array: np.ndarray) -> None:
    np.testing.assert_array_equal(from_bytes(memoryview(to_bytes(array)), "BYTES", array.shape, "x"), array)
    np.testing.assert_array_equal(from_json(to_json(array), "BYTES", array.shape, "x"), array)


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    floats = np.array([[1.0, -2.5, 3.0e38]], np.float32)
    halves = (floats.view(np.uint32) >> 16).astype("<u2").tobytes()
    got = from_bytes(memoryview(halves), "BF16", (1, 3), "x")
    np.testing.assert_allclose(got, floats, rtol=2**-7)
    assert got.dtype == np.float32
    with pytest.raises(Problem, match="no form in JSON"):
        from_json([1.0], "BF16", (1,), "x")


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("INT8", [128], "beyond INT8"),
        ("UINT8", [-1], "beyond UINT8"),
        ("UINT64", [2**64], "beyond UINT64"),
        ("INT64", [2**63], "beyond INT64"),
        ("INT64", [1.0], "cannot hold"),
        ("INT64", [True], "cannot hold"),
        ("BOOL", [1], "cannot hold"),
        ("FP16", [1e5], "beyond FP16"),
        ("FP32", [True], "cannot hold"),
        ("FP32", ["1"], "cannot hold"),
        ("FP32", [{}], "cannot hold"),
        ("BYTES", [1], "should be a string"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(name: str, data: list[Any], word: str) -> None:
    with pytest.raises(Problem, match=word) as refused:
        from_json(data, name, (1,), "x")
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("blob", "name", "word"),
    [
        (b"\2", "BOOL", "0 or 1"),
        (b"\1\0", "BYTES", "behind the end"),
        (b"\5\0\0\0abc", "BYTES", "behind the end"),
        (b"\1\0\0\0\xff", "BYTES", "not UTF-8"),
        (b"\1\0\0\0a\1\0\0\0a", "BYTES", "2 values"),
        (b"123", "FP32", "4 bytes, not 3"),
    ],
)
def test_bytes_that_are_no_tensor_are_refused(blob: bytes, name: str, word: str) -> None:
    with pytest.raises(Problem, match=word):
        from_bytes(memoryview(blob), name, (1,), "x")


KINDS = tuple(TensorSpec(name.lower(), DATATYPES[name], ("batch", 2)) for name in (*PLAIN, "BYTES"))


def test_what_a_client_writes_is_read_and_answered() -> None:
    feeds = {spec.name: np.ones((3, 2), spec.dtype) for spec in KINDS[:-1]}
    feeds["bytes"] = np.array([["a", "ü"]] * 3, object)
    asked = parse(*written(feeds), KINDS, KINDS, {})
    assert asked.outputs == dict.fromkeys(feeds, True)
    back = decoded(*encoded(asked, asked.feeds, "m", "1"))
    for name, array in feeds.items():
        np.testing.assert_array_equal(back[name], array)


def test_raw_strings_are_one_string() -> None:
    spec = TensorSpec("text", "object", ("batch", 1))
    for text in ("427", "", "ü\0"):
        asked = parse_raw(text.encode(), (spec,), (spec,), {})
        assert asked.feeds["text"].tolist() == [[text]]
    for wrong in (TensorSpec("x", "float32", ("batch", "a", "b")), TensorSpec("x", "float32", ("batch", 3))):
        with pytest.raises(Problem):
            parse_raw(b"12345678", (wrong,), (spec,), {})
