"""The door that all routes share: who is let in, what is said of a failure, and what any body is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from starlette.responses import Response

from optimizer.serving.app import build_app, routes
from optimizer.serving.guard.connection import WHOLE
from optimizer.serving.guard.scopes import Admitted
from optimizer.serving.metrics import Metrics
from optimizer.serving.problems import Problem
from optimizer.serving.repository import Repository
from optimizer.serving.route import Route, Scope
from optimizer.serving.settings import Settings
from optimizer.serving.state import Anybody, State
from optimizer.store import Store

Answer = tuple[int, bytes, dict[str, str]]


def made(tmp_path: Path) -> State:
    configuration = Settings()
    metrics = Metrics()
    return State(configuration, Repository(Store(tmp_path / "models"), configuration, metrics), metrics)


async def call(app: Any, method: str, path: str, body: bytes | None = b"", *headers: tuple[bytes, bytes]) -> Answer:
    """Ask an application without a server; with None for a body that nobody may read."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        assert body is not None, "the body was read"
        if parts:
            return parts.pop()
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
             "root_path": "", "headers": list(headers), "client": ("10.0.0.1", 1), "scheme": "http"}  # fmt: skip
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), found


class Nobody(Anybody):
    """Lets in nobody, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Scope, str]] = []

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Admitted:
        self.asked.append((scope, client))
        raise Problem(401, "who are you?", {"WWW-Authenticate": "Bearer"})


def test_every_route_asks_its_scope_before_its_body_is_read(tmp_path: Path) -> None:
    state = made(tmp_path)
    state.guard = guard = Nobody()
    app = build_app(state)
    table = routes(state)
    assert len(table) == len({(route.path, method) for route in table for method in route.methods})
    for route in table:
        for method in route.methods:
            path = route.path.replace("{name}", "m").replace("{version}", "1")
            status, content, headers = asyncio.run(call(app, method, path, None))
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert guard.asked.pop() == (route.scope, "10.0.0.1")
            document = json.loads(content)
            if route.path.startswith("/v1/"):
                assert document["error"]["type"] == "authentication_error"
            else:
                assert document == {"error": "who are you?"}


def test_what_changes_models_or_tells_of_them_is_not_open(tmp_path: Path) -> None:
    for route in routes(made(tmp_path)):
        if route.scope is Scope.OPEN:
            assert route.methods == ("GET",)
        assert route.help.endswith(".")
        if "/repository/" in route.path:
            assert route.scope is Scope.ADMIN


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Problem(418, "short and stout"), 418, "short and stout"),
        (ZeroDivisionError("a secret"), 500, "its log says why"),
    ],
)
def test_a_failure_is_answered_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, words: str
) -> None:
    async def failing(call: Any) -> Any:
        raise error

    events: list[Any] = []
    state = made(tmp_path)
    state.log = events.append
    monkeypatch.setattr("optimizer.serving.app.routes", lambda state: (Route("/x", ("GET",), Scope.OPEN, failing),))
    got, content, _ = asyncio.run(call(build_app(state), "GET", "/x"))
    assert got == status
    assert words in json.loads(content)["error"]
    assert "secret" not in content.decode()
    (event,) = events
    assert event["status"] == status
    assert ("a secret" in event.get("traceback", "")) == (status == 500)
    assert state.in_flight == 0


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_worker_answers_is_counted_before_it_can_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Else a client has an answer that no worker ever counted. A server alone takes its counts along when it ends."""

    async def answers(call: Any) -> Response:
        return Response("yes")

    state = made(tmp_path)
    state.metrics.shared = shared
    monkeypatch.setattr("optimizer.serving.app.routes", lambda state: (Route("/x", ("GET",), Scope.OPEN, answers),))
    labels = {"model": "", "version": "", "endpoint": "/x", "status": "200"}
    seen: list[float] = []

    def counted() -> float:
        return state.metrics.registry.get_sample_value("ml_requests_total", labels) or 0.0

    def whole(status: int, headers: Any, body: bytes) -> bool:
        seen.append(counted())
        return False  # this connection cannot; it goes out in pieces

    async def scene() -> None:
        app = build_app(state)

        async def with_whole(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "extensions": {WHOLE: whole}}, receive, send)

        assert (await call(with_whole, "GET", "/x"))[:2] == (200, b"yes")

    asyncio.run(scene())
    assert seen == [float(shared)]
    assert counted() == 1.0, "once"


def test_openapi_names_every_route(tmp_path: Path) -> None:
    state = made(tmp_path)
    status, content, _ = asyncio.run(call(build_app(state), "GET", "/openapi.json"))
    assert status == 200
    document = json.loads(content)
    assert document["openapi"].startswith("3.1")
    listed = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    table = {(route.path.replace(":path}", "}"), method) for route in routes(state) for method in route.methods}
    assert listed == table
    operations = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(operations) == len(set(operations))
    assert asyncio.run(call(build_app(state), "GET", "/docs"))[0] == 200


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs", "input", "model"])
                      | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
tensors = st.fixed_dictionaries(
    {"name": st.just("x") | junk, "shape": st.just([1, 2]) | st.lists(st.integers(-3, 2**65), max_size=4) | junk,
     "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "BF16", "BOOL"]) | junk},
    optional={"data": st.just([1, 2]) | junk, "parameters": junk | st.dictionaries(
        st.sampled_from(["binary_data_size", "shared_memory_region", "binary_data"]), junk, max_size=2)},
)  # fmt: skip
bodies = (
    st.binary(max_size=200)
    | junk.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"inputs": st.lists(tensors, max_size=3) | junk},
        optional={"outputs": junk, "parameters": junk, "id": junk},
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"input": junk}, optional={"model": st.just("fake") | junk, "top_k": junk}).map(
        lambda value: json.dumps(value).encode()
    )
)
lengths = st.none() | st.integers(-5, 300).map(str) | st.text(max_size=3)
paths = st.sampled_from(["/v2/models/fake/infer", "/v1/embeddings", "/v1/classify", "/v2/repository/index"])


def test_no_body_makes_it_fail(tmp_path: Path) -> None:
    """Whatever comes is answered, and never with 500."""
    (tmp_path / "fake.json").write_text("{}")
    state = made(tmp_path)
    app = build_app(state)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(state.models.start([f"fake:{tmp_path / 'fake.json'}"]))

    @given(paths, bodies, lengths, st.sampled_from([b"", b"gzip", b"deflate"]))
    @settings(max_examples=250, deadline=None)
    def fuzz(path: str, body: bytes, length: str | None, encoding: bytes) -> None:
        headers = [(b"content-encoding", encoding)] if encoding else []
        if length is not None:
            headers.append((b"inference-header-content-length", length.encode()))
        answered: Callable[..., Awaitable[Answer]] = call
        status, content, _ = loop.run_until_complete(answered(app, "POST", path, body, *headers))
        assert status in (200, 400, 404, 413, 415), content

    try:
        fuzz()
    finally:
        loop.run_until_complete(state.models.close())
        loop.close()
