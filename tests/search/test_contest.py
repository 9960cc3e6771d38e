"""Planted candidates: what is wrong must lose, what is slower must not win, what breaks must not stop the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benching.passes import workload_of

from optimizer.benching.candidates import Entrant
from optimizer.benching.measure import Plan
from optimizer.benching.roofline import roofline_s
from optimizer.benching.shape import Shape
from optimizer.benching.stats import Ratio
from optimizer.data.batching import Batching
from optimizer.data.preprocess import Preprocessor
from optimizer.errors import BadInput
from optimizer.evalset import EvalSet
from optimizer.runtime import Candidate, Provider, SessionOptions
from optimizer.runtimes.fake import FakeModel, FakeSession
from optimizer.search.bootstrap import bootstrapped_gate
from optimizer.search.contest import Contender, Contest, Rules, hold
from optimizer.search.gates import Outcome
from optimizer.stage import silent
from optimizer.tasks._accuracy import ACCURACY
from optimizer.tasks._entities import ENTITY_F1, Tagged

INPUT = {"name": "x", "dtype": "float32", "shape": ["batch", "sequence"]}
LOGITS = {"name": "logits", "dtype": "float32", "shape": ["batch", 4]}
MODEL = {"task": "text-classification", "labels": ["a", "b", "c", "d"], "inputs": [INPUT]}
PLAN = Plan(shapes=(Shape(2, 3),), threads=1, rounds=3, seconds=0.05, samples=6, timeout=30.0, warm_limit_s=0.3)


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Entrant]:
    """``plant(name, **what it does)``: a candidate with planted speed and planted errors."""

    def make(name: str, **does: Any) -> Entrant:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"outputs": [LOGITS], "wait": "sleep", **does}))
        return Entrant(Candidate(name, path, Provider("fake")))

    return make


def rows_of(tmp_path: Path, count: int, mistakes: float = 0.1) -> EvalSet:
    """Rows whose labels are what a right model answers, but for some mistakes of the original."""
    random = np.random.default_rng(7)
    x = random.standard_normal((count, 3)).astype(np.float32)
    right = FakeSession(FakeModel(outputs=[LOGITS]), SessionOptions()).run({"x": x})["logits"].argmax(1)
    label = np.where(random.random(count) < mistakes, (right + 1) % 4, right)
    np.savez(tmp_path / "rows.npz", x=x, label=label)
    return EvalSet.open(tmp_path / "rows.npz", Preprocessor.open(tmp_path, MODEL), ACCURACY, MODEL)


def contest(original: Entrant, entrants: list[Entrant], rows: EvalSet, **rules: Any) -> Contest:
    contenders = [Contender(e.label, lambda e=e: e) for e in entrants]
    settings: dict[str, Any] = {"objective": "latency", "plan": PLAN, "metric": ACCURACY, "max_drop": 0.02, **rules}
    return hold(original, contenders, rows, MODEL, Rules(**settings), silent)


def test_the_fastest_that_keeps_the_budget_wins(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 400)
    found = contest(
        plant("original", latency_s=0.05),
        [
            plant("slower", latency_s=0.03),
            plant("wrong", latency_s=0.001, wrong=0.2),
            plant("right", latency_s=0.006),
            plant("nan", latency_s=0.001, nan=True),
            plant("dies", latency_s=0.001, die_after=3),
        ],
        rows,
    )
    by_name = {c.name: c for c in found.contenders}
    assert (found.decision.verdict, found.decision.best) == (Outcome.PASS, "right")
    assert by_name["wrong"].gates[0].outcome is Outcome.FAIL
    assert by_name["wrong"].cut
    assert by_name["wrong"].seen == 64
    assert found.decision.reasons["wrong"].startswith("after 64 of 400 rows: accuracy falls by")
    assert by_name["wrong"].row is None, "what is out at first look is never timed"
    assert by_name["slower"].seen == 64
    assert by_name["right"].seen == 400
    assert by_name["slower"].unjudged.startswith(
        "not judged on all rows: 64 rows do not speak against it, but it takes"
    )
    assert "NaN" in by_name["nan"].error
    assert "SIGKILL" in by_name["dies"].error
    scores = by_name["wrong"].scores
    assert scores is not None
    assert scores.top1 is not None
    assert 0.65 < np.mean(scores.top1) < 0.95
    # In the order of the data file: a row that is scored right is one whose label is what was answered.
    assert found.original.right is not None
    with np.load(tmp_path / "rows.npz") as stored:
        session = FakeSession(FakeModel(outputs=[LOGITS]), SessionOptions())
        expected = session.run({"x": stored["x"]})["logits"].argmax(1) == stored["label"]
    assert np.array_equal(np.array(found.original.right, bool), expected)


def test_a_lucky_small_sample_is_inconclusive(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 20)
    found = contest(plant("original"), [plant("lucky", latency_s=0.001)], rows, max_drop=0.001)
    assert found.decision.verdict is Outcome.INCONCLUSIVE
    assert found.decision.best == ""
    assert found.decision.rows_needed == 2703


def test_a_hang_is_one_candidates_end(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    found = contest(
        plant("original"),
        [plant("hangs", hang_after=0), plant("right")],
        rows_of(tmp_path, 200),
        plan=replace(PLAN, timeout=8.0),
        max_drop=0.05,
    )
    assert "hung" in found.contenders[0].error
    assert found.decision.best == "right"


def test_what_cannot_be_made_is_out_and_the_others_go_on(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    def never() -> Entrant:
        raise BadInput("cannot be quantized")

    right = plant("right")
    rules = Rules("latency", PLAN, ACCURACY, max_drop=0.05)
    contenders = [Contender("never", never), Contender("right", lambda: right)]
    found = hold(plant("original"), contenders, rows_of(tmp_path, 200), MODEL, rules, silent)
    assert found.decision.best == "right"
    assert found.decision.reasons["never"] == "cannot be quantized"


def test_the_time_budget_stops_between_candidates(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 30)
    right = plant("right")

    def slow() -> Entrant:
        import time

        time.sleep(6.0)
        return right

    plenty = Rules("latency", PLAN, ACCURACY, max_drop=1.0, budget_s=14.0)
    contenders = [Contender("slow", slow), Contender("late", lambda: right)]
    found = hold(plant("original"), contenders, rows, MODEL, plenty, silent)
    assert [c.skipped for c in found.contenders] == [False, True]
    assert "time budget" in found.decision.reasons["late"]
    with pytest.raises(BadInput, match="time budget of 2 s is too small for one candidate"):
        contest(plant("original"), [right], rows, budget_s=2.0)


def test_fidelity_needs_no_labels(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 100)
    found = contest(
        plant("original"),
        [plant("same"), plant("off", offset=0.5), plant("wrong", wrong=0.3)],
        rows,
        metric=None,
        max_drop=None,
        min_agreement=0.9,
        min_cosine=0.999,
    )
    same, off, wrong = (c.gates for c in found.contenders)
    assert [gate.outcome for gate in same] == [Outcome.PASS, Outcome.PASS]
    assert [gate.outcome for gate in off] == [Outcome.PASS, Outcome.FAIL]
    assert [gate.outcome for gate in wrong] == [Outcome.FAIL, Outcome.FAIL]
    assert found.contenders[0].scores is not None
    assert found.contenders[0].scores.right is None
    assert found.decision.best == "same"


def test_the_objective_decides_what_is_best(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 150)
    entrants = [plant("large", latency_s=0.002, chatter=" " * 40), plant("small", latency_s=0.008)]
    assert contest(plant("original", latency_s=0.01), entrants, rows, max_drop=0.1).decision.best == "large"
    small = contest(plant("original", latency_s=0.01), entrants, rows, max_drop=0.1, objective="size")
    assert small.decision.best == "small"
    assert "times as large" in small.decision.reasons["large"]


def test_an_original_that_cannot_answer_ends_it(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    with pytest.raises(BadInput, match="the original, original, cannot answer"):
        contest(plant("original", fail_after=0), [plant("right")], rows_of(tmp_path, 30))


def test_only_what_may_be_best_answers_every_row(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    """Cut at first look, cut at a later one, judged, and not worth judging: counted in rows."""
    rows = rows_of(tmp_path, 600, mistakes=0.0)
    found = contest(
        plant("original", latency_s=0.02),
        [
            plant("hopeless", latency_s=0.001, wrong=0.4),
            plant("bad", latency_s=0.002, wrong=0.1),
            plant("right", latency_s=0.005),
            plant("also right", latency_s=0.012),
        ],
        rows,
    )
    seen = {c.name: c.seen for c in found.contenders}
    assert seen["hopeless"] == 75
    assert seen["bad"] in (75, 150, 300)
    assert (seen["right"], seen["also right"]) == (600, 75)
    assert found.decision.best == "right"
    assert found.quick is not None
    assert "also right" not in {row.label for row in found.bench.rows}, "what cannot win is not timed to the end"
    assert found.winner_s is not None
    assert found.winner_s < sum(found.seconds.values())


def test_the_error_is_shared_by_those_that_may_win(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    """Zero of 600 rows lost: good enough for a budget of .01 alone, and not among thirty."""
    from optimizer.search.gates import paired_drop

    rows = rows_of(tmp_path, 600)
    alone = contest(plant("original"), [plant("right", latency_s=0.001)], rows, max_drop=0.0046)
    assert alone.contenders[0].gates[0].high == paired_drop(0, 0, 600, 0.95).high
    assert alone.decision.verdict is Outcome.PASS
    kin = [plant(f"right {number}", latency_s=0.001) for number in range(3)]
    among = contest(plant("original"), [*kin, plant("wrong", wrong=0.5)], rows, max_drop=0.0046)
    assert among.rivals == 3, "what was cut has no share"
    judged = [c for c in among.contenders if c.seen == 600]
    assert judged[0].gates[0].high == paired_drop(0, 0, 600, 1 - 0.05 / 3).high
    assert among.decision.verdict is Outcome.INCONCLUSIVE


def test_two_lost_and_two_won_of_600_pass_among_eight(tmp_path: Path) -> None:
    """What static int8 does to a sentiment classifier must stay a PASS."""
    from optimizer.search.gates import drop_gate
    from optimizer.search.looks import final_confidence

    original = [1.0] * 598 + [0.0] * 2
    candidate = [0.0] * 2 + [1.0] * 598
    assert drop_gate(original, candidate, 0.02, final_confidence(0.95, 8)).outcome is Outcome.PASS
    assert drop_gate(original, candidate, 0.01, final_confidence(0.95, 8)).outcome is Outcome.INCONCLUSIVE


def test_a_yardstick_is_timed_and_cannot_win(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 100)
    right = plant("right", latency_s=0.004)
    rules = Rules("latency", PLAN, ACCURACY, max_drop=0.1)
    found = hold(
        plant("original", latency_s=0.008), [Contender("right", lambda: right)], rows, MODEL, rules, silent,
        yardstick=plant("beside", latency_s=0.001),
    )  # fmt: skip
    assert found.decision.best == "right"
    assert found.yardstick is not None
    assert found.yardstick.cells[0].speedup is not None
    assert found.yardstick.cells[0].speedup.value > 3


def test_a_pass_over_data_is_timed_in_the_batches_that_suit_each(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    """A model that pays for each call wants the largest budget; throughput counts rows and not calls."""
    rows = rows_of(tmp_path, 100)
    plan = replace(PLAN, shapes=(workload_of(tmp_path, 400, Batching(rows=8)),))
    found = contest(
        plant("original", row_s=0.0002),
        [plant("slow", row_s=0.00015), plant("by call", latency_s=0.004)],
        rows, objective="throughput", plan=plan, max_drop=0.1,
    )  # fmt: skip
    assert found.decision.best == "by call"
    row = next(row for row in found.bench.rows if row.label == "by call")
    assert row.cells[0].batching == "tokens:4096", "the one budget that 400 rows of eight steps fit in at once"
    assert found.quick is not None
    tried = next(row for row in found.quick.rows if row.label == "by call")
    assert [cell.batching for cell in (*tried.cells, *tried.beside)] == [f"tokens:{512 << n}" for n in range(4)]
    assert row.beside == ()
    original = next(row for row in found.bench.rows if row.label == "original")
    assert [cell.batching for cell in original.cells] == ["sorted:8"]


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ({"float32": 3, "bfloat16": 1, "fell_back": ["a", "b"]}, "asked for int8 and got none: of its 4 products 3 in"),
        ({"int8": 1, "float32": 3, "fell_back": []}, ""),
        ({"int8-weights": 4, "fell_back": []}, ""),
        ({"int4-weights": 4, "fell_back": []}, "asked for int8 and got none"),
        ({"fell_back": []}, ""),
        (None, ""),
    ],
)
def test_what_ran_is_held_to_what_was_asked(
    tmp_path: Path, plant: Callable[..., Entrant], runs: dict[str, Any] | None, reason: str
) -> None:
    rows = rows_of(tmp_path, 100)
    entrant = plant("int8", latency_s=0.001, runs=runs)
    contenders = [Contender("int8", lambda: entrant, asked="int8")]
    rules = Rules("latency", PLAN, min_agreement=0.9)
    found = hold(plant("original", latency_s=0.005), contenders, rows, MODEL, rules, silent)
    assert found.contenders[0].error.startswith(reason)
    assert bool(found.contenders[0].error) is bool(reason)
    assert found.contenders[0].runs == runs
    assert found.decision.verdict is (Outcome.FAIL if reason else Outcome.PASS)


def test_who_asked_for_nothing_is_held_to_nothing(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    fp32 = plant("fp32", latency_s=0.001, runs={"float32": 4, "fell_back": []})
    found = hold(
        plant("original", latency_s=0.005),
        [Contender("fp32", lambda: fp32)],
        rows_of(tmp_path, 100),
        MODEL,
        Rules("latency", PLAN, min_agreement=0.9),
        silent,
    )
    assert found.decision.best == "fp32"


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_a_planted_loser_of_f1_loses_early(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    """Entities of three words a row: bounds by bootstrap, at the first look and over all rows."""
    output = {"name": "logits", "dtype": "float32", "shape": ["batch", "sequence", 5]}
    model = {"task": "token-classification", "labels": TAGS, "inputs": [INPUT]}
    x = np.random.default_rng(7).standard_normal((400, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x)
    right = FakeSession(FakeModel(outputs=[output]), SessionOptions()).run({"x": x})["logits"].argmax(-1)
    truths = [Tagged(tuple(TAGS[tag] for tag in row), (0, 1, 2)) for row in right]
    metric = replace(ENTITY_F1, truths=lambda rows, preprocessor, model: truths)
    rows = EvalSet.open(tmp_path / "rows.npz", Preprocessor.open(tmp_path, model), metric, model)
    entrants = [
        plant("wrong", outputs=[output], wrong=0.3, latency_s=0.001),
        plant("right", outputs=[output], latency_s=0.006),
    ]
    contenders = [Contender(e.label, lambda e=e: e) for e in entrants]
    rules = Rules("latency", PLAN, metric, max_drop=0.05)
    original = plant("original", outputs=[output], latency_s=0.02)
    found = hold(original, contenders, rows, model, rules, silent)
    wrong, good = found.contenders
    assert (found.decision.verdict, found.decision.best) == (Outcome.PASS, "right")
    assert wrong.cut
    assert wrong.seen == 64
    assert found.decision.reasons["wrong"].startswith("after 64 of 400 rows: f1 falls by")
    assert wrong.gates[0].low > 0.05
    assert good.gates == (bootstrapped_gate(metric, found.original.right, good.scores.right, 0.05, 0.95, PLAN.seed),)
    assert good.gates[0].value == 0
    assert 0 < good.gates[0].high < 0.02
    assert found.original.right == tuple(map(list, metric.score({"logits": np.eye(5)[right]}, {}, truths, model)))
    assert good.scores.kl == pytest.approx([0.0] * 400, abs=1e-9)
    assert max(wrong.scores.kl) > 0.1


@pytest.mark.parametrize(("low", "best"), [(0.98, "plain"), (1.02, "faster")])
def test_fp32_is_kept_where_nothing_is_known_to_be_better(
    tmp_path: Path, plant: Callable[..., Entrant], monkeypatch: pytest.MonkeyPatch, low: float, best: str
) -> None:
    """The estimate is twice as fast both times; what decides is the lower end of its interval against the export."""
    monkeypatch.setattr("optimizer.search.timing.speedup", lambda *rounds: Ratio(2.0, low, 3.0))
    monkeypatch.setattr("optimizer.search.timing.behind", lambda *rest: "")
    contenders = [
        Contender(name, lambda e=plant(name, latency_s=seconds): e, plain=name == "plain")
        for name, seconds in (("faster", 0.004), ("plain", 0.008), ("slower", 0.016))
    ]
    rules = Rules("latency", PLAN, ACCURACY, max_drop=0.1)
    found = hold(plant("original", latency_s=0.02), contenders, rows_of(tmp_path, 150), MODEL, rules, silent)
    assert found.decision.best == best
    said = found.decision.reasons["faster"]
    assert ("not known to be better than the plain export" in said) is (best == "plain")


def test_the_plain_export_is_timed_with_the_winner_however_far_behind_it_seemed(
    tmp_path: Path, plant: Callable[..., Entrant]
) -> None:
    contenders = [
        Contender(name, lambda e=plant(name, latency_s=seconds): e, plain=name == "plain")
        for name, seconds in (("faster", 0.004), ("plain", 0.016), ("slower", 0.016))
    ]
    rules = Rules("latency", PLAN, ACCURACY, max_drop=0.1)
    found = hold(plant("original", latency_s=0.02), contenders, rows_of(tmp_path, 150), MODEL, rules, silent)
    assert found.decision.best == "faster"
    assert {c.name: c.seen for c in found.contenders} == {"faster": 150, "plain": 150, "slower": 64}
    assert {"faster", "plain"} <= {row.label for row in found.bench.rows}
    assert "slower" not in {row.label for row in found.bench.rows}


def test_a_candidate_must_be_smaller_where_size_counts(tmp_path: Path, plant: Callable[..., Entrant]) -> None:
    rows = rows_of(tmp_path, 150)
    rules = Rules("size", PLAN, ACCURACY, max_drop=0.1)
    same, plain = plant("same"), plant("plain")
    contenders = [Contender("same", lambda: same), Contender("plain", lambda: plain, plain=True)]
    assert hold(plant("original"), contenders, rows, MODEL, rules, silent).decision.best == "plain"


def test_the_time_of_timing_has_the_quick_one_and_the_roofs_in_it() -> None:
    bare, under_roofs = Rules("latency", PLAN), Rules("latency", replace(PLAN, roofline=True))
    alone = 0.05 * 1.5 + 3.0
    assert bare.timing_s(4) == pytest.approx(4 * (alone + alone / 4))
    assert bare.timing_s(4, call_s=1.0) > 4 * (6 + 3)
    assert under_roofs.timing_s(4) - bare.timing_s(4) == pytest.approx(roofline_s(4))
    assert under_roofs.timing_s(9) - bare.timing_s(9) == pytest.approx(roofline_s(4)), "arithmetics are four"
