"""Models that write text: what is tried of them, by which bounds they are judged, and a contest of planted decoders."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.benching.candidates import Entrant
from optimizer.benching.measure import Plan
from optimizer.benching.workload import Writing
from optimizer.data.documents import Document
from optimizer.errors import BadInput, MissingPiece
from optimizer.evaluate.generation import Score, Sliding
from optimizer.runtime import Candidate, Provider
from optimizer.search.contest import Contender, Contest, Rules, contested
from optimizer.search.gates import Outcome
from optimizer.search.machine import Machine
from optimizer.search.texts.candidates import plan_texts
from optimizer.search.texts.gates import agreement_gate, rise, rise_gate, student
from optimizer.search.texts.judge import TextJudge
from optimizer.search.texts.scores import TextScores
from optimizer.stage import get_stage, silent
from optimizer.types import Device

#: Opens a decoder of eight tokens: logits of a table, with planted noise, planted slowness, and planted faults.
PLANTED = f"""
import json, os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np
from evaluate.doubles import Planted
from optimizer.search.texts.worker import main

def opened(candidate, threads):
    asked = json.loads(candidate.path.read_text())
    table = np.array(asked["table"])
    class Slow(Planted):
        def score(self, tokens, read=None):
            time.sleep(asked.get("step_s", 0))
            if asked.get("dies"):
                os._exit(7)
            return super().score(tokens, read)
    return Slow(lambda token, place: table[token % 8], asked.get("vocabulary", 8))

