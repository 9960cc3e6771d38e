"""A model that goes while a request for it is being read, and a server that cannot answer all it was started for."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from serving.test_app import call
from serving.test_memory import SIZE, Scene, planted, scene_of
from serving.test_triton_cases import GOOD, INFER, scene
from serving.test_why import play

from optimizer.errors import Damaged
from optimizer.serving.cache import Cache
from optimizer.serving.kept import Memory
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.served import Served
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.store import Store

__all__ = ["planted"]  # a fixture

BODY = json.dumps({"inputs": [GOOD]}).encode()


class Slow:
    """A request whose body comes when it is told to."""

    def __init__(self, app: Any, path: str = INFER) -> None:
        self.told = asyncio.Event()
        self.sent: list[Any] = []
        parts = [{"type": "http.request", "body": BODY[:9], "more_body": True},
                 {"type": "http.request", "body": BODY[9:], "more_body": False}]  # fmt: skip

        async def receive() -> Any:
            if len(parts) == 1:
                await self.told.wait()
            if parts:
                return parts.pop(0)
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "root_path": "", "headers": [], "client": ("10.0.0.1", 1), "scheme": "http"}  # fmt: skip
        self.asking = asyncio.ensure_future(app(scope, receive, send))

    async def answer(self) -> tuple[int, Any]:
        self.told.set()
        await self.asking
        return self.sent[0]["status"], json.loads(b"".join(each.get("body", b"") for each in self.sent[1:]))


async def let_in(served: Served) -> None:
    """Wait until a request is counted as one of the model's."""
    for _ in range(1000):
        if served.users:
            return
        await asyncio.sleep(0)
    pytest.fail("nobody counts who is let in")


@pytest.mark.parametrize("word", ["unload", "load"])
def test_a_body_that_is_still_coming_is_answered_by_the_model_that_it_was_for(tmp_path: Path, word: str) -> None:
    async def acts(state: State, app: Any) -> None:
        served = state.models.get("m")
        slow = Slow(app)
        await let_in(served)
        going = asyncio.ensure_future(call(app, "POST", f"/v2/repository/models/m/{word}"))
        for _ in range(20):  # of the moments after which a model that nobody uses is closed
            await asyncio.sleep(0.01)
        assert not going.done()
        status, answer = await slow.answer()
        assert (status, answer.get("model_name")) == (200, "m"), answer
        assert (await going)[0] == 200
        assert served.users == 0
        assert served.session is None

    scene(tmp_path, {}, acts)


@pytest.mark.parametrize("cached", [False, True])
def test_a_body_that_comes_after_all_patience_is_told_that_the_model_has_gone(tmp_path: Path, cached: bool) -> None:
    async def acts(state: State, app: Any) -> None:
        if cached:
            state.cache = Cache(Memory(1 << 20), state.metrics)
        slow = Slow(app)
        await let_in(state.models.get("m"))
        assert (await call(app, "POST", "/v2/repository/models/m/unload"))[0] == 200
        status, answer = await slow.answer()
        assert (status, answer["error"]) == (503, "model m is being unloaded")

    scene(tmp_path, {}, acts, grace="0.05s")


def test_a_model_that_cannot_come_back_makes_the_server_degraded(
    store: Store, tmp_path: Path, planted: Callable[..., str]
) -> None:
    """It is not ready, says why to those who may know, and goes on answering for the others."""

    async def acts(scene: Scene) -> None:
        async def health() -> tuple[int, str, dict[str, str]]:
            status, content, _ = await call(scene.app, "GET", "/health")
            said = json.loads(content)
            models = {each["name"]: each.get("reason", "") for each in said["models"]}
            ready = (await call(scene.app, "GET", "/v2/health/ready"))[0]
            assert ready == status
            return status, said["status"], models

        assert await health() == (200, "ready", {"a": "", "b": ""})
        whole = (tmp_path / "b.json").read_text()
        (tmp_path / "b.json").write_text("{".ljust(SIZE))
        status, answer = await scene.infer("b")
        assert status == 503
        assert str(tmp_path) not in answer["error"]
        status, said, models = await health()
        assert (status, said, models["a"]) == (503, "degraded", "")
        assert "is not a fake model" in models["b"]
        assert str(tmp_path) not in models["b"]
        assert (await scene.infer("a"))[0] == 200
        assert (await scene.post("/v2/repository/models/b/load"))[0] == 400
        assert (await health())[:2] == (503, "degraded")
        (tmp_path / "b.json").write_text(whole)
        assert (await scene.post("/v2/repository/models/b/load"))[0] == 200
        assert (await health())[:2] == (200, "ready")
        assert (await scene.infer("b"))[0] == 200

    scene_of(store, "150KB")([planted(name) for name in "ab"], acts)


def test_who_operates_may_do_without_a_model_that_failed(
    store: Store, tmp_path: Path, planted: Callable[..., str]
) -> None:
    async def acts(scene: Scene) -> None:
        (tmp_path / "b.json").write_text("{".ljust(SIZE))
        assert (await scene.infer("b"))[0] == 503
        assert not scene.models.ready
        assert (await scene.post("/v2/repository/models/b/unload"))[0] == 200
        assert scene.models.ready

    scene_of(store, "150KB")([planted(name) for name in "ab"], acts)


def test_what_is_damaged_is_found_at_the_start_though_it_is_not_loaded_then(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.serving.repository.resident", lambda: 0)  # what the process grows by is left out
    root = shutil.copytree(tiny_store, tmp_path / "models")
    (graph,) = (Store(root).get("vectors").path).glob("model.onnx")
    graph.chmod(0o644)
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")

    async def started() -> None:
        settings = Settings(memory="1MB", verify=False, threads=1)
        models = Repository(Store(root), settings, Metrics())
        for served in (first := models.find("classes"), second := models.find("vectors")):
            assert served.on_disk < 500_000
        first.bytes = second.bytes = 600_000  # the second has no room
        found = {"classes": first, "vectors": second}
        models.find = lambda ref: found[ref]  # type: ignore[method-assign]
        try:
            with pytest.raises(Damaged, match=r"model\.onnx"):
                await models.start(["classes", "vectors"])
        finally:
            await models.close()

    asyncio.run(started())


def test_it_says_what_each_model_was_held_to(tiny_store: Path) -> None:
    proofs: dict[bool, dict[str, str]] = {}

    def told(verify: bool) -> Callable[[Any, State], Awaitable[None]]:
        async def acts(app: Any, state: State) -> None:
            said = json.loads((await call(app, "GET", "/health"))[1])
            proofs[verify] = {each["name"]: each["proof"] for each in said["models"]}
            metadata = json.loads((await call(app, "GET", "/v2/models/classes"))[1])
            assert metadata["parameters"]["proof"] == proofs[verify]["classes"]

        return acts

    for verify in (True, False):
        play(tiny_store, told(verify), ("classes", "vectors"), verify=verify)
    assert proofs == {
        True: dict.fromkeys(("classes", "vectors"), "golden inputs: 4 rows"),
        False: dict.fromkeys(("classes", "vectors"), ""),
    }
