"""MLPerf's LoadGen, which we did not write, drives the session that we drive: what both say of it must agree."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import conformance, loadgen
from optimizer.benching.candidates import Entrant, candidate_to_json
from optimizer.benching.measure import Plan
from optimizer.benching.openloop import SystemClock, drive, judge
from optimizer.benching.scenario import Scenario
from optimizer.benching.shape import Shape
from optimizer.benching.stats import Ratio, summarize, throughput
from optimizer.benching.worker import measure
from optimizer.runtime import Candidate, Provider, SessionOptions
from optimizer.runtimes import fake
from optimizer.runtimes.fake import FakeModel, FakeSession

MS = 1_000_000


def session(rows: int = 1, **model: Any) -> Callable[[], None]:
    """A call of a fresh fake session: the same seed, so the same planted times, in the same order."""
    opened = FakeSession(FakeModel(**{"wait": "sleep", **model}), SessionOptions())
    return opened.bind({"x": np.ones((rows, 2), np.float32)})


class Timed:
    """A call that times itself, as our loops do: clock, call, clock."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.took: list[int] = []

    def __call__(self) -> None:
        clock = SystemClock()
        start = clock.now()
        self._call()
        self.took.append(clock.now() - start)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nanoseconds that fake sessions were told to take, call by call."""
    told: list[int] = []
    wait = fake._wait

    def noted(seconds: float, how: str) -> None:
        if seconds:  # opening takes none
            told.append(int(seconds * 1e9))
        wait(seconds, how)

    monkeypatch.setattr(fake, "_wait", noted)
    return told


def test_single_stream_the_same_calls_on_both_clocks() -> None:
    call = Timed(session(latency_s=0.002, noise=0.4))
    log = loadgen.single_stream(call, 0.5, 100)
    assert len(log.latency) == len(call.took) == log.says["query_count"] >= 100
    # The last call answers the query that the first one of ours timed, and so on: LoadGen's time is ours and its own.
    beyond = [theirs - ours for ours, theirs in zip(call.took, log.latency, strict=True)]
    assert min(beyond) >= 0
    assert statistics.median(beyond) < 0.2 * MS


@pytest.mark.parametrize("count", [50, 500])
def test_percentiles_are_the_ones_in_its_log(count: int) -> None:
    """LoadGen takes the sample at a percentile's rank and we interpolate: never more than one sample apart."""
    log = loadgen.single_stream(session(latency_s=0.0005, noise=0.5), 0.0, count)
    ours = summarize([log.latency])
    stated = {"p50": ours.p50_ms, **ours.percentiles_ms}
    assert list(stated) == (["p50", "p90"] if count == 50 else ["p50", "p90", "p99"])
    for name, value in stated.items():
        theirs = log.says[f"{float(name[1:]):.2f}_percentile_latency_ns"]
        ordered, share = sorted(log.latency), float(name[1:]) / 100
        assert theirs == ordered[math.floor(share * count)]
        below = math.floor(share * (count - 1))
        assert ordered[below] <= round(value * MS) <= ordered[below + 1]
        assert below in (math.floor(share * count) - 1, math.floor(share * count))
    assert ours.mean_ms * MS == pytest.approx(log.says["mean_latency_ns"], abs=1)  # LoadGen's is a whole number
    assert ours.min_ms * MS == pytest.approx(log.says["min_latency_ns"], rel=1e-6)


def test_single_stream_the_same_planted_noise_in_both_loops(planted: list[int]) -> None:
    """Each loop times 200 calls of the same seeded noise; the times that the calls took themselves are subtracted."""
    found = {}
    for name in ("ours", "loadgen"):
        planted.clear()
        call = Timed(session(latency_s=0.002, noise=0.5))
        if name == "ours":
            samples = measure(call, 0.0, 200, first=lambda: None)
        else:
            samples = loadgen.single_stream(call, 0.0, 200).latency
        own = [sample - took for sample, took in zip(samples, call.took, strict=True)]
        assert min(own) >= 0
        assert statistics.median(own) < 0.2 * MS
        assert all(sample >= wanted for sample, wanted in zip(samples, planted, strict=True))
        found[name] = planted[:200]
    assert found["ours"] == found["loadgen"]
    assert len(set(found["ours"])) == 200


def test_offline_throughput() -> None:
    """25 batches of 8 rows at 8 ms each: a thousand rows a second at most, and what the calls took in both loops."""
    planted = {"latency_s": 0.004, "row_s": 0.0005}
    call = Timed(session(8, **planted))
    log = loadgen.offline(call, 8, 25)
    assert len(log.latency) == 200
    theirs = log.says["samples_per_second"]
    assert theirs <= 1000
    assert throughput([call.took], 8).value == pytest.approx(theirs, rel=0.05)
    call = Timed(session(8, **planted))
    ours = throughput([measure(call, 0.0, 25, first=lambda: None)], 8).value
    assert ours <= 1000
    assert throughput([call.took[:25]], 8).value == pytest.approx(ours, rel=0.05)


