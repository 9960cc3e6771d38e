"""Requests that are larger than a run, or longer than the model: divided, or refused by name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from serving import artifacts
from serving.test_app import call
from serving.test_batcher import PLAIN, PLAN, x
from serving.test_cache import memory
from serving.test_why import play

from optimizer.serving.batcher import Batcher
from optimizer.serving.served import Served
from optimizer.serving.state import State
from optimizer.serving.tickets import Limits

INFER = "/v2/models/classes/infer"


def rows(count: int, length: int = 5) -> dict[str, Any]:
    """Rows that differ, as inputs of the tiny classifier."""
    ids = np.random.default_rng(count).integers(4, len(artifacts.VOCABULARY), (count, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def body(feeds: dict[str, Any]) -> bytes:
    tensors = [
        {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]
    return json.dumps({"inputs": tensors}).encode()


async def runs(served: Served) -> dict[int, int]:
    """Rows of a run → how many runs had as many."""
    await asyncio.sleep(0)  # the last one is counted after it was answered
    return {rows: entry[0] for rows, entry in served.statistics.batches.items()}


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_pieces_are_no_larger_than_a_run_and_make_the_whole_again(
    count: int, length: int, most: int, tokens: int
) -> None:
    async def scene() -> None:
        batcher = Batcher(PLAIN.run, PLAN, Limits(rows=most, tokens=tokens))
        feeds = {"x": np.arange(count * length, dtype=np.float32).reshape(count, length)}
        rows, pieces = batcher.pieces(feeds)
        assert rows == count
        assert all(len(piece["x"]) <= most for piece in pieces)
        assert all(piece["x"].size <= tokens or len(piece["x"]) == 1 for piece in pieces)
        answer = batcher.plan.whole([PLAIN.run(piece) for piece in pieces])
        np.testing.assert_array_equal(answer["y"], PLAIN.run(feeds)["y"])
        batcher.close()
        await asyncio.to_thread(batcher.join)

    asyncio.run(scene())


@pytest.mark.parametrize("cached", [False, True])
def test_a_request_with_more_rows_than_a_run_is_answered_in_several(tiny_store: Path, cached: bool) -> None:
    async def scene(app: Any, state: State) -> None:
        if cached:
            memory(state)
        (served,) = state.models
        assert served.session is not None
        feeds = rows(11)
        for _ in range(1 + cached):
            status, content, _ = await call(app, "POST", INFER, body(feeds), (b"x-request-id", b"large"))
            assert status == 200, content
            (output,) = json.loads(content)["outputs"]
            assert output["shape"] == [11, 3]
            alone = served.session.run(feeds)["logits"]
            np.testing.assert_allclose(np.reshape(output["data"], (11, 3)), alone, rtol=1e-5, atol=1e-6)
        assert await runs(served) == {3: 1, 4: 2}

    play(tiny_store, scene, max_batch=4)


def test_so_is_one_with_more_tokens_than_a_run(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        (served,) = state.models
        assert (await call(app, "POST", INFER, body(rows(7, 10))))[0] == 200
        assert await runs(served) == {1: 1, 3: 2}

    play(tiny_store, scene, max_tokens=30)


def test_more_rows_than_the_queue_takes_are_413(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        status, content, _ = await call(app, "POST", INFER, body(rows(11)))
        assert status == 413
        assert "--max-queue" in json.loads(content)["error"]

    play(tiny_store, scene, max_queue=10)


def test_a_sequence_longer_than_the_model_is_refused_before_it_runs(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        (served,) = state.models
        longest = artifacts.LONGEST
        status, content, _ = await call(app, "POST", INFER, body(rows(1, longest + 1)))
        assert status == 400
        said = json.loads(content)["error"]
        assert said == f"a row has {longest + 1} steps, and the model takes at most {longest}"
        assert (await call(app, "POST", INFER, body(rows(1, longest))))[0] == 200
        assert await runs(served) == {1: 1}

    play(tiny_store, scene)


def test_what_a_model_says_of_a_request_does_not_say_where_its_files_are(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        (served,) = state.models
        assert served.batcher is not None

        def wrong(feeds: Any) -> dict[str, Any]:
            from optimizer.errors import BadInput

            raise BadInput(f"{served.path}/model.onnx cannot take inputs of these shapes")

        served.batcher._alone_lane = served.batcher._beside_lane = type(served.batcher._alone_lane)(wrong)
        status, content, _ = await call(app, "POST", INFER, body(rows(1)))
        assert (status, json.loads(content)["error"]) == (400, "classes/model.onnx cannot take inputs of these shapes")

    play(tiny_store, scene)


def test_rows_that_no_run_shares_are_not_divided() -> None:
    async def scene() -> None:
        from dataclasses import replace

        batcher = Batcher(PLAIN.run, replace(PLAN, joins=False), Limits(rows=2))
        rows, pieces = batcher.pieces(x(5, 3))
        assert (rows, len(pieces)) == (5, 1)
        batcher.close()
        await asyncio.to_thread(batcher.join)

    asyncio.run(scene())
