"""Workers that are forked by a process that has imported PyTorch, beside those that import it themselves."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from exporting.fixtures import arch
from processes import alive, parent

from optimizer.benching.candidates import candidate_to_json
from optimizer.benching.forkserver import ForkServer, current, fork_server
from optimizer.benching.measure import Feeds, Plan, measure
from optimizer.benching.process import CandidateFailed, WorkerProcess
from optimizer.benching.shape import Shape
from optimizer.checks.optimize import CHECK
from optimizer.runtime import Candidate, Provider
from optimizer.search import build
from optimizer.stage import silent

__all__ = ["arch"]

SHAPE = Shape(1, 8)
#: The same worker, in words that are not ml-opt's own: as a peer's, it is started.
STARTED = (sys.executable, "-u", "-m", "optimizer.benching.worker")


BLOCKED = "raise ImportError('not here')"


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A server whose imports fail at once."""
    for name in ("torch", "transformers"):
        (tmp_path / "lacking" / name).mkdir(parents=True)
        (tmp_path / "lacking" / name / "__init__.py").write_text(BLOCKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lacking"))
    with fork_server(driver=tmp_path / "none"):
        yield current()


@pytest.fixture
def start(tmp_path):
    """Starts a worker; all are ended after the test."""
    started = []

    def make(candidate=None, threads=1, **more):
        log = tmp_path / f"log-{len(started)}"
        made = WorkerProcess.of(candidate, log, threads) if candidate else WorkerProcess(log, threads, **more)
        started.append(made)
        return made

    yield make
    for process in started:
        process.kill()


def feeds(tmp_path: Path) -> Feeds:
    ids = np.arange(8, dtype=np.int64)[None] + 1
    np.savez(tmp_path / "f.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return Feeds({SHAPE: [tmp_path / "f.npz"]}, [tmp_path / "f.npz"])


def test_a_report_says_of_it_what_it_would_say_of_one_that_was_started(arch, tmp_path):
    folder = arch("bert", "feature-extraction")
    pair = [Candidate(f"torch{way}", folder, Provider("torch"), command=way) for way in ((), STARTED)]
    plan = Plan((SHAPE,), threads=1, rounds=2, seconds=0.1, samples=4)
    with fork_server(driver=tmp_path / "none"):
        forked, started = measure(pair, plan, lambda specs: feeds(tmp_path), tmp_path, silent)
    assert not forked.error
    assert not started.error
    assert forked.peak_rss == pytest.approx(started.peak_rss, rel=0.04)
    # What was imported before is a part of loading it, and by far the largest.
    assert forked.opened["load_s"] > forked.process.imports_s > 0 == started.process.imports_s
    answers = [np.load(lane.answers[0]) for lane in (forked, started)]
    assert all(np.array_equal(answers[0][name], answers[1][name]) for name in answers[0])


@pytest.mark.parametrize(
    ("candidate", "forked"),
    [
        (Candidate("eager", Path("m"), Provider("torch")), True),
        (Candidate("compiled", Path("m"), Provider("torch", "compiled")), True),
        (Candidate("on a GPU", Path("m"), Provider("torch", "cuda-bf16")), False),
        (Candidate("onnx", Path("m.onnx"), Provider("cpu")), False),
        (Candidate("a peer", Path("m"), Provider("torch"), command=STARTED), False),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_what_needs_pytorch_on_the_processor_is_forked(candidate, forked, quick, start):
    assert (parent(start(candidate).pid) != os.getpid()) == forked


def test_other_threads_are_another_environment(quick, start):
    first, second, third = start(torch=True), start(torch=True, threads=2), start(torch=True)
    assert parent(first.pid) == parent(third.pid) != os.getpid() == parent(second.pid)


def test_a_server_that_dies_takes_its_workers_and_no_search_with_it(quick, start):
    first = start(torch=True)
    os.kill(parent(first.pid), signal.SIGKILL)
    end = time.monotonic() + 30  # a worker that the system has not ended yet may still answer
    while alive(first.pid):
        assert time.monotonic() < end, "it outlived its server"
        time.sleep(0.01)
    with pytest.raises(CandidateFailed, match="ended by SIGKILL"):
        first.ask({"do": "runs"}, 30)
    assert parent(start(torch=True).pid) == os.getpid()


def test_what_is_not_installed_is_the_workers_own_error(quick, start):
    candidate = Candidate("m", Path("m"), Provider("torch"))
    with pytest.raises(CandidateFailed, match="not here"):
        start(candidate).ask({"do": "open", "candidate": candidate_to_json(candidate), "threads": 1}, 60)


def test_nothing_is_forked_where_there_is_a_driver_or_after_the_block(tmp_path):
    (tmp_path / "nvidiactl").touch()
    with fork_server(driver=tmp_path / "nvidiactl"):
        assert current() is None
    with fork_server(driver=tmp_path / "none"):
        assert current() is not None
    assert current() is None


@pytest.mark.parametrize(("request_", "forked"), [
    ({"do": "export", "stage": "export-onnx", "model": "{folder}"}, True),
    ({"do": "export", "stage": "export-genai", "model": "{folder}"}, True),
    ({"do": "export", "stage": "export-onnx", "model": "{folder}/m.onnx"}, False),
    # What is fetched needs the hub's client as it is outside of measurements.
    ({"do": "export", "stage": "export-onnx", "model": "someone/model"}, False),
    ({"do": "build", "stage": "train-qat"}, True),
    ({"do": "build", "stage": "quantize-static"}, False),
], ids=str)  # fmt: skip
def test_stages_that_need_pytorch_are_forked(request_, forked, store, tmp_path, monkeypatch):
    asked = []

    class Process:
        def __init__(self, *given, torch):
            asked.append(torch)

        def ask(self, *given):
            return {}

        def kill(self): ...

    monkeypatch.setattr(build, "WorkerProcess", Process)
    (tmp_path / "m.onnx").touch()
    request = {name: value.format(folder=tmp_path) for name, value in request_.items()}
    build._asked(request, store, tmp_path / "log", 1, 1.0, silent)
    assert asked == [forked]


def test_optimize_runs_with_one(store, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("optimizer.search.run.optimize", lambda *given: found.append(current()))
    monkeypatch.setattr("optimizer.search.texts.run.writes_text", lambda *given: False)
    monkeypatch.setattr("optimizer.benching.forkserver.DRIVER", tmp_path / "none")
    CHECK.run(("model",), CHECK.options(), store, silent)
    assert isinstance(found[0], ForkServer)
    assert current() is None
