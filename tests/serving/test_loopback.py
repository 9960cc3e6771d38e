"""Golden inputs go the way of clients' requests before a model is ready, and are in none of their counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from serving import artifacts
from serving.conftest import Process
from serving.test_app import call
from serving.test_repository import starting, within
from serving.test_why import ids, play
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from optimizer.errors import GateFailed
from optimizer.runtimes.ort import OrtSession
from optimizer.serving import loopback
from optimizer.serving.app import build_app
from optimizer.serving.curve import Curve
from optimizer.serving.guard import connection
from optimizer.serving.metrics import Metrics
from optimizer.serving.problems import Problem
from optimizer.serving.repository import Repository
from optimizer.serving.routes import infer
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.serving.statistics import Statistics
from optimizer.store import Store


def counted(metrics: Metrics) -> dict[str, float]:
    """Every metric that is not 0, but for what is said of a load and of when a metric was made."""
    lines = metrics.text()[0].decode().splitlines()
    told = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    found = {name: float(value) for name, _, value in told}
    return {
        name: value
        for name, value in found.items()
        if value
        and "_created" not in name
        and not name.startswith(("ml_model_loads", "ml_model_memory", "ml_model_info"))
    }


def test_golden_inputs_are_requests_of_http(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.put(store, "classes")
    heard: list[bytes] = []
    runs: list[tuple[int, ...]] = []
    hear, run = HttpToolsProtocol.data_received, OrtSession.run

    def data_received(self: Any, data: bytes) -> None:
        heard.append(bytes(data))
        hear(self, data)

    def ran(self: Any, feeds: Any) -> Any:
        runs.append(feeds["input_ids"].shape)
        return run(self, feeds)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", data_received)
    monkeypatch.setattr(OrtSession, "run", ran)
    monkeypatch.setattr(Curve, "overhead", 1e6)  # a run of its own is dearer than any padding
    starting(store, "classes", threads=1)
    heads = [each for each in heard if each.startswith(b"POST ")]
    assert {head.split(b" ")[1] for head in heads} == {b"/v2/models/classes/versions/1/infer"}
    assert len(heads) == 1 + 4 + 4, "all rows, one row after the other, and all at once"
    assert runs == [(4, 12), (1, 5), (1, 12), (1, 1), (1, 8), (4, 12)], "those that come at once share a run"


def spoilt(asked: Any, answers: Mapping[str, Any], *rest: Any, real: Any = infer.encoded) -> Any:
    """An encoder that mixes up the rows of an answer."""
    return real(asked, {name: np.roll(array, 1) for name, array in answers.items()}, *rest)


def fails(*given: Any) -> Any:
    raise ZeroDivisionError("a planted fault")


def cut(*given: Any, real: Any = connection._whole) -> bool:
    """A connection that sends the half of an answer, and ends."""
    cycle, status, headers, body = given
    sent = real(cycle, status, headers, body[: len(body) // 2])
    cycle.transport.close()
    return bool(sent)


@pytest.mark.parametrize(
    ("where", "name", "fault", "said"),
    [
        (infer, "encoded", spoilt, "does not answer its golden inputs as it should"),
        (infer, "encoded", fails, r"is answered 500: .*\(ZeroDivisionError: a planted fault\)"),
        (infer, "parse", fails, r"is answered 500: .*\(ZeroDivisionError: a planted fault\)"),
        (connection, "_whole", cut, "is answered with no answer"),
    ],
    ids=["another answer", "no answer", "not read", "half an answer"],
)
def test_a_fault_on_the_way_of_requests_keeps_a_model_from_being_ready(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any, said: str
) -> None:
    artifacts.put(store, "classes")
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(GateFailed, match=said) as failed:
        starting(store, "classes")
    assert "--no-verify" in (failed.value.hint or "")
    starting(store, "classes", verify=False)


def test_nothing_of_it_is_counted_logged_or_kept(store: Store) -> None:
    artifacts.put(store, "classes")
    events: list[Any] = []

    async def scene(app: Any, state: State) -> None:
        (served,) = state.models
        assert served.proof == "golden inputs: 4 rows"
        assert counted(state.metrics) == {}
        assert served.statistics.to_json() == Statistics().to_json()
        assert list(state.records) == []
        assert served.users == 0
        state.log = events.append
        assert (await call(app, "POST", "/v2/models/classes/infer", ids(3)))[0] == 200
        await asyncio.sleep(0.05)  # a run is counted behind its answers
        assert served.statistics.to_json()["inference_count"] == 1
        assert counted(state.metrics)['ml_compute_seconds_count{model="classes",version="1"}'] == 1.0
        assert len(list(state.records)) == 2, "the newest, and the slowest"

    play(store.root, scene, verify=True)
    assert [event["path"] for event in events] == ["/v2/models/classes/infer"]


def test_a_server_with_a_log_says_nothing_of_it(tiny_store: Path) -> None:
    process = Process(["classes", "--store", str(tiny_store)])
    try:
        assert process.ready["models"][0]["proof"] == "golden inputs: 4 rows"
    finally:
        assert process.end() == 0
    assert [event for event in process.log if event["event"] == "request"] == []


@pytest.mark.parametrize(
    "limits",
    [{"max_queue": 1, "max_body": 1}, {"deadline": 1e-6}, {"slo": 1e-6}, {"delay": "30s"}, {"max_batch": 1}],
    ids=lambda limits: "-".join(limits),
)
def test_what_clients_are_held_to_is_no_matter_of_the_proof(store: Store, limits: dict[str, Any]) -> None:
    artifacts.put(store, "classes")
    starting(store, "classes", threads=1, **limits)

    async def scene(repository: Repository) -> Any:
        await repository.start(["classes"])
        batcher = repository.get("classes").batcher
        assert batcher is not None
        return batcher.limits

    found = within(store, scene, threads=1, **limits)
    assert found.queue == limits.get("max_queue", 256)
    assert found.delay == (30.0 if "delay" in limits else 0.0)
    assert (found.wait_s is not None) == ("slo" in limits)


def test_nobody_else_is_answered_before_it_is_ready(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.put(store, "classes")
    asked, post = asyncio.Event(), loopback.Loopback.post

    async def scene() -> None:
        configuration, metrics, go = Settings(threads=1), Metrics(), asyncio.Event()

        async def waits(self: Any, *given: Any) -> Any:
            asked.set()
            await go.wait()
            return await post(self, *given)

        monkeypatch.setattr(loopback.Loopback, "post", waits)
        state = State(configuration, Repository(store, configuration, metrics), metrics)
        app = build_app(state)
        starts = asyncio.ensure_future(state.models.start(["classes"]))
        await asyncio.wait_for(asked.wait(), 30)
        status, body, _ = await call(app, "POST", "/v2/models/classes/infer", ids(3))
        assert (status, json.loads(body)) == (503, {"error": "model classes is not ready (loading)"})
        assert (await call(app, "GET", "/v2/health/ready"))[0] == 503
        go.set()
        await starts
        assert (await call(app, "POST", "/v2/models/classes/infer", ids(3)))[0] == 200
        assert (await call(app, "GET", "/v2/health/ready"))[0] == 200
        await state.models.close()

    asyncio.run(scene())


def test_a_load_by_name_that_fails_so_leaves_what_was_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.put(store, "classes")

    async def scene(app: Any, state: State) -> None:
        assert (await call(app, "POST", "/v2/models/classes/infer", ids(3)))[0] == 200
        with monkeypatch.context() as planted:
            planted.setattr(infer, "encoded", spoilt)
            with pytest.raises(Problem, match="does not answer its golden inputs"):
                await state.models.load_by_name("classes")
        assert (await call(app, "POST", "/v2/models/classes/infer", ids(3)))[0] == 200
        again = await state.models.load_by_name("classes")
        assert again.proof == "golden inputs: 4 rows"
        assert again.statistics.to_json() == Statistics().to_json()

    play(store.root, scene, verify=True)
