"""Gates from command line to exit code, with candidates whose truth is planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benching.small import small_store

from optimizer.benching import run as benching
from optimizer.benching.gates import Outcome
from optimizer.benching.report import BenchReport, Doubt
from optimizer.check import get_check
from optimizer.checks.bench import Bench
from optimizer.cli.main import run
from optimizer.errors import BadInput
from optimizer.stage import silent
from optimizer.store import Store

__all__ = ["small_store"]

QUICK = {"duration": 0.3, "min_samples": 8, "threads": 1, "timeout": 30.0, "roofline": False, "shape": ("1x4",)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Gates are about candidates here, and not about what else runs on the machine of these tests."""
    monkeypatch.setattr(benching, "is_busy", lambda others, threads: False)
    monkeypatch.setattr(benching, "busy_now", lambda threads: None)


@pytest.fixture
def fake(tmp_path):
    def make(name, latency_s=0.004, **model):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"latency_s": latency_s, "wait": "sleep", **model}))
        return f"fake:{path}"

    return make


def bench(store, *refs, **options):
    return get_check("bench").run(refs, Bench(**{**QUICK, **options}), store, silent)


def of(report, name):
    return [gate.outcome for gate in report.gates if gate.name == name]


def test_what_takes_twice_as_long_is_a_regression(tmp_path, fake):
    report = bench(Store(tmp_path / "s"), fake("head", 0.008), against=fake("base"), fail_if_slower="5%")
    assert of(report, "slower") == [Outcome.REGRESSION]
    assert (report.verdict, report.exit_code, report.rounds) == (Outcome.REGRESSION, 1, 8)
    (gate,) = report.gates
    assert gate.about.endswith("head.json")
    assert 0.5 < gate.value < 1.5


def test_what_takes_as_long_passes(tmp_path, fake):
    report = bench(Store(tmp_path / "s"), fake("head"), against=fake("base"), fail_if_slower="40%", self_check=True)
    assert (report.verdict, report.exit_code) == (Outcome.PASS, 0)
    (floor,) = report.floors
    assert floor.about == report.baseline
    assert 0 < floor.share < 0.4
    assert len(report.rows) == 2
    assert len(floor.rounds_ns) == report.rounds


def test_what_cannot_be_told_gets_more_rounds_and_then_says_so(tmp_path, fake):
    """Five rounds that all agree have p = 1/32, which is too much whatever they say."""
    noisy = {"noise": 0.8, "seed": 3}
    report = bench(
        Store(tmp_path / "s"),
        fake("head", **noisy),
        against=fake("base", noise=0.8, seed=5),
        fail_if_slower="1%",
        duration=0.05,
        rounds=3,
        max_rounds=5,
    )
    assert (report.verdict, report.exit_code) == (Outcome.INCONCLUSIVE, 3)
    assert report.rounds == 5
    assert "raise --max-rounds" in report.gates[0].says
    assert report.settings["limits"] == {"slower": 0.01}


def test_a_busy_machine_is_inconclusive_with_the_reason(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(benching, "is_busy", lambda others, threads: True)
    report = bench(Store(tmp_path / "s"), fake("head", 0.008), against=fake("base"), fail_if_slower="5%")
    assert (report.exit_code, report.rounds) == (3, 8)
    assert "something else used" in report.gates[0].says
    assert [caution.doubt for caution in report.cautions].count(Doubt.LOAD) == 1


def test_one_that_dies_fails_and_the_rest_is_judged(tmp_path, fake):
    report = bench(
        Store(tmp_path / "s"), fake("dead", die_after=20), fake("head"), against=fake("base"), fail_if_slower="40%"
    )
    assert report.exit_code == 1
    assert of(report, "measured") == [Outcome.REGRESSION]
    assert of(report, "slower") == [Outcome.PASS]


def test_files_graphs_and_answers_are_gates_too(small_store):
    report = bench(
        small_store,
        "small:noisy",
        against="small:fp32",
        fail_if_larger="1%",
        fail_if_degraded=True,
        min_cosine=0.999,
        duration=0.05,
    )
    outcomes = {gate.name: gate.outcome for gate in report.gates}
    same = dict.fromkeys(("larger", "nodes", "fused", "quantized", "fallback"), Outcome.PASS)
    assert outcomes == {**same, "cosine": Outcome.REGRESSION}
    assert report.exit_code == 1
    assert BenchReport.read(Path(report.path)) == report


def test_a_against_a_alone_is_the_noise_floor(small_store):
    report = bench(small_store, "small:fp32", self_check=True, duration=0.05)
    assert [row.label for row in report.rows] == ["small:fp32"]
    assert report.floors[0].shape == "1x4"
    assert (report.verdict, report.exit_code) == (None, 0)


def test_gates_need_something_to_be_held_against(small_store):
    with pytest.raises(BadInput, match="is the baseline itself") as raised:
        bench(small_store, "small:fp32", fail_if_slower="5%")
    assert raised.value.hint == "add --against REF"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fail_if_slower": "5"}, "is no number of %"),
        ({"fail_if_worse": "1pt"}, "labelled rows"),
        ({"metric": "accuracy"}, "labelled rows"),
        ({"fail_if_slower": "5%", "rounds": 2}, "three rounds"),
    ],
)
def test_what_cannot_be_gated_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        Bench(**options)


def test_the_terminal_shows_floor_gates_and_verdict(tmp_path, fake, capsys):
    words = ["bench", fake("head", 0.008), "--against", fake("base"), "--fail-if-slower", "5%", "--self-check"]
    code = run([*words, "--shape", "1x4", "--duration", "0.3", "--no-roofline", "--store", str(tmp_path / "s"), "-q"])
    said = capsys.readouterr().out
    assert code == 1
    assert "noise floor at 1 × 4: " in said
    assert "slower at 1x4: +" in said
    assert "REGRESSION against fake:" in said


def test_copies_are_told_apart_from_the_call(tmp_path, fake):
    report = bench(Store(tmp_path / "s"), fake("copying", 0.002, copy_s=0.02), fake("bound", 0.002), duration=0.05)
    copying, bound = (row.cells[0] for row in report.rows)
    assert copying.copy_ms == pytest.approx(20, rel=0.3)
    assert abs(bound.copy_ms) < 5
    assert copying.summary.p50_ms < 10
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report