def test_server_the_same_arrivals_and_noise_in_both_loops(planted: list[int]) -> None:
    """Our loop is given LoadGen's schedule and the same planted times: each query must wait for the same ones."""
    model = {"latency_s": 0.005, "noise": 0.3}
    call = Timed(session(**model))
    log = loadgen.server(call, 100.0, 150, seed=5)
    theirs = loadgen.served(log)
    assert len(theirs.latency) == log.says["query_count"] == 150
    ours = drive(theirs.scheduled, [session(**model)], SystemClock())
    for run in (ours, theirs):
        # Theory, for the times that these queries really took: Lindley's recursion, of which no run may be faster.
        took = [done - sent for sent, done in zip(run.issued, run.done, strict=True)]
        free, exact = 0, []
        for due, length in zip(run.scheduled, call.took if run is theirs else took, strict=True):
            free = max(due, free) + length
            exact.append(free - due)
        beyond = [real - least for real, least in zip(run.latency, exact, strict=True)]
        assert min(beyond) >= -0.01 * MS  # the trace is in whole nanoseconds, its clock another thread's
        assert statistics.median(beyond) < MS
    assert planted[:150] == planted[150:]
    found = judge([theirs], 100.0, None)
    assert found.scheduled_qps == pytest.approx(log.says["scheduled_samples_per_sec"], rel=0.01)
    assert found.achieved_qps == pytest.approx(log.says["completed_samples_per_sec"], rel=0.02)
    assert summarize([theirs.latency]).mean_ms * MS == pytest.approx(log.says["mean_latency_ns"], abs=1)


def test_the_worker_answers_as_ours_does(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"latency_s": 0.002, "wait": "sleep"}))
    np.savez(tmp_path / "x.npz", x=np.ones((4, 2), np.float32))
    candidate = candidate_to_json(Candidate("m", tmp_path / "m.json", Provider("fake")))
    for scenario in Scenario:
        worker = loadgen.LoadGenWorker(scenario)
        assert worker.answer({"do": "open", "candidate": candidate, "threads": 1})["ok"]
        assert worker.answer({"do": "shape", "shape": "4x2", "feeds": str(tmp_path / "x.npz")})["ok"]
        if scenario is Scenario.SERVER:
            asked = {"do": "serve", "shape": "4x2", "qps": 200.0, "queries": 20, "seed": "0:3", "streams": 1}
            reply = worker.answer(asked)
            assert reply["ok"], reply
            assert len(reply["done"]) == 20
            assert all(a < b for a, b in pairwise(reply["scheduled"]))
        else:
            reply = worker.answer({"do": "time", "shape": "4x2", "seconds": 0.05, "samples": 10})
            assert reply["ok"], reply
            assert len(reply["ns"]) >= 10
            assert min(reply["ns"]) >= 2 * MS


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((1.0, 0.91, 1.10), "agree"),
        ((1.0, 0.89, 1.10), "too wide to tell"),
        ((1.0, 0.0, math.inf), "too wide to tell"),
        ((0.8, 0.7, 0.89), "disagree"),
        ((1.3, 1.12, 1.4), "disagree"),
    ],
)
def test_two_harnesses_agree_when_the_whole_interval_says_so(ratio: tuple[float, float, float], said: str) -> None:
    assert conformance.judged(Ratio(*ratio), True) == said
    assert conformance.judged(Ratio(*ratio), False) == "INVALID"


@pytest.mark.parametrize("scenario", Scenario)
def test_conformance_times_one_session_under_both(tmp_path: Path, scenario: Scenario) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"latency_s": 0.004, "wait": "sleep"}))
    entrant = Entrant(Candidate("m", tmp_path / "m.json", Provider("fake")))
    qps = 100.0 if scenario is Scenario.SERVER else 0.0
    plan = Plan((Shape(2, 4),), 1, rounds=3, seconds=0.2, samples=48, timeout=60.0, scenario=scenario, qps=qps)
    found = conformance.compared_by(entrant, plan)
    assert all(count >= 48 for count in found["samples"].values())
    for name in ("ml-opt", "loadgen"):
        if scenario is Scenario.OFFLINE:
            assert 0 < found[name]["rows/s"] <= 500
        else:
            assert found[name]["p50 ms"] >= 4
    shown = conformance.table([found])
    assert shown.splitlines()[2].startswith(f"| {scenario.value}")
    assert found["judged"] in shown
