"""Several real child processes with planted models."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from benching.passes import workload_of

from optimizer.benching import measure as measuring
from optimizer.benching.inputs import save
from optimizer.benching.measure import Feeds, Plan, measure, orders
from optimizer.benching.scenario import Scenario
from optimizer.benching.shape import Shape
from optimizer.benching.stats import speedup
from optimizer.data.batching import Batching
from optimizer.runtime import Candidate, Provider

SHAPES = (Shape(1, 4), Shape(2, 4))


@pytest.fixture
def lanes(tmp_path):
    def run(*models, **plan):
        candidates = []
        for number, model in enumerate(models):
            path = tmp_path / f"{number}.json"
            path.write_text(json.dumps({key: value for key, value in model.items() if key != "command"}))
            command = model.get("command", ())
            candidates.append(Candidate(f"model {number}", path, Provider("fake"), command=command))

        def feeds_for(specs):
            assert [spec.name for spec in specs] == ["x"]
            timed = {}
            for shape in SHAPES:
                timed[shape] = [tmp_path / f"{shape}.npz"]
                np.savez(timed[shape][0], x=np.ones((shape.batch, shape.sequence), np.float32))
            return Feeds(timed, timed[SHAPES[0]])

        told = []
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        settings = {"rounds": 4, "seconds": 0.1, "samples": 8, "timeout": 30.0, "warm_limit_s": 0.3, **plan}
        found = measure(
            candidates, Plan(SHAPES, 1, **settings), feeds_for, scratch, lambda *words, **_: told.append(words[0])
        )
        assert all(lane.process is None or not Path(f"/proc/{lane.process.pid}").exists() for lane in found)
        return found, told

    return run


def test_orders_are_shuffled_and_mirrored():
    found = orders(5, 6, seed=0)
    assert all(sorted(order) == list(range(5)) for order in found)
    assert found[1] == found[0][::-1]
    assert found[3] == found[2][::-1]
    assert found[0] != found[2]
    assert found == orders(5, 6, seed=0)
    assert found != orders(5, 6, seed=1)


def test_each_turn_comes_as_early_as_late():
    places = np.array([order.index(0) for order in orders(3, 8, seed=4)])
    assert places.mean() == 1.0


def test_a_planted_speed_up_is_found(lanes):
    (slow, fast), told = lanes({"latency_s": 0.01, "wait": "sleep"}, {"latency_s": 0.005, "wait": "sleep"}, samples=16)
    for shape in SHAPES:
        assert len(slow.rounds[shape]) == len(fast.rounds[shape]) == 4
        assert sum(map(len, slow.rounds[shape])) >= 16
        assert sum(map(sum, fast.rounds[shape])) >= 0.09e9
        assert slow.first_s[shape] >= 0.01
        assert len(slow.warm[shape]) >= 3
        assert speedup(slow.rounds[shape], fast.rounds[shape]).value == pytest.approx(2.0, rel=0.25)
    assert slow.peak_rss > 10_000_000
    assert np.array_equal(np.load(slow.answers[0])["y"], np.load(fast.answers[0])["y"])
    assert told.count("measuring, round 4 of 4") == len(SHAPES)


def test_one_failing_candidate_does_not_stop_the_others(lanes):
    found, _ = lanes({}, {"die_after": 30}, {"fail_after": 0}, {"hang_after": 0}, {"inputs": 3}, timeout=3.0)
    assert [lane.alive for lane in found] == [True, False, False, False, False]
    assert len(found[0].rounds[SHAPES[1]]) == 4
    assert "SIGKILL" in found[1].error
    assert found[2].error == "the fake model fails after 0 calls"
    assert found[3].error.startswith("hung")
    assert "TypeError" in found[4].error


def test_when_all_fail_there_is_no_race(lanes):
    found, told = lanes({"inputs": 3}, {"inputs": 3})
    assert not any(lane.alive for lane in found)
    assert not any(words.startswith("measuring") for words in told)


def test_inputs_that_cannot_be_made_leave_no_process(tmp_path):
    path = tmp_path / "m.json"
    path.write_text("{}")

    def feeds_for(specs):
        raise RuntimeError("no inputs")

    before = set(_children())
    with pytest.raises(RuntimeError, match="no inputs"):
        measure(
            [Candidate("m", path, Provider("fake"))], Plan(SHAPES, 1), feeds_for, tmp_path, lambda *words, **_: None
        )
    assert set(_children()) <= before


def _children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


#: A peer that is no part of ml-opt: the documented lines and nothing else.
PEER = """
import json, sys
import numpy as np
PASSES = {}
SPEC = {"name": "x", "dtype": "float32", "shape": ["batch", "sequence"]}
for line in sys.stdin:
    request = json.loads(line)
    reply = {"ok": True, "peak_rss": 77}
    if request["do"] == "open":
        reply |= {"load_s": 1.5, "inputs": [SPEC], "outputs": [], "facts": {"label": request["candidate"]["label"]}}
    elif request["do"] == "shape":
        reply |= {"first_s": 0.5, "outputs": {}}
        if request["shape"] == "2x4":
            reply["facts"] = {"bound": request["shape"]}  # one that says nothing more is right as well
    elif request["do"] == "pass":
        batches = [len(np.load(path)["x"]) for path in request["feeds"]]
        PASSES[request["shape"]] = 1000 * len(batches) + sum(batches)
        reply |= {"first_s": 0.5}
    elif request["do"] == "warm":
        reply |= {"windows_ns": [3, 3, 3], "stable": True}
    elif request["do"] == "time":
        reply |= {"ns": [PASSES.get(request["shape"], 1000 + len(request["shape"]))] * request["samples"]}
    elif request["do"] == "answer":
        np.savez(request["out"], y=np.load(request["feeds"])["x"] * 2)
    print(json.dumps(reply), flush=True)
