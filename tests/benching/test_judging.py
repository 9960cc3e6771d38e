"""The rules by which gates are decided, on rows whose truth is planted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from optimizer.benching.agreement import Agreement
from optimizer.benching.gates import Floor, Gate, Limits, Outcome, exit_code_of, share_of, worst_of
from optimizer.benching.judging import Counts, Look, floor_of, hard_gates, slower_gates
from optimizer.benching.openloop import OpenLoop
from optimizer.benching.report import Cell, Row
from optimizer.benching.stats import summarize
from optimizer.errors import BadInput


def cell(times=1.0, *, noise=0.002, rounds=16, shape="1x8", seed=0):
    random = np.random.default_rng(seed)
    ns = [[round(1e6 * times * np.exp(random.normal(0, noise)))] * 4 for _ in range(rounds)]
    return Cell(shape, 1, 0.1, [1], ns, summarize(ns))


def row(label, *cells, size=1000, **more):
    return Row(label, f"{label}.onnx", "cpu", "", size, cells=tuple(cells), **more)


BASE = row("base", cell(seed=9))


def slower(*rows, base=BASE, tolerance=0.05, floors=(), look=None):
    return slower_gates(base, (base, *rows), tolerance, floors, look or Look())


@pytest.mark.parametrize(
    ("times", "noise", "outcome"),
    [
        (1.0, 0.002, Outcome.PASS),
        (0.5, 0.002, Outcome.PASS),
        (1.04, 0.002, Outcome.PASS),
        (1.10, 0.002, Outcome.REGRESSION),
        (1.05, 0.02, Outcome.INCONCLUSIVE),
        (1.04, 0.2, Outcome.INCONCLUSIVE),
    ],
)
def test_three_verdicts(times, noise, outcome):
    (gate,) = slower(row("head", cell(times, noise=noise)))
    assert (gate.outcome, gate.name, gate.shape, gate.limit) == (outcome, "slower", "1x8", 0.05)
    assert gate.low <= gate.value <= gate.high
    assert "1 × 8" in gate.says


def test_a_tolerance_below_the_noise_floor_cannot_pass():
    head = row("head", cell(1.0))
    floor = Floor("1x8", "base", 1.02, 1.0, 1.06, 0.06)
    (gate,) = slower(head, floors=[floor])
    assert gate.outcome is Outcome.INCONCLUSIVE
    assert "a tolerance of 5 % is below the noise floor of 6 %" in gate.says
    assert slower(head, floors=[replace(floor, share=0.04)])[0].outcome is Outcome.PASS
    assert slower(head, floors=[replace(floor, shape="8x8")])[0].outcome is Outcome.PASS
    assert slower(head, floors=[replace(floor, share=None)])[0].outcome is Outcome.INCONCLUSIVE


def test_what_lies_within_the_noise_floor_is_no_regression_and_what_lies_beyond_is():
    floor = Floor("1x8", "base", 1.0, 0.9, 1.1, 0.12)
    assert slower(row("head", cell(1.10)), floors=[floor])[0].outcome is Outcome.INCONCLUSIVE
    assert slower(row("head", cell(1.50)), floors=[floor])[0].outcome is Outcome.REGRESSION


def test_times_of_a_busy_machine_say_nothing():
    gates = slower(row("head", cell(2.0)), look=Look(busy="but something else used 2.0 cores"))
    assert [gate.outcome for gate in gates] == [Outcome.INCONCLUSIVE]
    assert "something else used 2.0 cores" in gates[0].says


def test_many_cells_are_many_chances_to_be_wrong():
    """Six rounds that agree have p = 1/64: enough for one cell, and not for one of eight."""
    few = {"rounds": 6, "noise": 0.0001}
    shapes = [f"{n}x8" for n in range(1, 9)]
    base = row("base", *(cell(shape=s, **few) for s in shapes))
    one_slow = row("head", cell(2.0, shape=shapes[0], **few), *(cell(shape=s, **few) for s in shapes[1:]))
    gates = slower(one_slow, base=base)
    assert gates[0].outcome is Outcome.INCONCLUSIVE
    (alone,) = slower(row("head", cell(2.0, **few)), base=row("base", cell(**few)))
    assert alone.outcome is Outcome.REGRESSION


def test_every_look_costs_a_part_of_the_error():
    few = {"rounds": 6, "noise": 0.0001}
    head, base = row("head", cell(2.0, **few)), row("base", cell(**few))
    assert slower(head, base=base, look=Look(1))[0].outcome is Outcome.REGRESSION
    assert slower(head, base=base, look=Look(3))[0].outcome is Outcome.INCONCLUSIVE


def test_what_failed_has_no_time_to_judge():
    assert slower(row("dead", error="its process was ended")) == []
    assert slower(row("head", cell(2.0)), base=replace(BASE, error="gone")) == []


def test_the_floor_is_the_farther_end():
    floor = floor_of(cell(1.0, noise=0.01, seed=1), cell(1.0, noise=0.01, seed=2).rounds_ns, "base", Look())
    assert floor.share == pytest.approx(max(floor.high, 1 / floor.low) - 1)
    assert 0 < floor.share < 0.03
    few = floor_of(cell(rounds=2), cell(rounds=2).rounds_ns, "base", Look())
    assert (few.low, few.high, few.share) == (None, None, None)
    assert Floor.from_json(json.loads(json.dumps(few.to_json(), allow_nan=False))) == few


def hard(rows, limits, counts=None, base=BASE):
    return {gate.name: gate for gate in hard_gates(base, (base, *rows), limits, counts or {})}


def test_size_is_held_to_the_byte():
    limits = Limits(larger=0.01)
    assert hard([row("head", size=1010)], limits)["larger"].outcome is Outcome.PASS
    assert hard([row("head", size=1011)], limits)["larger"].outcome is Outcome.REGRESSION


@pytest.mark.parametrize(
    ("changed", "worse"),
    [
        ({}, set()),
        ({"nodes": 101}, {"nodes"}),
        ({"fused": 9}, {"fused"}),
        ({"quantized": 19}, {"quantized"}),
        ({"fell_back": 1}, {"fallback"}),
        ({"nodes": 90, "fused": 12, "quantized": 25}, set()),
    ],
)
def test_a_graph_is_held_to_the_baselines(changed, worse):
    usual = Counts(nodes=100, fused=10, quantized=20, fell_back=0)
    found = hard([row("head")], Limits(degraded=True), {"base": usual, "head": replace(usual, **changed)})
    assert set(found) == {"nodes", "fused", "quantized", "fallback"}
    assert {name for name, gate in found.items() if gate.outcome is Outcome.REGRESSION} == worse


def test_a_graph_that_cannot_be_counted_is_not_waved_through():
    found = hard([row("head")], Limits(degraded=True), {"base": Counts(1, 1, 1, 1)})
    assert found["nodes"].outcome is Outcome.INCONCLUSIVE


def test_counts_come_from_file_and_session():
    graph = {"nodes": 7, "ops": {"Add": 4, "com.microsoft.FastGelu": 3}, "quantized": {"qdq": 2, "total": 2}}
    assert Counts.of(graph, {"provider": "cuda", "nodes": {"cuda": 5, "cpu": 2}}) == Counts(7, 3, 2, 2)
    assert Counts.of(graph, {}).fell_back == 0


def test_answers_are_held_to_what_is_asked():
    limits = Limits(min_agreement=0.95, min_cosine=0.99)
    good = row("head", agreement=Agreement(60, 0.991, 0.999, 0.96))
    bad = row("head", agreement=Agreement(60, 0.989, 0.999, 0.94))
    nothing = row("head", agreement=Agreement(60, 0.991, 0.999))
    assert [gate.outcome for gate in hard([good], limits).values()] == [Outcome.PASS] * 2
    assert [gate.outcome for gate in hard([bad], limits).values()] == [Outcome.REGRESSION] * 2
    assert hard([nothing], limits)["agreement"].outcome is Outcome.INCONCLUSIVE


def test_a_candidate_that_died_is_a_regression_by_itself():
    found = hard([row("dead", error="its process was ended by SIGKILL")], Limits(larger=0.01))
    assert found["measured"].outcome is Outcome.REGRESSION
    assert set(found) == {"measured"}


def test_the_verdict_is_the_worst_of_all():
    def gates(*outcomes):
        return [Gate("slower", "head", outcome, "") for outcome in outcomes]

    every = (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.REGRESSION)
    assert worst_of(gates(*every)) is Outcome.REGRESSION
    assert worst_of(gates(*every[:2])) is Outcome.INCONCLUSIVE
    assert worst_of(gates(Outcome.PASS)) is Outcome.PASS
    assert worst_of([]) is None
    assert [exit_code_of(each) for each in (None, *every)] == [0, 0, 3, 1]


@pytest.mark.parametrize(("text", "unit", "value"), [("5%", "%", 0.05), (" 0.5 pt", "pt", 0.005), ("0%", "%", 0.0)])
def test_shares_are_typed_with_their_unit(text, unit, value):
    assert share_of(text, "--flag", unit, "1") == pytest.approx(value)
    assert share_of(None, "--flag", unit, "1") is None


@pytest.mark.parametrize("text", ["5", "", "five%", "-1%", "inf%", "nan%", "0.5pt"])
def test_a_share_without_its_unit_is_refused(text):
    with pytest.raises(BadInput, match="--fail-if-slower") as raised:
        share_of(text, "--fail-if-slower", "%", "5%")
    assert raised.value.hint == "write --fail-if-slower 5%"


def test_latencies_of_invalid_arrivals_say_nothing():
    loop = OpenLoop(100.0, 100.0, 50.0, 64, {"p50": 0.1, "p99": 9.0, "max": 20.0}, 40, reason="overloaded")
    (gate,) = slower(row("head", replace(cell(2.0), open_loop=loop)))
    assert gate.outcome is Outcome.INCONCLUSIVE
    assert "INVALID: overloaded" in gate.says
    assert slower(row("head", replace(cell(2.0), open_loop=replace(loop, reason=""))))[0].outcome is Outcome.REGRESSION
