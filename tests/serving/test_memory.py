"""A budget of memory: what fits is loaded, the rest when it is asked for, and nothing is unloaded that is in use."""

from __future__ import annotations

import asyncio
import json
import random
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import artifacts
from serving.conftest import Process
from serving.test_app import call

pytest.importorskip("starlette")

from optimizer.errors import BadInput
from optimizer.serving import repository as repositories
from optimizer.serving.app import build_app
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.settings import Settings
from optimizer.serving.sizes import resident
from optimizer.serving.state import State
from optimizer.store import Store

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
#: Bytes of a planted model's file.
SIZE = 100_000


class Scene:
    """A server without a socket."""

    def __init__(self, store: Store, memory: str, **options: Any) -> None:
        settings = Settings(memory=memory, threads=1, **options)
        metrics = Metrics()
        self.models = Repository(store, settings, metrics)
        self.state = State(settings, self.models, metrics)
        self.app = build_app(self.state)

    async def infer(self, name: str, *headers: tuple[bytes, bytes]) -> tuple[int, Any]:
        status, content, _ = await call(self.app, "POST", f"/v2/models/{name}/infer", BODY, *headers)
        return status, json.loads(content)

    async def post(self, path: str, document: Any = None) -> tuple[int, Any]:
        status, content, _ = await call(self.app, "POST", path, json.dumps(document).encode() if document else b"")
        return status, json.loads(content)

    async def index(self) -> dict[str, tuple[str, str]]:
        entries = (await self.post("/v2/repository/index"))[1]
        return {each["name"]: (each["state"], each["reason"]) for each in entries}

    def loaded(self) -> set[str]:
        return {served.name for served in self.models if served.ready}

    def counted(self, name: str, model: str) -> float:
        return self.state.metrics.registry.get_sample_value(name, {"model": model, "version": "1"}) or 0.0


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a model of SIZE that takes no memory beside; what the process grows by is left out."""
    monkeypatch.setattr(repositories, "resident", lambda: 0)

    def write(name: str, **keys: Any) -> str:
        text = json.dumps({"wait": "sleep", **keys})
        (tmp_path / f"{name}.json").write_text(text + " " * (SIZE - len(text)))
        return f"fake:{tmp_path / name}.json"

    return write


def scene_of(store: Store, memory: str, **options: Any) -> Callable[[list[str], Callable[[Scene], Any]], None]:
    def run(refs: list[str], acts: Callable[[Scene], Any]) -> None:
        async def played() -> None:
            scene = Scene(store, memory, **options)
            await scene.models.start(refs)
            try:
                await acts(scene)
            finally:
                await scene.models.close()

        asyncio.run(played())

    return run


def test_the_one_that_was_used_the_longest_ago_makes_room(store: Store, planted: Callable[..., str]) -> None:
    async def acts(scene: Scene) -> None:
        assert scene.models.ready
        assert scene.loaded() == {"a", "b"}
        state, why = (await scene.index())["c"]
        assert (state, why) == ("UNAVAILABLE", "not loaded: it is loaded when it is asked for")
        assert (await scene.infer("a"))[0] == 200
        status, answer = await scene.infer("c")
        assert (status, answer["model_name"]) == (200, "c")
        assert scene.loaded() == {"a", "c"}
        state, why = (await scene.index())["b"]
        assert state == "UNAVAILABLE"
        assert why.startswith("unloaded for c (--memory)")
        assert scene.models.ready  # what waits to be asked for does not take the server out of service
        assert (await scene.infer("b"))[0] == 200
        assert scene.loaded() == {"b", "c"}
        assert [scene.counted("ml_model_loads_total", name) for name in "abc"] == [1, 2, 1]
        assert [scene.counted("ml_model_unloads_total", name) for name in "abc"] == [1, 1, 0]
        assert [scene.counted("ml_model_memory_bytes", name) for name in "abc"] == [0, SIZE, SIZE]

    scene_of(store, "250KB")([planted(name) for name in "abc"], acts)


def test_what_is_in_use_is_not_unloaded(
    store: Store, planted: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models that are asked all the time and a budget for one: each request is answered, by its own model."""
    retired = Repository._retire

    async def watched(self: Repository, served: Any, reason: str = "unloaded") -> None:
        assert not served.busy
        assert served.batcher is not None
        await retired(self, served, reason)

    monkeypatch.setattr(Repository, "_retire", watched)
    drawn = random.Random(1)

    async def acts(scene: Scene) -> None:
        async def client(name: str) -> None:
            for _ in range(12):
                status, answer = await scene.infer(name)
                assert (status, answer.get("model_name")) == (200, name), answer
                assert sum(served.bytes for served in scene.models if served.ready) <= 150_000
                await asyncio.sleep(drawn.random() * 0.002)

        await asyncio.gather(*(client(name) for name in "aaabbb"))
        assert scene.counted("ml_model_loads_total", "a") + scene.counted("ml_model_loads_total", "b") >= 2

    monkeypatch.setattr("optimizer.serving.memory._PATIENCE", 0.05)
    scene_of(store, "150KB")([planted(name, latency_s=0.01) for name in "ab"], acts)


