"""The measurements of the harness itself: what they compare is what they say, and they can find it broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import harness_overhead, self_check
from benchmarks.self_check import CASES, broken, to_markdown, twice
from optimizer.graph.cost import model_cost
from optimizer.store import Store


def test_products_computed_twice_cost_what_is_said_and_answer_the_same_bits(
    minilm_store: Store, tmp_path: Path
) -> None:
    model, slow = minilm_store.get("minilm:fp32").model_file, tmp_path / "twice.onnx"
    twice(model, slow, large=2, small=2)
    onnx.checker.check_model(slow)
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (model, slow)]
    ids = np.random.default_rng(0).integers(1000, 2000, (2, 16))
    feeds = {i.name: ids if i.name == "input_ids" else np.ones_like(ids) for i in sessions[0].get_inputs()}
    for usual, doubled in zip(*(session.run(None, feeds) for session in sessions), strict=True):
        assert np.array_equal(usual, doubled)
    shapes = [{name: array.shape for name, array in feeds.items()}]
    usual, doubled = (sum(model_cost(path, shapes).arithmetic.values()) for path in (model, slow))
    assert 1.12 < doubled / usual < 1.15


def row(number: int, verdict: str, seconds: float = 12.0) -> dict[str, Any]:
    slower = {"value": 0.1, "low": 0.05, "high": 0.15, "says": "slower"}
    return {"number": number, "verdict": verdict, "slower": slower, "floor": 0.02, "seconds": seconds}


def test_wrong_verdicts_beyond_what_is_promised_are_found() -> None:
    runs = {
        "same": [row(i, "REGRESSION" if i < 2 else "PASS") for i in range(40)],
        "planted": [row(i, "INCONCLUSIVE" if i < 3 else "REGRESSION") for i in range(40)],
        "real": [row(i, "PASS" if i < 2 else "REGRESSION", 61.0 if i == 7 else 12.0) for i in range(40)],
    }
    document = {
        "tolerance": "5%", "settings": ["--rounds", "12"], "finished": "2026-11-25T22:00:00+0000", "runs": runs,
        "environment": {"cpu": {"model": "Some CPU", "cores": 2}},
    }  # fmt: skip
    assert broken(document) == [
        "MiniLM against itself: 2 of 40 runs are wrong, where 1 may be",
        "planted: a tenth slower: 3 of 40 runs are wrong, where 2 may be",
        "MiniLM with four products twice: run 7 took 61.0 s",
    ]
    runs["same"][0], runs["planted"][0], runs["real"][7] = row(0, "PASS"), row(0, "REGRESSION"), row(7, "REGRESSION")
    assert broken(document) == []
    lines = to_markdown(document).splitlines()
    assert lines[-3].startswith("| MiniLM against itself | 40 | 1 | 0 | 39 | REGRESSION at most 1 time |")
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_runs_of_other_settings_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "RESULT", tmp_path / "self_check.json")
    document = self_check._known(fresh=False)
    assert document["runs"] == {name: [] for name in CASES}
    document["runs"]["same"].append(row(0, "PASS"))
    self_check.write_report(self_check.RESULT, document)
    assert self_check._known(fresh=False)["runs"]["same"] == [row(0, "PASS")]
    monkeypatch.setattr(self_check, "TOLERANCE", "3%")
    with pytest.raises(SystemExit, match="add --fresh"):
        self_check._known(fresh=False)
    assert self_check._known(fresh=True)["runs"]["same"] == []


def test_the_loop_is_compared_with_a_bare_one() -> None:
    found = harness_overhead.overhead(4)
    assert found["bare_ns"] >= harness_overhead.CALL_NS
    assert found["reported_ns"] >= harness_overhead.CALL_NS, "no call is shorter than the clock says"
    calls = []
    times, each = harness_overhead.whole(lambda: calls.append(1), 20)
    assert len(times) == 20
    assert each >= sum(times) / len(times), "the whole loop takes no less than what is timed in it"


def test_a_run_is_the_command_of_a_ci_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "CACHE", tmp_path)
    quick = ("--duration", "0.1", "--min-samples", "12", "--rounds", "4", "--max-rounds", "4", "--threads", "1")
    monkeypatch.setattr(self_check, "SETTINGS", (*quick, "--no-roofline"))
    found = self_check.run(CASES["planted"], 3)
    assert (found["verdict"], found["exit_code"]) in {("REGRESSION", 1), ("INCONCLUSIVE", 3), ("PASS", 0)}
    assert found["slower"]["low"] <= found["slower"]["value"] <= found["slower"]["high"]
    assert found["floor"] >= 0
    assert "synthetic-inputs" in found["cautions"]
    assert 'seed": 7' in (tmp_path / "slow.json").read_text(), "noise of its own in every run, and on each side"
    assert 'seed": 6' in (tmp_path / "usual.json").read_text()


def test_a_run_that_compares_nothing_ends_everything(tmp_path: Path) -> None:
    nothing = self_check.Case("nothing", lambda number: [f"fake:{tmp_path}/no.json", "--against", "x"], False, 0)
    with pytest.raises(SystemExit, match=r"(?s)ended with exit code 2:.*no such file"):
        self_check.run(nothing, 0)
