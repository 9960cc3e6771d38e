"""A real child process: its answers, its silence, its death."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import parent, state

from optimizer.benching.candidates import candidate_to_json
from optimizer.benching.forkserver import fork_server
from optimizer.benching.process import CandidateFailed, WorkerProcess, worker_environment
from optimizer.runtime import Candidate, Provider


@pytest.fixture(params=["started", "forked"])
def way(request, tmp_path, monkeypatch):
    """Both ways to a worker; the imports before a fork fail here, which no worker of these tests is to notice."""
    if request.param == "started":
        yield request.param
        return
    for name in ("torch", "transformers"):
        (tmp_path / "lacking" / name).mkdir(parents=True)
        (tmp_path / "lacking" / name / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lacking"))
    with fork_server(driver=tmp_path / "none"):
        yield request.param


@pytest.fixture
def start(way, tmp_path):
    started = []

    def make(**model):
        path = tmp_path / "m.json"
        path.write_text(json.dumps(model))
        np.savez(tmp_path / "f.npz", x=np.ones((1, 2), np.float32))
        process = WorkerProcess(tmp_path / f"log-{len(started)}", threads=1, torch=True)
        started.append(process)
        assert (parent(process.pid) == os.getpid()) == (way == "started")
        candidate = candidate_to_json(Candidate("m", path, Provider("fake")))
        process.ask({"do": "open", "candidate": candidate, "threads": 1}, 60)
        return process

    yield make
    for process in started:
        process.kill()


def shape(process, tmp_path, timeout=60.0):
    return process.ask({"do": "shape", "shape": "1x2", "feeds": str(tmp_path / "f.npz")}, timeout)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_what_a_library_prints_is_no_answer(start, tmp_path):
    process = start(chatter="hello from C\n")
    assert shape(process, tmp_path)["outputs"] == {"y": [1, 4]}
    assert "hello from C" in (tmp_path / "log-0").read_text()


def test_a_child_that_dies_says_how(start, tmp_path):
    with pytest.raises(CandidateFailed, match="ended by SIGKILL") as caught:
        shape(start(die_after=0, chatter="my last words\n"), tmp_path)
    assert "my last words" in caught.value.message


def test_a_child_that_hangs_is_killed(start, tmp_path):
    process = start(hang_after=0)
    with pytest.raises(CandidateFailed, match=r"hung: no answer to 'shape' within 0\.5 s"):
        shape(process, tmp_path, timeout=0.5)
    until(lambda: not Path(f"/proc/{process.pid}").exists())


def test_an_answer_that_is_no_json_ends_the_child(tmp_path):
    process = WorkerProcess(tmp_path / "log", 1, (sys.executable, "-c", "input(); print('Hello!')"))
    with pytest.raises(CandidateFailed, match="not JSON"):
        process.ask({"do": "open"}, 30)


def test_a_child_that_cannot_start_says_why(tmp_path):
    process = WorkerProcess(tmp_path / "log", 1, (sys.executable, "-c", "raise SystemExit('no such thing')"))
    with pytest.raises(CandidateFailed, match="exit code 1; last words: no such thing"):
        process.ask({"do": "open"}, 30)


def test_it_runs_only_in_its_turn(start, tmp_path):
    process = start()
    with process.turn():
        shape(process, tmp_path)
        assert state(process.pid) != "T"
    until(lambda: state(process.pid) == "T")
    with process.turn():
        assert shape(process, tmp_path)["ok"]


def test_every_library_is_told_the_same_threads():
    environment = worker_environment(3)
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}


def test_a_stopped_child_dies_with_a_parent_that_is_killed(way, tmp_path):
    """Even `kill -9` of the parent leaves nothing behind."""
    code = (
        "import contextlib, sys, time; from pathlib import Path\n"
        "from optimizer.benching.forkserver import fork_server\n"
        "from optimizer.benching.process import WorkerProcess\n"
        "stack = contextlib.ExitStack()\n"
        f"stack.enter_context({'fork_server' if way == 'forked' else 'contextlib.nullcontext'}(Path('none')))\n"
        "w = WorkerProcess(Path(sys.argv[1]), 1, torch=True)\n"
        "try: w.ask({'do': 'time', 'shape': 'none'}, 60)\n"
        "except Exception: pass\n"
        "with w.turn(): pass\n"
        "print(w.pid, flush=True); time.sleep(600)\n"
    )
    search = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert search.stdout is not None
    child = int(search.stdout.readline())
    assert (parent(child) == search.pid) == (way == "started")
    until(lambda: state(child) == "T")
    os.kill(search.pid, signal.SIGKILL)
    search.wait()
    search.stdout.close()
    until(lambda: not Path(f"/proc/{child}").exists() or state(child) == "Z")
