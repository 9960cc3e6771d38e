"""Several workers on one port: one that is killed is replaced, counts are those of all, and an end loses nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from processes import alive
from serving.conftest import ROOT, Process

from optimizer.cli.why_command import _asked
from optimizer.errors import BadInput, MissingPiece
from optimizer.serving.config import guard_of, read_config
from optimizer.serving.remote import fetch
from optimizer.serving.server import _bound, serve
from optimizer.serving.settings import Settings
from optimizer.serving.worker import Worker, shared
from optimizer.store import Store

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})


def ask(server: Process, method: str = "POST", path: str = "/v2/models/quick/infer", body: str | None = BODY) -> Any:
    """On a connection of its own, so that any worker may get it."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def eventually(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
    return found


def forget(server: Process) -> None:
    """Ask for what takes a while, and may be in a worker that is killed."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(server, path="/v2/models/slow/infer")


def counted(server: Process, start: str) -> float:
    """The sum of the samples whose lines begin so."""
    lines = ask(server, "GET", "/metrics", None)[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


INFERRED = 'ml_requests_total{endpoint="/v2/models/{name}/infer",model="quick",status="200",version="1"}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("workers")
    (home / "quick.json").write_text(json.dumps({"latency_s": 0.005, "wait": "sleep"}))
    (home / "slow.json").write_text(json.dumps({"latency_s": 1.0, "wait": "sleep"}))
    made = Process([f"fake:{home / name}.json" for name in ("quick", "slow")] + ["--workers", "2"])
    try:
        assert made.ready
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        try:
            made.process.wait(30)
        finally:
            made.process.kill()


def test_a_worker_that_is_killed_is_replaced_and_its_counts_are_kept(server: Process) -> None:
    first, second = server.ready["workers"]
    assert alive(first)
    assert alive(second)
    assert ask(server, "GET", "/v2/health/ready", None)[0] == 200
    answered, lost = [0] * 4, [0] * 4
    over = threading.Event()

    def client(place: int) -> None:
        while not over.is_set():
            try:
                answered[place] += ask(server)[0] == 200
            except (OSError, http.client.HTTPException):  # it was in the worker that was killed
                lost[place] += 1

    clients = [threading.Thread(target=client, args=(place,)) for place in range(4)]
    for each in clients:
        each.start()
    eventually(lambda: min(answered) >= 5)
    slow = [threading.Thread(target=forget, args=(server,)) for _ in range(6)]
    for each in slow:
        each.start()
    eventually(lambda: counted(server, "ml_active_requests") >= 6)
    os.kill(first, signal.SIGKILL)
    (event,) = eventually(lambda: [e for e in server.log if e["event"] == "worker"])
    assert (event["pid"], event["code"], event["restarts"]) == (first, -9, 1)
    eventually(lambda: counted(server, "ml_worker_restarts_total") == 1)
    before, was_lost = sum(answered), sum(lost)
    eventually(lambda: sum(answered) >= before + 20)
    over.set()
    for each in (*clients, *slow):
        each.join(30)
    # Each client can have been in the worker that died once, and in its queue once; nothing is lost from then on.
    assert was_lost <= 8
    assert sum(lost) == was_lost
    # What the dead one had answered is counted still, but for what it was about to count.
    total = counted(server, INFERRED)
    assert sum(answered) <= total <= sum(answered) + sum(lost)
    # Of what it was in the middle of nothing is left; the one is whoever asks for it.
    eventually(lambda: counted(server, "ml_active_requests") == 1)
    eventually(lambda: counted(server, "ml_queue_depth") == 0)
    assert counted(server, "ml_model_info") == 2
    seen = {e["pid"] for e in server.log if e["event"] == "worker"}
    assert seen == {first}
    assert alive(second)


def test_every_worker_tells_the_same_counts(server: Process) -> None:
    before = counted(server, INFERRED)
    for _ in range(20):
        assert ask(server)[0] == 200
    assert {counted(server, INFERRED) for _ in range(10)} == {before + 20}


def test_why_finds_a_request_in_whichever_worker_answered_it(server: Process) -> None:
    ids = [f"mine-{number}" for number in range(12)]
    for id in ids:
        connection = http.client.HTTPConnection(server.address, timeout=30)
        connection.request("POST", "/v2/models/quick/infer", BODY, {"X-Request-Id": id})
        assert connection.getresponse().status == 200
        connection.close()
    asked = [_asked(server.url, id, "") for id in ids]
    assert [(status, found["id"]) for status, found in asked] == [(200, id) for id in ids]
    status, listed = _asked(server.url, "", "")
    assert status == 200
    assert {each["id"] for each in listed["newest"]} >= set(ids)
    status, refused = _asked(server.url, "nobody's", "")
    assert status == 404
    assert "is kept" in refused["error"]
    assert fetch(server.url, "/v2/requests/nobody")[2]["X-Workers"] == "2"


def test_one_of_several_does_not_load_for_all(server: Process) -> None:
    status, content = ask(server, "POST", "/v2/repository/models/quick/unload", None)
    assert status == 400
    assert "restart the server" in content
    assert ask(server)[0] == 200


def test_it_ends_when_it_is_asked_to_and_loses_nothing(server: Process) -> None:
    """The last of this file: the server is gone after it."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    pids = children.read_text().split()
    assert len(pids) == 2
    statuses: list[int] = []

    def client() -> None:
        connection = http.client.HTTPConnection(server.address, timeout=30)
        while True:
            try:
                connection.request("POST", "/v2/models/quick/infer", BODY)
            except OSError:
                return
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
            if response.getheader("Connection") == "close":
                return

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    eventually(lambda: len(statuses) >= 8)
    server.process.send_signal(signal.SIGTERM)
    for each in clients:
        each.join(30)
    assert server.process.wait(30) == 0
    assert set(statuses) == {200}
    assert not any(alive(int(pid)) for pid in pids)