main(opened)
"""
TABLE = 2 * np.random.default_rng(3).standard_normal((8, 8))
PLAN = Plan(shapes=(Writing(1, 4, 4),), threads=1, rounds=3, seconds=0.05, samples=3, timeout=30.0, warm_limit_s=0.1)


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Entrant]:
    """``plant(name, noise, **what it does)``: a decoder that is so far off."""
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)

    def make(name: str, noise: float = 0.0, **does: Any) -> Entrant:
        table = TABLE + noise * np.random.default_rng(5).standard_normal(TABLE.shape)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"table": table.tolist(), **does}))
        return Entrant(Candidate(name, path, Provider("cpu"), command=(sys.executable, str(script))))

    return make


def documents(count: int) -> list[Document]:
    """Texts that the original itself might have written."""
    drawn = np.random.default_rng(9)
    chances = np.exp(TABLE) / np.exp(TABLE).sum(-1, keepdims=True)
    made = []
    for n in range(count):
        tokens = [0]
        while len(tokens) < 40:
            tokens.append(int(drawn.choice(8, p=chances[tokens[-1]])))
        made.append(Document(f"row {n}", tuple(tokens)))
    return made


def held(original: Entrant, *entrants: Entrant, kept: int = 1 << 20, **rules: Any) -> Contest:
    asked = Rules("latency", PLAN, judged_by="perplexity", **rules)
    return contested(
        lambda scratch: TextJudge(original, documents(12), Sliding(16, 8), asked, scratch, silent, kept),
        [Contender(each.label, lambda each=each: each) for each in entrants],  # type: ignore[misc]
        asked,
        silent,
    )


def test_the_fastest_that_keeps_the_budget_wins(plant: Callable[..., Entrant]) -> None:
    original = plant("original", step_s=0.012)
    near, far = plant("near", 0.05, step_s=0.001), plant("far", 1.0)
    contest = held(
        original, plant("exact", step_s=0.006), near, far, plant("dies", dies=True), plant("other", vocabulary=9),
        max_drop=0.02,
    )  # fmt: skip
    by_name = {c.name: c for c in contest.contenders}
    assert (contest.decision.verdict, contest.decision.best) == (Outcome.PASS, "near")
    assert by_name["far"].cut, "what is known to miss the budget is not timed"
    assert by_name["far"].row is None
    assert contest.rivals == 2
    assert "code 7" in by_name["dies"].error
    assert "the original has 8 tokens, and this has 9" in by_name["other"].error
    gate = by_name["near"].gates[0]
    assert (gate.name, gate.limit) == ("perplexity rise", 0.02)
    assert 0 < gate.value < gate.high <= 0.02
    assert "with 97.5% confidence" in gate.says, "shared among two rivals"
    scores = by_name["near"].scores
    assert isinstance(scores, TextScores)
    measures = scores.measures(Rules("latency", PLAN), whole=True)
    assert measures.accuracy is not None
    known = contest.original.measures(Rules("latency", PLAN), whole=True).accuracy
    assert known is not None
    assert measures.accuracy.value / known.value == pytest.approx(1 + gate.value)
    assert 0 < measures.kl["mean"] < 0.01


def test_when_nothing_keeps_the_budget_that_is_the_verdict(plant: Callable[..., Entrant]) -> None:
    contest = held(plant("original"), plant("far", 1.0), max_drop=0.02, kept=0)
    assert contest.decision.verdict is Outcome.FAIL
    (far,) = contest.contenders
    assert far.gates[0].low > 0.02
    assert far.scores is not None
    assert far.scores.rows()["kl"] == [None] * 12, "nothing was kept that it could be known by"
    assert far.scores.measures(Rules("latency", PLAN), whole=True).kl == {}


def test_an_original_that_dies_is_no_verdict(plant: Callable[..., Entrant]) -> None:
    with pytest.raises(BadInput, match="the original, broken, cannot answer"):
        held(plant("broken", dies=True), plant("near"), max_drop=0.02)


def score(nll: float, more: float, same: int = 90) -> Score:
    return Score("row", 100, nll, nll + more, 0.0, same)


def test_a_rise_is_judged_by_its_bounds() -> None:
    found = [score(300.0 + 20 * n, 1.0 + 0.1 * (-1) ** n) for n in range(12)]
    one = rise_gate(found, 0.02, 0.95)
    assert (one.outcome, one.value) == (Outcome.PASS, pytest.approx(math.expm1(0.01)))
    assert rise_gate(found, one.low - 1e-4, 0.95).outcome is Outcome.FAIL
    open_one = rise_gate(found, one.value + 1e-5, 0.95)
    assert open_one.outcome is Outcome.INCONCLUSIVE
    assert open_one.rows_needed is not None
    assert open_one.rows_needed > 12
    assert rise_gate(found, one.value, 0.95).rows_needed is None, "no number of texts settles what lies on the edge"
    assert rise_gate([score(300.0, 0.0)] * 3, 0.0, 0.95).outcome is Outcome.PASS, "what is the same is no worse"


def test_few_texts_promise_no_more_than_they_know() -> None:
    """Of four texts whose true rise is the limit, no more than about 5 % may be called PASS."""
    drawn = np.random.default_rng(1)
    passed = 0
    for _ in range(300):
        found = [score(300.0, 100 * math.log1p(0.02) + float(more)) for more in drawn.standard_normal(4)]
        passed += rise(found, 0.95).high <= 0.02
    assert passed / 300 < 0.09


@pytest.mark.parametrize(
    ("confidence", "degrees", "known"),
    [(0.95, 1, 6.3138), (0.95, 2, 2.9200), (0.975, 10, 2.2281), (0.995, 5, 4.0321), (0.995, 30, 2.7500)],
)
def test_quantiles_are_those_of_the_tables(confidence: float, degrees: int, known: float) -> None:
    assert student(confidence, degrees) == pytest.approx(known, abs=5e-5)


def test_agreement_is_a_share_of_tokens() -> None:
    found = [score(300.0, 1.0, same=90 + n % 3) for n in range(12)]
    gate = agreement_gate(found, 0.8, 0.95)
    assert (gate.outcome, gate.value) == (Outcome.PASS, pytest.approx(0.91))
    assert agreement_gate(found, 0.99, 0.95).outcome is Outcome.FAIL
    undecided = agreement_gate(found, 0.908, 0.95)
    assert undecided.outcome is Outcome.INCONCLUSIVE
    assert undecided.rows_needed is not None
    assert undecided.rows_needed > 12


def test_what_is_tried_on_a_processor() -> None:
    plan = plan_texts(Machine(frozenset()))
    names = [idea.name for idea in plan.ideas]
    assert names[0] == "fp32"
    assert {"int8", "int4", "int4-k_quant_last", "int4-k_quant_mixed", "int4-float-head", "int4-b128"} <= set(names)
    reasons = {left.name: left.reason for left in plan.left_out}
    native = {"bf16-openvino", "int4-openvino", "int8-openvino", "int4-openvino-kv8"}
    assert set(reasons) == {"fp16", "bf16", "fp16-cuda", "bf16-cuda", "int4-cuda"} | native
    assert "lacks the kernels" in reasons["bf16"]
    assert "openvino-native does not work here" in reasons["int4-openvino"]
    stage = get_stage("export-genai")
    variants = set()
    for idea in plan.ideas:
        assert idea.chain == ("export-genai",)
        options = stage.options.from_mapping(idea.steps[0].options, stage.name)
        assert options.precision == idea.precision
        assert stage.variant is not None
        variants.add(stage.variant(options, None))
    assert len(variants) == len(plan.ideas), "no two are the same"


def test_text_to_learn_from_puts_gptq_in_the_place_of_k_quant() -> None:
    plain = {idea.name for idea in plan_texts(Machine(frozenset())).ideas}
    learned = {"calib": "more.jsonl", "column": ["text=body"]}
    ideas = {idea.name: idea.steps[0].options for idea in plan_texts(Machine(frozenset()), learned=learned).ideas}
    replaced = {name.replace("k_quant", "gptq") for name in plain}
    assert set(ideas) == replaced | {"int4-gptq-b128"}
    for name, options in ideas.items():
        assert {"calib", "column"} <= set(options) if "gptq" in name else "calib" not in options
    stage = get_stage("export-genai")
    assert stage.options.from_mapping(ideas["int4-gptq_mixed"], stage.name).calib == Path("more.jsonl")


def test_what_is_tried_where_openvino_is() -> None:
    """What ONNX Runtime runs, at another place; in bf16 where the processor computes in it."""
    here = frozenset({"cpu", "openvino-native"})
    plan = plan_texts(Machine(frozenset({"avx512_bf16"}), providers=here), precisions=("fp32", "bf16", "int8"))
    found = {idea.name: (str(idea.provider), idea.precision, idea.steps[0].options) for idea in plan.ideas}
    assert found["bf16-openvino"] == ("openvino-native:bf16", "bf16", {"precision": "fp32"})
    assert found["int8-openvino"] == ("openvino-native:bf16", "int8", {"precision": "int8"})
    plan = plan_texts(Machine(frozenset(), providers=here))
    found = {idea.name: str(idea.provider) for idea in plan.ideas}
    assert (found["int4-openvino"], found["int4-openvino-kv8"]) == ("openvino-native", "openvino-native:fp32-kv8")
    assert "no bf16" in {left.name: left.reason for left in plan.left_out}["bf16-openvino"]
    assert "int4-openvino-gptq" not in found, "without text to learn from"
    learned = plan_texts(Machine(frozenset({"avx512_bf16"}), providers=here), learned={"calib": "more.jsonl"})
    (idea,) = (idea for idea in learned.ideas if idea.name == "int4-openvino-gptq")
    assert (str(idea.provider), idea.steps[0].options) == (
        "openvino-native:bf16",
        {"precision": "int4", "algorithm": "gptq_last", "calib": "more.jsonl"},
    )
    (same,) = (each for each in learned.ideas if each.name == "int4-gptq_last")
    assert same.steps == idea.steps, "one file for both"


def test_a_target_chooses_what_writes() -> None:
    here = Machine(frozenset({"avx512_bf16"}), providers=frozenset({"cpu", "cuda", "openvino-native"}))

    def providers(**asked: Any) -> set[str]:
        return {idea.provider.name for idea in plan_texts(here, **asked).ideas}

    assert providers(targets=("ort",)) == {"cpu", "cuda"}
    assert providers(targets=("openvino",)) == {"openvino-native"}
    assert providers(targets=("ort", "openvino")) == providers() == {"cpu", "cuda", "openvino-native"}
    left = {each.name: each.reason for each in plan_texts(here, targets=("ort",)).left_out}
    assert left["int4-openvino-kv8"] == "--target ort was asked for"
    with pytest.raises(BadInput, match=r"nothing is left to try .*reads? with an encoder") as caught:
        plan_texts(here, targets=("openvino",), pairs=True)
    assert "--target" in caught.value.hint


def test_what_is_tried_on_a_gpu_and_what_was_asked_for() -> None:
    gpu = Machine(frozenset(), providers=frozenset({"cpu", "cuda"}))
    plan = plan_texts(gpu, device=Device.CUDA, precisions=("fp16", "int4"), common={"max_length": 64})
    assert [idea.name for idea in plan.ideas] == ["fp16-cuda", "int4-cuda"]
    assert plan.ideas[0].steps[0].options == {"precision": "fp16", "provider": "cuda", "max_length": 64}
    with pytest.raises(MissingPiece, match="NVIDIA GPU"):
        plan_texts(Machine(frozenset()), device=Device.CUDA)
    with pytest.raises(BadInput, match=r"nothing is left to try \(fp16-cuda: .*lacks the kernels"):
        plan_texts(Machine(frozenset()), precisions=("fp16",))
