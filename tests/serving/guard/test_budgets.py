"""Rates and budgets: what is let in, when the next one is, and what a Redis that is shared or gone changes."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import BadInput
from optimizer.serving.guard.budgets import Budgets
from optimizer.serving.guard.rates import Rate
from optimizer.serving.guard.scopes import Principal, Reservation
from optimizer.serving.problems import Problem
from optimizer.serving.route import Scope

#: A multiple of a minute and of a day: the windows of `limits` begin there.
START = 1_800_057_600.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that everything here sees."""
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    return made


def who(rate: str = "", tokens: str = "", name: str = "key:a") -> Principal:
    scopes = frozenset({Scope.INFER})
    return Principal(name, scopes, Rate.parse(rate) if rate else None, Rate.parse(tokens) if tokens else None)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def refused(call: Coroutine[Any, Any, Any], status: int = 429) -> Problem:
    with pytest.raises(Problem) as found:
        await call
    assert found.value.status == status
    return found.value


def test_a_rate(clock: Clock) -> None:
    async def work() -> None:
        budgets, alice = Budgets(), who("3/minute")
        left = [re.findall(r"r=(\d+)", (await budgets.request(alice))["RateLimit"])[0] for _ in range(3)]
        assert left == ["2", "1", "0"]
        problem = await refused(budgets.request(alice))
        assert problem.headers["RateLimit-Policy"] == '"requests";q=3;w=60'
        assert "3/minute" in problem.message
        # Somebody else has a rate of their own.
        await budgets.request(who("3/minute", name="key:b"))
        # As long as it was told to wait, and not before.
        clock.now += float(problem.headers["Retry-After"]) - 1.01
        again = await refused(budgets.request(alice))
        clock.now += float(again.headers["Retry-After"])
        await budgets.request(alice)

    run(work)


def test_no_double_burst_where_two_windows_meet(clock: Clock) -> None:
    async def work() -> None:
        budgets, alice = Budgets(), who("100/minute")
        clock.now += 59
        for _ in range(100):
            await budgets.request(alice)
        clock.now += 2
        let_in = 0
        for _ in range(100):
            try:
                await budgets.request(alice)
            except Problem:
                continue
            let_in += 1
        assert let_in <= 2

    run(work)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 6)), min_size=1, max_size=12), st.integers(1, 9))
def test_retry_after_is_kept(steps: list[tuple[float, int]], amount: int) -> None:
    """Whatever came before: who waits as long as it is told is let in."""

    async def work() -> None:
        budgets, alice = Budgets(), who(f"{amount}/minute")
        with pytest.MonkeyPatch.context() as patch:
            clock = Clock()
            patch.setattr(time, "time", clock)
            for pause, times in steps:
                clock.now += pause
                for _ in range(times):
                    try:
                        await budgets.request(alice)
                    except Problem as problem:
                        assert 1 <= int(problem.headers["Retry-After"]) <= 121
                        clock.now += int(problem.headers["Retry-After"])
                        await budgets.request(alice)

    run(work)


def test_tokens_are_reserved_and_settled(clock: Clock) -> None:
    async def work() -> None:
        budgets, alice = Budgets(), who(tokens="1000/day")
        first = await budgets.reserve(alice, 600)
        problem = await refused(budgets.reserve(alice, 500))
        assert "400 of 1000/day are left" in problem.message
        assert problem.headers["Retry-After"] == "86401"
        await first.settle(100)
        await first.settle(0)  # the first call counts
        second = await budgets.reserve(alice, 900)
        assert '"tokens";r=0' in second.headers["RateLimit"]
        await refused(budgets.request(alice))
        # A failed request costs nothing.
        await second.settle(0)
        headers = await budgets.request(alice)
        assert '"tokens";r=900' in headers["RateLimit"]
        # More than was reserved is taken as well.
        third = await budgets.reserve(alice, 10)
        await third.settle(950)
        await refused(budgets.request(alice))
        clock.now += 86401
        await budgets.request(alice)

    run(work)


def test_what_was_reserved_yesterday_is_not_given_back_today(clock: Clock) -> None:
    async def work() -> None:
        budgets, alice = Budgets(), who(tokens="1000/day")
        clock.now += 10
        late = await budgets.reserve(alice, 1000)
        clock.now += 86400 + 5
        now = await budgets.reserve(alice, 1000)
        await late.settle(0)
        await refused(budgets.reserve(alice, 1))
        await now.settle(999)
        await budgets.reserve(alice, 1)

    run(work)


def test_many_at_once_cannot_overdraw(clock: Clock) -> None:
    async def work() -> None:
        budgets, alice = Budgets(), who(tokens="1000/day")
        made = await asyncio.gather(*(budgets.reserve(alice, 300) for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(m, Reservation) for m in made) == 3

    run(work)


def test_more_than_the_whole_budget(clock: Clock) -> None:
    async def work() -> None:
        problem = await refused(Budgets().reserve(who(tokens="1000/day"), 1001), 400)
        assert "1001" in problem.message
        assert problem.param == "max_tokens"
        assert (await Budgets().reserve(who(), 10**9)).amount == 0

    run(work)


def test_rate_and_tokens_are_both_said(clock: Clock) -> None:
    async def work() -> None:
        headers = await Budgets().request(who("5/minute", "100/day"))
        assert headers["RateLimit-Policy"] == '"requests";q=5;w=60, "tokens";q=100;w=86400'
        assert headers["RateLimit"] == '"requests";r=4;t=61, "tokens";r=100;t=86401'

    run(work)


def test_several_workers_need_redis() -> None:
    async def work() -> None:
        budgets = Budgets(workers=2)
        problem = await refused(budgets.request(who("5/minute")), 503)
        assert "Redis" in problem.message
        await budgets.request(who())

    run(work)
    with pytest.raises(BadInput, match="Redis"):
        Budgets("memcached://localhost")


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    """A server that speaks Redis' protocol."""
    fakeredis = pytest.importorskip("fakeredis")
    pytest.importorskip("lupa")
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()


def test_two_workers_count_together_in_redis(redis: str) -> None:
    async def work() -> None:
        one, two = Budgets(redis, workers=2), Budgets(redis, workers=2)
        alice = who("4/hour", "1000/day")
        for budgets in (one, two, one, two):
            await budgets.request(alice)
        for budgets in (one, two):
            assert int((await refused(budgets.request(alice))).headers["Retry-After"]) > 0
        bob = who(tokens="1000/day", name="key:b")
        held = await one.reserve(bob, 800)
        await refused(two.reserve(bob, 800))
        await held.settle(100)
        await two.reserve(bob, 900)
        await refused(one.request(bob))

    run(work)


def test_a_redis_that_is_gone_lets_nobody_in_uncounted() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def work() -> None:
        budgets = Budgets(f"redis://:secret@127.0.0.1:{port}/0")
        problem = await refused(budgets.request(who("4/hour")), 503)
        assert "secret" not in problem.message
        assert problem.headers["Retry-After"]
        await refused(budgets.reserve(who(tokens="4/hour"), 1), 503)
        await budgets.request(who())

    run(work)
