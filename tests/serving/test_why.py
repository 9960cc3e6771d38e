"""What is kept of requests, and what `ml-opt why` makes of it; requests that no route takes."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")

from serving.conftest import Process
from serving.test_app import call, made

from optimizer.cli.main import run
from optimizer.cli.why_command import _asked
from optimizer.serving import record
from optimizer.serving.app import build_app
from optimizer.serving.guard.scopes import ANYBODY
from optimizer.serving.metrics import Metrics
from optimizer.serving.record import Records
from optimizer.serving.repository import Repository
from optimizer.serving.route import Route, Scope
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.store import Store

Scene = Callable[[Any, State], Awaitable[None]]


def ids(length: int, seed: int = 5) -> bytes:
    tensor = {"datatype": "INT64", "shape": [1, length]}
    return json.dumps({"inputs": [{"name": "input_ids", "data": [seed] * length, **tensor},
                                  {"name": "attention_mask", "data": [1] * length, **tensor}]}).encode()  # fmt: skip


def play(store: Path, scene: Scene, refs: tuple[str, ...] = ("classes",), **settings: Any) -> None:
    """A scene on a server without a socket, of models of the tiny store, unproved."""
    configuration = Settings.from_mapping({"verify": False, "threads": 1, **settings})

    async def whole() -> None:
        metrics = Metrics()
        state = State(configuration, Repository(Store(store), configuration, metrics), metrics)
        await state.models.start(list(refs))
        try:
            await scene(build_app(state), state)
        finally:
            await state.models.close()

    asyncio.run(whole())


async def asked(app: Any, id: str, body: bytes, path: str = "/v2/models/classes/infer") -> int:
    return (await call(app, "POST", path, body, (b"x-request-id", id.encode())))[0]


async def why(app: Any, id: str) -> Any:
    status, content, _ = await call(app, "GET", f"/v2/requests/{id}")
    return json.loads(content) if status == 200 else status


# ---------------------------------------------------------------- what is kept


def test_a_run_names_its_requests_to_each_of_them_and_its_padding(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        answered = await asyncio.gather(asked(app, "short", ids(3)), asked(app, "a/long~one", ids(9)))
        assert answered == [200, 200]
        short, long = await why(app, "short"), await why(app, "a/long~one")
        assert (short["runs"][0]["mates"], long["runs"][0]["mates"]) == (["a/long~one"], ["short"])
        (mine,) = short["runs"]
        assert (mine["requests"], mine["rows"], mine["length"]) == (2, 2, 9)
        assert (mine["own_rows"], mine["own_tokens"]) == (1, 3)
        assert (mine["tokens"], mine["computed_tokens"]) == (12, 18)
        assert mine["padding"] == pytest.approx(1 / 3)
        assert mine["seconds"] == long["runs"][0]["seconds"] > 0
        assert short["ref"] == "classes@2:fp32"
        assert short["provider"] == "cpu"
        assert [part["part"] for part in short["parts"]] == ["parse", "queue", "compute", "serialize", "rest"]
        assert sum(part["seconds"] for part in short["parts"]) == pytest.approx(short["seconds"])

    # Whichever comes first waits for the other: the run begins when it is full.
    play(tiny_store, scene, max_batch=2, delay="30s")


def test_a_run_says_whether_it_had_all_cores(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        assert await asked(app, "alone", ids(3)) == 200
        assert [run["beside"] for run in (await why(app, "alone"))["runs"]] == [False]
        (served,) = state.models
        assert served.batcher is not None
        served.batcher.always_beside = True
        assert await asked(app, "beside", ids(3)) == 200
        assert [run["beside"] for run in (await why(app, "beside"))["runs"]] == [True]

    play(tiny_store, scene, streams=2, threads=2)


def test_a_request_with_more_rows_than_a_run_has_several(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        body = json.dumps({"model": "classes", "input": ["a bad cab", "fed", "egg"]}).encode()
        assert await asked(app, "texts", body, "/v1/classify") == 200
        found = await why(app, "texts")
        assert sum(each["own_rows"] for each in found["runs"]) == 3
        assert len(found["runs"]) >= 2
        assert {each["requests"] - len(each["mates"]) for each in found["runs"]} <= {1, 2}
        assert not any(each["mates"] for each in found["runs"])  # its own rows are no mates
        assert "tokenize" in {part["part"] for part in found["parts"]}

    play(tiny_store, scene, max_batch=2)


@pytest.mark.parametrize(
    ("settings", "body", "status", "reason", "advice"),
    [
        ({}, b"{}", 400, "400", "the field"),
        ({"deadline": "300ms", "delay": "30s"}, ids(3), 504, "late", "--deadline"),
        ({"max_body": 1}, b"x" * (1 << 20) + b"xx", 413, "too_large", "--max-body"),
    ],
)
def test_what_was_refused_says_why(
    tiny_store: Path, settings: Any, body: bytes, status: int, reason: str, advice: str
) -> None:
    async def scene(app: Any, state: State) -> None:
        assert await asked(app, "refused", body) == status
        found = await why(app, "refused")
        assert (found["status"], found["refused"]["reason"]) == (status, reason)
        assert advice in found["advice"][0]
        if reason == "late":  # all of its time went by in the queue
            assert found["longest"] == "queue"
            assert found["runs"] == []

    play(tiny_store, scene, **settings)


def test_a_full_queue_is_told_from_the_rest(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        waiting = asyncio.ensure_future(asked(app, "first", ids(3)))
        while not state.models.get("classes").batcher.depth:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        assert await asked(app, "second", ids(3)) == 429
        found = await why(app, "second")
        assert found["refused"]["reason"] == "queue_full"
        assert "--max-queue" in found["advice"][0]
        waiting.cancel()

    play(tiny_store, scene, max_queue=1, delay="30s")


def test_no_word_of_a_text_is_kept(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        for id, text in (("kept", "badcafe"), ("toolong", "badcafe " * 40)):
            body = json.dumps({"model": "classes", "input": text}).encode()
            assert await asked(app, id, body, "/v1/classify") == (200 if id == "kept" else 400)
            assert "badcafe" not in json.dumps(await why(app, id))
        assert "badcafe" not in repr(list(state.records))

    play(tiny_store, scene)


def test_what_is_kept_is_bounded_and_the_slowest_stay() -> None:
    records, post = Records(), Route("/x", ("POST",), Scope.INFER, None)  # type: ignore[arg-type]

    def add(id: str, seconds: float, notes: dict[str, Any] | None = None, route: Route = post) -> None:
        made: Any = SimpleNamespace(
            id=id, model="m", version="1", times={}, notes=notes or {}, runs=(), answering=None,
            admitted=SimpleNamespace(who=ANYBODY),
        )  # fmt: skip
        records.add(made, route, 400 if notes else 200, seconds)

    add("slow", 9.0)
    add("wrong", 0.0, {"error": "x" * 5000, "traceback": "y" * 5000})
    for number in range(record.RECENT + record.SLOWEST):
        add(f"n{number}", 0.001)
    add("seen", 1.0, route=Route("/health", ("GET",), Scope.OPEN, None))  # type: ignore[arg-type]
    assert records.find("slow") is not None  # out of the ring, and still among the slowest
    assert records.find("n99") is None
    assert records.find("seen") is None
    assert records.find("wrong")[0].notes == {"error": "x" * 300}  # type: ignore[index]
    for number in range(record.REFUSED + 5):
        add(f"w{number}", 0.0, {"error": "no"})
    assert records.find("wrong") is None
    assert records.find(f"n{record.RECENT}") is not None  # what is refused pushes out nothing that was answered
    assert len(list(records)) == record.RECENT + record.REFUSED + record.SLOWEST
    assert [each.id for each in records.slowest(1)] == ["slow"]
    add("slow", 2.0)
    found = records.find("slow")
    assert found is not None
    assert (found[0].seconds, found[1]) == (2.0, 2)


# ---------------------------------------------------------------- what no route takes


def test_what_no_route_takes_is_counted_and_logged_without_its_path(tmp_path: Path) -> None:
    state, events = made(tmp_path), list[Any]()
    state.log = events.append
    app = build_app(state)
    for method, path, status in [
        ("GET", "/no/such/path", 404),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v2", 405),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/health/", 404),
    ]:
        got, content, headers = asyncio.run(call(app, method, path, None, (b"x-request-id", b"mine")))
        assert got == status
        assert headers["x-request-id"] == "mine"
        assert (status == 405) == ("allow" in headers)
        error = json.loads(content)["error"]
        assert isinstance(error, dict) == path.startswith("/v1/")
        assert (events[-1]["status"], events[-1]["path"], events[-1]["method"]) == (status, path, method)
    text = state.metrics.text()[0].decode()
    counted = sorted(line for line in text.splitlines() if line.startswith("ml_requests_total"))
    assert counted == [
        'ml_requests_total{endpoint="(unmatched)",model="",status="404",version=""} 2.0',
        'ml_requests_total{endpoint="(unmatched)",model="",status="405",version=""} 1.0',
        'ml_requests_total{endpoint="/v1/(unmatched)",model="",status="404",version=""} 1.0',
        'ml_requests_total{endpoint="/v1/(unmatched)",model="",status="405",version=""} 1.0',
    ]
    assert 'ml_requests_rejected_total{model="",reason="unknown_path",version=""} 3.0' in text
    assert 'ml_requests_rejected_total{model="",reason="wrong_method",version=""} 2.0' in text
    assert state.in_flight == 0


# ---------------------------------------------------------------- the command


@contextlib.contextmanager
def answering(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of the standard library's, while it is up."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}"
        finally:
            served.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def strange() -> Iterator[str]:
    """A server that is none of ours: what it answers stands in the path of its address."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = int(self.path.split("/")[1])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>" if status == 200 else b'{"error": "no"}')

        def log_message(self, *words: object) -> None: ...

    with answering(Answer) as url:
        yield url


