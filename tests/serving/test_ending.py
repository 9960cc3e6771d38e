"""How a server begins and ends: what it says, its exit codes, and that SIGTERM loses nothing."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from serving import artifacts
from serving.conftest import ROOT, Process

from optimizer.store import Store

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})


def test_sigterm_is_503_at_once_and_loses_nothing(tmp_path: Path) -> None:
    planted = tmp_path / "slow.json"
    planted.write_text(json.dumps({"latency_s": 0.02, "wait": "sleep"}))
    server = Process([f"fake:{planted}", "--grace", "10s", "--quiet"])
    asked, answered, statuses = [0] * 6, [0] * 6, set()

    def ask(place: int) -> None:
        """Ask again and again on one connection until the server has said that it closes it, or is gone."""
        connection = http.client.HTTPConnection(server.address, timeout=20)
        while True:
            try:
                connection.request("POST", "/v2/models/slow/infer", BODY)
            except OSError:  # nobody listens any more: this one was never accepted
                return
            asked[place] += 1
            response = connection.getresponse()
            response.read()
            statuses.add(response.status)
            answered[place] += 1
            if response.getheader("Connection") == "close":
                return

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    while min(answered) < 3:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    probe = http.client.HTTPConnection(server.address, timeout=5)
    probe.request("GET", "/v2/health/ready")
    response = probe.getresponse()
    assert (response.status, json.loads(response.read())) == (503, {"ready": False, "live": True})
    for thread in threads:
        thread.join(20)
    assert server.process.wait(20) == 0
    assert asked == answered
    assert statuses == {200}


def test_a_model_that_hangs_does_not_hold_the_end_up_and_its_requests_are_503(tmp_path: Path) -> None:
    planted = tmp_path / "stuck.json"
    planted.write_text(json.dumps({"hang_after": 0}))
    server = Process([f"fake:{planted}", "--grace", "200ms"])
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.request("POST", "/v2/models/stuck/infer", BODY, {"X-Request-Id": "mine"})
    server.process.send_signal(signal.SIGTERM)
    response = connection.getresponse()
    said = "the server ended before this request was answered"
    assert (response.status, response.getheader("Connection")) == (503, "close")
    assert json.loads(response.read()) == {"error": said}
    assert server.process.wait(30) == 0
    server.end()  # its log is read to the end
    (event,) = [each for each in server.log if each.get("id") == "mine"]
    assert (event["status"], event["reason"], event["error"]) == (503, "ended", said)


@pytest.mark.parametrize(("damage", "code", "word"), [(None, 4, "cannot listen"), ("bytes", 5, "is damaged")])
def test_what_cannot_be_served_ends_with_its_code(tmp_path: Path, damage: str | None, code: int, word: str) -> None:
    import socket

    store = Store(tmp_path / "models")
    artifact = artifacts.put(store, "classes")
    if damage:
        artifact.model_file.write_bytes(artifact.model_file.read_bytes() + b"!")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = "0" if damage else str(taken.getsockname()[1])
        words = ["serve", "classes", "--store", str(store.root), "--port", port, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "optimizer", *words], capture_output=True, text=True, timeout=60, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert word in json.loads(done.stdout)["error"]["message"]


def test_what_several_threads_need_is_imported_before_there_are_any(tmp_path: Path) -> None:
    """Two threads cannot both be the first to import numpy; the first requests come while models are loaded."""
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from optimizer.serving import server\n"
        "from optimizer.serving.settings import Settings\n"
        "from optimizer.store import Store\n"
        "def bound(*words, **more):\n"
        "    print(threading.active_count(), sorted(set(server.MODULES) - set(sys.modules)))\n"
        "    raise SystemExit\n"
        "server._bound = bound\n"
        "server.serve([], Settings(port=0), Store(Path(sys.argv[1])), lambda event: None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "1 []\n", done.stderr
