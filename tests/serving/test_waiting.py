"""A client that goes away takes its requests out of the queue, whenever it goes."""

from __future__ import annotations

import asyncio
import math
import types
from typing import Any

import pytest

from optimizer.serving.guard.connection import LINE, Line
from optimizer.serving.joining import Size
from optimizer.serving.problems import Problem
from optimizer.serving.tickets import Ticket
from optimizer.serving.waiting import answers


def call_on(line: Line) -> Any:
    request = types.SimpleNamespace(scope={"extensions": {LINE: line}}, headers={})
    return types.SimpleNamespace(request=request, times={}, notes={}, runs=())


async def waits(line: Line, before: bool, tickets: int) -> tuple[Problem, list[Ticket]]:
    loop = asyncio.get_running_loop()
    mine = [Ticket({}, Size(1, 1, None), math.inf, loop.create_future()) for _ in range(tickets)]
    if before:
        line.lose()
    else:
        loop.call_later(0.01, line.lose)
    with pytest.raises(Problem) as met:
        await asyncio.wait_for(answers(call_on(line), mine), 5)
    return met.value, mine


@pytest.mark.parametrize("tickets", [1, 3])
@pytest.mark.parametrize("before", [True, False])
def test_who_hangs_up_leaves_the_queue(before: bool, tickets: int) -> None:
    line = Line()
    problem, mine = asyncio.run(waits(line, before, tickets))
    assert problem.status == 499
    assert all(ticket.dropped for ticket in mine)
    assert not line.told


def test_an_answer_leaves_nothing_on_the_line() -> None:
    async def scene() -> None:
        line = Line()
        ticket = Ticket({}, Size(1, 1, None), math.inf, asyncio.get_running_loop().create_future())
        ticket.answer.set_result({"y": 1})
        assert await answers(call_on(line), [ticket]) == [{"y": 1}]
        assert not line.told
        line.lose()

    asyncio.run(scene())
