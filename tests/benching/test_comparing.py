"""Two runs beside each other: planted drift is taken out, planted slowdowns are found, and noise is called noise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from golden.write import HERE, pair

from optimizer.benching import comparing
from optimizer.benching.comparing import ALLOWANCE, compare_reports
from optimizer.benching.gates import Outcome
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.stats import summarize
from optimizer.errors import BadInput


@pytest.fixture(scope="module")
def golden():
    return BenchReport.read(HERE / "bench-3.json")


def planted(golden, seed, times, *, drift=1.0, noise=0.01, rounds=8, key="same", **settings):
    """Rows ``reference`` and ``judged`` at one shape, whose medians are ``drift`` and ``drift * times`` ms."""
    random = np.random.default_rng(seed)
    common = random.normal(0, noise, (rounds, 1))  # what slows a round slows both
    rows = []
    for label, ms in (("reference", drift), ("judged", drift * times)):
        logs = common + random.normal(0, noise, (rounds, 24))
        every = [[int(ns) for ns in row] for row in ms * 1e6 * np.exp(logs)]
        cell = Cell("8x128", 8, 0.1, [1] * 3, every, summarize(every))
        rows.append(Row(label, f"{label}.onnx", "cpu", f"{label}-{key}" if label == "reference" else str(seed), 1,
                        cells=(cell,)))  # fmt: skip
    return replace(golden, rows=tuple(rows), baseline="reference", gates=(), floors=(), roofline=None, cautions=(),
                   settings={**golden.settings, "shapes": ["8x128"], **settings})  # fmt: skip


def outcome(golden, times, *, tolerance=0.05, seed=0, of=8, **changed):
    base = planted(golden, 2 * seed, 1.0, key="same", rounds=of)
    return compare_reports(base, planted(golden, 2 * seed + 1, times, **changed), tolerance=tolerance)


@pytest.mark.parametrize(
    ("times", "changed", "wanted"),
    [
        (1.0, {}, Outcome.PASS),
        (0.7, {}, Outcome.PASS),
        (1.2, {}, Outcome.REGRESSION),
        (1.05, {}, Outcome.INCONCLUSIVE),  # right at the tolerance, nothing can be said
        (1.0, {"drift": 1.4}, Outcome.PASS),  # the whole machine is slower: the reference says so
        (1.2, {"drift": 0.7}, Outcome.REGRESSION),
        (1.0, {"key": "other"}, Outcome.INCONCLUSIVE),  # no reference: the allowance is wider than the tolerance
        (1.1, {"key": "other"}, Outcome.INCONCLUSIVE),
        (1.3, {"key": "other"}, Outcome.REGRESSION),
        (0.8, {"key": "other"}, Outcome.PASS),
        (1.2, {"rounds": 2}, Outcome.INCONCLUSIVE),  # an interval needs three rounds
        (9.9, {"rounds": 3, "of": 3}, Outcome.INCONCLUSIVE),  # 20 ways to sort 3 + 3 rounds: no p-value below 1 in 20
        (9.9, {"rounds": 4, "of": 4}, Outcome.REGRESSION),
    ],
)
def test_what_is_planted_is_found(golden, times, changed, wanted):
    found = outcome(golden, times, **changed)
    judged = [gate for gate in found.gates if gate.about == "judged"]
    assert [gate.outcome for gate in judged] == [wanted], [gate.says for gate in judged]


def test_drift_is_said_and_taken_out(golden):
    found = outcome(golden, 1.0, drift=1.4)
    (change,) = found.changes
    assert found.reference == change.through == "reference"
    assert found.drift["8x128"] == pytest.approx(0.4, abs=0.03)
    assert change.value == pytest.approx(0.0, abs=0.02)
    assert change.head_ms / change.base_ms == pytest.approx(1.4, abs=0.05)


def test_without_a_reference_times_are_compared_as_they_are_with_a_caution(golden):
    found = outcome(golden, 1.0, drift=1.4, key="other")
    assert found.reference == ""
    assert [change.through for change in found.changes] == ["", ""]
    assert found.changes[1].value == pytest.approx(0.4, abs=0.03)
    assert any("No other row has the same key in both" in caution for caution in found.cautions)
    assert not any("No other row has the same key" in caution for caution in outcome(golden, 1.0).cautions)


def test_a_reference_that_is_alone_is_compared_as_it_is(golden):
    base, head = planted(golden, 0, 1.0), planted(golden, 1, 1.0, drift=1.4)
    found = compare_reports(replace(base, rows=base.rows[:1]), replace(head, rows=head.rows[:1]), tolerance=0.05)
    assert (found.reference, found.drift) == ("", {})
    assert [(change.label, change.through) for change in found.changes] == [("reference", "")]
    assert found.verdict is Outcome.REGRESSION


def test_the_allowance_is_in_the_interval(golden):
    through, raw = outcome(golden, 1.0), outcome(golden, 1.0, key="other")
    for found, is_through in ((through, True), (raw, False)):
        change = found.changes[-1]
        assert change.high - change.value > ALLOWANCE[is_through]
        assert change.value - change.low > ALLOWANCE[is_through] * 0.9
    assert raw.changes[-1].high > through.changes[-1].high


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_noise_is_rarely_called_a_regression_and_the_truth_is_in_the_interval(golden, noise):
    """Nothing changed: of 100 pairs of runs at most 2.5 may be called slower by any amount, and are not, here."""
    found = [outcome(golden, 1.0, tolerance=0.0, seed=seed, noise=noise) for seed in range(100)]
    assert sum(each.verdict is Outcome.REGRESSION for each in found) <= 3
    inside = [each.changes[0].low <= 0.0 <= each.changes[0].high for each in found]
    assert sum(inside) >= 95


def test_without_the_allowance_the_interval_holds_the_truth_as_often_as_it_says(golden, monkeypatch):
    """95 of 100, where rounds are all that varies; of 100, fewer than 88 have less than 0.4 % probability."""
    monkeypatch.setattr(comparing, "ALLOWANCE", {True: 0.0, False: 0.0})
    found = [outcome(golden, 1.0, seed=seed).changes[0] for seed in range(100)]
    assert 88 <= sum(change.low <= 0.0 <= change.high for change in found) <= 99


def test_changes_share_the_error(golden):
    """One p-value in 70, the least that 4 and 4 rounds can give, is enough for one change and not for two."""
    base, head = planted(golden, 0, 1.0, rounds=4), planted(golden, 1, 2.0, rounds=4)
    alone = compare_reports(base, head, tolerance=0.05)
    assert [gate.outcome for gate in alone.gates] == [Outcome.REGRESSION]
    another = replace(base.rows[1], label="another")
    both = compare_reports(
        replace(base, rows=(*base.rows, another)), replace(head, rows=(*head.rows, another)), tolerance=0.05
    )
    assert [gate.outcome for gate in both.gates] == [Outcome.INCONCLUSIVE, Outcome.PASS]


def test_without_a_tolerance_nothing_is_judged(golden):
    found = outcome(golden, 2.0, tolerance=None)
    assert (found.gates, found.verdict, found.exit_code) == ((), None, 0)
    assert found.changes[0].value == pytest.approx(1.0, abs=0.05)


def test_exit_codes(golden):
    assert [outcome(golden, times).exit_code for times in (1.0, 1.2, 1.05)] == [0, 1, 3]
    failed = replace(planted(golden, 1, 1.0).rows[1], cells=(), error="it died", label="other")
    head = planted(golden, 1, 1.0)
    found = compare_reports(planted(golden, 0, 1.0), replace(head, rows=(*head.rows, failed)))
    assert found.exit_code == 1


def other_machine(report, **changed):
    cpu = {**report.environment["cpu"], **changed.pop("cpu", {})}
    versions = {**report.environment["versions"], **changed.pop("versions", {})}
    environment = {**report.environment, "cpu": cpu, "versions": versions, **changed}
    return replace(report, environment=environment)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cpu": {"model": "Another"}}, "processor A Processor and Another"),
        ({"cpu": {"cores": 64}}, "cores 2 and 64"),
        ({"gpus": []}, "GPU A GPU and none"),
        ({"versions": {"onnxruntime": "1.33.0"}}, "onnxruntime 1.32.0 and 1.33.0"),
        ({"versions": {"openvino": "2026.4"}}, "openvino none and 2026.4"),
    ],
)
def test_another_machine_is_refused_unless_insisted(golden, changed, said):
    base = planted(golden, 0, 1.0)
    head = other_machine(planted(golden, 1, 1.0), **changed)
    with pytest.raises(BadInput, match=f"different machines: {said}") as refused:
        compare_reports(base, head)
    assert "--cross-machine" in refused.value.hint
    assert said in compare_reports(base, head, cross_machine=True).cautions


def test_other_threads_are_another_machine(golden):
    with pytest.raises(BadInput, match="threads 2 and 4"):
        compare_reports(planted(golden, 0, 1.0), planted(golden, 1, 1.0, threads=4))


def test_other_versions_are_a_caution(golden):
    head = other_machine(planted(golden, 1, 1.0), versions={"numpy": "3.0"})
    assert "numpy 2.4.0 and 3.0" in compare_reports(planted(golden, 0, 1.0), head).cautions


def test_what_does_not_compare_is_refused(golden):
    base = planted(golden, 0, 1.0)
    with pytest.raises(BadInput, match="different scenarios do not compare: single-stream and server at 5/s"):
        compare_reports(base, planted(golden, 1, 1.0, scenario="server", qps=5.0), cross_machine=True)
    other = replace(base, rows=tuple(replace(row, label=f"other {row.label}") for row in base.rows))
    with pytest.raises(BadInput, match="no candidate at a shape in common") as refused:
        compare_reports(base, other)
    assert "other judged at 8x128" in refused.value.hint


def test_what_is_in_one_report_only_is_said(golden):
    base = planted(golden, 0, 1.0)
    new = replace(base.rows[1], label="new")
    found = compare_reports(base, replace(planted(golden, 1, 1.0), rows=(*planted(golden, 1, 1.0).rows, new)))
    assert "Only in the second: new" in found.cautions


def test_offline_is_compared_by_means(golden):
    def spiked(report):
        row = report.rows[1]
        rounds = [[*each[:-4], *(ns * 3 for ns in each[-4:])] for each in row.cells[0].rounds_ns]
        cell = replace(row.cells[0], rounds_ns=rounds, summary=summarize(rounds))
        return replace(report, rows=(report.rows[0], replace(row, cells=(cell,))))

    for scenario, value in (("single-stream", 0.0), ("offline", 1 / 3)):
        base = planted(golden, 0, 1.0, scenario=scenario)
        found = compare_reports(base, spiked(planted(golden, 1, 1.0, scenario=scenario)))
        assert found.changes[0].value == pytest.approx(value, abs=0.03)


def test_its_json_is_a_document_without_infinity(golden):
    for rounds in (2, 8):
        found = outcome(golden, 1.2, rounds=rounds)
        document = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert document["report"] == "bench-comparison"
        assert len(document["changes"]) == len(document["gates"]) == 1


def test_the_golden_pair_has_one_that_is_slower(golden):
    found = compare_reports(*pair(golden), tolerance=0.05)
    assert found.reference == "mini@1:fp32"
    by_label = {gate.about: gate.outcome for gate in found.gates}
    assert by_label["mini@1:int8"] is Outcome.REGRESSION
    assert found.exit_code == 1