def test_a_worker_is_not_ready_before_all_are_and_ends_with_its_parent(tmp_path: Path) -> None:
    """Played by this test: the parent."""
    (tmp_path / "quick.json").write_text("{}")
    reading, writing = os.pipe()
    with _bound(Settings(port=0), shared=True) as held:
        port = held.getsockname()[1]
        words = ["serve", f"fake:{tmp_path / 'quick.json'}", "--workers", "2", "--quiet"]
        process = subprocess.Popen(
            [sys.executable, "-m", "optimizer", *words], stdin=subprocess.PIPE, pass_fds=[writing], cwd=ROOT,
            env={**os.environ, **Worker(0, port, writing, False).environment(), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        os.close(writing)
        try:
            assert process.stdin is not None
            with os.fdopen(reading) as reports:
                assert json.loads(reports.readline())["event"] == "ready"
                assert health(port) == 503
                process.stdin.write(b"ready\n")
                process.stdin.flush()
                assert json.loads(reports.readline()) == {"event": "open"}
                assert health(port) == 200
                process.stdin.close()
                assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_worker_whose_parent_is_gone_does_not_go_on_loading(tmp_path: Path) -> None:
    (tmp_path / "slow.json").write_text(json.dumps({"load_s": 3600}))
    reading, writing = os.pipe()
    with _bound(Settings(port=0), shared=True) as held:
        words = ["serve", f"fake:{tmp_path / 'slow.json'}", "--workers", "2", "--quiet"]
        process = subprocess.Popen(
            [sys.executable, "-m", "optimizer", *words], stdin=subprocess.PIPE, pass_fds=[writing], cwd=ROOT,
            env={**os.environ, **Worker(0, held.getsockname()[1], writing, False).environment(),
                 "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        os.close(writing)
        try:
            assert process.stdin is not None
            eventually(lambda: listens(held.getsockname()[1]))
            process.stdin.close()
            assert process.wait(30) == 1
        finally:
            process.kill()
            os.close(reading)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        return health(port) == 503
    return False


def health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v2/health/ready")
    status = connection.getresponse().status
    connection.close()
    return status


def test_what_cannot_be_served_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text("{")
    words = ["serve", f"fake:{tmp_path / 'wrong.json'}", "--workers", "2", "--port", "0", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", *words], capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "BadInput"
    assert "is not a fake model" in error["message"]


def test_workers_share_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.serving.worker.cpu_threads", lambda: 5)
    mine = shared(Settings(workers=2, memory="3GiB", cache="256MiB"))
    assert (mine.threads, mine.memory, mine.cache, mine.workers) == (2, str(3 * 2**29), "131072KiB", 2)
    assert shared(Settings(workers=2, cache="redis://here:6379/0")).cache == "redis://here:6379/0"
    assert shared(Settings(workers=8)).threads == 1
    assert shared(Settings(workers=2, threads=3)).threads == 3


def test_workers_cannot_count_a_rate_without_redis(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('[auth]\nrate = "10/minute"\n[server]\nworkers = 2\n')
    with pytest.raises(BadInput, match="2 workers cannot count a rate together"):
        guard_of(read_config(tmp_path / "serve.toml"))


def test_workers_cannot_share_a_port_that_nobody_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="each worker a port of its own") as refused:
        serve([], Settings(workers=2, port=0, grpc_port=0), Store(tmp_path), lambda event: None)
    assert "--grpc-port 8001" in refused.value.hint


def test_a_port_of_grpc_that_another_server_has_is_not_shared_with_it() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another server's workers do
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MissingPiece, match=f"cannot listen on 127.0.0.1:{port} for gRPC") as refused:
            _bound(Settings(port=0, grpc_port=port), shared=True)
    assert "--grpc-port" in refused.value.hint