"""


def test_each_candidate_gets_the_same_rows_in_batches_of_its_own(tmp_path):
    """A peer says how many batches it was given, and how many rows: each lane times its own passes and no other."""
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    path = tmp_path / "m.json"
    path.write_text("{}")
    candidates = [
        Candidate(name, path, Provider("fake"), command=(sys.executable, str(script))) for name in ("many", "few")
    ]
    made = workload_of(tmp_path, 8, Batching(rows=2))
    ones, eights = made.batched(Batching(rows=1)), made.batched(Batching(rows=8))

    def feeds_for(specs):
        timed = {load: save(tmp_path, f"{number}", load.feeds()) for number, load in enumerate((made, ones, eights))}
        return Feeds(timed, timed[made][:1])

    (tmp_path / "scratch").mkdir()
    plan = Plan((made,), 1, rounds=3, seconds=0.01, samples=3, timeout=30.0, warm_limit_s=0.1)
    loads = [[(made, ones)], [(eights,)]]
    many, few = measure(candidates, plan, feeds_for, tmp_path / "scratch", lambda *words, **_: None, loads=loads)
    assert [many.error, few.error] == ["", ""]
    assert many.rounds == {made: [[4008]] * 3, ones: [[8008]] * 3}
    assert few.rounds == {eights: [[1008]] * 3}


def test_a_peer_takes_part_with_a_command_of_its_own(lanes, tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    (ours, peer), _ = lanes({}, {"command": (sys.executable, str(script))})
    assert ours.alive, ours.error
    assert peer.alive, peer.error
    assert peer.opened["facts"] == {"label": "model 1", "bound": "2x4"}
    for shape in SHAPES:
        assert peer.rounds[shape] == [[1000 + len(str(shape))] * 2] * 4
        assert len(ours.rounds[shape]) == 4
        assert ours.rounds[shape] != peer.rounds[shape]
    assert peer.peak_rss == 77
    assert np.load(peer.answers[0])["y"].tolist() == [[2.0] * 4]


def test_a_peer_that_knows_no_open_loop_says_so(lanes, tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    (ours, peer), _ = lanes({}, {"command": (sys.executable, str(script))}, scenario=Scenario.SERVER, qps=200.0)
    assert ours.alive, ours.error
    assert peer.error == "its process does not know `serve`"


def test_everyone_gets_the_same_arrivals_and_every_round_others(lanes):
    planted = {"latency_s": 0.001, "wait": "sleep"}
    (one, other), _ = lanes(planted, planted, scenario=Scenario.SERVER, qps=200.0, samples=24, seconds=0.2)
    for shape in SHAPES:
        mine, theirs = ([served.scheduled for served in lane.served[shape]] for lane in (one, other))
        assert mine == theirs
        assert [len(times) for times in mine] == [10] * 4  # 0.2 s at 200 a second are more than 24 samples
        assert len({tuple(times) for times in mine}) == 4
        assert one.rounds[shape] == [served.latency for served in one.served[shape]]


def test_gpu_memory_is_asked_for_each_process_after_its_rounds(lanes, monkeypatch):
    asked = []

    def held(pid):
        asked.append(pid)
        return 1000 + len(asked)

    monkeypatch.setattr(measuring, "vram_of", held)
    (one, dead, other), _ = lanes({}, {"fail_after": 0}, {})
    assert [lane.peak_vram for lane in (one, dead, other)] == [1001, None, 1002]
    assert asked == [one.process.pid, other.process.pid]
