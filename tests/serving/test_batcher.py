"""The queue: batched equals unbatched, bounds, deadlines, cancellation, and that a bad request fails alone."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import BadInput
from optimizer.runtime import SessionOptions
from optimizer.runtimes.fake import FakeModel, FakeSession
from optimizer.serving.batcher import Batcher
from optimizer.serving.joining import Plan, plan_of
from optimizer.serving.priority import in_the_background
from optimizer.serving.problems import Problem
from optimizer.serving.tickets import Limits, Run, Ticket
from optimizer.types import TensorSpec

PLAIN = FakeSession(FakeModel(), SessionOptions())
PLAN = plan_of(PLAIN.inputs, PLAIN.outputs, {})


def x(rows: int, length: int, value: float = 1.0) -> dict[str, Any]:
    return {"x": np.full((rows, length), value, np.float32)}


def put(batcher: Batcher, request: dict[str, Any], deadline: float = math.inf) -> Ticket:
    """One request in the queue."""
    (ticket,) = batcher.submit_all([request], deadline)
    return ticket


async def asked(
    run: Callable[..., Any], requests: list[dict[str, Any]], plan: Plan = PLAN, threads: int = 1, **limits: Any
) -> list[Any]:
    """What each of them is answered when all come at once; exceptions as they are."""
    batcher = Batcher(run, plan, Limits(**limits), beside=run, threads=threads)
    try:
        tickets = batcher.submit_all(requests)
        return await asyncio.gather(*(ticket.answer for ticket in tickets), return_exceptions=True)
    finally:
        batcher.close()
        await asyncio.to_thread(batcher.join)


class Gate:
    """A model that begins its first run and does not end it before it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, feeds: Any) -> dict[str, Any]:
        self.seen.append(feeds["x"].shape)
        self.begun.set()
        assert self.open.wait(20)
        return PLAIN.run(feeds)


sizes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=12)


@given(sizes, st.integers(1, 8), st.integers(1, 30), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_batched_equals_unbatched(shapes: list[tuple[int, int]], rows: int, tokens: int, threads: int) -> None:
    requests = [x(*shape, value) for value, shape in enumerate(shapes)]
    answers = asyncio.run(asked(PLAIN.run, requests, rows=rows, tokens=tokens, threads=threads))
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], PLAIN.run(request)["y"])


def test_lengths_that_are_padded_up_are_counted_as_they_are_computed() -> None:
    specs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    plan = plan_of(specs, specs, {}, 8, 100)
    seen: list[tuple[int, ...]] = []
    runs: list[Run] = []

    def run(feeds: Any) -> dict[str, Any]:
        seen.append(feeds["input_ids"].shape)
        return dict(feeds)

    async def scene() -> None:
        batcher = Batcher(run, plan, Limits(tokens=24), watch=runs.append)
        requests = [{name: np.ones((1, length), np.int64) for name in plan.inputs} for length in (3, 5, 8, 9)]
        tickets = batcher.submit_all(requests)
        answers = await asyncio.gather(*(ticket.answer for ticket in tickets))
        assert [answer["input_ids"].shape for answer in answers] == [(1, 3), (1, 5), (1, 8), (1, 9)]
        await asyncio.sleep(0)
        batcher.close()
        await asyncio.to_thread(batcher.join)

    asyncio.run(scene())
    assert sorted(seen) == [(1, 16), (3, 8)]
    assert sorted(run.computed for run in runs) == [16, 24]
    assert sum(run.tokens for run in runs) == 25


def test_what_comes_while_the_model_is_busy_shares_the_next_run() -> None:
    gate, runs = Gate(), []

    async def scene() -> None:
        batcher = Batcher(gate, PLAN, Limits(), watch=runs.append)
        first = put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        rest = [put(batcher, x(1, 3, value)) for value in range(5)]
        assert batcher.depth == 5
        gate.open.set()
        await asyncio.gather(first.answer, *(ticket.answer for ticket in rest))
        assert [ticket.mates for ticket in (first, *rest)] == [1, 5, 5, 5, 5, 5]
        batcher.close()

    asyncio.run(scene())
    assert gate.seen == [(1, 3), (5, 3)]
    assert [(run.requests, run.rows, run.tokens) for run in runs] == [(1, 1, 3), (5, 5, 15)]
    assert all(isinstance(run, Run) and run.seconds > 0 for run in runs)