def test_the_command_tells_of_a_request(server: Process, capfd: pytest.CaptureFixture[str]) -> None:
    from serving.test_server import ask

    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    assert ask(server, "POST", "/v2/models/slow/infer", body, X_Request_Id="a/slow%20?")[0] == 200
    assert ask(server, "POST", "/v2/models/slow/infer", {}, X_Request_Id="broken")[0] == 400
    capfd.readouterr()
    assert run(["why", "a/slow%20?", "--url", server.url]) == 0
    out = capfd.readouterr().out
    assert "a/slow%20?: 200 after" in out
    assert "slow version 1" in out
    assert "Most of the time went into compute" in out
    assert "It ran alone." in out
    assert run(["why", "broken", "--url", server.url]) == 0
    assert "Refused (400): inputs should be a list of tensors" in capfd.readouterr().out
    assert run(["why", "a/slow%20?", "--url", server.url, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["longest"] == "compute"
    assert run(["why", "--url", server.url]) == 0
    out = capfd.readouterr().out
    assert "slowest" in out
    assert "broken" in out


def test_the_command_says_what_it_cannot_tell(server: Process, strange: str, capfd: pytest.CaptureFixture[str]) -> None:
    def said(url: str, code: int) -> str:
        capfd.readouterr()
        assert run(["why", "nobody", "--url", url]) == code
        return capfd.readouterr().err

    assert "no request 'nobody' is kept" in said(server.url, 2)
    assert "no server answers at" in said("http://127.0.0.1:1", 4)
    assert "is no server of ml-opt" in said(f"{strange}/200", 2)
    assert "wants a key" in said(f"{strange}/401", 2)
    assert "--scope admin" in said(f"{strange}/403", 2)
    assert "knows nothing of requests" in said(f"{strange}/404", 2)
    assert "cannot tell now (503)" in said(f"{strange}/503", 4)
    assert "no address of a server" in said("ftp://there", 2)


def test_each_of_several_workers_is_asked_ten_times() -> None:
    """Which worker takes a connection is drawn anew each time; on the wire names of headers have small letters."""
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) == 30 else 404)
            self.send_header("x-workers", "3")
            self.end_headers()
            self.wfile.write(b'{"id": "mine"}' if len(asked) == 30 else b'{"error": "no request is kept"}')

        def log_message(self, *words: object) -> None: ...

    with answering(Answer) as url:
        assert _asked(url, "mine", "") == (200, {"id": "mine"})
        assert asked == ["/v2/requests/mine"] * 30
        assert _asked(url, "gone", "")[0] == 404
        assert len(asked) == 60
