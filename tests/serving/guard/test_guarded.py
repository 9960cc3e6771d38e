"""The whole server with its guard: every route asks for its scope, and what a stranger sends is refused at the door."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import ROOT, Process
from serving.promised import Promised
from starlette.testclient import TestClient

from optimizer.serving.app import build_app, routes
from optimizer.serving.config import guard_of, read_config
from optimizer.serving.guard.keys import KeyFile
from optimizer.serving.guard.rates import Rate
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.route import Route, Scope
from optimizer.serving.state import State
from optimizer.store import Store


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    monkeypatch.setenv("ML_OPT_KEYS", str(tmp_path / "keys.json"))
    return KeyFile()


def state_of(store: Store) -> State:
    config = read_config(None, {"access_log": False})
    metrics = Metrics()
    return State(config.server, Repository(store, config.server, metrics), metrics, guard=guard_of(config))


def test_every_route_asks_for_its_scope(keys: KeyFile, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks the table: no endpoint is reached without a key, nor with every scope but the one that it asks for."""
    by_scope = {s: keys.create(scopes=[s])[1] for s in ("infer", "admin", "metrics")}
    state = state_of(store)
    reached: list[Route] = []
    table = routes(state)

    def counting(route: Route) -> Any:
        async def endpoint(call: Any) -> Any:
            from starlette.responses import Response

            reached.append(route)
            return Response("reached")

        return endpoint

    walked = tuple(Route(r.path, r.methods, r.scope, counting(r), r.help) for r in table)
    monkeypatch.setattr("optimizer.serving.app.routes", lambda state: walked)
    client = TestClient(build_app(state), raise_server_exceptions=True)
    assert len(walked) >= 12
    for route in walked:
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        for method in (*route.methods, *(("HEAD",) if "GET" in route.methods else ())):
            reached.clear()

            def ask(headers: dict[str, str], method: str = method, path: str = path) -> int:
                return client.request(method, path, headers=headers).status_code

            bearer = {s: {"authorization": f"Bearer {key}"} for s, key in by_scope.items()}
            if route.scope is Scope.OPEN:
                assert ask({}) == 200, (method, path)
                continue
            assert ask({}) == 401, (method, path)
            assert ask({"authorization": "Bearer mlo_aaaaaaaa_" + "A" * 43}) == 401
            for other, headers in bearer.items():
                if other != route.scope:
                    assert ask(headers) == 403, (method, path, other)
            assert not reached, (method, path)
            assert ask(bearer[route.scope]) == 200
            assert [r.path for r in reached] == [route.path]


def test_what_is_open_says_nothing_about_models_or_callers(store: Store) -> None:
    """Open routes are few, and a new one is a decision that somebody writes down here."""
    state = State(read_config(None).server, Repository(store, read_config(None).server, Metrics()), Metrics())
    known = {"/", "/v2", "/v2/", "/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"}
    found = {r.path for r in routes(state) if r.scope is Scope.OPEN}
    assert found <= known, found - known
    assert {r.path for r in routes(state) if "repository" in r.path and r.scope is not Scope.ADMIN} == set()
    assert {r.scope for r in routes(state) if r.path == "/metrics"} == {Scope.METRICS}


class Guarded:
    """A server with keys, in a process of its own."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.keys = KeyFile(folder / "keys.json")
        _, self.infer = self.keys.create(name="infer")
        _, self.slow = self.keys.create(name="slow", rate=Rate.parse("2/hour"), tokens=Rate.parse("40/day"))
        _, self.admin = self.keys.create(name="admin", scopes=["admin", "metrics"])
        config = folder / "serve.toml"
        config.write_text(
            '[server]\nhost = "0.0.0.0"\n[auth]\nkeys = "keys.json"\n[privacy.models.classes]\nprompts = "reject"\n'
        )
        self.process = Process(["classes@1", "vectors", "--store", str(store), "--config", str(config)])
        assert self.process.ready
        self.port = int(self.process.address.rpartition(":")[2])

    def ask(self, key: str, path: str, body: Any = None, **more: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        method = "GET" if body is None else "POST"
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = response.getheader("content-type") == "application/json"
        return response.status, json.loads(content) if is_json else content, dict(response.getheaders())

    def raw(self, data: bytes, *, slowly: float = 0.0) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sent:
            try:
                sent.sendall(data)
                time.sleep(slowly)
                return sent.recv(65536)
            except ConnectionError:
                return b""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"), tiny_store)
    yield made
    made.process.end()


ASKED = {"model": "classes", "input": ["a bad cab"]}


def test_keys_over_http(guarded: Guarded) -> None:
    status, body, _ = guarded.ask("", "/health")
    assert (status, body) == (200, {"status": "ready"})
    status, body, headers = guarded.ask("", "/v1/classify", ASKED)
    assert status == 401
    assert body["error"]["code"] == "missing_api_key"
    assert headers["www-authenticate"] == 'Bearer realm="ml-opt"'
    status, body, _ = guarded.ask("", "/v2/models/classes")
    assert (status, list(body)) == (401, ["error"])
    status, _, headers = guarded.ask(guarded.infer, "/v1/classify", ASKED)
    assert (status, headers["x-frame-options"], headers["x-content-type-options"]) == (200, "DENY", "nosniff")
    assert guarded.ask(guarded.infer, "/metrics")[0] == 403
    assert guarded.ask(guarded.admin, "/v1/classify", ASKED)[0] == 403
    assert b"ml_requests_total" in guarded.ask(guarded.admin, "/metrics")[1]


def test_refused_before_the_body_is_read(guarded: Guarded) -> None:
    """A stranger's gigabyte is not waited for."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    assert guarded.raw(head + b"{").startswith(b"HTTP/1.1 401")


