"""The child's side, in this process: timing loops and answers to requests."""

import gc
import json
import time

import numpy as np
import pytest

from optimizer.benching.candidates import candidate_to_json
from optimizer.benching.openloop import arrivals
from optimizer.benching.worker import Worker, measure, peak_rss, warm_up
from optimizer.runtime import Candidate, Provider


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_both_minimums_are_met():
    assert len(measure(lambda: spin(0.001), seconds=0.0, samples=7)) == 7
    start = time.perf_counter()
    times = measure(lambda: spin(0.001), seconds=0.05, samples=2)
    assert time.perf_counter() - start >= 0.05
    assert sum(times) >= 0.9 * 0.05e9
    assert all(t >= 1_000_000 for t in times)


def test_the_loop_adds_less_than_two_percent_to_a_call_of_100_microseconds():
    times = measure(lambda: spin(100e-6), seconds=0.3, samples=100)
    assert np.percentile(times, 25) < 102_000


def test_warming_up_ends_when_three_windows_agree():
    pace = [0.02, 0.01, 0.005, 0.002]
    calls = 0

    def call():
        nonlocal calls
        spin(pace[min(calls // 3, 3)])
        calls += 1

    medians, stable = warm_up(call, limit_s=20.0)
    assert stable
    assert len(medians) >= 4  # the first windows differ: three equal ones cannot have come before the fifth
    assert max(medians[-3:]) <= 1.1 * min(medians[-3:])


def test_warming_up_gives_up_at_its_limit():
    calls = 0

    def call():
        nonlocal calls
        calls += 1
        spin(0.0005 * 1.3 ** (calls // 5))

    start = time.perf_counter()
    medians, stable = warm_up(call, limit_s=0.1)
    assert not stable
    assert 0.1 <= time.perf_counter() - start < 3
    assert medians


@pytest.fixture
def worker(tmp_path):
    def make(**model):
        path = tmp_path / "m.json"
        path.write_text(json.dumps(model))
        worker = Worker()
        candidate = Candidate("m", path, Provider("fake"))
        reply = worker.answer({"do": "open", "candidate": candidate_to_json(candidate), "threads": 1})
        assert reply["ok"], reply
        return worker

    return make


def saved(tmp_path, **arrays):
    path = tmp_path / "feeds.npz"
    np.savez(path, **arrays)
    return str(path)


def test_a_whole_conversation(worker, tmp_path):
    one = worker(latency_s=0.001)
    feeds = saved(tmp_path, x=np.ones((2, 3), np.float32), other=np.ones(1))
    reply = one.answer({"do": "shape", "shape": "2x3", "feeds": feeds})
    assert reply["ok"]
    assert reply["outputs"] == {"y": [2, 4]}
    assert reply["first_s"] >= 0.001
    assert reply["peak_rss"] > 10_000_000
    reply = one.answer({"do": "time", "shape": "2x3", "seconds": 0.01, "samples": 3})
    assert len(reply["ns"]) >= 3
    assert min(reply["ns"]) >= 1_000_000
    out = tmp_path / "answer.npz"
    assert one.answer({"do": "answer", "feeds": feeds, "out": str(out)})["ok"]
    assert np.load(out)["y"].shape == (2, 4)
    assert one.answer({"do": "close"})["ok"]


def test_what_binding_found_out_is_told(worker, tmp_path, monkeypatch):
    one = worker(latency_s=0.001)
    feeds = saved(tmp_path, x=np.ones((2, 3), np.float32))
    bind = one._session.bind

    def recorded(given):
        one._session.facts["cuda_graph"] = True
        return bind(given)

    monkeypatch.setattr(one._session, "bind", recorded)
    assert one.answer({"do": "shape", "shape": "2x3", "feeds": feeds})["facts"]["cuda_graph"] is True


@pytest.mark.parametrize("streams", [1, 3])
def test_queries_of_a_schedule_are_answered(worker, tmp_path, streams):
    one = worker(latency_s=0.004, wait="sleep")
    feeds = saved(tmp_path, x=np.ones((2, 3), np.float32))
    assert one.answer({"do": "shape", "shape": "2x3", "feeds": feeds})["ok"]
    asked = {"do": "serve", "shape": "2x3", "qps": 400.0, "queries": 40, "seed": "0:1", "streams": streams}
    reply = one.answer(asked)
    assert reply["ok"], reply
    assert reply["scheduled"] == arrivals(400.0, 40, "0:1")
    assert all(len(reply[name]) == 40 for name in ("issued", "done", "lag"))
    assert all(issued >= due for due, issued in zip(reply["scheduled"], reply["issued"], strict=True))
    assert all(done - issued >= 4_000_000 for issued, done in zip(reply["issued"], reply["done"], strict=True))
    # More than one stream can answer at the time of another, and one cannot.
    overlaps = sum(a > b for a, b in zip(reply["done"], reply["issued"][1:], strict=False))
    assert (overlaps > 0) == (streams > 1)
    assert gc.isenabled()


def test_a_peer_opens_its_models_itself(tmp_path):
    """The loop is ml-opt's, so that a peer is timed by the same code; what is opened, and how, is the peer's."""
    (tmp_path / "m.json").write_text("{}")
    candidate = Candidate("a peer", tmp_path / "m.json", Provider("fake"))
    asked = []

    def opener(candidate, threads):
        asked.append((candidate.label, threads))
        return candidate.open(threads)

    one = Worker(opener)
    assert one.answer({"do": "open", "candidate": candidate_to_json(candidate), "threads": 3})["ok"]
    assert asked == [("a peer", 3)]
    assert one.answer({"do": "shape", "shape": "1", "feeds": saved(tmp_path, x=np.ones((1, 1), np.float32))})["ok"]


def test_whole_numbers_are_cast_to_what_the_model_takes(worker, tmp_path):
    one = worker(inputs=[{"name": "x", "dtype": "int32", "shape": ["batch"]}])
    assert one.answer({"do": "shape", "shape": "2", "feeds": saved(tmp_path, x=np.array([1, 2]))})["ok"]
    reply = one.answer({"do": "shape", "shape": "2", "feeds": saved(tmp_path, x=np.array([1.0, 2.0]))})
    assert "takes int32, not float64" in reply["error"]


def test_an_input_that_is_not_there_is_named(worker, tmp_path):
    reply = worker().answer({"do": "shape", "shape": "2", "feeds": saved(tmp_path, z=np.ones(2))})
    assert not reply["ok"]
    assert "'x'" in reply["error"]


def test_a_failure_is_an_answer(worker, tmp_path):
    one = worker(fail_after=1)
    assert one.answer({"do": "shape", "shape": "1", "feeds": saved(tmp_path, x=np.ones((1, 1), np.float32))})["ok"]
    reply = one.answer({"do": "time", "shape": "1", "seconds": 1, "samples": 5})
    assert reply["ok"] is False
    assert reply["error"] == "the fake model fails after 1 calls"


def test_peak_memory_grows_with_what_was_held():
    before = peak_rss()
    block = np.ones(40_000_000 // 8)
    assert peak_rss() >= before
    assert peak_rss() >= 40_000_000
    del block


def test_a_pass_feeds_every_file_once_a_call(worker, tmp_path):
    one = worker(row_s=0.001, wait="sleep")
    files = []
    for rows in (2, 5):
        np.savez(tmp_path / f"{rows}.npz", x=np.ones((rows, 3), np.float32))
        files.append(str(tmp_path / f"{rows}.npz"))
    reply = one.answer({"do": "pass", "shape": "7 rows", "feeds": files})
    assert reply["ok"], reply
    assert reply["first_s"] >= 0.007
    before = one._session._calls
    warm = one.answer({"do": "warm", "shape": "7 rows", "limit_s": 0.0})
    assert len(warm["windows_ns"]) == 1
    assert min(warm["windows_ns"]) >= 7_000_000, "a window is a whole pass"
    assert (one._session._calls - before) % 2 == 0
    reply = one.answer({"do": "time", "shape": "7 rows", "seconds": 0.0, "samples": 2})
    assert len(reply["ns"]) == 2
    assert min(reply["ns"]) >= 7_000_000
    assert one.answer({"do": "close"})["ok"]