def test_what_comes_while_runs_are_held_shares_one() -> None:
    gate = Gate()
    gate.open.set()

    async def scene() -> None:
        batcher = Batcher(gate, PLAN, Limits())
        with batcher.held():
            tickets = []
            for value in range(3):
                tickets.append(put(batcher, x(1, 3, value)))
                await asyncio.sleep(0.05)
            assert (batcher.depth, gate.seen) == (3, [])
        await asyncio.gather(*(ticket.answer for ticket in tickets))
        batcher.close()

    asyncio.run(scene())
    assert gate.seen == [(3, 3)]


def test_what_comes_while_a_run_is_alone_runs_beside_it() -> None:
    alone, beside = Gate(), Gate()

    async def scene() -> None:
        batcher = Batcher(alone, PLAN, Limits(), beside=beside, threads=2)
        first = put(batcher, x(1, 3))
        await asyncio.to_thread(alone.begun.wait, 20)
        second = put(batcher, x(2, 3))
        await asyncio.to_thread(beside.begun.wait, 20)
        third = put(batcher, x(1, 3))
        await asyncio.sleep(0.05)
        assert batcher.depth == 1, "two runs are all there are at once"
        assert not first.answer.done()
        beside.open.set()
        await asyncio.gather(second.answer, third.answer)
        assert not first.answer.done()
        alone.open.set()
        await first.answer
        batcher.close()
        assert await asyncio.to_thread(batcher.join, 20)

    asyncio.run(scene())
    assert (alone.seen, beside.seen) == ([(1, 3)], [(2, 3), (1, 3)])


def test_more_than_one_run_takes_is_divided_among_the_threads() -> None:
    def never(feeds: Any) -> Any:
        raise AssertionError("it is not alone")

    beside = Gate()

    async def scene() -> None:
        batcher = Batcher(never, PLAN, Limits(rows=8), beside=beside, threads=3)
        tickets = batcher.submit_all([x(1, 3, value) for value in range(9)])
        while len(beside.seen) < 3:
            await asyncio.sleep(0.01)
        beside.open.set()
        await asyncio.gather(*(ticket.answer for ticket in tickets))
        batcher.close()
        assert await asyncio.to_thread(batcher.join, 20)

    asyncio.run(scene())
    assert beside.seen == [(3, 3)] * 3


def test_where_a_thread_is_free_nobody_waits() -> None:
    """What is predicted is the wait for the first of the threads, by what runs beside others take."""
    alone, beside = Gate(), Gate()

    async def scene() -> None:
        batcher = Batcher(alone, PLAN, Limits(), beside=beside, threads=2)
        for _ in range(4):
            batcher._alone_lane.curve.add(3, 0.5)
            batcher._beside_lane.curve.add(3, 10.0)
        first = put(batcher, x(1, 3))
        await asyncio.to_thread(alone.begun.wait, 20)
        assert batcher.predicted() == 0.0
        second = put(batcher, x(1, 3))
        await asyncio.to_thread(beside.begun.wait, 20)
        assert 0.0 < batcher.predicted() <= 0.5
        third = put(batcher, x(1, 3))
        assert 5.0 <= batcher.predicted() <= 5.5, "a run of its kind, and two threads for it"
        alone.open.set()
        beside.open.set()
        await asyncio.gather(*(ticket.answer for ticket in (first, second, third)))
        batcher.close()

    asyncio.run(scene())


async def behind_the_first_of_four(alone: Gate, beside: Gate, slow: float, rows: int) -> int:
    """How many of so many rows begin while the first runs on all cores, which takes half a second a row; ``slow`` is
    what a row takes on one.
    """
    # With a delay that is over by then, as it is for every request that waits.
    batcher = Batcher(alone, PLAN, Limits(delay=0.001), beside=beside, threads=4)
    for _ in range(4):
        batcher._alone_lane.curve.add(3, 0.5)
        batcher._beside_lane.curve.add(3, slow)
    first = put(batcher, x(1, 3))
    await asyncio.to_thread(alone.begun.wait, 20)
    looks = 0

    def looked(worth: Callable[[], bool] = batcher._worth_beside) -> bool:
        nonlocal looks
        looks += 1
        return worth()

    batcher._worth_beside = looked  # type: ignore[method-assign]
    rest = batcher.submit_all([x(1, 3)] * rows)
    await asyncio.sleep(0.2)
    begun = len(beside.seen)
    assert looks <= 4, "who waits for the others sleeps"
    alone.open.set()
    beside.open.set()
    await asyncio.gather(first.answer, *(ticket.answer for ticket in rest))
    batcher.close()
    assert await asyncio.to_thread(batcher.join, 20)
    return begun