def test_a_request_waits_no_longer_than_it_has_time(store: Store, planted: Callable[..., str]) -> None:
    async def acts(scene: Scene) -> None:
        status, answer = await scene.infer("b", (b"x-request-timeout", b"0.05"))
        assert (status, answer["error"]) == (504, "its time was over before b was loaded")
        assert (await scene.infer("b"))[0] == 200
        assert scene.counted("ml_model_loads_total", "b") == 1  # the load that had begun was not thrown away
        # Nobody waits any more for a model that had no room: the one that is in use stays.
        asking = asyncio.ensure_future(scene.infer("b"))
        await asyncio.sleep(0.05)
        assert (await scene.infer("a", (b"x-request-timeout", b"0.05")))[0] == 504
        assert (await asking)[0] == 200
        await asyncio.sleep(0.05)
        assert scene.loaded() == {"b"}

    scene_of(store, "150KB")([planted("a"), planted("b", load_s=0.3, latency_s=0.4)], acts)


def test_a_client_that_hangs_up_waits_for_no_load(store: Store, planted: Callable[..., str]) -> None:
    async def acts(scene: Scene) -> None:
        asking = asyncio.ensure_future(scene.infer("a"))
        await asyncio.sleep(0.05)
        parts: list[Any] = [{"type": "http.request", "body": BODY, "more_body": False}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.02)
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        path = "/v2/models/b/infer"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "root_path": "", "headers": [], "client": ("10.0.0.1", 1), "scheme": "http"}  # fmt: skip
        await scene.app(scope, receive, send)
        assert sent[0]["status"] == 499
        assert (await asking)[0] == 200
        await asyncio.sleep(0.05)
        assert scene.loaded() == {"a"}

    scene_of(store, "150KB")([planted("a", latency_s=0.4), planted("b")], acts)


def test_as_many_may_wait_for_a_load_as_the_queue_takes(store: Store, planted: Callable[..., str]) -> None:
    async def acts(scene: Scene) -> None:
        asked = await asyncio.gather(*(scene.infer("b") for _ in range(5)))
        assert sorted(status for status, _ in asked) == [200, 200, 200, 429, 429]

    scene_of(store, "150KB", max_queue=3)([planted("a"), planted("b", load_s=0.1)], acts)


def test_a_model_that_comes_back_has_proved_itself_again(
    store: Store, planted: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs: list[str] = []
    prove = repositories.prove

    async def counted(served: Any, settings: Any) -> None:
        await prove(served, settings)
        proofs.append(served.name)

    monkeypatch.setattr(repositories, "prove", counted)
    artifact = artifacts.put(store, "classes")
    size = artifact.manifest.bytes
    other = artifacts.put(store, "vectors", "last_hidden_state")

    async def acts(scene: Scene) -> None:
        assert scene.loaded() == {"classes"}
        # What is asked by a body is asked by it again, after the load.
        answer = await scene.post("/v1/embeddings", {"input": "a bad cab"})
        assert answer[0] == 200
        assert scene.loaded() == {"vectors"}
        assert (await scene.post("/v1/classify", {"input": "a bad cab"}))[0] == 200
        assert proofs == ["classes", "vectors", "classes"]
        other.model_file.write_bytes(b"!")
        for _ in range(2):
            status, answer = await scene.post("/v1/embeddings", {"model": "vectors", "input": "fed"})
            assert status == 503
            assert "vectors@1:fp32 is damaged" in answer["error"]["message"]
        assert "damaged" in (await scene.index())["vectors"][1]

    scene_of(store, f"{int(size * 1.5)}")(["classes", "vectors"], acts)


def test_who_operates_has_the_last_word(store: Store, planted: Callable[..., str]) -> None:
    async def acts(scene: Scene) -> None:
        assert (await scene.post("/v2/repository/models/b/unload"))[0] == 200
        assert (await scene.infer("b"))[0] == 503
        assert (await scene.index())["b"] == ("UNAVAILABLE", "unloaded")
        assert scene.loaded() == {"a"}
        assert (await scene.post("/v2/repository/models/b/load"))[0] == 200
        assert scene.loaded() == {"b"}
        assert (await scene.infer("a"))[0] == 200

    scene_of(store, "150KB")([planted("a"), planted("b")], acts)


def test_a_model_larger_than_all_may_be_is_refused(store: Store, planted: Callable[..., str]) -> None:
    with pytest.raises(BadInput, match="more than all models may together"):
        scene_of(store, "50KB")([planted("a")], lambda scene: asyncio.sleep(0))
    with pytest.raises(BadInput, match="is no size"):
        Settings(memory="much")


def test_what_a_model_takes_is_measured(store: Store, tmp_path: Path) -> None:
    """A graph whose weights lie in its file as float16, and in memory as float32."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node, info = helper.make_node, helper.make_tensor_value_info
    half = numpy_helper.from_array(np.ones(8 * 2**20, np.float16), "half")
    graph = helper.make_graph(
        [node("Cast", ["half"], ["wide"], to=TensorProto.FLOAT), node("Add", ["x", "wide"], ["y"])],
        "wide", [info("x", TensorProto.FLOAT, ["batch", 1])],
        [info("y", TensorProto.FLOAT, ["batch", 8 * 2**20])], [half],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "wide.onnx")
    assert resident() > 2**20
    assert (tmp_path / "wide.onnx").stat().st_size < 17 * 2**20
    # In a process of its own: what earlier tests left behind is freed at any time, and would be taken off.
    server = Process([str(tmp_path / "wide.onnx"), "--store", str(store.root), "--memory", "1GiB"])
    try:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
            counted = answer.read().decode()
    finally:
        server.end()
    found = re.search(r'^ml_model_memory_bytes\{model="wide",[^}]*\} (\S+)$', counted, re.MULTILINE)
    assert found
    assert 30 * 2**20 < float(found[1]) < 400 * 2**20
