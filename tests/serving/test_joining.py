"""Which requests share a run, and that each one gets its own answer out of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.serving.curve import Curve
from optimizer.serving.joining import Plan, Size, choose, plan_of
from optimizer.types import TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
STATES = TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 4))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))
PIXELS = TensorSpec("pixel_values", "float32", ("batch", 3, 8, 8))


@pytest.mark.parametrize(
    ("inputs", "outputs", "joins", "pads"),
    [
        ((IDS, MASK), (STATES, LOGITS), True, True),
        ((IDS,), (STATES,), True, False),  # nothing hides the padding
        ((PIXELS,), (LOGITS,), True, False),
        ((IDS, MASK), (TensorSpec("y", "float32", ("batch", "dim_0_1")),), True, False),  # where is its padding?
        ((IDS, MASK), (TensorSpec("y", "float32", ()),), False, False),
        ((TensorSpec("x", "float32", (1, 4)),), (LOGITS,), False, False),
        ((IDS, TensorSpec("attention_mask", "int64", ("batch", "other_sequence"))), (LOGITS,), True, False),
    ],
)
def test_what_a_model_allows(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], joins: bool, pads: bool
) -> None:
    plan = plan_of(inputs, outputs, {})
    assert (plan.joins, plan.pads) == (joins, pads)


PLAN = plan_of((IDS, MASK), (STATES, LOGITS), {"input_ids": 7})

requests = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=6)


def feeds(rows: int, length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"input_ids": random.integers(8, 99, (rows, length)), "attention_mask": np.ones((rows, length), np.int64)}


@given(requests)
def test_rows_go_in_padded_with_what_was_said_and_come_out_as_they_were(shapes: list[tuple[int, int]]) -> None:
    asked = [feeds(rows, length, seed) for seed, (rows, length) in enumerate(shapes)]
    joined = PLAN.join(asked)
    longest = max(length for _, length in shapes)
    assert joined["input_ids"].shape == (sum(rows for rows, _ in shapes), longest)
    assert ((joined["input_ids"] == 7) == (joined["attention_mask"] == 0)).all()
    states = np.repeat(joined["input_ids"][..., None], 4, axis=2).astype(np.float32)
    answers = PLAN.split({"last_hidden_state": states}, [PLAN.size(each) for each in asked])
    for request, answer in zip(asked, answers, strict=True):
        assert (answer["last_hidden_state"][..., 0] == request["input_ids"]).all()


@given(requests, st.integers(2, 8), st.integers(0, 12))
def test_lengths_are_padded_to_a_multiple_and_cut_again(
    shapes: list[tuple[int, int]], multiple: int, longest: int
) -> None:
    plan = plan_of((IDS, MASK), (STATES, LOGITS), {"input_ids": 7}, multiple, longest)
    asked = [feeds(rows, length, seed) for seed, (rows, length) in enumerate(shapes)]
    most = max(length for _, length in shapes)
    joined = plan.join(asked)
    width = joined["input_ids"].shape[1]
    assert width == joined["attention_mask"].shape[1] == plan.padded(most)
    assert most <= width < most + multiple
    if longest:
        assert width <= max(most, longest)
        assert width % multiple == 0 or width == max(most, longest)
    else:
        assert width % multiple == 0
    assert ((joined["input_ids"] == 7) == (joined["attention_mask"] == 0)).all()
    states = np.repeat(joined["input_ids"][..., None], 4, axis=2).astype(np.float32)
    sizes = [plan.size(each) for each in asked]
    assert [size.length for size in sizes] == [length for _, length in shapes]
    assert plan.as_run(sizes[0]).length == plan.padded(sizes[0].length)
    answers = plan.split({"last_hidden_state": states, "logits": np.zeros((len(states), 3))}, sizes)
    for request, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer["last_hidden_state"][..., 0], request["input_ids"])
        assert answer["logits"].shape == (len(request["input_ids"]), 3)


def test_a_model_that_cannot_be_padded_is_not() -> None:
    plan = plan_of((IDS,), (STATES,), {}, 8, 512)
    only = {"input_ids": np.ones((2, 5), np.int64)}
    assert plan.join([only])["input_ids"].shape == (2, 5)
    assert plan.padded(5) == plan.as_run(plan.size(only)).length == 5


def test_an_output_that_does_not_count_rows_cannot_be_split() -> None:
    sizes = [PLAN.size(feeds(1, 2, 0)), PLAN.size(feeds(2, 2, 1))]
    with pytest.raises(ValueError, match="'logits' does not count the rows"):
        PLAN.split({"logits": np.zeros((2, 3))}, sizes)


waiting = st.lists(st.builds(Size, st.integers(1, 5), st.integers(1, 20), st.sampled_from([("a",), ("b",), None])),
                   min_size=1, max_size=12)  # fmt: skip


@given(waiting, st.integers(1, 8), st.integers(1, 60), st.floats(0, 100))
@settings(max_examples=300)
def test_the_oldest_always_runs_and_limits_hold(sizes: list[Size], rows: int, tokens: int, overhead: float) -> None:
    chosen = choose(sizes, rows, tokens, overhead)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    picked = [sizes[place] for place in chosen]
    assert len(picked) == 1 or {size.like for size in picked} == {sizes[0].like} != {None}
    if len(picked) > 1:
        together = sum(size.rows for size in picked)
        assert together <= rows
        computed = together * max(size.length for size in picked)
        assert computed <= tokens
        # Together they are never dearer than each alone.
        assert computed <= sum(size.tokens + overhead for size in picked) - overhead


def least_of_all(sizes: list[Size], rows: int, tokens: int, overhead: float) -> float:
    """What the cheapest division into runs of neighbours costs, every one of them tried."""
    if not sizes:
        return 0.0
    found = []
    for count in range(1, len(sizes) + 1):
        together = sum(size.rows for size in sizes[:count])
        computed = together * sizes[count - 1].length
        if count == 1 or (together <= rows and computed <= tokens):
            found.append(overhead + computed + least_of_all(sizes[count:], rows, tokens, overhead))
    return min(found)


kin = st.lists(st.builds(Size, st.integers(1, 3), st.integers(1, 20), st.just(("a",))), min_size=1, max_size=8)


@given(kin, st.integers(1, 8), st.integers(1, 60), st.floats(0, 100))
@settings(max_examples=200)
def test_all_that_wait_are_answered_in_the_least_time(
    sizes: list[Size], rows: int, tokens: int, overhead: float
) -> None:
    """Run after run, as the batcher chooses them while nobody else comes."""
    left, cost = list(sizes), 0.0
    while left:
        chosen = choose(left, rows, tokens, overhead)
        picked = [left[place] for place in chosen]
        cost += overhead + sum(size.rows for size in picked) * max(size.length for size in picked)
        left = [size for place, size in enumerate(left) if place not in chosen]
    ordered = sorted(sizes, key=lambda size: size.length)
    # Those that were neighbours of a run that is over are neighbours then, and may cost less together.
    assert cost <= least_of_all(ordered, rows, tokens, overhead) + 1e-6


def test_a_full_queue_of_mixed_lengths_pads_little() -> None:
    """Sentences of 5 to 60 tokens, where a run costs as much as 60 tokens beside its own."""
    sizes = [Size(1, 5 + (place * 37) % 56, ("a",)) for place in range(64)]
    real = computed = runs = 0
    while sizes:
        chosen = choose(sizes, 32, 2048, 60.0)
        picked = [sizes[place].length for place in chosen]
        real, computed, runs = real + sum(picked), computed + len(picked) * max(picked), runs + 1
        sizes = [size for place, size in enumerate(sizes) if place not in chosen]
    assert computed < 1.15 * real
    assert runs < 10


def test_the_nearest_in_length_come_along_first() -> None:
    sizes = [Size(1, length, ("a",)) for length in (10, 100, 11, 9, 50)]
    assert choose(sizes, 3, 10_000, math.inf) == [0, 2, 3]


@pytest.mark.parametrize(("overhead", "chosen"), [(0, [0]), (39, [0]), (40, [0, 1]), (1000, [0, 1])])
def test_padding_that_costs_more_than_a_run_is_not_computed(overhead: float, chosen: list[int]) -> None:
    assert choose([Size(1, 10, ("a",)), Size(1, 50, ("a",))], 8, 10_000, overhead) == chosen


def test_a_line_is_found_through_runs() -> None:
    curve = Curve()
    assert curve.seconds(10) == 0
    curve.add(10, 0.030)
    assert curve.seconds(20) == pytest.approx(0.06)  # of one size nothing more is known
    for tokens in (10, 20, 40, 80) * 5:
        curve.add(tokens, 0.020 + tokens * 0.001)
    assert curve.overhead == pytest.approx(20)
    assert curve.seconds(50) == pytest.approx(0.070)
    assert curve.tokens(0.120) == pytest.approx(100)
    assert curve.tokens(0.010) == 0
    for tokens in (10, 20, 40, 80) * 100:
        curve.add(tokens, tokens * 0.002)
    assert curve.seconds(50) == pytest.approx(0.1, rel=0.01)


def test_a_request_without_kin_shares_with_nobody() -> None:
    plan = Plan(False, False, {"x": ()}, {"y": ()})
    assert plan.size({"x": np.zeros((2, 3))}).like is None
