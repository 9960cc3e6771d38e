"""V2's statistics mean what Triton's do, by whichever route a model is asked."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted import Server, server, until, write
from serving.test_app import call
from serving.test_why import ids, play

from benchmarks.decoders import decoder
from optimizer.generator import Finish
from optimizer.serving.state import State

_COMPUTE = ("compute_input", "compute_infer", "compute_output")


async def told(app: Any, name: str) -> Any:
    await asyncio.sleep(0)  # a run is counted after whoever waits for it has gone on
    status, content, _ = await call(app, "GET", f"/v2/models/{name}/stats")
    assert status == 200
    return json.loads(content)["model_stats"][0]


def counts(found: Any) -> tuple[int, int, int, int]:
    """Rows that were answered, runs, requests that were, and those that were not."""
    stats = found["inference_stats"]
    return found["inference_count"], found["execution_count"], stats["success"]["count"], stats["fail"]["count"]


def test_golden_inputs_are_no_requests(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        found = await told(app, "classes")
        assert counts(found) == (0, 0, 0, 0)
        assert found["batch_stats"] == []
        assert (await call(app, "POST", "/v2/models/classes/infer", ids(3)))[0] == 200
        assert counts(await told(app, "classes")) == (1, 1, 1, 0)

    play(tiny_store, scene, verify=True)


def test_every_route_that_asks_a_model_is_counted(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        async def ask(path: str, document: Any, status: int = 200) -> None:
            assert (await call(app, "POST", path, json.dumps(document).encode()))[0] == status

        await ask("/v1/classify", {"model": "classes", "input": ["a bad cab", "fed", "egg"]})
        found = await told(app, "classes")
        assert counts(found)[0::2] == (3, 1)
        stats = found["inference_stats"]
        for part in ("success", "queue", *_COMPUTE):  # as V2's infer has them: once a request
            assert stats[part]["count"] == 1
            assert stats[part]["ns"] > 0
        for wrong in ({"input": [7.5]}, {"input": "a", "top_k": 0}, {"input": "a b " * 60}):
            await ask("/v1/classify", {"model": "classes", **wrong}, 400)
        assert counts(await told(app, "classes"))[2:] == (1, 3)
        await ask("/v1/embeddings", {"model": "vectors", "input": [[5, 6], [7]]})
        await ask("/v1/embeddings", {"model": "vectors", "input": "a", "dimensions": 4}, 400)
        assert counts(await told(app, "vectors"))[0::2] == (2, 1)
        assert counts(await told(app, "vectors"))[3] == 1
        await ask("/v2/models/vectors/infer", {"inputs": []}, 400)
        assert counts(await told(app, "vectors"))[3] == 2

    play(tiny_store, scene, ("classes", "vectors"))


def test_runs_are_counted_by_their_rows_with_the_times_of_their_parts(tiny_store: Path) -> None:
    seconds = {"compute_input": 0.02, "compute_infer": 0.04, "compute_output": 0.03}

    def slowly(part: str, inner: Any) -> Any:
        def outer(*given: Any) -> Any:
            time.sleep(seconds[part])
            return inner(*given)

        return outer

    async def scene(app: Any, state: State) -> None:
        batcher: Any = state.models.get("classes").batcher
        plan, lane = batcher.plan, batcher._alone_lane
        object.__setattr__(lane, "run", slowly("compute_infer", lane.run))
        batcher.plan = SimpleNamespace(
            size=plan.size, as_run=plan.as_run, padded=plan.padded, joins=plan.joins, pads=plan.pads,
            longest=plan.longest, whole=plan.whole,
            join=slowly("compute_input", plan.join), split=slowly("compute_output", plan.split),
        )  # fmt: skip
        both = json.dumps({"model": "classes", "input": ["fed", "egg"]}).encode()
        for body, path in ((ids(3), "/v2/models/classes/infer"), (both, "/v1/classify"), (both, "/v1/classify")):
            assert (await call(app, "POST", path, body))[0] == 200
        found = await told(app, "classes")
        assert found["execution_count"] == 3
        assert {each["batch_size"]: each["compute_infer"]["count"] for each in found["batch_stats"]} == {1: 1, 2: 2}
        for each in found["batch_stats"]:
            for part, least in seconds.items():
                assert each[part]["count"] == each["compute_infer"]["count"]
                assert each[part]["ns"] >= least * 1e9 * each[part]["count"]
        total = sum(each[part]["ns"] for each in found["batch_stats"] for part in _COMPUTE)
        assert total <= found["inference_stats"]["success"]["ns"]  # no part of a run is counted twice

    play(tiny_store, scene, streams=1)


def test_a_text_is_an_inference_and_an_execution() -> None:
    async def test(made: Server) -> None:
        def now() -> Any:
            return made.state.models.get("m").statistics.to_json()

        asked = made.ask("/v1/completions", {"model": "m", "prompt": "def read", "max_tokens": 8, "n": 2})
        await made.begun(2)
        for text in made.generator.texts:
            write(text, 40, finish=Finish.STOP)
        await asked.task
        assert asked.status == 200
        assert counts(now()) == (2, 2, 1, 0)
        assert now()["batch_stats"] == []
        stats = now()["inference_stats"]
        assert stats["compute_input"]["count"] == stats["compute_infer"]["count"] == 1
        assert 0 < stats["compute_infer"]["ns"] <= stats["success"]["ns"]
        stream = made.ask("/v1/completions", {"model": "m", "prompt": "def read", "max_tokens": 8, "stream": True})
        write(await made.begun(3), 40)
        await until(lambda: stream.body)
        assert counts(now()) == (2, 2, 1, 0)  # it is not over
        write(made.generator.texts[2], 41, finish=Finish.STOP)
        await stream.task
        assert counts(now()) == (3, 3, 2, 0)
        for path, document in (
            ("/v1/completions", {"model": "m", "prompt": "a", "nonsense": 1}),
            ("/v1/completions", {"model": "m", "prompt": ""}),
            ("/v1/chat/completions", {"model": "m", "messages": []}),
            ("/generate", {"prompt": 5}),
            ("/v2/models/m/generate", {"text_input": 5}),
        ):
            refused = made.ask(path, document)
            await refused.task
            assert refused.status == 400, path
        assert counts(now()) == (3, 3, 2, 5)
        broken = made.ask("/v1/completions", {"model": "m", "prompt": "def read", "max_tokens": 8, "stream": True})
        text = await made.begun(4)
        write(text, 40)
        await until(lambda: broken.body)
        text.fail(RuntimeError("in the middle"))
        await broken.task
        assert counts(now()) == (3, 3, 2, 6)

    async def inside() -> None:
        async with server(decoder("llama", size="tiny"), 2) as made:
            await test(made)

    asyncio.run(inside())