def test_revoked_while_it_runs(guarded: Guarded) -> None:
    key, shown = guarded.keys.create()
    assert guarded.ask(shown, "/v1/classify", ASKED)[0] == 200
    guarded.keys.revoke(key.id)
    status, body, _ = guarded.ask(shown, "/v1/classify", ASKED)
    assert status == 401
    assert "revoked" in body["error"]["message"]


def test_rates_and_tokens(guarded: Guarded) -> None:
    # 3 words of some letters: the budget of 40 tokens is told beside the rate.
    status, body, headers = guarded.ask(guarded.slow, "/v1/classify", ASKED)
    assert status == 200
    used = body["usage"]["total_tokens"]
    assert f'"tokens";r={40 - used};' in headers["ratelimit"]
    assert '"requests";r=1;' in headers["ratelimit"]
    status, body, _ = guarded.ask(guarded.slow, "/v1/classify", {"model": "classes", "input": ["a bad cab"] * 10})
    assert status == 400
    assert "whole budget" in body["error"]["message"]
    status, body, headers = guarded.ask(guarded.slow, "/v1/classify", ASKED)
    assert status == 429
    assert body["error"]["type"] == "rate_limit_error"
    assert 0 < int(headers["retry-after"]) <= 7201
    assert guarded.ask(guarded.slow, "/health")[0] == 200


def test_refusals_are_as_the_document_has_them(guarded: Guarded) -> None:
    """401, 403 and 429 with their headers, in the form of V2 and in OpenAI's."""
    promised = Promised(guarded.ask("", "/openapi.json")[1])
    assert promised.operation("POST", "/v1/classify")[1]["security"] == [{"Bearer": ["infer"]}, {"ApiKey": ["infer"]}]
    _, rated = guarded.keys.create(name="rated", rate=Rate.parse("1/hour"))

    def asked(status: int, key: str, path: str, body: Any = None, **more: str) -> None:
        got, content, headers = guarded.ask(key, path, body, **more)
        assert got == status, content
        method = "GET" if body is None else "POST"
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        promised.check(method, path, got, headers, raw)

    asked(200, guarded.infer, "/v1/classify", ASKED)
    asked(200, "", "/v1/classify", ASKED, X_API_Key=guarded.infer)
    asked(401, "", "/v1/classify", ASKED)
    asked(401, "mlo_no", "/v2/models/classes")
    asked(403, guarded.admin, "/v1/classify", ASKED)
    asked(403, guarded.infer, "/v2/repository/index", {})
    asked(200, rated, "/v1/models")
    asked(429, rated, "/v1/models")
    asked(429, rated, "/v2/models/classes")


def test_arrays_cost_tokens_too(guarded: Guarded) -> None:
    _, shown = guarded.keys.create(tokens=Rate.parse("10/day"))

    def infer(rows: int, name: str = "input_ids", **more: str) -> tuple[int, dict[str, str]]:
        names = (name, "attention_mask")
        tensor = {"shape": [rows, 4], "datatype": "INT64", "data": [1] * rows * 4}
        inputs = [{"name": n, **tensor} for n in names]
        status, _, headers = guarded.ask(shown, "/v2/models/classes/infer", {"inputs": inputs}, **more)
        return status, headers

    # What fails costs nothing, before its tokens are known and after.
    assert infer(2, "no_such_input")[0] == 400
    assert infer(2, X_Request_Timeout="1e-7")[0] in (429, 504)
    status, headers = infer(2)
    assert status == 200
    assert '"tokens";r=2;' in headers["ratelimit"]
    assert infer(1)[0] == 429
    assert infer(3)[0] == 400


def test_personal_data_is_kept_from_one_model(guarded: Guarded) -> None:
    text = ["fed", "mail a@example.com"]
    status, body, _ = guarded.ask(guarded.infer, "/v1/classify", {"model": "classes", "input": text})
    assert status == 400
    assert (body["error"]["code"], body["error"]["param"]) == ("personal_data", "input[1]")
    assert guarded.ask(guarded.infer, "/v1/embeddings", {"model": "vectors", "input": text})[0] == 200


