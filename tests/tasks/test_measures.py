"""The rules that every comparison keeps: padding, zeros, what is not finite, ranges of number formats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from optimizer.errors import BadInput, GateFailed
from optimizer.tasks._measures import (
    FARTHEST,
    NOT_FINITE,
    agreement,
    cosine,
    cosines,
    divergence,
    divergences,
    highest,
    pair,
    pick,
    real_rows,
    top1,
)

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(arrays(np.float32, (2, 5), elements=numbers))
def test_cosine_is_the_textbook_one(x: np.ndarray) -> None:
    a, b = x.astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    got = cosine(x[0], x[1])
    assert -1 <= got <= 1
    if min(np.linalg.norm(a), np.linalg.norm(b)) > 1e-3:
        assert got == pytest.approx(a @ b / norms, abs=1e-9)
        assert cosine(a * 7, a) == pytest.approx(1, abs=1e-12)
        assert cosine(a, -a) == pytest.approx(-1, abs=1e-12)


def test_zero_vectors() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == cosine(one, zero) == 0


def test_no_square_overflows_or_vanishes() -> None:
    for scale in (1e-200, 1e200):
        assert cosine(np.array([3.0, 4.0]) * scale, np.array([4.0, 3.0])) == pytest.approx(0.96)
    big = np.full(4, 60000, np.float16)
    assert cosine(big, big) == pytest.approx(1)


def test_a_single_number_is_not_always_right() -> None:
    assert cosine(np.array([2.0]), np.array([2.0])) == pytest.approx(1)
    assert cosine(np.array([0.0]), np.array([0.0])) == pytest.approx(1)
    assert cosine(np.array([2.0]), np.array([2.2])) == pytest.approx(5.4 / np.sqrt(5 * 5.84))
    assert cosine(np.array([1.0]), np.array([5.0])) < 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_the_worst_there_is(bad: float, dtype: type) -> None:
    sound, broken = np.ones((2, 3), dtype), np.ones((2, 3), dtype)
    broken[1, 2] = bad
    for a, b in ((sound, broken), (broken, sound)):
        assert cosines(a, b, {}).tolist() == [pytest.approx(1), NOT_FINITE]
    # The number must survive a minimum: NaN would vanish in some and poison others.
    assert cosines(sound, broken, {}).min() == NOT_FINITE == -1


def test_equal_infinities_mean_impossible_and_nans_are_never_equal() -> None:
    a = np.array([1.0, -np.inf, 2.0])
    assert cosine(a, a.copy()) == pytest.approx(1)
    assert cosine(a, np.array([2.0, -np.inf, -1.0])) == pytest.approx(0, abs=1e-12)
    assert cosine(a, np.array([1.0, np.inf, 2.0])) == NOT_FINITE
    nan = np.array([1.0, np.nan])
    assert cosine(nan, nan) == NOT_FINITE


def test_decisions() -> None:
    a = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    assert agreement(a, a) == 1
    assert agreement(a, a[:, ::-1]) == 0
    broken = a.copy()
    broken[0, 1] = np.nan  # numpy's argmax points at the NaN, which is the right class by accident
    assert agreement(a, broken) == pytest.approx(2 / 3)
    assert top1(a, broken, {}).tolist() == [0, 1, 1]
    assert agreement(a[:0], a[:0]) == 1


def test_padding_on_either_side_is_left_out() -> None:
    output = np.arange(24.0).reshape(2, 4, 3)
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 1]])
    first, second = real_rows(output, {"attention_mask": mask})
    np.testing.assert_array_equal(first, output[0, :2])
    np.testing.assert_array_equal(second, output[1, 3:])


def test_outputs_without_the_masks_axis_are_whole() -> None:
    mask = np.array([[1, 0, 0], [1, 1, 0]])
    for shape in ((2,), (2, 5), (2, 5, 3), (1, 3)):
        output = np.ones(shape)
        got = list(real_rows(output, {"attention_mask": mask}))
        assert [row.shape for row in got] == [shape[1:]] * shape[0]


def test_frames_of_a_shortened_sound_keep_their_share() -> None:
    mask = np.zeros((3, 1000), int)
    mask[0, :], mask[1, :499], mask[2, :3] = 1, 1, 1
    feeds = {"attention_mask": mask, "input_values": np.zeros((3, 1000))}
    assert [len(row) for row in real_rows(np.zeros((3, 10, 4)), feeds)] == [10, 4, 1]


def test_what_is_missing_or_misshapen_is_said() -> None:
    with pytest.raises(BadInput, match=r"should answer with logits, and this one answers with a, b"):
        pick({"a": np.zeros(1), "b": np.zeros(1)}, ("logits",), "text-classification")
    with pytest.raises(GateFailed, match=r"no output logits; it has other"):
        pair({"logits": np.zeros(1)}, {"other": np.zeros(1)}, "logits")
    with pytest.raises(GateFailed, match=r"logits is \[1, 3\] in the candidate and \[1, 2\]"):
        pair({"logits": np.zeros((1, 2))}, {"logits": np.zeros((1, 3))}, "logits")


@given(arrays(np.float32, (2, 3, 4), elements=st.floats(-30, 30, width=32)))
def test_the_divergence_is_scipys(logits: np.ndarray) -> None:
    a, b = logits.astype(np.float64)
    expected = np.mean([entropy(softmax(x), softmax(y)) for x, y in zip(a, b, strict=True)])
    assert divergence(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert divergence(a, a + 5) == pytest.approx(0, abs=1e-12), "what is added to all classes changes no share"
    assert divergence(a[:0], b[:0]) == 0


def test_divergence_of_what_is_impossible_or_broken() -> None:
    a = np.array([0.0, -np.inf, 0.0])
    assert divergence(a, np.array([1.0, -np.inf, 1.0])) == pytest.approx(0)
    assert divergence(a, np.array([0.0, 0.0, 0.0])) == FARTHEST
    assert divergence(np.zeros(2), np.array([np.nan, 0])) == FARTHEST
    assert divergence(np.zeros((1, 2)), np.array([[1e30, 0]])) == pytest.approx(FARTHEST / 2, rel=0.01)
    assert divergence(np.full(3, -np.inf), np.full(3, -np.inf)) == 0


def test_padding_has_no_divergence() -> None:
    a = np.random.default_rng(0).normal(size=(2, 3, 4))
    b = a.copy()
    b[0, 2] = 9, 0, 0, 0
    found = divergences(a, b, {"attention_mask": np.array([[1, 1, 0], [1, 1, 1]])})
    assert found.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert divergences(a, b, {})[0] > 0.1
    assert highest([np.array([1.0, 2]), np.array([3.0, 0])]).tolist() == [3, 2]