@pytest.mark.parametrize(
    ("slow", "rows", "begun"),
    [(0.7, 1, 1), (10.0, 1, 0), (10.0, 2, 0), (10.0, 3, 3)],
    ids=["sooner", "later", "fewer than free cores", "a row a core"],
)
def test_one_that_all_cores_would_answer_sooner_waits_for_them(slow: float, rows: int, begun: int) -> None:
    alone, beside = Gate(), Gate()
    assert asyncio.run(behind_the_first_of_four(alone, beside, slow, rows)) == begun
    assert beside.seen == [(1, 3)] * begun
    assert alone.seen == ([(1, 3)] if begun else [(1, 3), (rows, 3)])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no nice value of its own")
def test_threads_that_compute_give_way() -> None:
    def nice(feeds: Any = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found: list[int] = []

    def run(feeds: Any) -> dict[str, Any]:
        found.append(nice())
        return PLAIN.run(feeds)

    asyncio.run(asked(run, [x(1, 3)]))
    before = nice()
    opened = asyncio.run(in_the_background(nice))
    assert [*found, opened] == [min(19, before + 5)] * 2
    assert nice() == before


def test_a_full_queue_answers_429_with_a_computed_wait() -> None:
    gate = Gate()

    async def scene() -> Problem:
        batcher = Batcher(gate, PLAN, Limits(queue=3))
        gate.open.set()
        await put(batcher, x(1, 3)).answer  # so that it knows what a row costs
        gate.open.clear()
        gate.begun.clear()
        put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        put(batcher, x(3, 3))
        with pytest.raises(Problem) as refused:
            put(batcher, x(1, 3))
        assert batcher.depth == 3
        with pytest.raises(Problem) as never:
            put(batcher, x(4, 3))
        assert never.value.status == 413
        gate.open.set()
        batcher.close()
        return refused.value

    problem = asyncio.run(scene())
    assert problem.status == 429
    assert problem.reason == "queue_full"
    assert int(problem.headers["Retry-After"]) == math.ceil(int(problem.headers["Retry-After-Ms"]) / 1000) >= 1


def test_what_would_be_too_late_is_refused_at_once_and_what_is_too_late_does_not_run() -> None:
    gate = Gate()

    async def scene() -> None:
        batcher = Batcher(gate, PLAN, Limits())
        first = put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        late = put(batcher, x(1, 3), time.perf_counter() + 0.05)
        await asyncio.sleep(0.1)
        gate.open.set()
        await first.answer
        with pytest.raises(Problem) as problem:
            await late.answer
        assert problem.value.status == 504
        # The first took over a tenth of a second a row: a row behind a hundred others begins in ten seconds.
        gate.open.clear()
        put(batcher, x(100, 3))
        with pytest.raises(Problem) as refused:
            put(batcher, x(1, 3), time.perf_counter() + 1)
        assert (refused.value.status, refused.value.reason) == (429, "deadline")
        gate.open.set()
        batcher.close()

    asyncio.run(scene())
    assert gate.seen[0] == (1, 3)
    assert len(gate.seen) <= 2


def test_what_would_wait_too_long_is_refused_and_a_run_that_is_nearly_over_counts_little() -> None:
    gate = Gate()

    async def scene() -> tuple[int, Problem]:
        batcher = Batcher(gate, PLAN, Limits(rows=1, wait_s=0.05))
        for _ in range(50):
            batcher._alone_lane.curve.add(3, 0.02)  # a row of three takes 20 ms
        put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        # At most 20 ms are left of the run, and each one that waits takes as long.
        accepted, refused = 0, None
        while refused is None:
            try:
                put(batcher, x(1, 3))
                accepted += 1
            except Problem as problem:
                refused = problem
        await asyncio.sleep(0.03)
        assert batcher.predicted() == pytest.approx(0.02 * accepted), "the run should be over by now"
        gate.open.set()
        batcher.close()
        return accepted, refused

    accepted, problem = asyncio.run(scene())
    assert accepted in (2, 3)
    assert (problem.status, problem.reason) == (429, "slo")
    assert int(problem.headers["Retry-After-Ms"]) > 50


def test_the_wait_is_predicted_by_runs_and_with_their_padding() -> None:
    gate = Gate()

    async def scene() -> float:
        batcher = Batcher(gate, PLAN, Limits(rows=2))
        for tokens in (2, 200) * 20:
            batcher._alone_lane.curve.add(tokens, 0.01 + 0.001 * tokens)
        batcher._waste = 1.5
        put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        for _ in range(6):
            put(batcher, x(1, 10))
        await asyncio.sleep(0.03)
        predicted = batcher.predicted()
        gate.open.set()
        batcher.close()
        return predicted

    # Three runs, each begun anew, over sixty tokens and half as much padding.
    assert asyncio.run(scene()) == pytest.approx(3 * 0.01 + 90 * 0.001, rel=0.05)


def test_a_dropped_request_leaves_the_queue() -> None:
    gate = Gate()

    async def scene() -> None:
        batcher = Batcher(gate, PLAN, Limits())
        first = put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        dropped, kept = put(batcher, x(2, 3)), put(batcher, x(1, 3))
        dropped.drop()
        assert batcher.depth == 1
        gate.open.set()
        await asyncio.gather(first.answer, kept.answer)
        batcher.close()

    asyncio.run(scene())
    assert gate.seen == [(1, 3), (1, 3)]


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    def run(feeds: Any) -> dict[str, Any]:
        if (feeds["x"] == 13).any():
            raise BadInput("13 is not taken")
        return PLAIN.run(feeds)

    requests = [x(1, 3, value) for value in (1, 13, 2)]
    answers = asyncio.run(asked(run, requests))
    assert isinstance(answers[1], Problem)
    assert (answers[1].status, answers[1].message) == (400, "13 is not taken")
    for place in (0, 2):
        np.testing.assert_array_equal(answers[place]["y"], PLAIN.run(requests[place])["y"])


def test_a_bug_in_the_model_is_no_word_to_the_client() -> None:
    def run(feeds: Any) -> dict[str, Any]:
        raise ZeroDivisionError("secret")

    (answer,) = asyncio.run(asked(run, [x(1, 3)]))
    assert answer.status == 500
    assert "secret" not in answer.message
    assert isinstance(answer.__cause__, ZeroDivisionError)


def test_a_model_that_answers_once_for_all_rows_is_asked_for_each_request_alone() -> None:
    def run(feeds: Any) -> dict[str, Any]:
        return {"y": feeds["x"].sum(keepdims=True)[0]}

    answers = asyncio.run(asked(run, [x(1, 3), x(1, 3, 2.0)]))
    assert [float(answer["y"][0]) for answer in answers] == [3.0, 6.0]


def test_closing_answers_what_waits() -> None:
    gate = Gate()

    async def scene() -> None:
        batcher = Batcher(gate, PLAN, Limits())
        first = put(batcher, x(1, 3))
        await asyncio.to_thread(gate.begun.wait, 20)
        waits = put(batcher, x(1, 3))
        batcher.close()
        gate.open.set()
        with pytest.raises(Problem, match="unloaded"):
            await waits.answer
        assert "y" in await first.answer
        await asyncio.to_thread(batcher.join)
        with pytest.raises(Problem) as closed:
            put(batcher, x(1, 3))
        assert closed.value.status == 503

    asyncio.run(scene())


def test_a_run_is_held_to_the_time_it_may_take() -> None:
    seen = []

    def run(feeds: Any) -> dict[str, Any]:
        seen.append(len(feeds["x"]))
        time.sleep(0.05 * len(feeds["x"]))
        return PLAIN.run(feeds)

    async def scene() -> None:
        batcher = Batcher(run, PLAN, Limits(run_s=0.225))
        await put(batcher, x(1, 3)).answer
        tickets = batcher.submit_all([x(1, 3) for _ in range(12)])
        await asyncio.gather(*(ticket.answer for ticket in tickets))
        batcher.close()

    asyncio.run(scene())
    assert max(seen) <= 4