def test_control_characters_and_depth(guarded: Guarded) -> None:
    status, body, _ = guarded.ask(guarded.infer, "/v1/classify", {"model": "classes", "input": "a\x00b"})
    assert (status, body["error"]["code"]) == (400, "control_character")
    status, body, _ = guarded.ask(guarded.infer, "/v1/classify", b'{"input":' * 1000)
    assert status == 400
    assert "64 levels" in body["error"]["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"a" * 10_000_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 500 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a" * 200_000,
    ],
)
def test_huge_headers(guarded: Guarded, head: bytes) -> None:
    answer = guarded.raw(head)
    # Who is still sending when the connection is closed may see it reset instead.
    assert answer.startswith(b"HTTP/1.1 431") or (len(head) > 100_000 and answer == b"")
    assert guarded.ask("", "/health")[0] == 200


def test_what_is_no_http(guarded: Guarded) -> None:
    for data in (b"\x00\xff" * 100, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
        answer = guarded.raw(data)
        assert answer.startswith(b"HTTP/1.1 400"), (data, answer)
    assert guarded.ask("", "/health")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/..%2f..%2fetc%2fpasswd",
        "/v2/models/../../etc/passwd",
        "/v2/models/%2e%2e/infer",
        "/v2/models/classes%00/infer",
        "/v2/models/classes/versions/..%2f1",
        "/v2/models/%ff%fe",
        "/v2/models/" + "a" * 5000,
        "/v2/models/classes@1;x",
        "/v1/models/..%5c..%5cx",
    ],
)
def test_tricks_in_paths(guarded: Guarded, path: str) -> None:
    status, body, _ = guarded.ask(guarded.infer, path)
    assert status in (400, 404, 405), (status, body)
    status, body, _ = guarded.ask(guarded.admin, path.replace("/v2/models", "/v2/repository/models") + "/load", b"")
    assert status in (400, 404, 405), (status, body)


def test_the_log_knows_who_and_no_secret(guarded: Guarded) -> None:
    guarded.ask(guarded.infer, "/v1/classify", ASKED, X_Request_Id="who-was-it")
    for _ in range(100):
        if found := [e for e in guarded.process.log if e.get("id") == "who-was-it"]:
            break
        time.sleep(0.05)
    (key,) = [k for k in guarded.keys.read().keys if k.name == "infer"]
    assert found[0]["who"] == f"key:{key.id}"
    everything = json.dumps(guarded.process.log)
    for secret in (guarded.infer, guarded.admin, guarded.slow):
        assert secret not in everything
        assert secret.split("_", 2)[2] not in everything  # it may have underscores of its own
    assert "bad cab" not in everything
    assert "a@example.com" not in everything


def test_an_open_server_is_for_this_machine(server: Process) -> None:
    """The server of the other tests has no keys: a page of another site cannot use it through a browser."""
    host, port = server.address.split(":")

    def status(**headers: str) -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", "/v2/models/vectors", headers={k.replace("_", "-"): v for k, v in headers.items()})
        return connection.getresponse().status

    assert status() == 200
    assert status(Host="evil.example") == 403
    assert status(Origin="https://evil.example") == 403
    assert status(X_Forwarded_For="8.8.8.8") == 403


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "ml-opt keys create"),
        (["--host", ""], "ml-opt keys create"),
        (["--config", "no.toml"], "no such file"),
    ],
)
def test_what_does_not_start(tiny_store: Path, tmp_path: Path, words: list[str], said: str) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-m", "optimizer", "serve", "vectors", "--store", str(tiny_store), "--port", "0", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ML_OPT_KEYS": str(tmp_path / "none.json")},
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def bounded(seconds: float, *asked: tuple[bytes, ...]) -> list[bytes]:
    """What a server with these times answers to each list of pieces, sent one after the other."""
    import uvicorn

    from optimizer.serving.guard.connection import bounded_protocol

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def work() -> list[bytes]:
        config = uvicorn.Config(app, port=0, http=bounded_protocol(seconds, seconds), lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]

        async def sent(pieces: tuple[bytes, ...]) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0.05)
                return await asyncio.wait_for(reader.read(200), 25)
            except ConnectionError:
                return b""
            finally:
                writer.close()

        answers = await asyncio.gather(*map(sent, asked))
        server.should_exit = True
        await running
        return answers

    return asyncio.run(work())


def test_heads_and_bodies_that_stop_coming() -> None:
    """With the times made short: a head that does not end, and a body that stops, end their connections."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    whole, *cut = bounded(
        2.0,
        (head[:20], head[20:], b"ab", b"cd"),
        (),
        (b"POST / HT",),
        (head[:-2],),
        (head, b"ab"),
    )
    assert whole.startswith(b"HTTP/1.1 200")
    assert cut == [b""] * 4


def test_a_header_without_an_end() -> None:
    """Refused by what was received, as the parser says nothing of a header before it is over."""
    begin = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: "
    (answer,) = bounded(60.0, (begin, b"a" * 40_000, b"a" * 40_000))
    assert answer.startswith(b"HTTP/1.1 431")
    assert answer.endswith(b'{"error": "the headers are too large"}')
