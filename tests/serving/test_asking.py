"""Where texts become tokens: short ones on the event loop, all others in a thread that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from optimizer.serving.asking import _prepared
from optimizer.serving.problems import Problem
from optimizer.serving.served import Served
from optimizer.serving.state import Anybody


class Noting:
    """A preprocessor that notes in which thread it is asked, and waits to be let go on."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def feeds(self, rows: Any) -> dict[str, Any]:
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        assert self.go_on.wait(20)
        return {"input_ids": np.ones((1, 3), np.int64)}


@pytest.fixture
def served() -> Served:
    found = Served("m", "1", "m@1:fp32", prepare=ThreadPoolExecutor(1, thread_name_prefix="prepare"))
    found.preprocessor = Noting()
    return found


@pytest.mark.parametrize(
    ("rows", "here"),
    [
        ([{"text": "a" * 1000}], True),
        ([{"text": "a" * 1001}], False),
        ([{"text": "a" * 500}] * 2, True),
        ([{"text": "a" * 501, "text_pair": "b" * 500}], False),
        ([{"image": {"bytes": b""}}], False),
    ],
)
def test_short_texts_are_tokenized_here(served: Served, rows: list[dict[str, Any]], here: bool) -> None:
    answers = asyncio.run(_prepared(Anybody(), served, rows, False))
    assert len(answers) == len(rows)
    loop = threading.current_thread().name
    assert all((name == loop) == here for name in served.preprocessor.threads)


def test_a_tokenizer_that_is_taken_is_not_waited_for_on_the_loop(served: Served) -> None:
    noting = served.preprocessor

    async def scene() -> None:
        noting.go_on.clear()
        long = asyncio.ensure_future(_prepared(Anybody(), served, [{"text": "a" * 5000}], False))
        await asyncio.to_thread(noting.begun.wait, 20)
        short = asyncio.ensure_future(_prepared(Anybody(), served, [{"text": "a"}], False))
        await asyncio.sleep(0.05)
        assert not short.done()
        noting.go_on.set()
        await asyncio.gather(long, short)

    asyncio.run(scene())
    assert [name.startswith("prepare") for name in noting.threads] == [True, True]


def test_the_tokenizer_is_given_back_after_an_error(served: Served) -> None:
    def failing(rows: Any) -> Any:
        raise MemoryError

    working, served.preprocessor.feeds = served.preprocessor.feeds, failing
    with pytest.raises(Problem, match="too large"):
        asyncio.run(_prepared(Anybody(), served, [{"text": "a"}], False))
    served.preprocessor.feeds = working
    asyncio.run(_prepared(Anybody(), served, [{"text": "a"}], False))
    assert served.preprocessor.threads == [threading.current_thread().name]
